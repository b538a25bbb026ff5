"""A plain loop: timm's model, torchvision's transforms and ImageFolder, a DataLoader, AdamW, one cycle.

The mode `best` also tries both memory layouts and 0 or 2 workers for a few steps each and keeps the fastest,
and leaves the batch-norm layers in evaluation mode.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.harness import Record
from benchmarks.peers import contest
from benchmarks.peers.contest import CANDIDATES, Clock, Setting, Task

__all__ = ["CANDIDATES"]
DEFAULT = Setting(workers=2, channels_last=False)
SKIP = 0
Batch = tuple[Tensor, Tensor]
Batches = Sequence[Batch] | DataLoader[Batch]


def train(task: Task, setting: Setting, clock: Clock, steps: int | None) -> float | None:
    """Train the stage; return the accuracy on validation (None where the clock ran out, or after `steps`)."""
    train_batches, val_batches = loaders(task, setting.workers or 0)
    classes = sum(entry.is_dir() for entry in Path(task.data, "train").iterdir())
    model = build(task, setting, classes)
    stages = {"frozen": [True], "unfrozen": [False], "both": [True, False] if steps is None else [False]}[task.stage]
    accuracy = None
    for frozen in stages:
        for _ in fit(model, task, setting, train_batches, clock, frozen=frozen, steps=steps):
            accuracy = validate(model, val_batches, task)
    return accuracy if clock.complete else None


def loaders(task: Task, workers: int) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Return the loaders of training (augmented, shuffled, whole batches) and validation."""
    finish = [transforms.ToTensor(), transforms.Normalize(contest.MEAN, contest.STD)]
    augment = [
        transforms.RandomResizedCrop(task.size, scale=contest.CROP),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
    ]
    train = ImageFolder(f"{task.data}/train", transforms.Compose([*augment, *finish]))
    val = ImageFolder(f"{task.data}/val", transforms.Compose([transforms.Resize((task.size, task.size)), *finish]))
    return (
        DataLoader(train, task.batch, shuffle=True, drop_last=True, num_workers=workers),
        DataLoader(val, 2 * task.batch, num_workers=workers),
    )


def build(task: Task, setting: Setting, classes: int) -> nn.Module:
    """Return the backbone with its weights and a new linear classifier."""
    model: nn.Module = timm.create_model(contest.BACKBONE, num_classes=classes)
    contest.load_weights(model)
    return model.to(memory_format=setting.layout)


def prepare_mode(model: nn.Module, task: Task, *, frozen: bool) -> list[nn.Parameter]:
    """Set training mode and what is trained; return the parameters to train."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("classifier"))
    if task.mode == "best":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def fit(
    model: nn.Module, task: Task, setting: Setting, batches: Batches, clock: Clock, *, frozen: bool, steps: int | None
) -> Iterator[None]:
    """Train, and yield after every whole epoch; end where the clock ran out, or after so many `steps`."""
    epochs = (task.head_epochs if frozen else task.epochs) if clock.complete else 0
    rate = contest.HEAD_RATE if frozen else contest.RATE
    optimizer = torch.optim.AdamW(prepare_mode(model, task, frozen=frozen), lr=rate, weight_decay=contest.DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(1, epochs * len(batches)))
    for _ in range(epochs):
        prepare_mode(model, task, frozen=frozen)
        clock.start()
        for step, (images, targets) in enumerate(batches, start=1):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bf16"):
                logits = model(images.contiguous(memory_format=setting.layout))
                loss = functional.cross_entropy(logits, targets, label_smoothing=contest.SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            clock.step(len(targets))
            if not clock.complete or step == steps:
                return
        clock.step(0)
        yield


@torch.no_grad()
def validate(model: nn.Module, batches: DataLoader[Batch], task: Task) -> float:
    """Return the accuracy on the validation images."""
    model.eval()
    hits = []
    for images, targets in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bf16"):
            hits.append((model(images).argmax(1) == targets).float().numpy())
    return float(np.concatenate(hits).mean())


def details(task: Task, setting: Setting) -> Record:
    """Return nothing more."""
    return {}
