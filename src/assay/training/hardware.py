"""Which device, precision and memory layout: timed on real optimiser steps, not guessed."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from assay.errors import PlanError
from assay.settings import Settings

Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["contiguous", "channels_last"]


class HardwareSettings(Settings):
    """A choice of hardware that a plan pins, instead of having it timed."""

    precision: Precision = "fp32"
    layout: Layout = Field("contiguous", description="How pictures lie in memory.")


@dataclass(frozen=True)
class Hardware:
    """Where and how a network computes."""

    device: str = "cpu"
    precision: Precision = "fp32"
    layout: Layout = "contiguous"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def place(self, pictures: Tensor) -> Tensor:
        """A batch (B, C, ...) on the device; pictures (B, C, H, W) in the layout too."""
        if pictures.ndim == 4:
            return pictures.to(self.device, memory_format=self.memory_format, non_blocking=True)
        return pictures.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=self.precision != "fp32")


def pick_device(wanted: str | None) -> str:
    """The device asked for, or the best there is. Raises PlanError where it is not there."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if wanted is None:
        return there[0]
    if "cuda" in there:
        there += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if wanted not in there:
        raise PlanError(f"device {wanted!r}: this machine has {', '.join(there)}. Choose one of them with --device.")
    return wanted


def candidates(device: str) -> list[Hardware]:
    """What is worth timing on a device, the safest first."""
    kind = torch.device(device).type
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    precisions: list[Precision] = ["fp32"]
    if kind == "cuda":
        precisions.append("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    if kind == "cpu" and _bf16_pays():
        precisions.append("bf16")
    return [Hardware(device, precision, layout) for precision in precisions for layout in layouts]


def choose(
    options: list[Hardware], prepare: Callable[[Hardware], Callable[[], object]], *, repeats: int = 2
) -> tuple[Hardware, dict[str, float]]:
    """Time every option and give the fastest, with the seconds a step of each.

    `prepare` returns a function that does one step. An option whose first (warming) step takes
    three times the best so far is given up at once.
    """
    seconds: dict[str, float] = {}
    best, best_seconds = options[0], float("inf")
    for option in options:
        step = prepare(option)
        taken = _timed(step, option.device)
        if taken < 3 * best_seconds:
            taken = min(_timed(step, option.device) for _ in range(repeats))
        seconds[f"{option.precision} {option.layout}"] = round(taken, 4)
        if taken < best_seconds:
            best, best_seconds = option, taken
    return best, seconds


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next optimiser step instead of handing it back.

    Activations of tens of MB are otherwise mapped, zeroed and unmapped in every layer of every step,
    which costs a third of the time of a small network on a CPU. Elsewhere than glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library: nothing to tell
        return
    trim_threshold, mmap_threshold = -1, -3  # from malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def _timed(step: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _bf16_pays(size: int = 192) -> bool:
    """Whether a bf16 matrix product is faster than an fp32 one here; emulated, it is hundreds of times slower."""
    full = torch.ones(size, size)
    half = full.bfloat16()
    return min(_timed(lambda: half @ half, "cpu") for _ in range(3)) < min(
        _timed(lambda: full @ full, "cpu") for _ in range(3)
    )
