"""A plain loop: timm's model, torchvision's transforms and ImageFolder, a DataLoader, AdamW, one cycle.

`--mode best` also tries both memory layouts and 0 or 2 workers for a few steps each and keeps the fastest,
and leaves the batch-norm layers in evaluation mode.
"""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import contest
from benchmarks.contest import Clock, Task
from benchmarks.memory import Peak

TRIAL_STEPS, WARM_STEPS = 8, 2


@dataclass(frozen=True)
class Setting:
    """What `--mode best` may choose."""

    workers: int
    channels_last: bool

    def __str__(self) -> str:
        """As it stands in the table."""
        return f"{self.workers} workers, {'channels_last' if self.channels_last else 'contiguous'}"


DEFAULT = Setting(workers=2, channels_last=False)
CANDIDATES = [Setting(*pair) for pair in itertools.product((0, 2), (False, True))]


def loaders(task: Task, workers: int) -> tuple[DataLoader[object], DataLoader[object]]:
    """Training (augmented, shuffled, whole batches) and validation."""
    side = (task.size, task.size)
    finish = [transforms.ToTensor(), transforms.Normalize(contest.MEAN, contest.STD)]
    augment = [
        transforms.RandomResizedCrop(task.size, scale=contest.CROP),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
    ]
    train = ImageFolder(str(task.data / "train"), transforms.Compose([*augment, *finish]))
    val = ImageFolder(str(task.data / "val"), transforms.Compose([transforms.Resize(side), *finish]))
    return (
        DataLoader(train, task.batch, shuffle=True, drop_last=True, num_workers=workers),
        DataLoader(val, 2 * task.batch, num_workers=workers),
    )


def build(task: Task, setting: Setting) -> nn.Module:
    """The backbone with its weights and a new linear classifier."""
    classes = sum(entry.is_dir() for entry in Path(task.data / "train").iterdir())
    model: nn.Module = timm.create_model(contest.BACKBONE, num_classes=classes)
    contest.load_weights(model)
    return model.to(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)


def prepare_mode(model: nn.Module, task: Task, *, frozen: bool) -> list[nn.Parameter]:
    """Set training mode and what is trained; give the parameters to train."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("classifier"))
    if task.mode == "best":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def autocast(task: Task) -> torch.autocast | nullcontext[None]:
    """The precision that was asked for, on the CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if task.precision == "bf16" else nullcontext()


def fit(
    model: nn.Module,
    task: Task,
    setting: Setting,
    *,
    frozen: bool,
    epochs: int,
    clock: Clock,
    steps: int | None,
) -> float | None:
    """Train; validation accuracy after the last epoch (none where the clock ran out, or after `steps`)."""
    train, val = loaders(task, setting.workers)
    parameters = prepare_mode(model, task, frozen=frozen)
    rate = contest.HEAD_RATE if frozen else contest.RATE
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=contest.DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(1, epochs * len(train)))
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    accuracy = None
    for _ in range(epochs):
        prepare_mode(model, task, frozen=frozen)
        clock.start()
        for done, (images, targets) in enumerate(train, start=1):
            with autocast(task):
                logits = model(images.contiguous(memory_format=layout))
                loss = functional.cross_entropy(logits, targets, label_smoothing=contest.SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if clock.step(len(targets)) or done == steps:
                clock.stop()
                return None
        clock.stop()
        accuracy = validate(model, val, task)
    return accuracy


@torch.no_grad()
def validate(model: nn.Module, val: DataLoader[object], task: Task) -> float:
    """Accuracy on the validation images."""
    model.eval()
    right = []
    for images, targets in val:
        with autocast(task):
            right.append((model(images).argmax(1) == targets).float().numpy())
    return float(np.concatenate(right).mean())


def trial(task: Task, setting: Setting) -> float:
    """Images per second of a few steps."""
    clock = Clock(max_seconds=task.max_seconds)
    model = build(task, setting)
    fit(model, task, setting, frozen=task.stage == "frozen", epochs=1, clock=clock, steps=TRIAL_STEPS)
    return clock.rate(skip=WARM_STEPS)


def main() -> None:
    """Train once and print the line."""
    task = contest.parse_task(__doc__)
    contest.seed_everything(task.seed)
    setting = DEFAULT
    if task.mode == "best":
        setting = contest.fastest(CANDIDATES, lambda candidate: trial(task, candidate))
        contest.seed_everything(task.seed)
    clock = Clock(max_seconds=task.max_seconds)
    began = time.perf_counter()
    with Peak() as peak:
        model = build(task, setting)
        accuracy = None
        if task.stage != "unfrozen":
            epochs = task.epochs if task.stage == "frozen" else contest.HEAD_EPOCHS
            accuracy = fit(model, task, setting, frozen=True, epochs=epochs, clock=clock, steps=None)
        if task.stage != "frozen" and clock.complete:
            accuracy = fit(model, task, setting, frozen=False, epochs=task.epochs, clock=clock, steps=None)
    contest.Result(
        name="timm_loop",
        setting=f"{task.mode}, {task.precision}, {setting}",
        stage=task.stage,
        images_per_second=round(clock.rate(), 2),
        seconds=round(time.perf_counter() - began, 2),
        epochs=task.epochs,
        accuracy=accuracy,
        n_val=sum(1 for _ in (task.data / "val").glob("*/*")),
        peak_memory_mb=peak.mib,
        complete=clock.complete,
        versions=contest.versions("torch", "torchvision", "timm"),
    ).print()


if __name__ == "__main__":
    main()
