"""Device, precision and memory layout, timed on real optimiser steps; and training in several processes."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.errors import PlanError
from assay.progress import TORCHRUN, process_count
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


# One process, or many that torchrun, `accelerate launch --multi_gpu` or SLURM with torchrun started.

T = TypeVar("T")

COPIES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Processes(Protocol):
    """The processes of a training: which one this is, and exchanges between them."""

    @property
    def process_index(self) -> int: ...

    @property
    def num_processes(self) -> int: ...

    @property
    def is_main_process(self) -> bool: ...

    def wait_for_everyone(self) -> None: ...

    def main_process_first(self) -> AbstractContextManager[None]: ...

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with its gradients averaged over the processes at every backward pass."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, the same on all of them."""

    def of_main(self, value: T) -> T:
        """Return the main process's value on all: where they differ they would wait for ever."""


class SingleProcess:
    """A training in one process: every exchange returns its argument."""

    process_index = 0
    num_processes = 1
    is_main_process = True

    def wait_for_everyone(self) -> None:
        pass

    def main_process_first(self) -> AbstractContextManager[None]:
        return nullcontext()

    def wrap(self, network: nn.Module) -> nn.Module:
        return network

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def of_main(self, value: T) -> T:
        return value


class Several:
    """One of several processes, over Accelerate's `PartialState`.

    Not its `Accelerator`: that reads a precision and a compiler from the environment, which a plan decides here.
    """

    def __init__(self, device: str) -> None:
        from accelerate import PartialState

        patient = timedelta(hours=12)  # others wait while the main process reads
        self._state = PartialState(cpu=device == "cpu", timeout=patient)
        self.process_index: int = self._state.process_index
        self.num_processes: int = self._state.num_processes
        self.is_main_process: bool = self._state.is_main_process

    def wait_for_everyone(self) -> None:
        self._state.wait_for_everyone()

    def main_process_first(self) -> AbstractContextManager[None]:
        """Let the main process finish the block before the others begin it."""
        first: AbstractContextManager[None] = self._state.main_process_first()
        return first

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in `DistributedDataParallel`."""
        device: torch.device = self._state.device
        return nn.parallel.DistributedDataParallel(network, [device] if device.type == "cuda" else None)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum by one all-reduce; the tensor is on a device of the process group."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    def of_main(self, value: T) -> T:
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def current_processes(device: str) -> Processes:
    """Return the processes this one belongs to; Accelerate, which takes 2 s to import, only where there are several.

    Raises PlanError where all of them would take the same GPU.
    """
    count = process_count(os.environ)
    if count == 1:
        return SingleProcess()
    if ":" in device:
        raise PlanError(
            f"device {device!r}: names one GPU, and {count} processes take one each. Give --device "
            f"{device.partition(':')[0]}, and choose GPUs with CUDA_VISIBLE_DEVICES."
        )
    return Several(device)


def asked_for_more(environment: Mapping[str, str]) -> str | None:
    """Return a note where several processes were asked for and this one is alone, else None."""
    if "WORLD_SIZE" in environment:
        return None
    # `accelerate launch` without a launcher of several processes sets an address for them, and starts one.
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        cause = "accelerate launch was asked for several and started one, as it does with --cpu or without --multi_gpu"
    elif variable := next((name for name in COPIES if int(environment.get(name, "1")) > 1), None):
        cause = f"{environment[variable]} were started ({variable}), none of which knows of the others"
    else:
        return None
    return f"note: one process trains: {cause}. To train in several: {TORCHRUN}"


class Machine:
    """The processes, the hardware and the gradient scaler of fp16, as the training loop uses them."""

    def __init__(self, processes: Processes, hardware: Hardware) -> None:
        self.processes = processes
        self.hardware = hardware
        self._scaler = torch.amp.GradScaler(torch.device(hardware.device).type, enabled=hardware.precision == "fp16")

    @property
    def rank(self) -> int:
        return self.processes.process_index

    @property
    def count(self) -> int:
        return self.processes.num_processes

    @property
    def is_main(self) -> bool:
        return self.processes.is_main_process

    @property
    def seeded_devices(self) -> list[torch.device]:
        """Devices besides the CPU that have a random generator."""
        device = torch.device(self.hardware.device)
        return [device] if device.type == "cuda" else []

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network; of several processes, with gradients averaged over them."""
        return self.processes.wrap(network)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def optimizer_step(self, network: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
        """Clip, step, and drop the gradients."""
        if clip is not None:
            self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_((p for p in network.parameters() if p.grad is not None), clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, on the CPU where there are several."""
        if self.count == 1:
            return values
        return self.processes.sum(values.to(self.hardware.device)).cpu()

    def any(self, holds: bool) -> bool:
        """Return whether something holds in any of the processes, the same on all of them."""
        return holds if self.count == 1 else bool(self.sum(torch.tensor([float(holds)])).item())

    def of_main(self, value: float | None) -> float | None:
        """Return the main process's value: metrics may differ in the last digit, decisions may not."""
        return self.processes.of_main(value)

    def scaler_state(self) -> dict[str, object]:
        return dict(self._scaler.state_dict())

    def restore_scaler(self, state: dict[str, object]) -> None:
        if state:
            self._scaler.load_state_dict(state)
