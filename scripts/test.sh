#!/usr/bin/env bash
# Install kdistill if needed and run the tests; `--slow` runs the slow ones too, other arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
make_environment
cd "$ROOT"
select=(-m "not slow")
if [ "${1:-}" = --slow ]; then
    select=()
    shift
fi
# a process for each core; the tests themselves use one thread
exec "$VENV/bin/python" -m pytest -n auto --dist worksteal ${select[@]+"${select[@]}"} "$@"
