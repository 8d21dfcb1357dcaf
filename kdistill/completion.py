"""Completion with the Tab key, for bash and zsh. The first word is ours, keys and options come from Hydra."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Sequence

from kdistill.config import folders
from kdistill.console import say
from kdistill.errors import ConfigError, KdistillError, did_you_mean
from kdistill.helptext import COMMANDS, STAGES
from kdistill.words import FLAGS, SHORT

# bash cuts words at = @ and : as well, and replaces only what follows the last cut.
BASH = """\
_kdistill() {
    local line="${COMP_LINE:0:COMP_POINT}" current="${COMP_WORDS[COMP_CWORD]}" word cut IFS=$'\\n'
    word="${line##* }"
    case "$current" in [=@:]) current="" ;; esac
    cut="${word%"$current"}"
    COMPREPLY=($(COMP_LINE="$line" command kdistill -sc query=bash 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -o nospace -o default -F _kdistill kdistill"""

ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_kdistill() {
    local -a found
    found=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT]}" command kdistill -sc query=zsh 2>/dev/null)"})
    compadd -Q -S '' -- $found
}
compdef _kdistill kdistill"""

SCRIPTS = {
    "install=bash": BASH,
    "install=zsh": ZSH,
    "uninstall=bash": "complete -r kdistill; unset -f _kdistill",
    "uninstall=zsh": "compdef -d kdistill; unfunction _kdistill",
}
#: settings that take the name of an option, and the group it comes from
MOUNTED = {
    **{f"{part}.optim": "optim" for part in ("teacher", "student", "finetune")},
    **{f"{part}.optim.schedule": "schedule" for part in ("teacher", "student", "finetune")},
}


def main(words: Sequence[str]) -> int:
    """Answer `kdistill -sc install=bash|zsh`, `uninstall=...` and the shell's own `query=...`."""
    request = words[0] if len(words) == 1 else " ".join(words)
    if request in SCRIPTS:
        say(SCRIPTS[request])
        return 0
    if request in ("query=bash", "query=zsh"):
        # Nothing may be printed beside the answers: the user is in the middle of a line.
        with contextlib.suppress(KdistillError):
            say("\n".join(complete(os.environ.get("COMP_LINE", ""))))
        return 0
    raise ConfigError(f"-sc {request}: expected install=bash or install=zsh.{did_you_mean(request, SCRIPTS)}")


def complete(line: str) -> list[str]:
    """Return what the last word of `line` may become; `line` starts with the name of the program."""
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    folders.use_folders(
        [value for flag, value in itertools.pairwise(words) if flag in ("--config-dir", "-cd")]
    )
    expected = FLAGS.get(SHORT.get(words[-1], words[-1])) if words else None
    if expected is not None:
        return _starting(word, expected if isinstance(expected, list) else [])
    if word.startswith("-"):
        return _starting(word, list(FLAGS))
    command = next((name for name in words if name in COMMANDS), None)
    if command is None:
        return [f"{name} " for name in _starting(word, COMMANDS)]
    if command == "explain":
        from kdistill.config.methods import METHODS

        return _starting(word, list(METHODS))
    if command == "list" and "layers" not in words:
        from kdistill.listing import KINDS

        return _starting(word, KINDS)
    if command == "plot":
        from kdistill.reporting.catalogue import FIGURES

        return _starting(word, [*FIGURES, "out=", "runs="])
    if command == "report":
        return _starting(word, ["out=", "runs="])
    if command == "artifacts":
        return _starting(word, ["list", "rm", "gc", "runs="])
    if command == "results":
        from kdistill.results import OPTIONS

        return [*_starting(word, [f"{name}=" for name in OPTIONS]), *_from_hydra(word, [])]
    if command in STAGES or command in ("list", "plan", "predict"):
        overrides = [other for other in words if "=" in other]
        return sorted({*_mounted(word), *_from_hydra(word, overrides)})
    return []


def _starting(word: str, candidates: Sequence[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(word)]


def _mounted(word: str) -> list[str]:
    key, equals, _ = word.partition("=")
    if equals:
        names = folders.groups().get(MOUNTED.get(key, ""), {})
        return _starting(word, [f"{key}={name}" for name in names])
    return _starting(word, [f"{key}=" for key in MOUNTED]) if word.count(".") else []


def _from_hydra(word: str, overrides: Sequence[str]) -> list[str]:
    """Ask Hydra's own completion, through its command line; it prints its answers."""
    import hydra

    from kdistill.config.hydra_state import VERSION_BASE
    from kdistill.config.overrides import long_form

    if re.match(r"(teacher|student|finetune)\.optim(\.schedule)?=", word):
        return []
    line = " ".join(["kdistill", *map(long_form, overrides), word])
    saved = sys.argv, os.environ.get("COMP_LINE")
    sys.argv, os.environ["COMP_LINE"] = ["kdistill", "-sc", "query=bash"], line
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            hydra.main(str(folders.shipped_dir()), "config", VERSION_BASE)(_nothing)()
    except (Exception, SystemExit):
        return []
    finally:
        sys.argv = saved[0]
        os.environ["COMP_LINE"] = saved[1] or ""
    hidden = ("stage", "hydra_logging", "hydra/hydra_logging", "hydra/job_logging", "hydra/callbacks")
    return [answer for answer in printed.getvalue().split() if not answer.startswith(hidden)]


def _nothing(cfg: object) -> None:
    """The task that completion never calls."""
