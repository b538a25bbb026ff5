"""fastai's `vision_learner` with the same backbone and weights.

`default`: fastai as it comes: Adam, concatenated pooling and a hidden layer in the head, batch-norm
layers trained even where the body is frozen, its own number of workers, fp32; `both` is `fine_tune`.
`best`: what makes it fast and good: the augmentation done on images in the loader, 0 or 2 workers
and the memory layout by trial, batch-norm layers in evaluation mode (so a frozen body is not run backwards),
a linear head, the learning rates, decay and smoothing that the plain loop has.
Its own augmentation: fastai's `aug_transforms` at its defaults (rotation, warp, lighting) beside crop and flips.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from fastai.callback.training import BnFreeze
from fastai.vision import all as vision
from torch import nn

from assay.arrays import Floats
from benchmarks.harness import Record
from benchmarks.peers import contest
from benchmarks.peers.contest import CANDIDATES, Clock, Images, Predict, Setting, Task

__all__ = ["CANDIDATES"]
DEFAULT = Setting(workers=None, channels_last=False)
SKIP = 0
Parameters = Sequence[Sequence[nn.Parameter]]


def train(task: Task, setting: Setting, clock: Clock, steps: int | None) -> Predict:
    """Train the stage, with fastai's own validation after each epoch; a trial ends after so many `steps`."""
    images = Images.read(task.data)
    learner = build(images, task, setting, clock, steps)

    def predict(part: str) -> Floats:
        rows = np.flatnonzero(np.repeat(list(images.parts), [len(one.paths) for one in images.parts.values()]) == part)
        with learner.no_bar(), learner.no_logging():
            logits, _ = learner.get_preds(dl=learner.dls.test_dl(rows.tolist()), act=vision.noop)
        return np.asarray(logits.float().numpy())

    with learner.no_bar(), learner.no_logging():
        if steps is not None:
            (learner.freeze if task.stage == "frozen" else learner.unfreeze)()
            learner.fit(1)
        elif task.stage == "both" and task.mode != "best":
            learner.fine_tune(task.epochs, freeze_epochs=contest.HEAD_EPOCHS)
        else:
            for part, epochs in task.parts:
                fit_part(learner, part, epochs, best=task.mode == "best")
    return predict


def fit_part(learner: vision.Learner, part: str, epochs: int, *, best: bool) -> None:
    """Train a part of the network for one cycle."""
    {"frozen": learner.freeze, "upper": partial(learner.freeze_to, 1), "unfrozen": learner.unfreeze}[part]()
    rate = contest.HEAD_RATE if part == "frozen" else contest.RATE
    learner.fit_one_cycle(epochs, rate if best else None)


def build(images: Images, task: Task, setting: Setting, clock: Clock, steps: int | None) -> vision.Learner:
    """Return the learner, with the package's weights in its body where they are to be had."""
    callbacks: list[vision.Callback] = [Timed(clock, steps)]
    best = task.mode == "best"
    options: dict[str, object] = {"loss_func": None if images.single or images.tags else contest.loss_of(images, task)}
    if best:
        callbacks += [BatchNormInEvaluation(), BnFreeze()]
        smoothed = contest.loss_of(images, task, smoothing=contest.SMOOTHING)
        options = {"train_bn": False, "wd": contest.DECAY, "loss_func": smoothed}
        options |= {"concat_pool": False, "lin_ftrs": [], "ps": 0.0, "first_bn": False}
    callbacks += [vision.ChannelsLast()] if setting.channels_last else []
    if task.precision == "bf16":
        callbacks += [AutocastOnCpu() if task.device == "cpu" else vision.MixedPrecision(vision.AMPMode.BF16)]
    options |= {"splitter": by_stages} if task.stage == "upper" else {}
    # `pretrained=False` keeps timm from its download, and leaves normalisation and freezing to this module.
    learner = vision.vision_learner(
        data(images, task, setting),
        task.backbone,
        pretrained=False,
        n_out=images.width,
        metrics=vision.accuracy if images.single else None,
        cbs=callbacks,
        **options,
    )
    if task.backbone == contest.BACKBONE:
        contest.load_weights(learner.model[0].model)
    return learner


def by_stages(model: nn.Module) -> Parameters:
    """Return the parameters of the lower stages, the upper ones and the head."""
    body = list(model[0].model.named_parameters())  # type: ignore[index,union-attr]
    lower, upper = ([one for name, one in body if contest.learns(name, "upper") == wanted] for wanted in (False, True))
    return [lower, upper, list(model[1].parameters())]  # type: ignore[index]


def data(images: Images, task: Task, setting: Setting) -> vision.DataLoaders:
    """Return the loaders of train and val, with crop, both flips and normalisation; items are rows of all parts."""
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
    paths = [path for part in images.parts.values() for path in part.paths]
    codes = [row for part in images.parts for row in images.targets(part).tolist()]

    def path_of(row: int) -> str:  # fastai looks at signatures, and those of builtins cannot be read
        return paths[row]

    def codes_of(row: int) -> object:
        return codes[row]

    counts = [len(images.parts[part].paths) for part in ("train", "val")]
    block = vision.DataBlock(
        blocks=(vision.ImageBlock, targets_block(images)),
        get_x=path_of,
        get_y=codes_of,
        splitter=vision.IndexSplitter(range(counts[0], sum(counts))),
        item_tfms=item,
        batch_tfms=batch,
    )
    # Left out rather than None where fastai is to choose.
    chosen = {} if setting.workers is None else {"num_workers": setting.workers}
    rows = list(range(sum(counts)))  # train, then val, as `Images` has its parts in this order
    return block.dataloaders(rows, bs=min(task.batch, counts[0]), device=torch.device(task.device), **chosen)


def targets_block(images: Images) -> vision.TransformBlock:
    """Return how targets are read: fastai's own blocks, or a plain tensor for several heads."""
    if images.single:
        return vision.CategoryBlock(vocab=list(range(images.width)), sort=False)
    if images.tags:
        return vision.MultiCategoryBlock(encoded=True, vocab=list(range(images.width)))
    return vision.TransformBlock(type_tfms=[vision.tensor])


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
