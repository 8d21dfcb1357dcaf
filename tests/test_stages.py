"""The stages over the tiny pipeline: what they make, share, refuse and find again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import kdistill
from kdistill import distill, evaluate, finetune, load_network, make_soft_targets, run, train_teacher
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, DamagedArtifact, MissingArtifact, ModelError, RunError, UserError
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job

Tiny = Callable[..., Config]


def artifacts(config: Config, kind: str) -> list[str]:
    return sorted(p.name for p in (Path(config.runs) / "artifacts" / kind).glob("*") if p.is_dir())


def test_the_whole_chain(tiny: Tiny) -> None:
    """run makes every artifact once and judges teacher, distilled and fine-tuned student on the test split."""
    config = tiny("teacher.epochs=6", "dataset.noise=0.5")
    scores = run(config)

    assert list(scores) == ["teacher", "student", "fine-tuned"]
    assert scores["teacher"]["top1"] > 0.6
    assert scores["teacher"]["agreement"] == 1
    assert scores["student"]["parameters"] < scores["teacher"]["parameters"] / 10
    for kind in ("teacher", "soft-targets", "student", "finetuned"):
        assert len(artifacts(config, kind)) == 1


def test_a_repeated_command_does_no_work(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is found by its key: with training forbidden the same scores come out."""
    config = tiny()
    before = run(config)
    monkeypatch.setattr("kdistill.stages.training.fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(
        "kdistill.stages.soft_targets._generate", lambda *a, **k: pytest.fail("generated again")
    )

    assert run(config) == before


def test_the_same_seed_gives_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    """Two runs in two folders agree bit for bit, whatever the generators' states were."""
    run(tiny())
    torch.manual_seed(99)
    torch.randn(5)
    run(tiny(f"runs={tmp_path / 'other'}"))
    files = [sorted(folder.rglob("model.safetensors")) for folder in (tmp_path / "runs", tmp_path / "other")]

    assert len(files[0]) == 3
    for a, b in zip(*files, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_students_of_a_sweep_share_teacher_and_soft_targets(tiny: Tiny) -> None:
    """Four temperatures and seeds: one teacher, one set of soft targets, four students."""
    train_teacher(tiny())
    for T in (1, 4):
        for seed in (0, 1):
            distill(config := tiny(f"loss.T={T}", f"student.seed={seed}"))

    assert [len(artifacts(config, kind)) for kind in ("teacher", "soft-targets", "student")] == [1, 1, 4]


def test_the_control_needs_no_teacher(tiny: Tiny) -> None:
    """loss=ce trains on labels alone, with one artifact whatever T or the teacher is."""
    config = tiny("loss=ce")
    first = distill(config)

    assert artifacts(config, "teacher") == []
    assert first.parents == {}
    assert (
        distill(tiny("loss=kd", "loss.alpha=1", "loss.beta=0", "teacher.params.width=4")).folder
        == first.folder
    )


def test_a_missing_teacher_names_the_command(tiny: Tiny) -> None:
    """distill stops at a missing teacher with the command that makes it, without the student's overrides."""
    with pytest.raises(MissingArtifact) as caught:
        run_stage(
            tiny().model_copy(update={"stage": "distill"}),
            ["stage=distill", "loss.T=2", "dataset=synthetic", "student=cnn"],
        )

    assert (
        str(caught.value)
        == "the teacher resnet8 is not trained yet. Make it with:\n  kdistill train-teacher dataset=synthetic"
    )


def test_a_missing_student_names_the_command(tiny: Tiny) -> None:
    """eval and finetune stop at a missing student."""
    train_teacher(tiny())
    for stage in (evaluate, finetune):
        with pytest.raises(MissingArtifact, match="the student cnn is not distilled yet"):
            stage(tiny())


def test_a_sweep_is_checked_before_its_first_job(tiny: Tiny) -> None:
    """A missing teacher, and a model that torchvision does not have, stop the sweep at once."""
    jobs = [tiny(f"loss.T={T}").model_copy(update={"stage": "distill"}) for T in (1, 2)]
    with pytest.raises(MissingArtifact, match="kdistill train-teacher"):
        check_before(jobs)

    train_teacher(jobs[0])
    check_before(jobs)
    wrong = tiny("student=torchvision", "student.name=torchvision/resnet81").model_copy(
        update={"stage": "distill"}
    )
    with pytest.raises(UserError, match="resnet81"):
        check_before([*jobs, wrong])


def test_fine_tuning_nothing_is_refused(tiny: Tiny) -> None:
    """finetune.epochs=0 has nothing to do when asked for by name, and is left out by run."""
    with pytest.raises(ConfigError, match=r"finetune.epochs=0: there is nothing to fine-tune"):
        finetune(tiny("finetune.epochs=0"))
    assert list(run(tiny("finetune.epochs=0"))) == ["teacher", "student"]


def test_a_rebuilt_teacher_makes_its_children_stale(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """A teacher replaced under its key: soft targets and student are named, and made anew from it."""
    config = tiny()
    run(config)
    teacher = train_teacher(config).folder
    network = load_network(teacher)
    student = distill(config).manifest
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    _replace_weights(teacher, network)

    again = distill(config).manifest

    assert "soft-targets resnet8-" in caplog.text
    assert "is stale: it was made from another build of teacher" in caplog.text
    assert again["parents"]["teacher"]["digest"] != student["parents"]["teacher"]["digest"]
    assert again["digest"] != student["digest"]


def _replace_weights(folder: Path, network: torch.nn.Module) -> None:
    """What a rebuild with other library versions does: other weights, and a manifest that fits them."""
    from kdistill.files import sha256_of
    from kdistill.models import save_weights

    path = folder / "model.safetensors"
    save_weights(network.net, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["digest"] = manifest["files"][path.name]["sha256"] = sha256_of(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_force_makes_the_asked_stage_anew_and_not_its_parents(tiny: Tiny) -> None:
    """force=true with distill: the student is trained again, the teacher is not."""
    config = tiny()
    run(config)
    forced = tiny("force=true").model_copy(update={"stage": "distill"})
    before = {kind: _made(config, kind) for kind in ("teacher", "soft-targets", "student")}
    distill(forced)
    after = {kind: _made(config, kind) for kind in before}

    assert before["teacher"] == after["teacher"]
    assert before["soft-targets"] == after["soft-targets"]
    assert before["student"] != after["student"]


def _made(config: Config, kind: str) -> int:
    folder = Path(config.runs) / "artifacts" / kind
    return next(folder.glob("*/manifest.json")).stat().st_mtime_ns


def test_damaged_weights_are_never_used(tiny: Tiny) -> None:
    """A flipped byte in the teacher stops distill with the file's name."""
    config = tiny()
    path = train_teacher(config).folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(
        DamagedArtifact, match=r"model.safetensors is damaged: its content does not match its checksum"
    ):
        make_soft_targets(config)


def test_training_never_reads_the_test_split(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only eval may: with the test split out of reach, all training stages still work."""
    from kdistill.data import Data

    def forbidden(self: Data) -> None:
        raise AssertionError("the test split was read")

    monkeypatch.setattr(Data, "test", property(forbidden))
    config = tiny()
    train_teacher(config)
    distill(config)
    finetune(config)
    with pytest.raises(AssertionError, match="the test split was read"):
        evaluate(config)


def test_a_user_s_own_teacher(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A state dict in a usual wrapping becomes a teacher as it is; the file's content is in the key, not its place."""
    caplog.set_level("INFO")
    network = load_network(train_teacher(tiny()).folder)
    state = {f"module.{name}": value for name, value in network.net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "mine.pth")
    (tmp_path / "elsewhere").mkdir()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "elsewhere" / "mine.pth")
    config = tiny(f"teacher.weights={tmp_path / 'mine.pth'}", "teacher.epochs=0")
    imported = load_network(train_teacher(config).folder)

    assert "module.head.weight" in caplog.text  # the table of matched keys
    for name, value in network.state_dict().items():
        assert torch.equal(value, imported.state_dict()[name])
    again = tiny(f"teacher.weights={tmp_path / 'elsewhere' / 'mine.pth'}", "teacher.epochs=0")
    assert train_teacher(again).folder == train_teacher(config).folder
    assert evaluate_teacher(config) == evaluate_teacher(tiny())


def evaluate_teacher(config: Config) -> float:
    distill(config)
    return evaluate(config)["teacher"]["top1"]


def test_a_missing_weights_file_is_named(tiny: Tiny, tmp_path: Path) -> None:
    """weights=PATH that is not there."""
    with pytest.raises(ModelError, match=r"there is no such file"):
        train_teacher(tiny(f"teacher.weights={tmp_path / 'absent.pth'}"))


def test_logits_too_large_for_float16(tiny: Tiny) -> None:
    """Logits beyond 65,504 are refused in float16, with the setting that helps."""
    config = tiny()
    folder = train_teacher(config).folder
    network = load_network(folder)
    with torch.no_grad():
        network.net.head.weight.mul_(1e6)
    _replace_weights(folder, network)

    with pytest.raises(RunError, match=r"too large for float16; set soft_targets.dtype=float32"):
        make_soft_targets(config)


def test_a_manifest_says_all(tiny: Tiny) -> None:
    """Metrics, parameters, versions, classes, and the settings that the key was computed from."""
    config = tiny()
    run(config)
    manifest = distill(config).manifest

    assert {"top1", "nll", "ece"} == set(manifest["validation"])
    assert manifest["made_from"]["loss"] == {"kind": "kd", "alpha": 0.1, "beta": 0.9, "T": 4.0}
    assert manifest["parents"].keys() == {"teacher", "soft-targets"}
    assert manifest["classes"] == ["0", "1", "2", "3"] or len(manifest["classes"]) == 4


def test_results_for_the_command_line(tiny: Tiny) -> None:
    """Each stage gives a table, the artifact's place and the next command with the same overrides."""
    words = ["stage=x", "dataset=synthetic", "student.seed=1"]
    config = tiny("student.seed=1")
    made = run_stage(config.model_copy(update={"stage": "train-teacher"}), words)
    judged = run_stage(config, words)

    assert made.message.endswith("next: kdistill distill dataset=synthetic student.seed=1")
    assert made.objective == pytest.approx(train_teacher(config).manifest["validation"]["top1"])
    assert [row[0] for row in judged.tables[0].rows] == [
        "teacher resnet8",
        "student cnn, distilled",
        "student cnn, fine-tuned",
    ]
    assert {"teacher top1", "student top1", "fine-tuned top1", "agreement", "parameters"} <= set(judged.row)


def test_the_student_s_folder_is_enough(tiny: Tiny, tmp_path: Path) -> None:
    """Without kdistill, the folder's own `use.py` gives the same logits as the network here."""
    config = tiny()
    run(config)
    folder = finetune(config).folder
    image = torch.randint(0, 256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    np.save(tmp_path / "image.npy", image.numpy())
    (tmp_path / "kdistill.py").write_text("raise ImportError('no kdistill here')")
    script = (
        "import sys, numpy as np, torch; from PIL import Image; import use; network = use.load();"
        f"image = np.load({str(tmp_path / 'image.npy')!r})[0, 0];"
        "x = use.preprocess(Image.fromarray(image)); x = x if x.ndim == 4 else x[None];"
        "print(network(x).flatten().tolist())"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{folder}", "PATH": "/usr/bin:/bin"}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=folder
    )

    assert output.returncode == 0, output.stderr
    with torch.no_grad():
        expected = load_network(folder)(image).flatten()
    torch.testing.assert_close(torch.tensor(json.loads(output.stdout)), expected)


def test_data_and_keys_follow_content(tiny: Tiny) -> None:
    """Other data under the same settings is another teacher; another folder for runs is not."""
    a, b = Job(tiny()), Job(tiny("dataset.seed=1"))

    assert a.identity.teacher != b.identity.teacher
    assert Job(tiny("device.workers=2")).identity.teacher == a.identity.teacher


def test_public_names() -> None:
    """The Python API: these names and no others."""
    assert kdistill.__all__ == sorted(kdistill.__all__, key=lambda n: (n.islower(), n))
    assert set(kdistill.__all__) == {
        "KdistillError", "__version__", "compare", "distill", "evaluate", "export", "finetune", "kd_loss",
        "load_config", "load_network", "make_soft_targets", "register_loss", "run", "train_teacher",
    }  # fmt: skip
    for name in kdistill.__all__:
        assert getattr(kdistill, name) is not None


def test_own_weights_may_bring_their_own_normalisation(tiny: Tiny, tmp_path: Path) -> None:
    """teacher.mean and teacher.std replace what was measured on the data, in training and in the folder."""
    config = tiny("teacher.mean=[0.5]", "teacher.std=[0.25]")
    folder = train_teacher(config).folder
    network = load_network(folder)

    assert (network.mean.item(), network.std.item()) == (0.5, 0.25)
    assert folder != train_teacher(tiny()).folder
    with pytest.raises(ConfigError, match=r"teacher.mean has 3 channels, resnet8 takes 1 here"):
        train_teacher(tiny("teacher.mean=[0.5,0.5,0.5]", "teacher.std=[1,1,1]"))
    with pytest.raises(ConfigError, match="mean and std go together"):
        tiny("teacher.mean=[0.5]")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["student.seed=1"], "kdistill compare student.seed=1"),
        (["loss.T=2", "student=cnn"], "kdistill compare loss.T=2 student=cnn"),
        (["loss=ce", "student=cnn"], "kdistill run student=cnn loss=kd"),
    ],
)
def test_the_next_command_leads_to_an_honest_control(tiny: Tiny, words: list[str], expected: str) -> None:
    """What is suggested after `run` composes, and its control has no teacher."""
    config = tiny(*[word for word in words if word.startswith("loss")])
    suggested = run_stage(config, words).message.rpartition("next: ")[2]

    assert suggested == expected
