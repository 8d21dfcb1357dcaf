"""From the settings of augmentation to the views that they ask for."""

from __future__ import annotations

from kdistill.config.data import Augment
from kdistill.data.colour import Jitter
from kdistill.data.geometry import Erase, ResizedCrop
from kdistill.data.randaugment import RandAugment
from kdistill.data.views import Change, Views
from kdistill.errors import ConfigError


def augmented(augment: Augment, seed: int, channels: int, image_size: tuple[int, int]) -> Views:
    """Return the views of images of `channels` and (height, width): geometry, RandAugment, colours, then erasing.

    Raises ConfigError for what such images do not allow.
    """
    _check(augment, channels, image_size)
    then: list[Change] = []
    if augment.resized_crop is not None:
        smallest, largest = augment.resized_crop
        own = image_size[1] / image_size[0]
        narrowest, widest = augment.resized_crop_ratio or (own, own)
        then.append(ResizedCrop((smallest, largest), (narrowest, widest)))
    if augment.randaugment is not None and augment.randaugment_magnitude is not None:
        then.append(RandAugment(augment.randaugment, augment.randaugment_magnitude))
    jitter = Jitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)
    if jitter != Jitter():
        then.append(jitter)
    if augment.erase is not None:
        then.append(Erase(augment.erase))
    return Views(seed, augment.crop, augment.flip, tuple(then))


def _check(augment: Augment, channels: int, image_size: tuple[int, int]) -> None:
    if augment.erase is not None and augment.erase > min(image_size):
        raise ConfigError(
            f"dataset.augment.erase={augment.erase}: the square is larger than the images, which have"
            f" {image_size[0]} x {image_size[1]} pixels; set at most {min(image_size)}"
        )
    names = ("randaugment", "brightness", "contrast", "saturation", "hue")
    used = [name for name in names if getattr(augment, name) is not None]
    if used and channels not in (1, 3):
        raise ConfigError(
            f"dataset.augment.{used[0]} is for images of 3 channels (red, green, blue) or 1 (grey), got {channels};"
            f" set dataset.augment.{used[0]}=null"
        )
    for name in ("saturation", "hue"):
        if name in used and channels == 1:
            raise ConfigError(
                f"dataset.augment.{name} is for colour images, and these are grey; set dataset.augment.{name}=null"
            )
