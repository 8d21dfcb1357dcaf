"""`kdistill report` and `kdistill plot`: pages that need nothing else, of real runs and of hostile names."""

import json
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdistill.cli import main
from kdistill.completion import complete
from tests.reports import HOSTILE, make_comparison, make_run, make_study

Said = tuple[int, str, str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command: exit code, stdout, stderr."""

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


class Page(HTMLParser):
    """The tags of a page, with their attributes; the names of its sections; all of its text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(file.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1:] == ["h2"]:
            self.titles.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def check_self_contained(page: Page) -> None:
    """No script, nothing that is fetched, no handler; every figure and image has a text; every id is one thing's."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base"}
    addresses = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "srcset", "action") and value
    ]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(image["alt"] for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_report_of_a_sweep(digits_sweep: Path, tmp_path: Path, command: Callable[..., Said]) -> None:
    """A real sweep, end to end: every section, images of the data set, config and commands; small."""
    out = tmp_path / "page.html"
    assert command("report", digits_sweep, f"out={out}") == (0, f"{out}\n", "")
    page = Page(out)

    check_self_contained(page)
    assert page.titles == [
        "Tables",
        "Result",
        "Training",
        "Accuracy and what it costs",
        "Where it is right, and how sure it is",
        "What the soft targets know",
        "Where teacher and student disagree",
        "How to repeat it",
    ]
    assert len(page.all("img")) == 12
    assert len(page.all("table")) == 4
    for part in ("kdistill run -m teacher=mlp", "hidden:", "Stored soft targets: half of them", "torch 2."):
        assert part in page.text
    assert out.stat().st_size < 2e6


def test_the_newest_is_reported_into_its_folder(
    digits_sweep: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    """Without a FOLDER, of what was finished last in `runs`; the page is the same each time."""
    shutil.copytree(digits_sweep.parent.parent, tmp_path / "runs")
    sweep = tmp_path / "runs" / "run" / digits_sweep.name
    assert command("report", f"runs={tmp_path / 'runs'}") == (0, f"{sweep / 'report.html'}\n", "")
    first = (sweep / "report.html").read_text()
    assert command("report", sweep)[0] == 0
    assert (sweep / "report.html").read_text() == first


@pytest.mark.parametrize("make", [make_run, make_comparison])
def test_names_from_data_are_escaped(
    make: Callable[..., Path], tmp_path: Path, command: Callable[..., Said]
) -> None:
    """Classes that look like markup are text in tables and figures."""
    folder = make(tmp_path / "runs", classes=HOSTILE)
    out = tmp_path / "page.html"
    assert command("report", folder, f"out={out}")[0] == 0
    page = Page(out)

    check_self_contained(page)
    assert HOSTILE[0] in page.text


def test_a_variant_with_a_hostile_name(tmp_path: Path, command: Callable[..., Said]) -> None:
    """Its name stands in the verdict, the table and the figures."""
    out = tmp_path / "page.html"
    assert command("report", make_comparison(tmp_path / "runs", variant=HOSTILE[0]), f"out={out}")[0] == 0
    page = Page(out)

    check_self_contained(page)
    assert f"{HOSTILE[0]} BEATS the control by 1.20 points [0.80, 1.60]" in page.text


@pytest.mark.parametrize("front", [False, True])
def test_the_report_of_a_study(front: bool, tmp_path: Path, command: Callable[..., Said]) -> None:
    """Its course, what mattered, and its final model."""
    out = tmp_path / "page.html"
    assert command("report", make_study(tmp_path / "runs", front), f"out={out}")[0] == 0
    page = Page(out)

    check_self_contained(page)
    assert "loss.T matters most" in page.text
    assert "Finished trials, the best first" in page.text


def test_images_that_are_gone_are_said_to_be(tmp_path: Path, command: Callable[..., Said]) -> None:
    """The section gives the reason, and the rest is there."""
    out = tmp_path / "page.html"
    assert command("report", make_run(tmp_path / "runs"), f"out={out}")[0] == 0

    reason = "The images cannot be shown: the run has kept no config, which says where they are."
    assert reason in Page(out).text


def test_images_of_another_data_set_are_not_shown(
    digits_sweep: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    """The data set has changed since: the samples that the models were judged on are not in it."""
    folder = make_run(tmp_path / "runs")
    shutil.copy(digits_sweep / "0" / ".hydra" / "config.yaml", folder / ".hydra" / "config.yaml")
    out = tmp_path / "page.html"
    assert command("report", folder, f"out={out}")[0] == 0

    reason = "The images cannot be shown: the data set is another one than the models were judged on."
    assert reason in Page(out).text
    assert Page(out).all("img") == []


def test_a_data_set_that_is_gone(digits_sweep: Path, tmp_path: Path, command: Callable[..., Said]) -> None:
    """Nothing is downloaded for a page."""
    folder = make_run(tmp_path / "runs")
    config = (digits_sweep / "0" / ".hydra" / "config.yaml").read_text()
    moved = config.replace("  name: digits\n", f"  name: mnist\n  root: {tmp_path}\n  download: true\n")
    (folder / ".hydra" / "config.yaml").write_text(moved)
    out = tmp_path / "page.html"
    assert command("report", folder, f"out={out}")[0] == 0

    assert "The images cannot be shown: " in Page(out).text
    assert "dataset.download=false" in Page(out).text


# --- plot ---


def test_plot_lists_its_figures(command: Callable[..., Said]) -> None:
    """A line about each."""
    code, said, _ = command("plot")

    assert code == 0
    assert "curves             the validation score after each epoch\n" in said
    assert len(said.splitlines()) == 18


def test_the_tab_key_knows_the_figures() -> None:
    """And the options."""
    assert complete("kdistill plot con") == ["confusion", "confusion-teacher"]
    assert complete("kdistill report ") == ["out=", "runs="]


def test_plot_writes_one_figure_or_several(
    digits_sweep: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    """By the file's name as PNG or SVG; several are numbered."""
    out = tmp_path / "new" / "a.svg"
    assert command("plot", "curves", digits_sweep, f"out={out}") == (0, f"{out}\n", "")
    assert out.read_text().startswith("<?xml")
    folder = make_study(tmp_path / "runs")
    names = [folder / "slices-1.png", folder / "slices-2.png"]
    assert command("plot", "slices", folder) == (0, f"{names[0]}\n{names[1]}\n", "")
    assert all(name.read_bytes().startswith(b"\x89PNG") for name in names)


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["report", "a", "b"], "report takes one folder, got 'a b'"),
        (["plot", "curves", "a", "b"], "plot takes one folder, got 'a b'"),
        (["report", "nowhere"], "nowhere: there is no such folder."),
        (
            ["report", "outt=x.html"],
            "'outt=x.html': there is no such option. Did you mean 'out'? There are out=FILE and runs=DIR",
        ),
        (
            ["report", "runs=none"],
            "there is nothing finished in none to report. `kdistill run` makes something;",
        ),
        (["plot", "curve"], "no figure 'curve'. Did you mean 'curves'? `kdistill plot` lists all"),
    ],
)
def test_words_that_are_refused(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    """In a line, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    code, said, error = command(*words)

    assert (code, said) == (2, "")
    assert error.startswith(text)
    assert error.count("\n") == 1


def test_files_that_are_refused(tmp_path: Path, command: Callable[..., Said]) -> None:
    """A page is HTML, a figure is PNG or SVG; a figure that does not apply names those that do."""
    folder = make_run(tmp_path / "runs", "regression", ["height"])
    ends = "expected a file that ends in"
    assert command("report", folder, "out=a.pdf")[2] == f"out=a.pdf: {ends} .html or .htm\n"
    assert command("plot", "curves", folder, "out=a.gif")[2] == f"out=a.gif: {ends} .png or .svg\n"
    assert command("plot", "confusion", folder)[2] == (
        "confusion: there is nothing of it in this run. There is curves, size, latency, values, losses\n"
    )
    (tmp_path / "file").write_text("")
    code, _, error = command("report", folder, f"out={tmp_path / 'file' / 'a.html'}")
    assert (code, error.partition(":")[0]) == (2, f"cannot write to {tmp_path / 'file'}")


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    """With the extra that brings them; the list of figures needs none."""
    folder = make_run(tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    needs = "pages and figures need matplotlib: pip install 'kdistill[report]'\n"
    assert command("report", folder) == (2, "", needs)
    assert command("plot", "curves", folder) == (2, "", needs)
    assert command("plot")[0] == 0


def test_a_damaged_artifact_is_named(tmp_path: Path, command: Callable[..., Said]) -> None:
    """Predictions that were altered are not drawn."""
    folder = make_run(tmp_path / "runs")
    file = next((tmp_path / "runs").glob("artifacts/predictions/*stud*/predictions.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, error = command("report", folder)

    assert code == 1
    assert "is damaged: its content does not match its checksum" in error


def test_a_run_of_one_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    """`train-teacher` alone: its curve and its validation score, and the next stage's report is another."""
    monkeypatch.chdir(tmp_path)
    assert command("train-teacher", "teacher=mlp", "teacher.epochs=2", "device=cpu")[0] == 0
    code, said, error = command("report")
    page = Page(tmp_path / said.strip())

    assert code == 0
    assert error == "Not judged on the test split yet: scores are of the validation split.\n"
    assert page.titles == ["Tables", "Training", "How to repeat it"]
    assert "The teacher mlp reaches" in page.text
    made = json.loads(next(tmp_path.glob("runs/train-teacher/*/result.json")).read_text())
    assert made["artifacts"]["teacher"] in page.text
