"""One process or many, behind the four things the loop needs of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assay.training.hardware import Hardware
from assay.training.processes import Processes


class Machine:
    """Where training runs: the processes (Accelerate), the hardware chosen, the gradient scaler of fp16."""

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
        """Devices besides the CPU that have a generator of their own."""
        device = torch.device(self.hardware.device)
        return [device] if device.type == "cuda" else []

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as the loop calls it: itself, or its gradients averaged over the processes."""
        return self.processes.wrap(network)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def optimizer_step(self, network: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
        """Clip, step, and forget the gradients."""
        if clip is not None:
            self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_((p for p in network.parameters() if p.grad is not None), clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes, the same on all of them."""
        if self.count == 1:
            return values
        return self.processes.sum(values.to(self.hardware.device)).cpu()

    def of_main(self, value: float | None) -> float | None:
        """The main process's value, on all: figures may differ in the last digit, decisions may not."""
        return self.processes.of_main(value)

    def scaler_state(self) -> dict[str, Any]:
        return dict(self._scaler.state_dict())

    def restore_scaler(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)
