"""Checkpoints of a fit as one file of tensors and JSON, and the averaged weights that they hold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from assay.errors import RunError
from assay.files import whole
from assay.models.weights import Tensors
from assay.training.fit_task import EpochLogits, FitState, FitTask
from assay.training.processes import Machine


def save_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
    """Write tensors and JSON values as one safetensors file, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as beside:
        save_file(plain, beside, metadata={"values": json.dumps(values or {})})


def load_tensors(path: Path, *, device: torch.device | str = "cpu") -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises RunError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get("values", "{}"))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read as saved weights ({error}). Train this run again.") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, object]]:
    """Return the state of an optimiser: its tensors, and its numbers as JSON values."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    numbers: dict[str, object] = {}
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{slot}"] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, values: dict[str, Any]) -> None:
    """Restore the state from `optimizer_tensors`, each tensor in the memory layout of its parameter."""
    fresh = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, object]] = {}
    for name, value in [*tensors.items(), *values["numbers"].items()]:
        index, slot = name.split(".", 1)
        laid_out = laid_out_as(parameters[int(index)], value) if isinstance(value, Tensor) else value
        slots.setdefault(int(index), {})[slot] = laid_out
    groups = [old | {"params": new["params"]} for old, new in zip(values["groups"], fresh["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `value` with the strides of `like`; `value` itself where the shapes differ (a step counter).

    A file holds tensors row by row. Fused optimisers iterate over a parameter and its state in the order of memory:
    with a parameter in channels_last and its momentum row by row, weights would be moved by the momentum of others.
    """
    if value.shape != like.shape:
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=value.dtype, device=value.device).copy_(value)


def within(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with a prefix before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def out_of(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with a prefix, their names without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


class Average:
    """An exponential moving average of a network's weights (Polyak & Juditsky 1992).

    The decay warms up as min(decay, (1 + t) / (10 + t)), so that the first steps are forgotten soon.
    Buffers are copied as they are.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: Tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore averaged weights, each in the memory layout of its parameter."""
        self.tensors = {name: laid_out_as(value, tensors[name]) for name, value in self.tensors.items()}

    @contextmanager
    def applied_to(self, network: nn.Module) -> Iterator[None]:
        """Give the network the averaged weights within the block."""
        trained = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.tensors)
        try:
            yield
        finally:
            network.load_state_dict(trained)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Add the weights after the `step`-th optimiser step."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        newest = network.state_dict()
        names = [name for name in self.tensors if name in trained]
        others = [name for name in self.tensors if name not in trained]
        torch._foreach_lerp_([self.tensors[n] for n in names], [newest[n] for n in names], weight)
        if others:
            torch._foreach_copy_([self.tensors[n] for n in others], [newest[n] for n in others])


class Checkpoint:
    """Writes and reads all of a fit between two optimiser steps: network, optimiser, average, position, history."""

    def __init__(self, task: FitTask, average: Average | None, machine: Machine, path: Path, every: float) -> None:
        """`every` is the least time between two checkpoints within an epoch, in seconds."""
        self.task, self.average, self.machine, self.path, self.every = task, average, machine, path, every
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Return whether to write now: often enough to lose little, seldom enough to cost under 2 % of the time.

        Several processes would have to agree on the moment: they write at the ends of epochs, and when they stop.
        """
        late = time.monotonic() - self.last > max(self.every, 50 * self.cost)
        return self.machine.count == 1 and late

    def write(self, state: FitState, epoch_logits: EpochLogits) -> None:
        """Write the file, from the main process; every process calls this, since its share of the epoch is in it."""
        began, machine = time.monotonic(), self.machine
        sums, counts = machine.sum(torch.tensor([state.sums, state.counts], dtype=torch.float64)).tolist()
        logits = {"logits": machine.sum(epoch_logits.sums), "times": machine.sum(epoch_logits.times)}
        if not machine.is_main:
            return
        tensors = within("network", self.task.network.state_dict()) | logits
        if self.average is not None:
            tensors |= within("average", self.average.tensors)
        if self.task.unlabelled is not None:
            tensors |= within("unlabelled", self.task.unlabelled.state())
        moments, numbers = optimizer_tensors(self.task.optimizer)
        fit_state = asdict(state) | {"sums": sums, "counts": counts}
        values = {"fit_state": fit_state, "optimizer": numbers, "scaler": machine.scaler_state()}
        save_tensors(self.path, tensors | within("optimizer", moments), values)
        self.last = time.monotonic()
        self.cost = self.last - began

    def restore(self, width: int) -> tuple[FitState, EpochLogits]:
        """Put everything back and return the state with the logits so far, new ones where there is no file."""
        task = self.task
        if not self.path.exists():
            return FitState.of(len(task.objective.losses)), EpochLogits.empty(len(task.source.ids), width)
        tensors, values = load_tensors(self.path, device=self.machine.hardware.device)
        task.network.load_state_dict(out_of("network", tensors))
        restore_optimizer(task.optimizer, out_of("optimizer", tensors), values["optimizer"])
        self.machine.restore_scaler(values["scaler"])
        if self.average is not None:
            self.average.restore(out_of("average", tensors))
        if task.unlabelled is not None:
            task.unlabelled.restore(out_of("unlabelled", tensors))
        state = FitState(**values["fit_state"])
        epoch_logits = EpochLogits.of(tensors["logits"].cpu(), tensors["times"].cpu(), len(task.source.ids))
        if not self.machine.is_main:  # sums over an unfinished epoch count once, in the main process
            state.clear_losses()
            epoch_logits.clear()
        return state, epoch_logits
