"""SIGKILL at any moment, then the same command: the same weights as without the kill."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY

LONGER = (*TINY, "dataset.samples=2000", "teacher.epochs=4", "student.epochs=6", "finetune.epochs=3")
LONGER += (
    "student.optim.ema=0.9",
    "student.optim.clip_norm=1.0",
    "soft_targets.dtype=float32",
    "device.threads=1",
)


def start(runs: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdistill", "run", *LONGER, f"runs={runs}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def files(runs: Path) -> dict[str, bytes]:
    """Every artifact's payload by its place."""
    paths = [*runs.glob("artifacts/*/*/model.safetensors"), *runs.glob("artifacts/*/*/logits.npy")]
    return {str(path.relative_to(runs)): path.read_bytes() for path in sorted(paths)}


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """Kills at random moments all over the pipeline, until it ends: every artifact is the same, bit for bit."""
    finish(start(tmp_path / "straight"))
    moments = random.Random(0)
    kills = 0
    for _ in range(60):
        process = start(tmp_path / "killed")
        if wait_for_line(process, r"epoch \d+/|soft targets \d+%"):
            time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None and kills < 12:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 3

    straight, killed = files(tmp_path / "straight"), files(tmp_path / "killed")
    assert len(straight) == 4
    assert straight == killed


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> str:
    """Read stderr up to a line that matches; an empty string when the process ends without one."""
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    for line in process.stderr:
        if re.search(pattern, line):
            return line
        assert time.monotonic() < deadline, f"no line like {pattern}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["teacher epoch 2/", "soft targets 10%", "student epoch 3/", "fine-tuning epoch 1/"]
)
def test_killed_in_each_stage(tmp_path: Path, moment: str) -> None:
    """A kill in the middle of a stage: the next start says where it goes on, and ends with the same weights."""
    finish(start(tmp_path / "straight"))
    process = start(tmp_path / "killed")
    assert wait_for_line(process, moment)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    _, err = finish(start(tmp_path / "killed"))

    assert "going on at" in err
    assert files(tmp_path / "straight") == files(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    """Exit code 130, a message with what to do, no traceback, and the same command goes on within the epoch."""
    process = start(tmp_path, "teacher.epochs=300")
    assert wait_for_line(process, "teacher epoch 2/")
    os.kill(process.pid, number)
    _, err = finish(process, code=130)
    assert "the state is saved: give the same command again to go on" in err
    assert "Traceback" not in err

    again = start(tmp_path, "teacher.epochs=300")
    assert re.search(r"teacher: going on at epoch \d+ of 300, step \d+", wait_for_line(again, "going on"))
    os.kill(again.pid, signal.SIGKILL)
    again.communicate()


#: the command, with a signal in the middle of writing how it ended
SIGNALLED = """
import os, signal, sys
from kdistill import jobfolder
from kdistill.__main__ import main

write = jobfolder.write_result

def signalled(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    write(*args)

jobfolder.write_result = signalled
sys.exit(main())
"""


@pytest.mark.parametrize(("lr", "code", "status"), [(0.1, 0, "ok"), (1e30, 1, "failed")])
def test_a_signal_does_not_cut_off_how_a_job_ended(lr: float, code: int, status: str, tmp_path: Path) -> None:
    """As torchrun sends one to a process whose peer has died, while that one says so."""
    words = ["train-teacher", *TINY, f"teacher.optim.lr={lr}", f"runs={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", SIGNALLED, *words], capture_output=True, text=True)

    assert done.returncode == code, done.stderr
    (result,) = tmp_path.glob("train-teacher/*/result.json")
    assert json.loads(result.read_text())["status"] == status


def test_a_signal_at_the_end_of_a_job_ends_its_sweep(tmp_path: Path) -> None:
    """It is not lost to the record: the next job is not begun."""
    words = ["train-teacher", "-m", *TINY, "teacher.seed=0,1", f"runs={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", SIGNALLED, *words], capture_output=True, text=True)

    assert done.returncode == 130, done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("train-teacher/*/*/result.json")]
    assert [(result["job"], result["status"]) for result in results] == [(0, "ok")]


@pytest.mark.slow
def test_two_at_once_make_each_artifact_once(tmp_path: Path) -> None:
    """Two equal commands at the same time: both succeed, one of them waits, nothing is made twice."""
    both = [start(tmp_path), start(tmp_path)]
    outputs = [finish(process) for process in both]

    assert any("another process is making" in err for _, err in outputs)
    lines = [line for _, err in outputs for line in err.splitlines()]
    assert sum("teacher epoch 1/4" in line for line in lines) == 1
    assert len(files(tmp_path)) == 4


def test_a_cut_off_generation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Soft targets resume in the middle of a part, ask about nothing twice and give the same file."""
    from kdistill import load_config, make_soft_targets, train_teacher
    from kdistill.data import AllViews
    from kdistill.errors import Interrupted
    from kdistill.stages.job import Job
    from kdistill.teachers import LiveTeacher

    config = load_config(*TINY, f"runs={tmp_path / 'a'}")
    train_teacher(config)
    expected = np.load(make_soft_targets(config).folder / "logits.npy")
    other = load_config(*TINY, f"runs={tmp_path / 'b'}")
    train_teacher(other)
    calls = []
    real = LiveTeacher.outputs

    def stopping(self: LiveTeacher, images):
        if len(images) == 1:  # the image that shows the number of outputs
            return real(self, images)
        calls.append(images)
        if len(calls) == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, images)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LiveTeacher, "outputs", stopping)
        with pytest.raises(Interrupted):
            make_soft_targets(other)
        before = len(calls)
        actual = np.load(make_soft_targets(other).folder / "logits.npy")

    job = Job.open(other)
    images = [sum(map(len, asked)) for asked in (calls[:before], calls[before:])]
    shown = AllViews(job.transfer_set, job.teacher_views, 3)
    (seen,) = shown.read([torch.arange(288)])
    assert images[0] == 13 * 32
    assert 0 <= sum(images) - len(seen) < 3  # of one sample some views, but not all, were answered
    assert np.array_equal(expected, actual)
