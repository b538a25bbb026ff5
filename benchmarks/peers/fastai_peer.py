"""fastai's `vision_learner` with the same backbone and weights.

`default`: fastai as it comes: Adam, concatenated pooling and a hidden layer in the head, batch-norm
layers trained even where the body is frozen, its own number of workers, fp32; `both` is `fine_tune`.
`best`: what makes it fast and good: the augmentation done on images in the loader, 0 or 2 workers
and the memory layout by trial, batch-norm layers in evaluation mode (so a frozen body is not run backwards),
a linear head, the learning rates, decay and smoothing that the plain loop has.
Its own augmentation: fastai's `aug_transforms` at its defaults (rotation, warp, lighting) beside crop and flips.
"""

import torch
from fastai.callback.training import BnFreeze
from fastai.vision import all as vision
from torch import nn

from benchmarks.harness import Record
from benchmarks.peers import contest
from benchmarks.peers.contest import CANDIDATES, Clock, Setting, Task

__all__ = ["CANDIDATES"]
DEFAULT = Setting(workers=None, channels_last=False)
SKIP = 0


def train(task: Task, setting: Setting, clock: Clock, steps: int | None) -> float | None:
    """Train the stage; return the accuracy on validation (None where the clock ran out, or after `steps`)."""
    learner, best = build(task, setting, clock, steps), task.mode == "best"
    with learner.no_bar(), learner.no_logging():
        if steps is not None:
            (learner.freeze if task.stage == "frozen" else learner.unfreeze)()
            learner.fit(1)
            return None
        if task.stage == "both" and not best:
            learner.fine_tune(task.epochs, freeze_epochs=task.head_epochs)
        elif task.head_epochs:
            learner.freeze()
            learner.fit_one_cycle(task.head_epochs, contest.HEAD_RATE if best else None)
        if task.stage == "unfrozen" or (task.stage == "both" and best):
            learner.unfreeze()
            learner.fit_one_cycle(task.epochs, contest.RATE if best else None)
    return float(learner.recorder.values[-1][-1]) if clock.complete else None


def build(task: Task, setting: Setting, clock: Clock, steps: int | None) -> vision.Learner:
    """Return the learner, with the package's weights in its body."""
    callbacks: list[vision.Callback] = [Timed(clock, steps)]
    options: dict[str, object] = {}
    if task.mode == "best":
        callbacks += [BatchNormInEvaluation(), BnFreeze()]
        loss = vision.LabelSmoothingCrossEntropyFlat(contest.SMOOTHING)
        options = {"train_bn": False, "wd": contest.DECAY, "loss_func": loss}
        options |= {"concat_pool": False, "lin_ftrs": [], "ps": 0.0, "first_bn": False}
    callbacks += [vision.ChannelsLast()] if setting.channels_last else []
    callbacks += [AutocastOnCpu()] if task.precision == "bf16" else []
    # `pretrained=False` keeps timm from its download, and leaves normalisation and freezing to this module.
    learner = vision.vision_learner(
        data(task, setting), contest.BACKBONE, pretrained=False, metrics=vision.accuracy, cbs=callbacks, **options
    )
    contest.load_weights(learner.model[0].model)
    return learner


def data(task: Task, setting: Setting) -> vision.DataLoaders:
    """Return the loaders of train/ and val/, with crop, both flips and normalisation."""
    normalize = vision.Normalize.from_stats(contest.MEAN, contest.STD)
    default = task.augment == "own"
    if task.mode == "best":
        item = [
            vision.RandomResizedCrop(task.size, min_scale=contest.CROP[0], val_xtra=0.0),
            vision.DihedralItem(p=0.5),
        ]
        batch = [*(vision.aug_transforms(do_flip=False) if default else []), normalize]
    else:
        item = [vision.Resize(task.size)]
        batch = [
            *(vision.aug_transforms(flip_vert=True, mult=1.0 if default else 0.0, max_zoom=1.1 if default else 1.0)),
            vision.RandomResizedCropGPU(task.size, min_scale=contest.CROP[0]),
            normalize,
        ]
    # Left out rather than None where fastai is to choose.
    chosen = {} if setting.workers is None else {"num_workers": setting.workers}
    return vision.ImageDataLoaders.from_folder(
        task.data, train="train", valid="val", item_tfms=item, batch_tfms=batch, bs=task.batch, **chosen
    )


class Timed(vision.Callback):  # type: ignore[misc]
    """Times the training part of every epoch, and ends the fit where time or `steps` are over."""

    order = 90  # after the optimiser's step

    def __init__(self, clock: Clock, steps: int | None = None) -> None:
        self.clock, self.steps = clock, steps

    def before_train(self) -> None:
        self.clock.start()

    def after_batch(self) -> None:
        if self.training:
            self.clock.step(len(self.yb[0]))
            if not self.clock.complete or (self.steps is not None and self.iter + 1 >= self.steps):
                raise vision.CancelFitException

    def after_train(self) -> None:
        self.clock.step(0)


class BatchNormInEvaluation(vision.Callback):  # type: ignore[misc]
    """Keeps the body's batch-norm layers in evaluation mode, also where the body is trained."""

    run_after = vision.TrainEvalCallback

    def before_train(self) -> None:
        for module in self.model[0].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class AutocastOnCpu(vision.Callback):  # type: ignore[misc]
    """bf16 on a CPU: fastai's `to_bf16` asks for autocast on `cuda`, which does nothing here."""

    order = 10

    def before_batch(self) -> None:
        self.context = torch.autocast("cpu", dtype=torch.bfloat16)
        self.context.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        self.context.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


def details(task: Task, setting: Setting) -> Record:
    """Return the setting with the augmentation."""
    return {"setting": f"{task.mode}, {task.precision}, {task.augment} augmentation, {setting}"}
