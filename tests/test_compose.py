"""From words to checked configs: what is composed, and what a user reads when it cannot be."""

import shlex
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from kdistill.cli import main
from kdistill.config import explain, folders
from kdistill.config.compose import plan, preview, users_words
from kdistill.config.hydra_state import as_current, composer
from kdistill.config.overrides import long_form, short_form
from kdistill.errors import ConfigError


def _cases() -> list[tuple[str, list[str]]]:
    text = (Path(__file__).parent / "cases" / "config_errors.txt").read_text()
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("$ kdistill ")]
    return [(block[0].removeprefix("$ kdistill "), block[1:]) for block in blocks]


@pytest.mark.parametrize(("command", "expected"), _cases(), ids=[command for command, _ in _cases()])
def test_a_mistake_is_told_in_few_lines(
    command: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every mistake of the list: exit code 2, this text on stderr, nothing on stdout, no folder made."""
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert line.startswith(wanted.removesuffix("...")) if wanted.endswith("...") else line == wanted
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def _config(*words: str):
    return plan("distill", words).configs[0]


def test_defaults_compose_to_a_typed_config() -> None:
    """Without overrides the shipped YAML alone is a valid config, and the command sets the stage."""
    config = _config()
    assert config.stage == "distill"
    assert (config.teacher.name, config.student.name, config.dataset.name) == ("resnet20", "cnn", "digits")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("student.optim=adamw", "optim@student.optim=adamw"),
        ("teacher.optim=sgd,adamw", "optim@teacher.optim=sgd,adamw"),
        ("finetune.optim.schedule=multistep", "schedule@finetune.optim.schedule=multistep"),
        ("student.params.width=8", "++student.params.width=8"),
    ],
)
def test_short_forms(short: str, long: str) -> None:
    """An option of a mounted group is chosen by its setting; architecture parameters need no `+`."""
    assert long_form(short) == long
    assert short_form(long) == short


@pytest.mark.parametrize(
    "word", ["student.optim.lr=0.1", "loss.T=4", "student.optim={kind:sgd}", "student=mlp"]
)
def test_other_words_stay_as_they_are(word: str) -> None:
    """Only a name, or a comma list of names, makes an option."""
    assert long_form(word) == word


def test_a_variant_s_words_are_quoted() -> None:
    """A line of overrides is the value of one; quotes of its own stay, and one that is quoted stays as it is."""
    words = """compare.variants.hot=loss.T=8 a='b\\' feature=[at,sp]"""
    assert _config(words).compare.variants == {"hot": "loss.T=8 a='b\\' feature=[at,sp]"}
    assert _config("compare.variants.x='loss=kd'").compare.variants == {"x": "loss=kd"}
    assert _config("compare.variants={x: 'loss=kd', y: 'loss.T=2'}").compare.variants.keys() == {"x", "y"}


def test_short_forms_choose_options() -> None:
    """The student's optimizer changes and the teacher's stays, so that a sweep keeps its teacher."""
    config = _config(
        "student.optim=adamw", "student.optim.schedule=multistep", "student.optim.schedule.gamma=0.2"
    )
    assert config.student.optim.kind == "adamw"
    assert config.student.optim.schedule.kind == "multistep"
    assert config.student.optim.schedule.gamma == 0.2
    assert config.teacher.optim.kind == "sgd"
    assert config.teacher.optim.schedule.kind == "cosine"


def test_every_combination_of_a_sweep_is_planned() -> None:
    """Two lists make a product, the last list running fastest, as Hydra's basic sweeper numbers its jobs."""
    found = plan("distill", ["loss.T=1,2", "student.optim=sgd,adamw", "student=mlp"], multirun=True)
    assert [(c.loss.T, c.student.optim.kind) for c in found.configs] == [
        (1, "sgd"), (1, "adamw"), (2, "sgd"), (2, "adamw"),
    ]  # fmt: skip
    assert found.swept == ["loss.T", "student.optim"]
    assert [users_words(job) for job in found.jobs][3] == ["loss.T=2", "student.optim=adamw", "student=mlp"]


def test_a_sweep_may_come_from_a_config(tmp_path: Path) -> None:
    """`hydra.sweeper.params` of an experiment is expanded and checked like lists on the command line."""
    _write(
        tmp_path / "experiment" / "temperatures.yaml",
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      loss.T: 1,2,0\n",
    )
    folders.use_folders([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"^loss.T=0: must be greater than 0$"):
        plan("distill", ["experiment=temperatures"])
    found = plan("distill", ["experiment=temperatures", "loss.T=1,3"])
    assert found.multirun
    assert [config.loss.T for config in found.configs] == [1, 3]


def test_the_run_folder_is_known_beforehand() -> None:
    """Hydra's sweeper gets the resolved folder: front and jobs agree on it, whatever the clock says."""
    assert plan("distill", ['runs="else where\'s"']).folder.parent == Path("else where's/distill")
    found = plan("distill", ["loss.T=1,2", 'runs="else where\'s"'], multirun=True)
    assert found.folder.parent == Path("else where's/distill")
    assert found.folder.name.startswith("sweep_")
    again = plan("distill", found.overrides[1:], multirun=True)
    assert again.folder == found.folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_user_folders_add_and_replace_options(tmp_path: Path) -> None:
    """The first folder wins over the second, and both over the shipped configs."""
    first, second = tmp_path / "first", tmp_path / "second"
    _write(first / "loss" / "kd.yaml", "kind: kd\nalpha: 0.5\nbeta: null\nT: 7\nstandardise: false\n")
    _write(second / "loss" / "kd.yaml", "kind: kd\nalpha: 0.5\nbeta: null\nT: 8\nstandardise: false\n")
    _write(second / "loss" / "soft.yaml", "defaults: [kd]\nT: 9\n")
    folders.use_folders([str(first), str(second)])
    assert _config().loss.T == 7
    config = _config("loss=soft")
    assert (config.loss.alpha, config.loss.T) == (0.5, 9)


def test_folders_from_the_environment_come_after_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--config-dir, then KDISTILL_CONFIG_DIR, then ~/.config/kdistill."""
    for name in ("option", "variable", "home/.config/kdistill"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDISTILL_CONFIG_DIR", str(tmp_path / "variable"))
    folders.use_folders([str(tmp_path / "option")])
    assert [folder.name for folder in folders.user_dirs()] == ["option", "variable", "kdistill"]


def test_suggested_commands_name_the_folders_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They work as they stand: with each --config-dir; what the environment names is there anyway."""
    from kdistill.stages.job import Job

    for name in ("mine", "my own", "variable"):
        _write(tmp_path / name / "loss" / f"{name[:2]}.yaml", "defaults: [kd]\nT: 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDISTILL_CONFIG_DIR", "variable")
    folders.use_folders(["mine", "my own"], remember=True)
    job = Job(_config("loss=mi", "device=cpu"), ["loss=mi"])
    assert job.command("finetune") == "kdistill finetune --config-dir mine --config-dir 'my own' loss=mi"
    folders.use_folders(["mine"])
    assert job.command("finetune") == "kdistill finetune loss=mi"


def test_an_experiment_needs_no_plus(tmp_path: Path) -> None:
    """`experiment=NAME` changes options and values at once; the command line still wins."""
    _write(
        tmp_path / "experiment" / "small.yaml",
        "# @package _global_\ndefaults: [override /student: mlp]\nstudent:\n  epochs: 3\n",
    )
    folders.use_folders([str(tmp_path)])
    config = _config("experiment=small")
    assert (config.student.name, config.student.epochs) == ("mlp", 3)
    assert _config("experiment=small", "student.epochs=4").student.epochs == 4


def test_no_fine_tuning_of_a_recipe() -> None:
    """A recipe chooses how it is fine-tuned by an option, which another option replaces, wherever it stands."""
    for words in (
        ["finetune=none", "experiment=fashion_mnist"],
        ["experiment=fashion_mnist", "finetune=none"],
    ):
        assert _config(*words).finetune.epochs == 0
    assert _config("experiment=fashion_mnist").finetune.epochs == 3


def test_a_parameter_that_an_experiment_set_is_told_as_such(tmp_path: Path) -> None:
    """The user reads who set it and how to take it out; what the user set is not laid to the experiment."""
    _write(
        tmp_path / "experiment" / "wide.yaml",
        "# @package _global_\ndefaults: [override /student: resnet8]\nstudent: {params: {width: 8}}\n",
    )
    problem = "student: cnn has no parameter 'width'. It has: channels"
    assert _failure(tmp_path, "experiment=wide", "student=cnn") == (
        f"{problem} (set by experiment=wide; take it out with ~student.params.width)\n"
    )
    assert _failure(tmp_path, "experiment=wide", "student=cnn", "student.params.width=4") == f"{problem}\n"
    assert _failure(tmp_path, "student=cnn", "student.params.width=4") == f"{problem}\n"
    assert _config("experiment=wide", "student=cnn", "~student.params.width").student.name == "cnn"


def test_a_root_config_of_the_user_is_refused(tmp_path: Path) -> None:
    """It would replace the whole tree: the message names the place for own settings."""
    _write(tmp_path / "config.yaml", "student: {epochs: 3}\n")
    with pytest.raises(
        ConfigError, match=r"would replace kdistill's root config. Make it .*experiment/NAME.yaml"
    ):
        folders.use_folders([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: [1", "mine.yaml:3:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("defaults: [override /student: nope]", "a config names it: no option 'nope' in group 'student'"),
        ("studnt: {epochs: 3}", "no setting 'studnt'. Did you mean 'student'?"),
        ("student: {epochs: -3}", "student.epochs=-3: must be greater than or equal to 0"),
    ],
)
def test_mistakes_in_a_users_file(tmp_path: Path, text: str, message: str) -> None:
    """A broken file is named with its line; a wrong name or value reads as on the command line."""
    _write(tmp_path / "experiment" / "mine.yaml", f"# @package _global_\n{text}\n")
    assert _failure(tmp_path, "experiment=mine").splitlines()[0].endswith(message)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lossT=4", "loss.T"),
        ("loss_T=4", "loss.T"),
        ("student_epochs=3", "student.epochs"),
        ("studentepochs=3", "student.epochs"),
        ("dataset.train-samples=9", "dataset.train_samples"),
        ("teacher.optim_lr=1", "teacher.optim.lr"),
        ("soft-targets.views=2", "soft_targets.views"),
    ],
)
def test_a_forgotten_dot_is_put_back(tmp_path: Path, word: str, meant: str) -> None:
    """Dots, dashes and underscores are mistaken for each other; what is left of the name is enough."""
    key = word.partition("=")[0]
    assert _failure(tmp_path, word).splitlines()[0].endswith(f"no setting {key!r}. Did you mean {meant!r}?")


def _failure(folder: Path, *words: str) -> str:
    import io
    from contextlib import redirect_stderr

    printed = io.StringIO()
    with redirect_stderr(printed):
        assert main(["--config-dir", str(folder), "distill", *words]) == 2
    return printed.getvalue()


def test_an_empty_group_says_where_to_write_an_option() -> None:
    """The text names the file to make."""
    text = explain.unknown_option("experiment", "mine", [], "experiment=mine", "/home/me/.config/kdistill")
    assert text == (
        "no option 'mine' in group 'experiment': it has none yet."
        " Write one as /home/me/.config/kdistill/experiment/mine.yaml"
    )


def test_a_config_to_look_at_is_not_validated() -> None:
    """--cfg shows a config with a wrong value, so that the value can be found; a wrong name is an error."""
    cfg, _ = preview("distill", ["loss.T=-1"])
    assert cfg.loss.T == -1
    with pytest.raises(ConfigError, match=r"no setting 'loss\.t'\. Did you mean 'loss\.T'\?"):
        preview("distill", ["loss.t=1"])


def test_a_job_of_hydra_s_can_compose_others() -> None:
    """Composing within gives the outer Hydra its own state back."""
    cfg, _ = preview("distill", [])
    before = (
        GlobalHydra.instance().hydra,
        HydraConfig.instance().cfg,
    )  # a test before this one may have left some
    with composer(), as_current(cfg):
        hydra, job = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        assert _config("loss.T=7").loss.T == 7
        assert GlobalHydra.instance().hydra is hydra
        assert HydraConfig.instance().cfg is job
    assert (GlobalHydra.instance().hydra, HydraConfig.instance().cfg) == before


def test_every_setting_is_described() -> None:
    """Descriptions feed the near matches: each leaf of the schema has one, sections need none."""
    texts = explain.descriptions()
    sections = {path.rpartition(".")[0] for path in texts}
    names = {path for path, text in texts.items() if not text and path not in sections}
    assert {path.rpartition(".")[2] for path in names} <= {"kind", "name", "stage"}


@pytest.fixture(autouse=True)
def _forget_user_folders():
    yield
    folders.use_folders()
