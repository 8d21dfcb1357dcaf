"""A loss of the user's own: a trusted file outside the package makes it an option like any other."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdistill import plugins
from tests.conftest import TINY, Command

COSINE = '''
"""A loss of my own."""
import torch.nn.functional as F
from torch import Tensor

from kdistill import register_loss


@register_loss("cosine", alpha=0.5, beta=2, T=1)
def cosine(student_logits: Tensor, teacher_logits: Tensor, T: float, power: float = 1.0) -> Tensor:
    """One minus the cosine between both sets of probabilities, to some power."""
    student, teacher = (F.softmax(logits / T, dim=1) for logits in (student_logits, teacher_logits))
    return ((1 - F.cosine_similarity(student, teacher)) ** power).mean()
'''


@pytest.fixture
def command(kdistill: Command) -> Iterator[Command]:
    """Run a command line in a folder that has `my_loss.py`, with the tiny pipeline's settings."""
    Path("my_loss.py").write_text(COSINE)
    yield kdistill
    plugins.forget()


def students() -> dict[str, dict]:
    """Each student's folder name with the `loss` that its key was computed from."""
    found = Path("runs/artifacts/student").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text())["made_from"]["loss"] for path in found}


def write(text: str) -> None:
    """The user's file: these lines below the imports."""
    imports = "import torch\nimport torch.nn.functional as F\nfrom kdistill import register_loss\n\n"
    Path("my_loss.py").write_text(imports + text)


# --- how it is meant to be used ---


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, command: Command) -> None:
    """A process of its own trains with it; the next command that is suggested trusts the file as well."""
    assert command("train-teacher").code == 0
    words = ["--trust", "my_loss.py", "loss=cosine", "loss.params.power=2"]
    done = subprocess.run(
        [sys.executable, "-m", "kdistill", "distill", *TINY, *words],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    suggested = done.stdout.splitlines()[-1]
    assert suggested.startswith("next: kdistill finetune --trust my_loss.py ")
    assert suggested.endswith("loss=cosine loss.params.power=2")
    (student,) = (tmp_path / "runs/artifacts/student").glob("cnn-*")
    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"hard", "soft"} <= rows[0].keys()

    again = command(suggested.removeprefix("next: kdistill "))
    assert again.code == 0, again.err


def test_it_is_an_option_like_any_other(command: Command) -> None:
    """It is listed with its docstring, shown with its values, and its values can be set."""
    (line,) = (x for x in command("list losses --trust my_loss.py").out.splitlines() if "cosine" in x)
    assert (
        line.split(maxsplit=1)[1] == "One minus the cosine between both sets of probabilities, to some power."
    )
    assert "cosine" not in command("list losses").out

    shown = command("distill --trust my_loss.py loss=cosine loss.alpha=0.25 --cfg job -p loss")
    assert shown.code == 0
    assert {"kind: own", "name: cosine", "alpha: 0.25", "beta: 2", "T: 1", "  power: 1.0"} <= set(
        shown.out.splitlines()
    )


def test_ramps_and_features_go_with_it(command: Command) -> None:
    """Its weights, T among them, may change, and feature terms come on top."""
    words = "loss.T={start:4,end:1,until:1} loss.beta={start:0,end:1,until:1} feature=at"
    said = command(f"run --trust my_loss.py loss=cosine {words} student.epochs=2 finetune.epochs=0")
    assert said.code == 0, said.err
    (parts,) = students().values()
    assert parts["T"] == {"start": 4, "end": 1, "until": 1}


@pytest.mark.slow
def test_a_sweep(command: Command) -> None:
    """`-m` over its parameters, and over it and shipped losses."""
    assert command("train-teacher").code == 0
    said = command("distill --trust my_loss.py -m loss=cosine,kd student.epochs=1")
    assert said.code == 0, said.err
    assert sorted(parts["kind"] for parts in students().values()) == ["kd", "own"]

    said = command("distill --trust my_loss.py -m loss=cosine loss.params.power=1,2,3 student.epochs=1")
    assert said.code == 0, said.err
    assert sorted(p["params"]["power"] for p in students().values() if p["kind"] == "own") == [1, 2, 3]
    (table,) = (
        file for file in Path("runs/distill").glob("sweep_*/*.csv") if "loss.params.power" in file.read_text()
    )
    with table.open() as rows:
        assert [row["loss.params.power"] for row in csv.DictReader(rows)] == ["1", "2", "3"]


def test_another_file_is_another_loss(command: Command) -> None:
    """The key holds the file's checksum: an edited loss trains a new student, an equal one elsewhere does not."""
    words = "loss=cosine student.epochs=1 finetune.epochs=0"
    assert command(f"run --trust my_loss.py {words}").code == 0
    Path("elsewhere").mkdir()
    Path("elsewhere/mine.py").write_text(COSINE)
    assert command(f"run --trust elsewhere/mine.py {words}").code == 0
    assert len(students()) == 1
    Path("my_loss.py").write_text(COSINE.replace("1 - F", "2 - F"))
    assert command(f"run --trust my_loss.py {words}").code == 0
    assert len(students()) == 2


def test_a_loss_that_asks_no_teacher(command: Command) -> None:
    """Without `teacher_logits` among its parameters none has to be trained."""
    write(
        "@register_loss('entropy')\ndef f(student_logits):\n"
        "    p = F.softmax(student_logits, 1)\n    return (p * p.log()).sum(1).mean()"
    )
    said = command("distill --trust my_loss.py loss=entropy student.epochs=1")
    assert said.code == 0, said.err
    assert not Path("runs/artifacts/teacher").exists()


# --- what is refused ---


def refusal(command: Command, words: str) -> str:
    said = command(words)
    assert said.code == 2, said.err
    assert not Path("runs").exists()
    assert "Traceback" not in said.err
    return said.err.removesuffix("\n")


def test_an_unknown_loss_names_the_option(command: Command) -> None:
    """Where no name is near, the loss may be the user's own."""
    assert refusal(command, "distill loss=mine_alone").splitlines() == [
        "no option 'mine_alone' in group 'loss'",
        "choose from: " + ", ".join(sorted(option_names(command))),
        "or name the file that registers it: --trust FILE.py",
    ]


def option_names(command: Command) -> list[str]:
    return [line.split()[0] for line in command("list losses").out.splitlines()]


def test_no_config_can_trust_a_file(command: Command) -> None:
    """YAML cannot name code: neither a key of its own, nor a section of the kind `own`, nor a path in it."""
    folder = Path("mine/experiment")
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("# @package _global_\ntrust: my_loss.py\n")
    said = refusal(command, "distill --config-dir mine experiment=a")
    assert said.startswith("no setting 'trust'")
    Path("mine/loss").mkdir()
    Path("mine/loss/own.yaml").write_text("{kind: own, name: secret, alpha: 1, beta: 1, T: 1, params: {}}\n")
    said = refusal(command, "distill --config-dir mine loss=own")
    assert said == "loss: no loss 'secret' is registered. Name the file that registers it: --trust FILE.py"
    (folder / "c.yaml").write_text("# @package _global_\nloss: {file: my_loss.py}\n")
    assert "no setting 'loss.file'" in refusal(command, "distill --config-dir mine experiment=c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "it registers no loss. Put @kdistill.register_loss('NAME') above a function"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax (my_loss.py, line 5)"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        (
            "@register_loss('mine')\ndef f(logits, teacher_logits): ...",
            "register_loss('mine'): the function must take student_logits; it takes logits, teacher_logits",
        ),
        (
            "@register_loss('mine')\ndef f(student_logits, teacher_logit): ...",
            "register_loss('mine'): 'teacher_logit' is none of student_logits, teacher_logits, labels, T."
            " Did you mean 'teacher_logits'? A parameter of your own needs a default",
        ),
        (
            "@register_loss('mine')\ndef f(student_logits, weights=[1, 2]): ...",
            "register_loss('mine'): the default of 'weights' must be a number or text",
        ),
        (
            "@register_loss('my-loss')\ndef f(student_logits): ...",
            "register_loss('my-loss'): a name has letters, digits and underscores",
        ),
        (
            "@register_loss('kd')\ndef f(student_logits): ...",
            "register_loss('kd'): there is a loss of that name already, in ",
        ),
    ],
)
def test_a_file_that_does_not_fit(text: str, said: str, command: Command) -> None:
    """The file is named, and what is wrong in it."""
    write(text)
    assert refusal(command, "distill --trust my_loss.py").startswith(f"--trust my_loss.py: {said}")


def test_files_that_are_not_there(command: Command) -> None:
    """A path to a Python file is needed."""
    assert refusal(command, "distill --trust nowhere.py") == "--trust: no Python file nowhere.py"
    assert refusal(command, "distill --trust") == "--trust needs a value: --trust FILE"
    Path("other.py").write_text(COSINE.replace("2, T=1", "3, T=1"))
    assert refusal(command, "distill --trust my_loss.py --trust other.py").startswith(
        "--trust other.py: register_loss('cosine'): there is a loss of that name already, in "
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("loss.params.pwer=2", "no setting 'loss.params.pwer'. Did you mean 'loss.params.power'?"),
        ("loss.T=0", "loss.T=0: must be greater than 0"),
        ("loss.params.power=abc", "loss=cosine fails on a first batch: TypeError: "),
    ],
)
def test_values_that_do_not_fit(words: str, said: str, command: Command) -> None:
    """Its settings are checked like those of any loss."""
    assert refusal(command, f"run --trust my_loss.py loss=cosine {words}").startswith(said)


NO_GRADIENT = (
    "loss=mine has no gradient: compute it from student_logits with torch's functions, without item(), detach() or"
    " argmax()"
)
SCALAR = (
    "loss=mine must return a scalar tensor, such as a mean over the samples; on a first batch it returned {}"
)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("F.softmax(student_logits, 1)", SCALAR.format("shape [4, 4]")),
        ("student_logits.sum(1)", SCALAR.format("shape [4]")),
        ("student_logits.mean().item()", SCALAR.format("float")),
        ("None", SCALAR.format("NoneType")),
        ("student_logits.detach().mean()", NO_GRADIENT),
        ("student_logits.argmax(1).float().mean()", NO_GRADIENT),
        ("torch.zeros((), requires_grad=True)", NO_GRADIENT),
        (
            "(student_logits * float('inf')).abs().sum()",
            "loss=mine is inf on a first batch; it must be finite",
        ),
        ("(student_logits - 3).log().mean()", "loss=mine is nan on a first batch; it must be finite"),
        (
            "student_logits.mean() + undefined",
            "loss=mine fails on a first batch: NameError: name 'undefined' is not defined",
        ),
        (
            "(student_logits - teacher_logits[:, :2]).mean()",
            "loss=mine fails on a first batch: RuntimeError: The size of tensor a (4) must match",
        ),
    ],
)
def test_a_loss_that_nothing_can_be_learnt_from(body: str, said: str, command: Command) -> None:
    """It is called once before anything is trained, the teacher included."""
    write(f"@register_loss('mine')\ndef f(student_logits, teacher_logits, labels, T):\n    return {body}")
    assert refusal(command, "run --trust my_loss.py loss=mine").startswith(said)
