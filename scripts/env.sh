# Sourced by run.sh and test.sh: makes .venv with kdistill and everything it needs, once.
# A stamp of pyproject.toml and the Python version tells whether there is something to do.
#
#   KDISTILL_PYTHON   the Python to make the environment with (default: python3, python3.13, .12, .11)
#   KDISTILL_TORCH    default: the ordinary build of torch; cpu: the smaller CPU build (needs uv);
#                     auto (unset): the CPU build where uv is there and no NVIDIA driver, else the ordinary one

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

find_python() {
    local candidate
    for candidate in ${KDISTILL_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "kdistill needs Python 3.11 or newer; set KDISTILL_PYTHON to one (got: ${KDISTILL_PYTHON:-$(python3 --version 2>&1)})" >&2
    return 1
}

install_with_uv() {
    local torch="${KDISTILL_TORCH:-auto}"
    if [ "$torch" = auto ] && ! command -v nvidia-smi >/dev/null; then
        # the CPU build comes from an index of its own, which may be out of reach
        uv pip install --quiet --python "$VENV/bin/python" --torch-backend=cpu torch torchvision 2>/dev/null || true
    elif [ "$torch" = cpu ]; then
        uv pip install --quiet --python "$VENV/bin/python" --torch-backend=cpu torch torchvision
    fi
    uv pip install --quiet --python "$VENV/bin/python" -e "$ROOT[dev]"
}

install_with_pip() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "$ROOT[dev]"
}

make_environment() {
    local python stamp
    python="$(find_python)"
    stamp="$(cat "$ROOT/pyproject.toml" <("$python" --version) | cksum)"
    if [ -x "$VENV/bin/kdistill" ] && [ "$(cat "$VENV/kdistill.stamp" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    echo "installing kdistill into $VENV (once; torch is large, this takes a minute or more)" >&2
    if command -v uv >/dev/null; then
        [ -x "$VENV/bin/python" ] || uv venv --quiet --python "$python" "$VENV"
        install_with_uv
    else
        if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
            "$python" -m venv "$VENV" || {
                echo "python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2
                return 1
            }
        fi
        install_with_pip
    fi
    echo "$stamp" >"$VENV/kdistill.stamp"
}
