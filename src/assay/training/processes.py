"""The processes of a training: one, or many that torchrun, `accelerate launch` or SLURM with torchrun started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from assay.errors import PlanError
from assay.progress import TORCHRUN, process_count
from assay.training.devices import Hardware

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
