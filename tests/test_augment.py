"""The settings of augmentation: what is refused, what follows what, and that every view can be shown again."""

import hashlib
from collections.abc import Callable

import pytest
import torch

from kdistill import distill, load_config, train_teacher
from kdistill.config.schema import Config
from kdistill.data import Views, augmented
from kdistill.data.geometry import ResizedCrop
from kdistill.data.views import random_bits, random_fractions
from kdistill.errors import ConfigError
from kdistill.identity import Identity, key_of

#: one option each, without `dataset.augment.`
PRECISIONS = {"teacher": "fp32", "student": "fp32"}
OPTIONS = [
    "resized_crop=[0.3,1] resized_crop_ratio=[0.75,1.33]",
    "randaugment=2 randaugment_magnitude=9",
    "brightness=0.4",
    "contrast=0.4",
    "saturation=0.4",
    "hue=0.1",
    "erase=3",
]
PINNED = ["ece7f487", "f1c832ae", "48391705", "0c57b57d", "74702ccd", "b58c271d", "a74bf77d"]
ALL = " ".join(["crop=1 flip=true", *OPTIONS])


def words(options: str) -> list[str]:
    return [f"dataset.augment.{word}" for word in options.split()]


def views_of(options: str, seed: int = 0, channels: int = 3) -> Views:
    config = load_config("dataset=synthetic", *words(options))
    return augmented(config.dataset.augment, seed, channels, (16, 12))


def images_of(n: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, 16, 12), generator=generator).to(torch.uint8)


# --- replay ---


@pytest.mark.parametrize("options", [*OPTIONS, ALL])
def test_a_view_is_the_same_in_any_batch(options: str) -> None:
    """Alone, shuffled, strided and channels-last; other views, seeds and samples are others."""
    images, indices, views = images_of(40), torch.arange(100, 140), views_of(options)
    shown = views(images, indices, 3)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))

    assert (shown.dtype, shown.shape) == (torch.uint8, images.shape)
    assert torch.equal(views(images, indices, 3), shown)
    assert torch.equal(views(images[shuffled], indices[shuffled], 3), shown[shuffled])
    for i in (0, 17, 39):
        assert torch.equal(views(images[[i]], indices[[i]], 3), shown[[i]])
    for layout in (images.contiguous(memory_format=torch.channels_last), images.repeat_interleave(2, 0)[::2]):
        assert torch.equal(views(layout, indices, 3), shown)
    for other in (
        views(images, indices, 4),
        views(images, indices + 1, 3),
        views_of(options, 1)(images, indices, 3),
    ):
        assert not torch.equal(other, shown)


@pytest.mark.parametrize(("options", "pinned"), list(zip(OPTIONS, PINNED, strict=True)))
def test_pixels_are_pinned(options: str, pinned: str) -> None:
    """Stored soft targets rely on them: a change needs a new format number."""
    shown = views_of(options)(images_of(40), torch.arange(40), 3)

    assert hashlib.sha256(shown.numpy().tobytes()).hexdigest()[:8] == pinned


def test_the_images_given_are_not_written_to() -> None:
    """A split hands out views of its memory."""
    images = images_of(20)
    before = images.clone()
    views_of(ALL)(images, torch.arange(20), 0)

    assert torch.equal(images, before)


def test_an_option_changes_no_draw_of_another() -> None:
    """All together is each by itself, one after another in the documented order."""
    images, indices = images_of(40), torch.arange(40)
    expected = views_of("crop=1 flip=true")(images, indices, 2)
    steps = [*OPTIONS[:2], " ".join(OPTIONS[2:6]), OPTIONS[6]]
    for options in steps:
        expected = views_of(options)(expected, indices, 2)

    assert torch.equal(views_of(ALL)(images, indices, 2), expected)


def test_a_window_has_the_image_s_shape_unless_said_otherwise() -> None:
    """A quarter of the area of 16 x 12 pixels: 8 x 6."""
    (change,) = views_of("resized_crop=[0.25,0.25]").then
    assert isinstance(change, ResizedCrop)
    _, _, height, width = change.draw(torch.arange(9), (16, 12), 0, 0)

    assert (set(height.tolist()), set(width.tolist())) == ({8}, {6})


def test_random_fractions() -> None:
    """24 bits each, the first the same for any count, uncorrelated with each other and with the plain bits."""
    index = torch.arange(5_000)
    drawn = random_fractions(index, 3, 5, 0, 0)

    assert torch.equal(random_fractions(index, 1, 5, 0, 0), drawn[:1])
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < 2**24
    cells = ((drawn[0] >> 22) * 4 + (drawn[1] >> 22)) * 4 + (random_bits(index, 5, 0, 0) & 3)
    assert cells.bincount(minlength=64).tolist() == pytest.approx([5_000 / 64] * 64, abs=45)


# --- keys and training ---


def test_options_are_part_of_the_keys(tiny: Callable[..., Config]) -> None:
    """Each option is another teacher and another student; null is none, as are the keys pinned elsewhere."""
    keys = {
        key_of(Identity(tiny(*words(options)), "data", PRECISIONS, {}).teacher)
        for options in ("", "erase=null", *OPTIONS, "erase=4")
    }

    assert len(keys) == len(OPTIONS) + 2


def test_one_option_alone_makes_views(tiny: Callable[..., Config]) -> None:
    """Without crop and flip, each epoch still shows other pixels."""
    plain = ("dataset.augment.crop=0", "dataset.augment.flip=false")

    assert Identity(tiny(*plain), "data", PRECISIONS, {}).views == 1
    assert Identity(tiny(*plain, "dataset.augment.erase=2"), "data", PRECISIONS, {}).views == 3


def test_stored_targets_are_the_live_ones(tiny: Callable[..., Config]) -> None:
    """With every option, one view per epoch in float32: stored and live teacher give the same student."""
    options = ("dataset.channels=3", *words(ALL), "soft_targets.dtype=float32", "teacher.epochs=1")
    train_teacher(tiny(*options))
    stored, live = (distill(tiny(*options, f"soft_targets.mode={mode}")) for mode in ("stored", "live"))

    assert stored.folder != live.folder
    assert stored.file("model.safetensors").read_bytes() == live.file("model.safetensors").read_bytes()


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("resized_crop=[1,0.5]", ".resized_crop: [1,0.5] is upside down: write [0.5,1]"),
        (
            "resized_crop=[0.5,1] resized_crop_ratio=[2,0.5]",
            ".resized_crop_ratio: [2,0.5] is upside down: write [0.5,2]",
        ),
        ("resized_crop=[0.5,1.5]", ".resized_crop: 1.5 is more than the whole image, whose area is 1"),
        ("resized_crop=[0,1]", ".resized_crop.0=0: must be greater than 0"),
        ("resized_crop=0.5", ".resized_crop=0.5: must be a list, for example [1,2]"),
        (
            "resized_crop_ratio=[1,2]",
            ": resized_crop_ratio needs resized_crop, for example resized_crop=[0.5,1]",
        ),
        ("randaugment=2", ": randaugment needs randaugment_magnitude, 0 to 30; 9 is a usual one"),
        ("randaugment_magnitude=9", ": randaugment_magnitude needs randaugment, for example randaugment=2"),
        (
            "randaugment=2 randaugment_magnitude=31",
            ".randaugment_magnitude=31: must be less than or equal to 30",
        ),
        ("brightness=1.5", ".brightness=1.5: must be less than or equal to 1"),
        ("hue=0.6", ".hue=0.6: must be less than or equal to 0.5"),
        ("erase=0", ".erase=0: must be greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: str, text: str) -> None:
    """In one line, that names the setting and what it may be."""
    with pytest.raises(ConfigError) as caught:
        load_config("dataset=synthetic", *words(options))

    assert str(caught.value) == f"dataset.augment{text}"


@pytest.mark.parametrize(
    ("options", "channels", "text"),
    [
        (
            "erase=13",
            3,
            "dataset.augment.erase=13: the square is larger than the images, which have 16 x 12 pixels; set at most 12",
        ),
        (
            "hue=0.1",
            1,
            "dataset.augment.hue is for colour images, and these are grey; set dataset.augment.hue=null",
        ),
        (
            "contrast=0.1",
            4,
            "dataset.augment.contrast is for images of 3 channels (red, green, blue) or 1 (grey), got 4;"
            " set dataset.augment.contrast=null",
        ),
    ],
)
def test_what_the_images_do_not_allow_is_refused(options: str, channels: int, text: str) -> None:
    """A square larger than the image; colours of grey images, and of four channels."""
    with pytest.raises(ConfigError) as caught:
        views_of(options, channels=channels)

    assert str(caught.value) == text
