"""fastai's `vision_learner` with the same backbone and weights.

`--mode default`: fastai as it comes: Adam, concatenated pooling and a hidden layer in the head, batch-norm
layers trained even where the body is frozen, its own number of workers, fp32; `both` is `fine_tune`.
`--mode best`: what makes it fast and good: the augmentation done on images in the loader, 0 or 2 workers
and the memory layout by trial, batch-norm layers in evaluation mode (so a frozen body is not run backwards),
a linear head, the learning rates, decay and smoothing that the plain loop has.
`--augment own`: fastai's `aug_transforms` at its defaults (rotation, warp, lighting) beside crop and flips.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch
from fastai.callback.training import BnFreeze
from fastai.vision.all import (
    Callback,
    CancelFitException,
    ChannelsLast,
    DataLoaders,
    DihedralItem,
    ImageDataLoaders,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    Normalize,
    RandomResizedCrop,
    RandomResizedCropGPU,
    Resize,
    TrainEvalCallback,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from torch import nn

from benchmarks import contest
from benchmarks.contest import Clock, Task
from benchmarks.memory import Peak

TRIAL_STEPS, WARM_STEPS = 8, 2


@dataclass(frozen=True)
class Setting:
    """What `--mode best` may choose; no number of workers means fastai's own."""

    workers: int | None
    channels_last: bool

    def __str__(self) -> str:
        """As it stands in the table."""
        workers = "its own workers" if self.workers is None else f"{self.workers} workers"
        return f"{workers}, {'channels_last' if self.channels_last else 'contiguous'}"


DEFAULT = Setting(workers=None, channels_last=False)
CANDIDATES = [Setting(*pair) for pair in itertools.product((0, 2), (False, True))]


class Timed(Callback):  # type: ignore[misc]
    """Times the training part of every epoch, and ends the fit where time or `steps` are over."""

    order = 90  # after the optimiser's step

    def __init__(self, clock: Clock, steps: int | None = None) -> None:
        self.clock, self.steps = clock, steps

    def before_train(self) -> None:
        """An epoch begins, before its loader is started."""
        self.clock.start()

    def after_batch(self) -> None:
        """A step is done."""
        if self.training:
            over = self.clock.step(len(self.yb[0]))
            if over or (self.steps is not None and self.iter + 1 >= self.steps):
                self.clock.stop()
                raise CancelFitException

    def after_train(self) -> None:
        """An epoch's training ends."""
        self.clock.stop()


class BatchNormInEvaluation(Callback):  # type: ignore[misc]
    """Keeps the body's batch-norm layers in evaluation mode, also where the body is trained."""

    run_after = TrainEvalCallback

    def before_train(self) -> None:
        """Undo what `TrainEvalCallback` did to them."""
        for module in self.model[0].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class AutocastOnCpu(Callback):  # type: ignore[misc]
    """bf16 on a CPU: fastai's own `to_bf16` asks for autocast on `cuda`, which does nothing here."""

    order = 10

    def before_batch(self) -> None:
        """Begin before the forward pass."""
        self.context = torch.autocast("cpu", dtype=torch.bfloat16)
        self.context.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        """The loss is taken in fp32, as in fastai's own callback."""
        self.context.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


def data(task: Task, setting: Setting) -> DataLoaders:
    """Loaders of train/ and val/, with crop, both flips and normalisation."""
    normalize = Normalize.from_stats(contest.MEAN, contest.STD)
    own = task.augment == "own"
    if task.mode == "best":
        item = [RandomResizedCrop(task.size, min_scale=contest.CROP[0], val_xtra=0.0), DihedralItem(p=0.5)]
        batch = [*(aug_transforms(do_flip=False) if own else []), normalize]
    else:
        item = [Resize(task.size)]
        batch = [
            *(aug_transforms(flip_vert=True, mult=1.0 if own else 0.0, max_zoom=1.1 if own else 1.0)),
            RandomResizedCropGPU(task.size, min_scale=contest.CROP[0]),
            normalize,
        ]
    # Left out rather than None where fastai is to choose.
    chosen = {} if setting.workers is None else {"num_workers": setting.workers}
    return ImageDataLoaders.from_folder(
        task.data, train="train", valid="val", item_tfms=item, batch_tfms=batch, bs=task.batch, **chosen
    )


def build(task: Task, setting: Setting, clock: Clock, steps: int | None = None) -> Learner:
    """The learner, with the package's weights in its body."""
    best = task.mode == "best"
    callbacks: list[Callback] = [Timed(clock, steps)]
    options: dict[str, object] = {}
    if best:
        callbacks += [BatchNormInEvaluation(), BnFreeze()]
        options = {
            "train_bn": False,
            "wd": contest.DECAY,
            "concat_pool": False,
            "lin_ftrs": [],
            "ps": 0.0,
            "first_bn": False,
            "loss_func": LabelSmoothingCrossEntropyFlat(contest.SMOOTHING),
        }
    if setting.channels_last:
        callbacks.append(ChannelsLast())
    if task.precision == "bf16":
        callbacks.append(AutocastOnCpu())
    # `pretrained=False` keeps timm from its download, and leaves normalisation and freezing to this module.
    learner = vision_learner(
        data(task, setting), contest.BACKBONE, pretrained=False, metrics=accuracy, cbs=callbacks, **options
    )
    contest.load_weights(learner.model[0].model)
    return learner


def train(learner: Learner, task: Task) -> None:
    """The stage that was asked for, in fastai's own words."""
    best = task.mode == "best"
    with learner.no_bar(), learner.no_logging():
        if task.stage == "both" and not best:
            learner.fine_tune(task.epochs, freeze_epochs=contest.HEAD_EPOCHS)
            return
        if task.stage != "unfrozen":
            learner.freeze()
            epochs = task.epochs if task.stage == "frozen" else contest.HEAD_EPOCHS
            learner.fit_one_cycle(epochs, contest.HEAD_RATE if best else None)
        if task.stage != "frozen":
            learner.unfreeze()
            learner.fit_one_cycle(task.epochs, contest.RATE if best else None)


def trial(task: Task, setting: Setting) -> float:
    """Images per second of a few steps."""
    clock = Clock(max_seconds=task.max_seconds)
    learner = build(task, setting, clock, TRIAL_STEPS)
    (learner.freeze if task.stage == "frozen" else learner.unfreeze)()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    return clock.rate(skip=WARM_STEPS)


def main() -> None:
    """Train once and print the line."""
    task = contest.parse_task(__doc__)
    set_seed(task.seed)
    setting = DEFAULT
    if task.mode == "best":
        setting = contest.fastest(CANDIDATES, lambda candidate: trial(task, candidate))
        set_seed(task.seed)
    clock = Clock(max_seconds=task.max_seconds)
    began = time.perf_counter()
    with Peak() as peak:
        learner = build(task, setting, clock)
        train(learner, task)
    seconds = time.perf_counter() - began
    contest.Result(
        name="fastai",
        setting=f"{task.mode}, {task.precision}, {task.augment} augmentation, {setting}",
        stage=task.stage,
        images_per_second=round(clock.rate(), 2),
        seconds=round(seconds, 2),
        epochs=task.epochs,
        accuracy=float(learner.recorder.values[-1][-1]) if clock.complete else None,
        n_val=len(learner.dls.valid_ds),
        peak_memory_mb=peak.mib,
        complete=clock.complete,
        versions=contest.versions("fastai", "torch", "torchvision", "timm"),
    ).print()


if __name__ == "__main__":
    main()
