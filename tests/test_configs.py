"""Every shipped option composes, and every model option builds and classifies."""

from pathlib import Path

import pytest
import torch

from kdistill import load_config
from kdistill.config.folders import groups
from kdistill.config.models import FAMILIES, MODELS, check_params, kind_of
from kdistill.errors import ConfigError
from kdistill.models import build_network

OPTIONS = [(group, option) for group, options in groups().items() for option in options]
CHOICES = [f"{g}={o}" for g, o in OPTIONS if g not in ("optim", "schedule")]
CHOICES += [
    f"{role}.optim={o}" for g, o in OPTIONS if g == "optim" for role in ("teacher", "student", "finetune")
]
CHOICES += [f"student.optim.schedule={o}" for g, o in OPTIONS if g == "schedule"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_into_a_checked_config(choice: str) -> None:
    """One option against the defaults; the user's own images need a place besides."""
    own = ("dataset=image_", "dataset=webdataset")
    more = ["dataset.root=somewhere"] if choice.startswith(own) else []
    more += ["feature=at"] if choice == "loss=features" else []
    more += ["teacher.weights=somewhere"] if choice in ("teacher=folder", "teacher=file") else []

    assert load_config(choice, *more).stage == "run"


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] in ("teacher", "student")])
def test_every_model_option_names_a_model_that_is_there(group: str, option: str) -> None:
    """Its name is known and its parameters fit; small ones build and classify an 8 x 8 image."""
    more = ["teacher.weights=somewhere"] if option in ("folder", "file") else []
    section = getattr(load_config(f"{group}={option}", *more), group)
    check_params(section.name, section.params)
    if kind_of(section.name) != "network":
        return
    family = section.name.partition("/")[0]
    if family in FAMILIES or section.name.startswith(("wrn_28", "wrn_40", "resnet110", "resnet56")):
        return
    network = build_network(section.name, section.params, classes=3, channels=1, image_size=(8, 8))

    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_every_small_network_is_an_option() -> None:
    """What `kdistill list models` names can be chosen as a student, and all but the smallest as a teacher."""
    assert set(MODELS) <= set(groups()["student"])
    assert set(MODELS) <= set(groups()["teacher"])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_what_it_is(group: str, option: str) -> None:
    """The first line is a comment: `kdistill list` shows it."""
    lines = [
        line for line in Path(groups()[group][option]).read_text().splitlines() if "@package" not in line
    ]

    assert lines[0].startswith("# ")
    assert len(lines[0]) <= 120


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_recipe_has_its_control(experiment: str) -> None:
    """`loss=ce` with a recipe learns from labels alone, and differs in nothing else."""
    recipe, control = (load_config(f"experiment={experiment}", *more) for more in ([], ["loss=ce"]))

    assert recipe.loss.soft_weight > 0
    assert (control.loss.kind, control.loss.soft_weight) == ("ce", 0)
    assert recipe.model_copy(update={"loss": control.loss}) == control


def test_the_control_takes_no_teacher_s_settings() -> None:
    """`loss=ce` with a temperature or a weight is refused: it would be no control."""
    for word in ("loss.T=2", "loss.beta=1", "loss.alpha=0.5"):
        with pytest.raises(ConfigError, match=f"no setting '{word.partition('=')[0]}'"):
            load_config("loss=ce", word)
