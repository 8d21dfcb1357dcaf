"""One distillation job as torchdistill or a plain loop does it; `peer.py` starts it, in its environment.

Needs torch and torchvision, and torchdistill for that way; not kdistill. Prints one JSON line, with
the images/s of an epoch in the median; the caller times the whole process, but for the seconds `apart`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler
from torchvision import transforms

T, ALPHA, BATCH = 4.0, 0.1, 128
Loader = DataLoader[tuple[Tensor, int]] | None
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--teacher", type=Path, required=True, help="folder of a network that kdistill trained"
    )
    parser.add_argument("--student", type=json.loads, required=True, help="what model.json says of it")
    parser.add_argument("--source", type=Path, required=True, help="file that builds the student")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--eval-teacher", action="store_true", help="put the teacher into evaluation mode")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    arrays = np.load(args.data)
    teacher = load(args.teacher).to(args.device)
    student = module_of(args.source).build(**args.student).to(args.device)
    train, validation = (Images(arrays, name, augmented=name == "train") for name in ("train", "validation"))

    epochs, validating = [], 0.0
    begun = time.perf_counter()
    for loader in WAYS[args.way](train, validation, teacher, student, args):
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        ended = time.perf_counter()
        epochs.append(ended - begun)
        if loader is not None:
            validate(student, loader, args.device)
        begun = time.perf_counter()
        validating += begun - ended
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    images = len(train) // BATCH * BATCH
    cpu = sum(u.ru_utime + u.ru_stime for u in usage)
    started = time.perf_counter()
    found = {
        "images_per_second": images / statistics.median(epochs),
        "cpu_seconds_per_1000": cpu / images / args.epochs * 1000,
        "validation_seconds": validating,
        "top1": accuracy(student.cpu(), arrays),
    }
    print(json.dumps({**found, "apart": time.perf_counter() - started}))


class Images(Dataset):  # type: ignore[type-arg]
    """Grey images as torchvision's data sets give them: through PIL, one at a time."""

    def __init__(self, arrays: Any, split: str, augmented: bool) -> None:
        self.images, self.labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        crop = transforms.RandomCrop(self.images.shape[-1], padding=2)
        self.transform = transforms.Compose(
            [
                *([crop, transforms.RandomHorizontalFlip()] if augmented else []),
                transforms.ToTensor(),
                transforms.Normalize(arrays["mean"].tolist(), arrays["std"].tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index, 0])), int(self.labels[index])


def by_torchdistill(
    train: Images, validation: Images, teacher: nn.Module, student: nn.Module, args: argparse.Namespace
) -> Iterator[Loader]:
    """The library's box, with the parts of its samples for KD on CIFAR.

    Yields what to validate on after each epoch, as the library's example program does, with the box's own loader.
    """
    from torchdistill.core.distillation import DistillationBox

    layers = {f"{who}_module_{part}": what for who in ("student", "teacher") for part, what in OUTPUT.items()}
    kd = {"key": "KDLoss", "kwargs": {**layers, "temperature": T, "alpha": ALPHA, "reduction": "batchmean"}}
    config = {
        "num_epochs": args.epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": args.workers, "drop_last": True},
        },
        "val_data_loader": {
            "dataset_id": "validation",
            "sampler": {"class_or_func": SequentialSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": args.workers},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": args.epochs}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}},
        },
    }
    splits = {"train": train, "validation": validation}
    box = DistillationBox(teacher, student, splits, config, args.device, None, False, 1)
    for epoch in range(args.epochs):
        box.pre_epoch_process(epoch=epoch)
        if args.eval_teacher:
            box.teacher_model.eval()  # the library leaves it in training mode
        for images, labels, supplement in box.train_data_loader:
            loss = box.forward_process(images.to(args.device), labels.to(args.device), supplement)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
        yield box.val_data_loader


def by_a_plain_loop(
    train: Images, validation: Images, teacher: nn.Module, student: nn.Module, args: argparse.Namespace
) -> Iterator[None]:
    """As in PyTorch's own tutorial on distillation: the teacher runs in every step, in evaluation mode.

    Does not validate, as the tutorial does not.
    """
    loader = DataLoader(train, BATCH, shuffle=True, num_workers=args.workers, drop_last=True)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    teacher.eval()
    student.train()
    for _ in range(args.epochs):
        for images, labels in loader:
            images, labels = images.to(args.device), labels.to(args.device)
            optimizer.zero_grad()
            with torch.no_grad():
                soft = F.softmax(teacher(images) / T, dim=1)
            logits = student(images)
            kl = F.kl_div(F.log_softmax(logits / T, dim=1), soft, reduction="batchmean")
            (ALPHA * F.cross_entropy(logits, labels) + (1 - ALPHA) * T**2 * kl).backward()
            optimizer.step()
        schedule.step()
        yield


OUTPUT = {"path": ".", "io": "output"}
WAYS = {"torchdistill": by_torchdistill, "plain": by_a_plain_loop}


def load(folder: Path) -> nn.Module:
    """The network of an artifact, without its normalisation: the images come normalised."""
    about: dict[str, Any] = json.loads((folder / "model.json").read_text())
    settings = {key: about[key] for key in ("name", "params", "channels", "image_size")}
    net: nn.Module = module_of(folder / "architecture.py").build(**settings, classes=len(about["classes"]))
    from safetensors.torch import load_file

    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"source_{path.parent.name}_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def validate(student: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    right = seen = 0
    student.eval()
    for images, labels in loader:
        right += int((student(images.to(device)).argmax(1) == labels.to(device)).sum())
        seen += len(labels)
    return right / seen


@torch.inference_mode()
def accuracy(student: nn.Module, arrays: Any) -> float:
    mean, std = (torch.from_numpy(arrays[name]).view(-1, 1, 1) for name in ("mean", "std"))
    images = torch.from_numpy(arrays["test_images"]).float() / 255
    # in batches, so that training takes the most memory
    logits = torch.cat([student.eval()((part - mean) / std) for part in images.split(BATCH)])
    return float((logits.argmax(1) == torch.from_numpy(arrays["test_labels"])).float().mean())


if __name__ == "__main__":
    main()
