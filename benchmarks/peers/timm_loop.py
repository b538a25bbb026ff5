"""A plain loop: timm's model, torchvision's transforms, a DataLoader over files, AdamW, one cycle.

The mode `best` also tries both memory layouts and 0 or 2 workers for a few steps each and keeps the fastest,
and leaves the batch-norm layers in evaluation mode.
The new classifier is drawn as fastai draws its head: He et al. 2015, equation 10, and biases of zero. timm's own for
EfficientNet is uniform within 1/sqrt(classes): for 10 classes 4.6 times as wide, so that a fit begins sure and wrong.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from assay.arrays import Floats
from benchmarks.harness import Record
from benchmarks.peers import contest
from benchmarks.peers.contest import CANDIDATES, Clock, Images, Predict, Setting, Task

__all__ = ["CANDIDATES"]
DEFAULT = Setting(workers=2, channels_last=False)
SKIP = 0
Batch = tuple[Tensor, Tensor]
Batches = Sequence[Batch] | DataLoader[Batch]


class Files(Dataset[Batch]):
    """Images of a part, transformed, with their targets."""

    def __init__(self, images: Images, part: str, transform: Callable[[object], Tensor]) -> None:
        self.paths, self.targets = images.parts[part].paths, torch.from_numpy(images.targets(part))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Batch:
        return self.transform(default_loader(self.paths[row])), self.targets[row]


def train(task: Task, setting: Setting, clock: Clock, steps: int | None) -> Predict:
    """Train the stage, and validate after each epoch; a trial ends after so many `steps`."""
    images = Images.read(task.data)
    batches = loader(images, "train", task, setting, augmented=True)
    model = build(task, setting, images.width)
    loss = contest.loss_of(images, task, smoothing=contest.SMOOTHING)

    def predict(part: str) -> Floats:
        return logits_of(model, loader(images, part, task, setting), task)

    for part in task.parts if steps is None else [("frozen" if task.stage == "frozen" else "unfrozen", 1)]:
        for _ in fit(model, task, setting, batches, clock, loss, part=part, steps=steps):
            predict("val")
    return predict


def loader(images: Images, part: str, task: Task, setting: Setting, *, augmented: bool = False) -> DataLoader[Batch]:
    """Return the batches of a part, in order, or for training augmented, shuffled and whole ones."""
    finish = [transforms.ToTensor(), transforms.Normalize(contest.MEAN, contest.STD)]
    augment = [
        transforms.RandomResizedCrop(task.size, scale=contest.CROP),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
    ]
    workers = setting.workers or 0
    if augmented:
        files = Files(images, part, transforms.Compose([*augment, *finish]))
        return DataLoader(files, task.batch, shuffle=True, drop_last=len(files) > task.batch, num_workers=workers)
    files = Files(images, part, transforms.Compose([transforms.Resize((task.size, task.size)), *finish]))
    return DataLoader(files, 2 * task.batch, num_workers=workers)


def build(task: Task, setting: Setting, width: int) -> nn.Module:
    """Return the backbone, with its weights where they are to be had, and a new linear classifier."""
    model: nn.Module = timm.create_model(task.backbone, num_classes=width)
    classifier = model.get_classifier()  # type: ignore[operator]
    nn.init.kaiming_normal_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    if task.backbone == contest.BACKBONE:
        contest.load_weights(model)
    return model.to(task.device, memory_format=setting.layout)


def prepare_mode(model: nn.Module, task: Task, *, part: str) -> list[nn.Parameter]:
    """Set training mode and what is trained; return the parameters to train."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(contest.learns(name, part))
    if task.mode == "best":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def fit(
    model: nn.Module,
    task: Task,
    setting: Setting,
    batches: Batches,
    clock: Clock,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    part: tuple[str, int],
    steps: int | None,
) -> Iterator[None]:
    """Train a part for epochs, and yield after each; end where the clock ran out, or after so many `steps`."""
    learning, epochs = part
    rate = contest.HEAD_RATE if learning == "frozen" else contest.RATE
    optimizer = torch.optim.AdamW(prepare_mode(model, task, part=learning), lr=rate, weight_decay=contest.DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(1, epochs * len(batches)))
    for _ in range(epochs if clock.complete else 0):
        prepare_mode(model, task, part=learning)
        clock.start()
        for step, (batch, targets) in enumerate(batches, start=1):
            images = batch.to(task.device, memory_format=setting.layout, non_blocking=True)
            with torch.autocast(task.device, dtype=torch.bfloat16, enabled=task.precision == "bf16"):
                loss = loss_of(model(images), targets.to(task.device, non_blocking=True))
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
def logits_of(model: nn.Module, batches: DataLoader[Batch], task: Task) -> Floats:
    """Return the logits (N, W) of the images of a loader."""
    model.eval()
    parts = []
    for images, _ in batches:
        with torch.autocast(task.device, dtype=torch.bfloat16, enabled=task.precision == "bf16"):
            parts.append(model(images.to(task.device)).float().cpu().numpy())
    return np.concatenate(parts)


def details(task: Task, setting: Setting) -> Record:
    """Return nothing more."""
    return {}
