"""One process, or many that torchrun, `accelerate launch --multi_gpu` or SLURM with torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from assay.endings import process_count
from assay.errors import PlanError

T = TypeVar("T")

COMMAND = "torchrun --nproc_per_node 2 -m -- assay train ..."
COPIES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Processes(Protocol):
    """What training needs to know of the processes."""

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
        """Return the main process's value on all: where they would decide differently they would wait for ever."""


class Alone:
    """The only process there is."""

    process_index = 0
    num_processes = 1
    is_main_process = True

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """It is the main process."""
        yield

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is."""
        return network

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over one process."""
        return tensor

    def of_main(self, value: T) -> T:
        """Its own."""
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
        """Go on when all are here."""
        self._state.wait_for_everyone()

    def main_process_first(self) -> AbstractContextManager[None]:
        """Within the block the main process is done before the others begin."""
        first: AbstractContextManager[None] = self._state.main_process_first()
        return first

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network in `DistributedDataParallel`."""
        device: torch.device = self._state.device
        return nn.parallel.DistributedDataParallel(network, [device] if device.type == "cuda" else None)

    def sum(self, tensor: Tensor) -> Tensor:
        """By one exchange; the tensor is on a device that the processes can exchange from."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    def of_main(self, value: T) -> T:
        """By one exchange."""
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def processes(device: str) -> Processes:
    """The processes this one belongs to. Accelerate takes 2 s to import, which one process need not spend.

    Raises PlanError where all of them would take the same GPU.
    """
    count = process_count(os.environ)
    if count == 1:
        return Alone()
    if ":" in device:
        raise PlanError(
            f"device {device!r}: names one GPU, and {count} processes take one each. Give --device "
            f"{device.partition(':')[0]}, and choose GPUs with CUDA_VISIBLE_DEVICES."
        )
    return Several(device)


def asked_for_more(environment: Mapping[str, str]) -> str | None:
    """Return what to say where several processes were asked for and this one is alone; None where it is as asked."""
    if "WORLD_SIZE" in environment:
        return None
    # `accelerate launch` without a launcher of several processes sets an address for them, and starts one.
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        cause = "accelerate launch was asked for several and started one, as it does with --cpu or without --multi_gpu"
    elif found := next((name for name in COPIES if int(environment.get(name, "1")) > 1), None):
        cause = f"{environment[found]} were started ({found}), none of which knows of the others"
    else:
        return None
    return f"note: one process trains: {cause}. To train in several: {COMMAND}"
