"""Teachers from outside: files of outputs, images for the networks of other runs; what students are told."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kdistill import distill, load_network
from kdistill.config.schema import Config
from kdistill.stages.job import Job


def first_batch(job: Job, count: int = 12):
    (batch,) = job.transfer_set.batches(torch.arange(count), count)
    return batch


def weights_of(config: Config) -> dict[str, Tensor]:
    return load_network(distill(config).folder).state_dict()


def outputs_for(config: Config) -> tuple[list[str], np.ndarray]:
    """Sample ids of what a student learns from, and logits that put 4 on the label and noise elsewhere."""
    job = Job.open(config)
    labels = job.transfer_set.labels.numpy()
    logits = np.random.default_rng(0).normal(size=(len(labels), len(job.data.classes))).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 4
    return list(job.transfer_set.ids), logits


def write_outputs(path: Path, ids: list[str], values: np.ndarray, classes: list[str]) -> Path:
    match path.suffix:
        case ".csv":
            with path.open("w", newline="") as file:
                rows = [[name, *map(float, row)] for name, row in zip(ids, values, strict=True)]
                csv.writer(file).writerows([["id", *classes], *rows])
        case ".npz":
            np.savez(path, values=values, ids=np.array(ids))
        case ".npy":
            whole = np.zeros((max(map(int, ids)) + 1, values.shape[1]), np.float32)
            whole[np.array(ids, dtype=int)] = values
            np.save(path, whole)
        case ".safetensors":
            numbers = torch.tensor([int(name) for name in ids])
            save_file({"values": torch.from_numpy(values), "ids": numbers}, path)
    return path


def write_images(
    folder: Path, classes: Mapping[str, int], size: int = 8, channels: int = 1, n: int = 24
) -> Path:
    """A folder per class; an image of class k has grey level k in a noisy square. Deterministic."""
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            rng = np.random.default_rng([level, i])
            pixels = rng.integers(0, 60, (size, size, channels)) + level
            pixels[: size // 2] = pixels[: size // 2] // (1 + level % 3)
            array = pixels.clip(0, 255).astype(np.uint8)
            Image.fromarray(array[:, :, 0] if channels == 1 else array).save(folder / name / f"{i:02d}.png")
    return folder
