"""The upper bound: the same model trained on one synthetic batch over and over, with nothing to load.

With `fold`, the batch-norm layers are folded into their convolutions and freed memory is kept, both as Assay does it.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from assay.models.folding import fold_batch_norm
from assay.training.devices import keep_freed_memory
from benchmarks.harness import Record
from benchmarks.peers.contest import SMOOTHING, WARM_STEPS, Clock, Setting, Task
from benchmarks.peers.timm_loop import build, fit

CLASSES, EPOCH_STEPS = 10, 20
DEFAULT = Setting(workers=0, channels_last=False)
CANDIDATES = [DEFAULT, Setting(workers=0, channels_last=True)]
SKIP = WARM_STEPS


def train(task: Task, setting: Setting, clock: Clock, steps: int | None) -> None:
    """Train on one batch; there is nothing to validate on."""
    if task.fold:
        keep_freed_memory()
    generator = torch.Generator().manual_seed(task.seed)
    images = torch.rand(task.batch, 3, task.size, task.size, generator=generator) * 2 - 1
    images, targets = images.to(task.device), torch.randint(CLASSES, (task.batch,), generator=generator).to(task.device)
    batches = [(images.contiguous(memory_format=setting.layout), targets)] * (WARM_STEPS + task.epochs * EPOCH_STEPS)
    model, loss = build(task, setting, CLASSES), nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    with fold_batch_norm(model, torch.rand(1, 3, task.size, task.size)) if task.fold else nullcontext():
        for _ in fit(model, task, setting, batches, clock, loss, part=(task.stage, 1), steps=steps):
            pass


def details(task: Task, setting: Setting) -> Record:
    """Return how the model is changed, and the floating-point operations of one training step an image.

    A multiply-add counts as two, and backward as twice forward: the counter takes a depthwise convolution's backward
    for a dense one.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(task, DEFAULT, CLASSES)(torch.zeros(2, 3, task.size, task.size, device=task.device))
    flops = counter.get_total_flops() / 2 * (1 if task.stage == "frozen" else 3)
    layout = "channels_last" if setting.channels_last else "contiguous"
    folded = ", batch-norm folded, freed memory kept" if task.fold else ""
    return {"setting": f"{task.mode}, {task.precision}, {layout}{folded}", "flops_per_image": float(flops)}
