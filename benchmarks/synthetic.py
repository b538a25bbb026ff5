"""The upper bound: the same model trained on one synthetic batch over and over, with nothing to load.

`--mode best` takes the faster memory layout and leaves batch-norm in evaluation mode. With `--fold` the
batch-norm layers are folded into their convolutions and freed memory is kept, both as Assay does it, so that
the bound is that of its model in its process.
Prints also `flops_per_image` (forward and backward, a multiply-add counted as two).
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext

import timm
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contest
from benchmarks.contest import Clock, Task
from benchmarks.memory import Peak

CLASSES = 10
TRIAL_STEPS, WARM_STEPS, EPOCH_STEPS = 8, 2, 20


def build(task: Task, *, channels_last: bool) -> nn.Module:
    """The same model as the plain loop's, ready to be trained."""
    model: nn.Module = timm.create_model(contest.BACKBONE, num_classes=CLASSES)
    contest.load_weights(model)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(task.stage != "frozen" or name.startswith("classifier"))
    for module in model.modules():
        if task.mode == "best" and isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def run(model: nn.Module, task: Task, *, channels_last: bool, steps: int, clock: Clock) -> None:
    """Optimiser steps on one batch."""
    generator = torch.Generator().manual_seed(task.seed)
    images = torch.rand(task.batch, 3, task.size, task.size, generator=generator) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    targets = torch.randint(CLASSES, (task.batch,), generator=generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=contest.RATE, weight_decay=contest.DECAY)
    clock.start()
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bf16"):
            loss = functional.cross_entropy(model(images), targets, label_smoothing=contest.SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if clock.step(task.batch):
            break
    clock.stop()


def folded(model: nn.Module, task: Task, *, fold: bool) -> AbstractContextManager[object]:
    """Assay's folding of batch-norm layers, if asked for."""
    if not fold:
        return nullcontext()
    from assay.models.folding import fold_batch_norm

    return fold_batch_norm(model, torch.rand(1, 3, task.size, task.size))


def flops_per_image(task: Task) -> float:
    """Floating-point operations of one training step an image, backward taken as twice forward.

    Only the forward pass is counted: the counter takes a depthwise convolution's backward for a dense one.
    """
    model = build(task, channels_last=False)
    images = torch.zeros(2, 3, task.size, task.size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops() / 2) * (1 if task.stage == "frozen" else 3)


def rate(task: Task, channels_last: bool, *, fold: bool) -> float:
    """Images per second of a few steps."""
    clock = Clock(max_seconds=task.max_seconds)
    model = build(task, channels_last=channels_last)
    with folded(model, task, fold=fold):
        run(model, task, channels_last=channels_last, steps=TRIAL_STEPS, clock=clock)
    return clock.rate(skip=WARM_STEPS)


def main() -> None:
    """Train once and print the line."""
    arguments = sys.argv[1:]
    fold = "--fold" in arguments
    task = contest.parse_task(__doc__, [argument for argument in arguments if argument != "--fold"])
    if fold and task.mode != "best":
        raise SystemExit("--fold needs --mode best: only a batch-norm in evaluation mode can be folded.")
    contest.seed_everything(task.seed)
    if fold:
        from assay.training.devices import keep_freed_memory

        keep_freed_memory()
    channels_last = False
    if task.mode == "best":
        channels_last = contest.fastest([False, True], lambda layout: rate(task, layout, fold=fold))
    clock = Clock(max_seconds=task.max_seconds)
    began = time.perf_counter()
    with Peak() as peak:
        model = build(task, channels_last=channels_last)
        with folded(model, task, fold=fold):
            run(
                model,
                task,
                channels_last=channels_last,
                steps=WARM_STEPS + task.epochs * EPOCH_STEPS,
                clock=clock,
            )
    layout = "channels_last" if channels_last else "contiguous"
    contest.Result(
        name="synthetic",
        setting=f"{task.mode}, {task.precision}, {layout}{', batch-norm folded, freed memory kept' if fold else ''}",
        stage=task.stage,
        images_per_second=round(clock.rate(skip=WARM_STEPS), 2),
        seconds=round(time.perf_counter() - began, 2),
        epochs=task.epochs,
        accuracy=None,
        n_val=0,
        peak_memory_mb=peak.mib,
        complete=clock.complete,
        flops_per_image=flops_per_image(task),
        versions=contest.versions("torch", "timm"),
    ).print()


if __name__ == "__main__":
    main()
