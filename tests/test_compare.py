"""`kdistill compare`: who is compared with whom, what is said of it and written, what is refused."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import kdistill
from kdistill import evaluate, load_config, run
from kdistill.cli import main
from kdistill.config.compose import plan
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, DataError
from kdistill.predictions import FILE, read_predictions
from kdistill.stages import check_before, run_stage
from kdistill.stages.arms import Arm, arms
from kdistill.statistics import paired
from tests.conftest import TINY

Tiny = Callable[..., Config]
#: enough to be wrong and right sometimes
WORDS = (*TINY, "dataset.classes=7", "dataset.noise=0.9", "compare.seeds=2")


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a tiny comparison, with further ones."""
    return lambda *more: [*WORDS, f"runs={tmp_path / 'runs'}", *more]


def config_of(words: list[str]) -> Config:
    return plan("compare", words).configs[0]


def found(*words: str) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms(config_of(list(words)), words)}


def compared(words: list[str], folder: Path) -> dict[str, Any]:
    """Run a comparison, and read its file."""
    folder.mkdir(exist_ok=True)
    run_stage(config_of(words), words, folder)
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


# --- arms ---


def test_the_control_has_no_teacher_and_all_epochs() -> None:
    """Labels alone, for the epochs of distillation and fine-tuning; all else is as on the line."""
    line = ["student=mlp", "student.epochs=7", "loss=dkd", "loss.T=2", "feature=[at]", "assistant=resnet14"]
    line += ["generations=2", "mixing=mixup", "student.optim.lr=0.1", "finetune.epochs=3", "student.seed=4"]
    control = found(*line)["control"]

    assert control.words == [
        "student=mlp", "mixing=mixup", "student.optim.lr=0.1",
        "loss=ce", "finetune.epochs=0", "student.epochs=10", "assistant=null", "generations=1",
    ]  # fmt: skip
    assert (control.config.loss.kind, control.config.mixing.kind) == ("ce", "mixup")
    assert (control.config.student.epochs, control.config.finetune.epochs) == (10, 0)
    assert (control.config.assistant, control.config.generations) == (None, 1)


def test_the_control_of_an_experiment_is_not_fine_tuned() -> None:
    """Its epochs are set, since those that an experiment sets count more than the option `finetune=none`."""
    arms = found("experiment=fashion_mnist", "compare.losses=[kd,dist]")

    assert [(arm.config.student.epochs, arm.config.finetune.epochs) for arm in arms.values()] == [
        (18, 0), (15, 3), (15, 3),
    ]  # fmt: skip
    assert [arm.config.loss.kind for arm in arms.values()] == ["ce", "kd", "dist"]


def test_the_control_learns_from_labelled_images_alone() -> None:
    """It has no use for others: they are taken out, wherever they were named."""
    control = found("dataset.unlabelled=somewhere", "student.epochs=1")["control"]

    assert control.words[-1] == "dataset.unlabelled=null"
    assert control.config.dataset.unlabelled is None


def test_variants_come_from_the_line_from_losses_and_by_name() -> None:
    """A loss of a variant's own leaves the line's words about loss and feature out; other words are added to them."""
    line = ["loss=kd", "loss.T=2", "feature=[at]", "loss.features.at.weight=5", "student=mlp"]
    asked = [
        "compare.losses=[dkd]",
        "compare.variants.hot=loss.T=8 student.epochs=3",
        "compare.variants.sp=feature=[sp]",
    ]
    variants = found(*line, *asked)

    assert list(variants) == ["control", "as given", "dkd", "hot", "sp"]
    assert variants["as given"].words == line
    assert variants["dkd"].words == ["student=mlp", "loss=dkd"]
    assert variants["hot"].words == [line[0], *line[2:], "loss.T=8", "student.epochs=3"]
    assert variants["sp"].words == ["loss=kd", "loss.T=2", "student=mlp", "feature=[sp]"]
    assert variants["sp"].config.loss.features.keys() == {"sp"}
    smaller = found("student.epochs=3", "student=cnn", "compare.variants.small=student=mlp")["small"]
    assert smaller.words == ["student.epochs=3", "student=mlp"]


def test_without_anything_asked_the_settings_are_compared() -> None:
    """The default loss, or that of the line; with variants it is left out unless the line has it."""
    assert list(found()) == list(found("loss=dist")) == ["control", "as given"]
    assert found("loss=dist")["as given"].config.loss.kind == "dist"
    assert list(found("compare.losses=[kd]", "student=mlp")) == ["control", "kd"]


def test_an_arm_s_words_make_its_jobs(words: Callable[..., list[str]]) -> None:
    """`kdistill run` with them and a seed is the job that is trained."""
    line = words("student.seed=3", "compare.losses=[kd,at]")
    for arm in arms(config_of(line), line):
        job = arm.job(4)

        assert job.config == load_config(*job.overrides)
        assert job.overrides[-1] == "student.seed=4"


# --- what is found ---


def test_the_files_say_what_the_predictions_say(words: Callable[..., list[str]], tmp_path: Path) -> None:
    """Scores, differences and intervals, computed again from the stored predictions of each seed."""
    content = compared(words("compare.losses=[kd,dist]", "student.seed=5"), tmp_path / "it")
    control, variant = content["control"], content["variants"]["dist"]

    def right(folder: str) -> torch.Tensor:
        answers = read_predictions(Path(folder) / FILE)
        return (answers.logits.argmax(1) == answers.labels).double()

    rows = [torch.stack([right(f) for f in side["predictions"]]) for side in (control, variant)]
    test = paired(*rows)

    assert (content["seeds"], content["test_images"]) == ([5, 6], 64)
    assert control["scores"] == rows[0].mean(1).tolist()
    assert variant["mean"] == pytest.approx(rows[1].mean().item())
    assert variant["std"] == pytest.approx(rows[1].mean(1).std().item())
    assert variant["difference"] == pytest.approx(test.difference)
    assert (variant["low"], variant["high"]) == pytest.approx(test.interval(0.975))
    gap = content["teacher"]["score"] - control["mean"]
    assert variant["gap_closed"] == (pytest.approx(variant["difference"] / gap) if gap > 0 else None)
    assert content["metric"] == "top1"
    assert list(content["variants"]) == ["kd", "dist"]


def test_csv_and_table(words: Callable[..., list[str]], tmp_path: Path) -> None:
    """A line for each arm in the file; the table has the teacher first, its cost apart, and the verdicts."""
    line = words("compare.losses=[kd,dkd]")
    result = run_stage(config_of(line), line, tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())
    (table,) = result.tables
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))

    assert [line["name"] for line in lines] == ["control", "kd", "dkd"]
    assert float(lines[1]["difference"]) == content["variants"]["kd"]["difference"]
    assert lines[0]["difference"] == ""
    assert table.title == "synthetic: 64 test images, 2 seeds"
    assert table.columns == [
        "", "top-1 %", "difference", "95 % interval", "verdict", "gap closed %", "seconds"
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == ["teacher resnet8", "control", "kd", "dkd"]
    assert table.rows[2][4] == content["variants"]["kd"]["verdict"]
    assert "control: the student on labels alone for 4 epochs" in table.note
    assert "the intervals hold together; each alone has 97.5 %" in table.note
    assert f"took another {content['soft_targets_seconds']:.1f} seconds, once for all" in table.note
    assert "kd: 2 seeds find a difference of " in table.note  # two seeds tell next to nothing
    assert result.message == f"comparison: {tmp_path / 'comparison.json'}\nnext: kdistill report {tmp_path}"
    assert result.row["kd verdict"] == "NO DIFFERENCE"


def test_a_known_answer_gets_its_verdict(tmp_path: Path) -> None:
    """A student that is not trained is worse than the control, and beaten when it is the control itself."""
    easy = (*TINY, f"runs={tmp_path}", "dataset.noise=0.1", "student=resnet8", "~student.params.channels")
    line = [*easy, "student.params.width=8", "compare.seeds=3", "finetune=none"]
    lazy = "compare.variants.lazy=student.epochs=0"
    found = compared([*line, "student.epochs=6", lazy], tmp_path)["variants"]["lazy"]
    assert (found["verdict"], found["high"] < 0) == ("WORSE", True)

    keen = "compare.variants.keen=student.epochs=6"
    found = compared([*line, "student.epochs=0", keen], tmp_path)["variants"]["keen"]
    assert (found["verdict"], found["low"] > 0) == ("BEATS", True)


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [
        (("dataset=synthetic_multilabel", "dataset.samples=160"), "map"),
        (("experiment=diabetes",), "r2"),
    ],
)
def test_the_other_tasks(tmp_path: Path, dataset: tuple[str, ...], metric: str) -> None:
    """The headline is compared: the mean of what is tested is the score that `eval` finds."""
    epochs = ("teacher.epochs=1", "student.epochs=2", "finetune.epochs=0", "eval.cost=false", "device=cpu")
    line = [*dataset, *epochs, f"runs={tmp_path / 'runs'}", "compare.seeds=2"]
    content = compared(line, tmp_path)
    scores = evaluate(load_config(*line, "student.seed=1"))

    assert content["metric"] == metric
    assert content["variants"]["as given"]["scores"][1] == pytest.approx(scores["student"][metric])
    assert content["teacher"]["score"] == pytest.approx(scores["teacher"][metric])


@pytest.mark.slow
def test_a_chain_s_cost_is_all_of_it(words: Callable[..., list[str]], tmp_path: Path) -> None:
    """Assistant, student and fine-tuning count; the teacher does not."""
    line = words("assistant=resnet8", "assistant.params.width=4", "assistant.epochs=1")
    content = compared(line, tmp_path)
    variant = content["variants"]["as given"]
    alone = [
        {name: s["seconds"] for name, s in run(load_config(*line, f"student.seed={seed}")).items()}
        for seed in (0, 1)
    ]

    assert alone[0].keys() == {"teacher", "step 1", "student", "fine-tuned"}
    assert variant["seconds"] == pytest.approx(
        sum(value for s in alone for name, value in s.items() if name != "teacher") / 2
    )
    assert content["teacher"]["seconds"] == alone[0]["teacher"]


# --- going on ---


def test_what_is_there_is_used_and_a_break_leaves_whole_seeds(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first seed's students come before the second's; given again, only what is missing is trained."""
    from kdistill.stages import training

    real, trained = training.fit, []

    def fit(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["title"])
        if len(trained) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "fit", fit)
    line = words("compare.losses=[kd]")
    with pytest.raises(KeyboardInterrupt):
        compared(line, tmp_path)
    assert trained == ["teacher", "student", "student", "fine-tuning", "student"]
    compared(line, tmp_path)
    assert trained[5:] == ["student", "student", "fine-tuning"]
    before = (tmp_path / "comparison.json").read_text()
    compared(line, tmp_path)
    assert len(trained) == 8
    assert (tmp_path / "comparison.json").read_text() == before
    compared(words("compare.losses=[kd,dist]"), tmp_path)
    assert len(trained) == 12


def test_as_a_command_and_a_sweep(
    words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file lies in the run's folder; of a sweep each job is a comparison."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert main(["compare", *words("compare.variants.hot=loss.T=8")]) == 0
        said = capsys.readouterr().out
        assert main(["compare", "-m", *words("loss.T=2,8")]) == 0
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    (one,) = tmp_path.glob("runs/compare/2*/comparison.json")
    content = json.loads(one.read_text())
    swept = sorted(tmp_path.glob("runs/compare/sweep_*/*/comparison.json"))

    assert said.startswith("synthetic: 64 test images, 2 seeds\n")
    assert said.endswith(f"comparison: {one}\nnext: kdistill report {one.parent}\n")
    assert "compare.variants.hot=" in content["command"]
    assert list(content["variants"]) == ["hot"]
    assert "loss.T=8" in content["variants"]["hot"]["words"]
    assert len(swept) == 2
    assert "as given verdict" in capsys.readouterr().out


def test_from_python(words: Callable[..., list[str]]) -> None:
    """The content of the file."""
    content = kdistill.compare(*words("student.epochs=1", "finetune=none"))

    assert content["variants"]["as given"]["verdict"] in ("BEATS", "NO DIFFERENCE", "WORSE")


# --- refusals ---


def refused(*words: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        check_before([config_of([*words])], [words])
    return str(caught.value)


def test_what_is_no_comparison_is_refused(words: Callable[..., list[str]], tmp_path: Path) -> None:
    """Before anything is trained, each with its reason."""
    line = words()

    assert refused(*line, "compare.losses=[kd,ce]") == (
        "ce is no variant: its student learns from the labels alone, as the control does anyway; give it a teacher"
        " (loss.beta, feature=NAME) or another loss"
    )
    assert refused(*line, "loss.alpha=1").startswith(
        "as given is no variant: its student learns from the labels"
    )
    assert refused(*line, "compare.losses=[kd]", "compare.variants.same=loss.T=4") == (
        "kd and same are the same student, trained in the same way: take one of them out"
    )
    assert refused(*line, "compare.variants.other=dataset.seed=9").startswith(
        "other has another test split than the control, and only on the same images can they be compared;"
        " take the settings of dataset out of it: "
    )
    assert refused(*line, "compare.losses=[kd,kd]") == "compare.losses=[kd,kd]: name each loss once"
    assert refused(*line, "compare.losses=[kd]", "compare.variants.kd=loss.T=8") == (
        "compare.variants.kd: there is kd already; choose another name"
    )
    assert refused(*line, "compare.variants.x=student.seed=3") == (
        "compare.variants.x: student.seed=3 cannot be a variant's own; compare.seeds and student.seed on the line say"
        " which seeds all of them have"
    )
    assert refused(*line, "compare.variants.x=loss.T='8") == (
        "compare.variants.x=loss.T='8: a quote has no end; write overrides as on a command line"
    )
    assert not (tmp_path / "runs").exists()


def test_a_variant_that_its_data_does_not_allow_is_refused_as_elsewhere(
    words: Callable[..., list[str]],
) -> None:
    """What `kdistill run` would say of it, before the first student."""
    assert refused(*words("mixing=mixup", "compare.losses=[kd,dkd]")).startswith(
        "loss=dkd needs one label for each image"
    )


def test_without_test_images_nothing_is_trained(tmp_path: Path) -> None:
    """A folder `test` with nothing in its classes: refused, as by `run`."""
    for split, count in (("train", 8), ("test", 0)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), i).save(tmp_path / split / name / f"{i}.png")
    line = [
        "dataset=image_folder",
        f"dataset.root={tmp_path}",
        "dataset.image_size=8",
        f"runs={tmp_path / 'runs'}",
    ]

    assert refused(*line, "dataset.validation=0.25", "teacher=cnn").startswith(
        f"class folder {tmp_path / 'test' / 'cat'} has no images"
    )
    assert not (tmp_path / "runs").exists()
