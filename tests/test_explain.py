"""`kdistill explain` and `kdistill list layers` as a user meets them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdistill import completion
from kdistill.cli import main
from kdistill.config import folders
from kdistill.config.methods import METHODS
from tests.conftest import TINY

OWN = '''
import kdistill

@kdistill.register_loss("mine", alpha=0.5, beta=2.0, T=3.0)
def my_loss(student_logits, teacher_logits, margin=0.25):
    """Mean distance of the logits.

    Second paragraph.
    """
    return (student_logits - teacher_logits).abs().mean()
'''


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    folders.use_folders()


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What `kdistill ...` prints, line by line, each without its indentation and with single spaces."""
    assert main(list(words)) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


# --- explain ---


def test_a_loss_on_logits(capsys: pytest.CaptureFixture[str]) -> None:
    """Title, formula with its symbols, paper, needs, when to use it, settings, two commands."""
    lines = told(capsys, "explain", "nkd")

    assert lines[0] == "nkd: Normalised KD"
    assert lines[2].startswith("formula -p_t[y] log p_s[y] at T = 1")
    assert "s: student, t: teacher; N samples of a batch, K classes, y the label" in lines
    assert any(line.startswith("paper Z. Yang, A. Zeng") for line in lines)
    assert "arXiv 2303.13005" in " ".join(lines)
    assert "needs logits; labels" in lines
    assert "use it when training in the manner of ImageNet (there T=1, non_target_weight=1.5)" in lines
    assert "settings of loss=nkd" in lines
    assert "loss.T 3 published: 3 on CIFAR, 1 on ImageNet" in lines
    assert lines[-3:] == [
        "examples",
        "kdistill run loss=nkd",
        "kdistill run loss=nkd loss.T=1 loss.non_target_weight=1.5",
    ]


def test_inherited_settings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """lskd's YAML sets beta, T and standardise and inherits alpha from kd; notes come from the schema then."""
    lines = told(capsys, "explain", "lskd")
    table = lines[lines.index("settings of loss=lskd") + 1 :]

    assert [line.split()[:2] for line in table[: table.index("")]] == [
        ["loss.alpha", "0.1"],
        ["loss.beta", "9"],
        ["loss.T", "2"],
        ["loss.standardise", "true"],
    ]
    assert table[0] == "loss.alpha 0.1 weight of the cross entropy with the labels, or {start,end,until}"


def test_a_feature_loss_has_its_terms_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """The keys are those of the command line: loss.features.NAME.KEY; ramps are written as they are set."""
    lines = told(capsys, "explain", "review_kd")

    assert any(line.startswith("loss.alpha 1.0 weight of the cross entropy") for line in lines)
    assert any(
        line.startswith("loss.features.review_kd.weight {start:0,end:5,until:0.083333} ") for line in lines
    )
    assert any(line.startswith("loss.features.review_kd.layers null pairs of layers") for line in lines)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No line is wider than 110 characters, and both examples are there."""
    assert main(["explain", name]) == 0
    text = capsys.readouterr().out

    assert text.startswith(f"{name}: {METHODS[name].title}\n")
    assert max(map(len, text.splitlines())) <= 110
    assert text.count("\n  kdistill run ") == 2


def test_the_overview_lists_all_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    """Four paragraphs, a line about each method."""
    assert main(["explain"]) == 0
    text = capsys.readouterr().out
    paragraphs = text.split("\n\n")

    assert [p.split(":")[0].split(",")[0] for p in paragraphs[:4]] == [
        "losses on logits",
        "losses on features",
        "controls",
        "ways of teaching",
    ]
    assert "\n  dkd              Decoupled KD. The teacher is confident" in paragraphs[0]
    assert all(f"\n  {name} " in text for name in METHODS)
    assert paragraphs[-1] == "kdistill explain METHOD tells its formula, paper, needs and settings\n"


def test_an_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest ones, and how to bring one's own; exit code 2."""
    assert main(["explain", "dkdd"]) == 2
    assert capsys.readouterr().err == (
        "no method 'dkdd'. Did you mean 'dkd' or 'kd'? `kdistill explain` lists all;"
        " one of your own needs --trust FILE.py or --config-dir DIR\n"
    )


def test_one_method_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Two words are refused; exit code 2."""
    assert main(["explain", "kd", "dkd"]) == 2
    assert capsys.readouterr().err == "explain takes one method, got 'kd dkd'\n"


def test_a_registered_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """Its docstring, what it takes, its weights and own parameters, and commands that name its file."""
    Path("my.py").write_text(OWN)
    lines = told(capsys, "explain", "--trust", "my.py", "mine")

    assert lines[0] == f"mine: a loss of your own, from {Path('my.py').resolve()}"
    assert lines[2:5] == ["Mean distance of the logits.", "", "Second paragraph."]
    assert "takes student_logits, teacher_logits, margin" in lines
    assert [line.split()[:2] for line in lines if line.startswith("loss.")] == [
        ["loss.alpha", "0.5"],
        ["loss.beta", "2.0"],
        ["loss.T", "3.0"],
        ["loss.params.margin", "0.25"],
    ]
    assert "kdistill run --trust my.py loss=mine" in lines
    assert "mine" in told(capsys, "explain", "--trust", "my.py")
    assert main(["explain", "mine"]) == 2  # without its file it is unknown
    assert capsys.readouterr().err.startswith("no method 'mine'.")


def test_options_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    """An option in a folder of the user's is explained as its method, with its own values."""
    for group, name, text in (
        ("loss", "soft8", "# Softer\ndefaults: [kd]\nT: 8   # very soft\n"),
        (
            "feature",
            "at2",
            "# @package loss.features.at2\n# Twice\nkind: at\nweight: 2000\nlayers: null\np: 2\n",
        ),
    ):
        Path("my", group).mkdir(parents=True)
        Path("my", group, f"{name}.yaml").write_text(text)
    loss = told(capsys, "explain", "--config-dir", "my", "soft8")
    assert loss[0] == "soft8: settings of your own for kd, Knowledge distillation"
    assert "loss.T 8 very soft" in loss
    assert "kdistill run --config-dir my loss=soft8" in loss
    feature = told(capsys, "explain", "--config-dir", "my", "at2")
    assert feature[0] == "at2: settings of your own for at, Attention transfer"
    assert any(line.startswith("loss.features.at2.weight 2000 ") for line in feature)


def test_help_of_the_two_tools(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` says how they are called; the overview of all commands names them."""
    assert told(capsys, "explain", "--help")[0].startswith("kdistill explain [METHOD]: a method: its formula")
    assert told(capsys, "help", "list")[0].startswith("kdistill list [KIND]: what can be chosen")
    assert any(line.startswith("explain a method: its formula") for line in told(capsys, "--help"))


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("kdistill expl", ["explain "]),
        ("kdistill explain dk", ["dkd"]),
        ("kdistill list la", ["layers"]),
        ("kdistill list layers teacher=resnet32x", ["teacher=resnet32x4"]),
    ],
)
def test_completion(line: str, answers: list[str]) -> None:
    """Methods after `explain`; settings after `list layers`."""
    assert completion.complete(line) == answers


# --- list layers ---


def test_layers_of_both_networks(capsys: pytest.CaptureFixture[str]) -> None:
    """Names and shapes, pairs in one row, and how to name a pair; nothing is trained or written."""
    assert main(["list", "layers", *TINY, "runs=r"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert lines[1].split("  ")[0] == "student"
    assert [line.split() for line in lines[2:6]] == [
        ["stages.0", "8", "x", "8", "x", "8"],
        ["stages.1", "16", "x", "4", "x", "4"],
        ["stages", "8", "x", "4", "x", "4", "stages.2", "32", "x", "2", "x", "2"],
        ["head@in", "8", "head@in", "32"],
    ]
    assert lines[-1] == (
        "a pair of your own: feature=at loss.features.at.layers='[{student:stages,teacher:stages.2}]'"
    )
    assert list(Path().iterdir()) == []


def test_the_pair_is_for_the_term_that_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """With a feature term in the words, the line sets that term's layers; it is a setting as it stands."""
    from kdistill import load_config

    assert main(["list", "layers", *TINY, "loss=sp"]) == 0
    said = capsys.readouterr().out.splitlines()[-1].removeprefix("a pair of your own: ").replace("'", "")
    config = load_config("loss=sp", said)

    assert said == "loss.features.sp.layers=[{student:stages,teacher:stages.2}]"
    assert config.loss.features["sp"].layers[0].teacher == "stages.2"


def test_the_assistant_is_the_students_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    """With an assistant, the layers beside the student's are the assistant's."""
    assert main(["list", "layers", *TINY, "assistant=cnn", "assistant.params.channels=[4]"]) == 0
    assert "stages   8 x 4 x 4        stages   4 x 4 x 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["teacher=random_forest"],
            "teacher.name=sklearn/RandomForestClassifier is no network: it has no layers",
        ),
        (["teacher=resnet21"], "no option 'resnet21' in group 'teacher'. Did you mean"),
        (["student.seed=0,1"], "student.seed=0,1 is a list: add -m"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what is wrong: a teacher without layers, an unknown option, a sweep."""
    assert main(["list", "layers", *TINY, *words]) == 2
    assert message in capsys.readouterr().err


def test_only_layers_takes_more_words(capsys: pytest.CaptureFixture[str]) -> None:
    """`kdistill list losses teacher=cnn` is refused as before."""
    assert main(["list", "losses", "teacher=cnn"]) == 2
    assert capsys.readouterr().err == "list takes one word, got 'losses teacher=cnn'\n"


def test_the_overview_of_list_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line points to the layers and to `explain`."""
    lines = told(capsys, "list")
    assert lines[-1] == "kdistill list layers: what feature losses can compare; kdistill explain: all methods"
