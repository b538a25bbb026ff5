"""One process, or many started by `accelerate launch`, torchrun or SLURM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from torch import Tensor


class Processes(Protocol):
    """What training needs to know of the processes; an `accelerate.Accelerator` is one."""

    @property
    def process_index(self) -> int: ...

    @property
    def num_processes(self) -> int: ...

    @property
    def is_main_process(self) -> bool: ...

    def wait_for_everyone(self) -> None: ...

    def main_process_first(self) -> Any: ...

    def prepare(self, network: Any) -> Any: ...

    def reduce(self, tensor: Tensor, reduction: str) -> Any: ...


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

    def prepare(self, network: Any) -> Any:
        """The network as it is."""
        return network

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The sum over one process."""
        return tensor


def processes(device: str) -> Processes:
    """The processes this one belongs to. Accelerate takes 2 s to import, which one process need not spend."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    from accelerate import Accelerator, InitProcessGroupKwargs

    patient = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # others wait while the main process reads
    together: Processes = Accelerator(cpu=device == "cpu", kwargs_handlers=[patient])
    return together
