"""Device, precision and memory layout, timed on real optimiser steps."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from assay.errors import PlanError
from assay.settings import Settings

Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["contiguous", "channels_last"]


class HardwareSettings(Settings):
    """Hardware that a plan fixes, instead of having it timed."""

    precision: Precision | Literal["mixed"] = Field(
        "fp32", description="fp32, bf16 or fp16; mixed: the one of the last two that the device is fast in, else fp32."
    )
    layout: Layout = Field("contiguous", description="Memory layout of images.")


@dataclass(frozen=True)
class Hardware:
    """Device, precision and memory layout of a network."""

    device: str = "cpu"
    precision: Precision = "fp32"
    layout: Layout = "contiguous"

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def to_device(self, images: Tensor) -> Tensor:
        """Return a batch (B, C, ...) on the device; images (B, C, H, W) in the memory layout too."""
        if images.ndim == 4:
            return images.to(self.device, memory_format=self.memory_format, non_blocking=True)
        return images.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=self.precision != "fp32")


def pick_device(wanted: str | None) -> str:
    """Return the device asked for, or the best available. Raises PlanError where it is not available."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.insert(0, "cuda")
    if torch.backends.mps.is_available():
        devices.insert(0, "mps")
    if wanted is None:
        return devices[0]
    if "cuda" in devices:
        devices += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if wanted not in devices:
        raise PlanError(f"device {wanted!r}: this machine has {', '.join(devices)}. Choose one of them with --device.")
    return wanted


def candidates(device: str) -> list[Hardware]:
    """Return the precisions and layouts to time on a device: the safest first, the least promising last."""
    half = half_precision(device)
    layouts: tuple[Layout, Layout] = ("contiguous", "channels_last")
    full = [Hardware(device, "fp32", layout) for layout in layouts]
    return full if half is None else [*full, *(Hardware(device, half, layout) for layout in reversed(layouts))]


def half_precision(device: str) -> Precision | None:
    """Return the half precision that a device is fast in, for mixed-precision training; None where there is none."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if kind == "cpu" and _bf16_pays() else None


TRIAL_SHARE = 0.03  # of the images that a choice is made for: as many may be spent on the choice
PASS_COST = 4  # images: what a pass takes besides them, about
TRIALS = ((4, 2, 16), (4, 1, 16), (3, 1, 8), (2, 1, 8))  # options, passes of each after a first one, images of a pass


@dataclass(frozen=True)
class HardwareChoice:
    """Hardware, and the trial that it rests on."""

    hardware: Hardware
    seconds: Mapping[str, float]  # of a pass of `batch` images, by precision and layout; empty where nothing was timed
    batch: int
    taken: float  # seconds of the whole trial


@dataclass(frozen=True)
class Trial:
    """Which hardware is timed, in passes of how many images, and how often after a first pass; one is not timed."""

    options: list[Hardware]
    batch: int
    repeats: int

    def choose(self, prepare: Callable[[Hardware], Callable[[], object]]) -> HardwareChoice:
        """Return the fastest; `prepare` returns a function that does one pass."""
        if len(self.options) == 1:
            return HardwareChoice(self.options[0], {}, self.batch, 0.0)
        began = time.perf_counter()
        best, seconds = choose_fastest(self.options, prepare, repeats=self.repeats)
        return HardwareChoice(best, seconds, self.batch, time.perf_counter() - began)


def plan_trial(options: list[Hardware], *, images: int | None, batch: int, repeats: int) -> Trial:
    """Return a trial that takes at most `TRIAL_SHARE` of `images`, those that the choice is made for; None for many.

    Where there is little to do, passes are smaller than a batch, then fewer, then the options too.
    """
    if images is None:
        return Trial(options, batch, repeats)
    for count, times, least in TRIALS:
        trial = Trial(options[:count], batch, min(times, repeats))
        each = int(TRIAL_SHARE * images / (len(trial.options) * (1 + trial.repeats))) - PASS_COST
        if each >= min(batch, least):
            return replace(trial, batch=min(batch, each))
    return Trial(options[:1], batch, 0)


def choose_fastest(
    options: list[Hardware], prepare: Callable[[Hardware], Callable[[], object]], *, repeats: int = 2
) -> tuple[Hardware, dict[str, float]]:
    """Time every option and return the fastest, with the seconds a step of each.

    `prepare` returns a function that does one step. An option whose first (warm-up) step takes
    three times the best so far is not timed further.
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


def warm_seconds(step: Callable[[], object], hardware: Hardware) -> float:
    """Return the seconds that a step takes once it has been done before."""
    _, seconds = choose_fastest([hardware], lambda _: step)
    return max(seconds.values())


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next optimiser step instead of returning it.

    Activations of tens of MB are otherwise mapped, zeroed and unmapped in every layer of every step,
    which costs a third of the time of a small network on a CPU. Elsewhere than glibc this does nothing.
    """
    if (glibc := _glibc()) is not None:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        glibc.mallopt(mmap_threshold, 1 << 30)
        glibc.mallopt(trim_threshold, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Have glibc hand freed memory back to the system; elsewhere nothing is done."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    try:
        glibc = ctypes.CDLL("libc.so.6") if sys.platform.startswith("linux") else None
    except OSError:
        return None
    return glibc if hasattr(glibc, "malloc_trim") else None


def _timed(step: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _bf16_pays(size: int = 192) -> bool:
    """Return whether a bf16 matrix product is faster than an fp32 one; emulated, it is hundreds of times slower."""
    full = torch.ones(size, size)
    half = full.bfloat16()
    return min(_timed(lambda: half @ half, "cpu") for _ in range(3)) < min(
        _timed(lambda: full @ full, "cpu") for _ in range(3)
    )
