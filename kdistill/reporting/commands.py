"""`kdistill report` and `kdistill plot`: from the words of a command to files."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdistill.console import complain, say
from kdistill.errors import ConfigError, did_you_mean
from kdistill.files import storage_errors, write_bytes
from kdistill.reporting.catalogue import FIGURES

if TYPE_CHECKING:
    from kdistill.reporting.findings import Findings

OPTIONS = ("out", "runs")


def report(words: Sequence[str]) -> int:
    """Write the page of a run, a sweep, a comparison or a study: by default, of what was finished last.

    Raises `ConfigError` for other words, a folder that is none of them, or missing packages; `MissingArtifact` for
    what is not finished or gone; `DataError` for damaged files.
    """
    names, options = _taken_apart(words)
    if len(names) > 1:
        raise ConfigError(f"report takes one folder, got {' '.join(names)!r}")
    _require()
    from kdistill.reporting.page import page

    folder, findings = _found(names, options)
    out = _out(options, folder / "report.html", (".html", ".htm"))
    content = page(findings).encode()
    with storage_errors(out.parent, "out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, content)
    _tell(findings, [out])
    return 0


def plot(words: Sequence[str]) -> int:
    """Write one of the page's figures as PNG or SVG, or list them all; raises what `report` does."""
    names, options = _taken_apart(words)
    if not names:
        width = max(map(len, FIGURES))
        say("\n".join(f"{name:{width}}  {line}" for name, line in FIGURES.items()))
        return 0
    name, *folders = names
    if name not in FIGURES:
        raise ConfigError(f"no figure {name!r}.{did_you_mean(name, FIGURES)} `kdistill plot` lists all")
    if len(folders) > 1:
        raise ConfigError(f"plot takes one folder, got {' '.join(folders)!r}")
    _require()
    from kdistill.reporting.drawings import draw
    from kdistill.reporting.style import FORMATS, save

    folder, findings = _found(folders, options)
    out = _out(options, folder / f"{name}.png", FORMATS)
    drawings = draw(name, findings)
    if not drawings:
        others = ", ".join(other for other in FIGURES if draw(other, findings))
        raise ConfigError(f"{name}: there is nothing of it in this {findings.kind}. There is {others}")
    files = (
        [out]
        if len(drawings) == 1
        else [out.with_stem(f"{out.stem}-{number}") for number in range(1, len(drawings) + 1)]
    )
    with storage_errors(out.parent, "out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        for drawing, file in zip(drawings, files, strict=True):
            save(drawing, file)
    _tell(findings, files)
    return 0


def _found(names: Sequence[str], options: dict[str, str]) -> tuple[Path, Findings]:
    from kdistill.reporting import comparisons, folders, runs, studies, sweeps

    readers = {
        "run": runs.run_findings,
        "sweep": sweeps.sweep_findings,
        "comparison": comparisons.comparison_findings,
        "study": studies.study_findings,
    }
    folder = Path(names[0]).expanduser() if names else folders.newest(Path(options.get("runs", "runs")))
    return folder, readers[folders.kind_of(folder)](folder)


def _taken_apart(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names, and options with their values."""
    names, options = [], {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).exists():
            names.append(word)
        elif key in OPTIONS and value:
            options[key] = value
        else:
            raise ConfigError(
                f"{word!r}: there is no such option.{did_you_mean(key, OPTIONS)} There are out=FILE and runs=DIR"
            )
    return names, options


def _out(options: dict[str, str], default: Path, suffixes: Sequence[str]) -> Path:
    out = Path(options.get("out", default)).expanduser()
    if out.suffix.lower() not in suffixes or out.is_dir():
        raise ConfigError(f"out={out}: expected a file that ends in {' or '.join(suffixes)}")
    return out


def _tell(findings: Findings, files: Sequence[Path]) -> None:
    for note in findings.notes:
        complain(note)
    for file in files:
        say(str(file))


def _require() -> None:
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"pages and figures need {' and '.join(missing)}: pip install 'kdistill[report]'")
