"""The catalogue of methods is complete, agrees with the code, and its pages in docs/ are up to date and work."""

import ast
import importlib.util
import inspect
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch

from kdistill import plugins
from kdistill.cli import main, parse
from kdistill.config import compose, folders
from kdistill.config.losses import LogitLoss
from kdistill.config.method import FAMILIES, LABELS, NO_TEACHER, ONE_PAIR, TRAINS, Method
from kdistill.config.methods import METHODS
from kdistill.config.schema import Config
from kdistill.errors import ConfigError
from kdistill.explaining import choice
from kdistill.identity import TEACHERLESS
from kdistill.losses.formula import soft_loss
from kdistill.losses.terms import LAYERS, build_term
from kdistill.stages.checks import COMPARED_SAMPLES

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SOURCES = "\n".join(
    file.read_text() for file in (ROOT / "kdistill").rglob("*.py") if "config" not in file.parts
)
spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "scripts" / "docs_tables.py")
assert spec is not None
assert spec.loader is not None
docs_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_tables)

LOSSES = [method for method in METHODS.values() if method.family != "teaching"]
FEATURES = [method for method in LOSSES if method.family == "features" and method.kind != "features"]
each_loss = pytest.mark.parametrize("method", LOSSES, ids=lambda m: m.kind)
each_feature = pytest.mark.parametrize("method", FEATURES, ids=lambda m: m.kind)


def commands(text: str) -> list[str]:
    """The commands of a page's shell blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]


@cache
def composed(words: str, stage: str = "run") -> Config:
    """The first config of a command's words, checked; of several seeds the first one."""
    parts = parse(shlex.split(re.sub(r"seed=[\d,]+", "seed=0", f"{stage} {words}")))
    return compose.plan(stage, parts.rest, "--multirun" in parts.flags).configs[0]


# --- complete ---


def test_every_option_has_an_entry_and_every_entry_an_option() -> None:
    """The catalogue's losses are the options of the group `loss`; those on features are also those of `feature`."""
    groups = folders.groups()

    assert {method.kind for method in LOSSES} == set(groups["loss"])
    assert {method.kind for method in FEATURES} == set(groups["feature"])


def test_ways_of_teaching_are_options_or_settings() -> None:
    """An ensemble is a teacher, mixup and cutmix are mixing, the other two are settings of their own."""
    groups = folders.groups()
    teaching = {method.kind for method in METHODS.values() if method.family == "teaching"}

    assert teaching == {"ensemble", "assistant", "generations", "mixup", "cutmix"}
    assert "ensemble" in groups["teacher"]
    assert set(groups["mixing"]) == {"none", "mixup", "cutmix"}


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.kind)
def test_every_entry_is_whole(method: Method) -> None:
    """A known family, no empty part, no full stop at the end of a part."""
    assert method.family in FAMILIES
    for part in (method.title, method.formula, method.paper, method.when, *method.needs):
        assert part
        assert not part.endswith(".")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.kind)
def test_every_entry_cites_its_paper_or_says_why_not(method: Method) -> None:
    """Authors, a year, a title in quotes and an arXiv id or venue; "-: reason" for what nobody published."""
    if method.paper.startswith("-"):
        assert method.kind in ("ce", "features")
        assert re.fullmatch(r"-: \w.+", method.paper)
    else:
        assert re.match(r'[A-Z]\. .+, (19|20)\d\d, "[^"]+", \w', method.paper)
        assert "arXiv" in method.paper or method.kind in ("js", "mlkd")


@each_loss
def test_the_papers_are_those_of_the_code(method: Method) -> None:
    """Each arXiv id in the catalogue stands in a docstring of the losses, too."""
    for number in re.findall(r"arXiv (\d{4}\.\d{5}|\d{4}\.\d{4})", method.paper):
        assert number in SOURCES, number


# --- true ---


@each_loss
def test_needs_labels_as_the_function_does(method: Method) -> None:
    """`labels` is needed where the loss on logits has a parameter of that name."""
    loss = composed(choice(method.kind)).loss
    asks = isinstance(loss, LogitLoss) and loss.kind != "dml"
    names = inspect.signature(soft_loss(loss).function).parameters if asks else {}

    assert (LABELS in method.needs) == ("labels" in names)


@each_loss
def test_needs_a_teacher_as_the_key_does(method: Method) -> None:
    """`no teacher` stands where no teacher's term has a weight."""
    loss = composed(choice(method.kind)).loss

    assert (NO_TEACHER in method.needs) == (loss.kind in (*TEACHERLESS, "ce", "label_smoothing"))


@each_loss
def test_needs_several_samples_as_the_checks_do(method: Method) -> None:
    """`batches of at least 2` stands where a batch of one is refused, 3 where one of two is."""
    expected = (
        [f"batches of at least {COMPARED_SAMPLES[method.kind]}"] if method.kind in COMPARED_SAMPLES else []
    )

    assert [need for need in method.needs if need.startswith("batches of")] == expected


@each_feature
def test_needs_adapters_and_one_pair_as_the_term_does(method: Method) -> None:
    """A term with parameters trains adapters; one that takes one pair alone refuses two."""
    loss = composed(choice(method.kind)).loss
    maps, labels = [torch.rand(4, 8, 4, 4)], torch.tensor([0, 1] * 4)
    settings = loss.features[method.kind]
    term = build_term(settings, maps, maps, len(labels), labels)

    assert (TRAINS in method.needs) == bool(list(term.parameters()))
    if ONE_PAIR in method.needs:
        with pytest.raises(ConfigError, match=f"{method.kind} compares one pair of layers, got 2"):
            build_term(settings, maps * 2, maps * 2, len(labels), labels)
    else:
        build_term(settings, maps * 2, maps * 2, len(labels), labels)


@each_feature
def test_names_the_layers_that_are_proposed(method: Method) -> None:
    """The first need says which layers the method takes unless the user names some."""
    words = {
        "middle": "maps of the middle stage",
        "all": "maps of all stages",
        "last": "maps of the last stage",
        "embedding": "embeddings (what goes into the head)",
        "all+embedding": "maps of all stages, and embeddings",
    }
    many_pixels = ", with more than one pixel" if method.kind in ("at", "nst") else ""

    assert method.needs[0] == words[LAYERS[method.kind]] + many_pixels


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.kind)
def test_the_examples_compose(method: Method) -> None:
    """Both commands pass every check of the config, and name the method."""
    for words in method.examples:
        assert composed(words).stage == "run"
    assert method.kind in " ".join(method.examples)


def test_the_catalogue_is_light() -> None:
    """No module of the catalogue imports more than the catalogue and the standard library."""
    for file in (ROOT / "kdistill" / "config").glob("method*.py"):
        imported = {
            node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
        }
        assert {name for name in imported if name and "method" not in name} <= {
            "__future__",
            "dataclasses",
            "typing",
        }


# --- docs/ ---

#: commands that a fresh folder has nothing for
OF_WHAT_WAS_MADE = ("eval", "export", "predict", "report", "plot", "results")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_pages_tables_are_up_to_date(page: Path) -> None:
    """`python scripts/docs_tables.py` would change nothing."""
    assert docs_tables.refreshed(page.read_text()) == page.read_text()


def test_a_stale_table_is_made_anew() -> None:
    """What stands between the marks is replaced, what stands around them stays."""
    fresh = docs_tables.refreshed("a\n<!-- catalogue: control -->\nold\n<!-- end -->\nb\n")

    assert fresh.startswith("a\n<!-- catalogue: control -->\n| option |")
    assert "| `ce` | Labels alone." in fresh
    assert "`smoothing=0.1`" in fresh
    assert "old" not in fresh
    assert fresh.endswith("\n<!-- end -->\nb\n")


def test_the_pages_have_a_table_of_each_family() -> None:
    """The two pages on losses hold the three families' tables, and a place for what was measured."""
    by_name = {page.name: page.read_text() for page in PAGES}

    assert set(by_name) >= {
        "losses-on-logits.md",
        "feature-losses.md",
        "teachers.md",
        "tasks.md",
        "own-loss.md",
    }
    assert re.findall(r"catalogue: (\w+)", by_name["losses-on-logits.md"]) == ["logits", "control"]
    assert re.findall(r"catalogue: (\w+)", by_name["feature-losses.md"]) == ["features"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_pages_commands_work(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that train compose, with the page's own file where it is trusted; others run."""
    monkeypatch.chdir(tmp_path)
    own = re.findall(r'^```python\n("""my_loss.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    for code in own:
        (tmp_path / "my_loss.py").write_text(code)
    found = commands(page.read_text())
    assert found
    for command in found:
        program, *argv = shlex.split(command)
        if program == "torchrun":  # what it starts
            program, *argv = argv[argv.index("-m") + 1 :]
        if program == "python":  # a benchmark
            assert (ROOT / argv[0]).is_file()
            continue
        if program == "pip":
            assert argv[1] in {f"kdistill[{extra}]" for extra in EXTRAS}
            continue
        if program in ("tensorboard", "mlflow", "wandb"):  # to look at runs
            continue
        assert program == "kdistill"
        words = parse(argv)
        try:
            if words.command in ("run", "compare", "tune"):
                for file in words.trusted:
                    plugins.trust(file)
                assert composed(shlex.join(argv[1:]), stage=words.command).stage == words.command
            elif "NAME" in command or words.command in OF_WHAT_WAS_MADE:
                assert main([*argv, "runs=runs"]) == 2
                assert re.search(
                    "not distilled yet|there is no such|were not found|nothing finished|there is no folder|: no folder",
                    capsys.readouterr().err,
                ), command
            else:
                assert main(argv) == 0, command
        finally:
            plugins.forget()


def test_links_of_the_pages_lead_somewhere() -> None:
    """Links between the pages are files that are there."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_pages_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example that writes the samples' ids writes digits' 1,222, with their labels."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "teachers.md").read_text(), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "teachers.md", "exec"), {})
    lines = (tmp_path / "ids.csv").read_text().splitlines()

    assert lines[:2] == ["id,label", "0,0"]
    assert len(lines) == 1 + 1222
