"""Configs are data that people pass around: none of them may name code to run, or read secrets."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdistill.cli import main
from kdistill.config import folders
from kdistill.config.compose import plan, preview
from kdistill.errors import ConfigError

ATTACKS = {
    "a callback": (
        "hydra: {callbacks: {x: {_target_: os.system, command: id}}}",
        "hydra.callbacks may not be set",
    ),
    "environment variables": (
        "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}",
        "hydra.job.env_set may not be set",
    ),
    "a log handler": (
        "hydra: {job_logging: {handlers: {file: {class: logging.handlers.SocketHandler}}}}",
        "hydra.job_logging may not be changed",
    ),
    "Hydra's log": (
        "hydra: {hydra_logging: {root: {level: DEBUG}}}",
        "hydra.hydra_logging may not be changed",
    ),
    "a launcher": (
        "hydra: {launcher: {_target_: os.system}}",
        "hydra.launcher._target_=os.system: not a plugin of Hydra; choose one with hydra/launcher=NAME",
    ),
    "a sweeper's part": (
        "hydra: {sweeper: {params: {_target_: os.system}}}",
        "hydra.sweeper.params._target_: a config may not name code",
    ),
    "a target made by a resolver": (
        "hydra: {sweeper: {params: '${oc.create:{a: {_target_: os.system}}}'}}",
        "hydra.sweeper.params.a._target_: a config may not name code",
    ),
    "a sweeper": (
        "hydra: {sweeper: {_target_: subprocess.run}}",
        "hydra.sweeper._target_=subprocess.run",
    ),
    "a target in the job": (
        "student: {params: {x: [{_target_: os.system}]}}",
        "student.params.x.0._target_: a config may not name code; kdistill takes names, see `kdistill list`",
    ),
    "another folder": (
        "hydra: {job: {chdir: true}}",
        "hydra.job.chdir may not be set: paths are relative",
    ),
}


@pytest.fixture
def attack(tmp_path: Path):
    """Write a user's experiment `x` and use its folder."""

    def write(text: str) -> None:
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "x.yaml").write_text(f"# @package _global_\n{text}\n")
        folders.use_folders([str(tmp_path)])

    yield write
    folders.use_folders()


@pytest.mark.parametrize(("text", "message"), ATTACKS.values(), ids=ATTACKS)
def test_a_config_may_not_name_code(attack, text: str, message: str) -> None:
    """Refused before anything of it is used, for a run, a sweep, and a look at the config."""
    attack(text)
    for composing in (
        lambda: plan("distill", ["experiment=x"]),
        lambda: plan("distill", ["experiment=x", "loss.T=1,2"], multirun=True),
        lambda: preview("distill", ["experiment=x"]),
    ):
        with pytest.raises(ConfigError) as caught:
            composing()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def test_the_command_refuses_with_code_2(attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, no traceback, and the command in the config did not run."""
    attack(f"hydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {tmp_path / 'ran'}}}}}}}")
    assert main(["--config-dir", str(tmp_path), "distill", "experiment=x"]) == 2
    assert capsys.readouterr().err == "hydra.callbacks may not be set: it reaches beyond the run\n"
    assert not (tmp_path / "ran").exists()


def test_a_users_log_config_is_refused_under_the_shipped_name(tmp_path: Path) -> None:
    """Replacing `hydra/job_logging/kdistill` is seen as well: the content is compared, not the name."""
    file = tmp_path / "hydra" / "job_logging" / "kdistill.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("version: 1\nroot: {level: DEBUG}\n")
    folders.use_folders([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"^hydra.job_logging may not be changed"):
        plan("distill", [])
    folders.use_folders()


def test_an_experiment_cannot_choose_another_log_config(attack) -> None:
    """Its `override` is without effect: the root's own choice of the log config wins in Hydra."""
    attack("defaults: [override /hydra/job_logging: default]")
    cfg, _ = preview("distill", ["experiment=x"])
    assert cfg.hydra.job_logging.handlers.console["class"] == "kdistill.logs.ConsoleHandler"


def test_another_log_config_is_refused_on_the_command_line() -> None:
    """Hydra's own options of the group are no exception."""
    with pytest.raises(ConfigError, match=r"^hydra.job_logging may not be changed"):
        plan("distill", ["hydra/job_logging=default"])


def test_the_search_path_takes_folders_only(tmp_path: Path) -> None:
    """`pkg://NAME` would import a package, before anything could be checked."""
    with pytest.raises(ConfigError, match=r"no folder pkg://this; only folders may be added"):
        plan("distill", ["hydra.searchpath=[pkg://this]"])
    assert plan("distill", [f"hydra.searchpath=[{tmp_path}]"]).configs


@pytest.mark.parametrize("name", ["KDISTILL_THING", "USER", "TMPDIR"])
def test_harmless_variables_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KDISTILL_*, HOME, USER and TMPDIR, with Hydra's own syntax and defaults."""
    monkeypatch.setenv(name, "here")
    assert plan("distill", [f"runs=${{oc.env:{name}}}"]).configs[0].runs == "here"
    monkeypatch.delenv(name)
    assert plan("distill", [f"runs=${{oc.env:{name},there}}"]).configs[0].runs == "there"


def test_secrets_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolved config ends up in manifests and logs, so a token in the environment stays there."""
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with pytest.raises(Exception, match="but not SECRET_TOKEN") as caught:
        OmegaConf.to_container(OmegaConf.create({"runs": "${oc.env:SECRET_TOKEN,x}"}), resolve=True)
    assert "hunter2" not in str(caught.value)


def test_nothing_is_instantiated() -> None:
    """No module of the package calls Hydra's `instantiate`, and no shipped config has a `_target_`."""
    package = Path(__file__).parent.parent / "kdistill"
    assert [file for file in package.rglob("*.py") if "instantiate(" in file.read_text()] == []
    assert [
        file for file in folders.shipped_dir().rglob("*.yaml") if re.search(r"\b_target_\b", file.read_text())
    ] == []
