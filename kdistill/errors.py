"""Every error that kdistill raises on purpose.

    KdistillError                 catch this one to catch them all
    ├── UserError                 a mistake that the user can mend; exit code 2
    │   ├── ConfigError           a setting, an option, a command
    │   ├── DataError             data missing, unreadable, or not what the config says
    │   ├── ModelError            an unknown model, or weights that do not fit it
    │   ├── MissingArtifact       a stage needs what an earlier stage has not made yet
    │   └── StorageError          the disk is full, a folder cannot be written
    └── RunError                  something went wrong inside a run; exit code 1
        ├── Diverged              the loss is not a finite number
        ├── DamagedArtifact       a stored file does not match its checksum
        ├── PeerLost              another process of the run has ended; who started them says which
        └── Interrupted           Ctrl-C or a termination signal; state is saved; exit code 130

A message says what is wrong, what was expected, what was found, and the command that helps, in one
line or few. It is shown as it is, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdistillError(Exception):
    """Base class; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(KdistillError):
    exit_code = 2


class ConfigError(UserError):
    pass


class DataError(UserError):
    pass


class ModelError(UserError):
    pass


class MissingArtifact(UserError):
    pass


class StorageError(UserError):
    pass


class RunError(KdistillError):
    pass


class Diverged(RunError):
    pass


class DamagedArtifact(RunError):
    pass


class PeerLost(RunError):
    exit_code = 75


class Interrupted(RunError):
    exit_code = 130


def did_you_mean(word: str, candidates: Iterable[str], limit: int = 2) -> str:
    """Return ` Did you mean 'a' or 'b'?` for the nearest candidates, or an empty string."""
    near = nearest(word, candidates, limit)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def nearest(word: str, candidates: Iterable[str], limit: int = 2, cutoff: float = 0.6) -> list[str]:
    """The candidates most like `word`, the best first: those that differ in upper and lower case alone, if any."""
    names = list(candidates)
    same = [name for name in names if name.lower() == word.lower()]
    return same[:limit] or difflib.get_close_matches(word, names, n=limit, cutoff=cutoff)


def first_line(ex: BaseException) -> str:
    """The first line of an exception's text without its full stop, for one-line messages; its class if it has none."""
    return (str(ex).strip() or type(ex).__name__).splitlines()[0].rstrip(".")
