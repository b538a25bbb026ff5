"""Checkpoints as one file of tensors and JSON, averaged weights, and stopping on a signal."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from assay.errors import RunError
from assay.files import whole

Tensors = dict[str, Tensor]


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


# SIGTERM and Ctrl-C end a training at once, as a kill would, but for blocks that write a checkpoint first.

_signals: list[int] = []  # received; a signal handler can reach module state only
_finishing: list[None] = []  # one for each open block that a signal does not end


@contextmanager
def graceful_stop() -> Iterator[None]:
    """Make SIGTERM and SIGINT end the block by SystemExit(143) or KeyboardInterrupt.

    Within `finishing` they wait for the loop, which writes a checkpoint; a second signal ends the process at once.
    Python delivers signals to the main thread only; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        if _signals:
            raise SystemExit(128 + number)
        _signals.append(number)
        leave_if_stopped()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
        leave_if_stopped()
    except Exception:  # of several processes one has left, and an exchange with it failed
        leave_if_stopped()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.clear()


@contextmanager
def finishing() -> Iterator[None]:
    """Let a signal within the block wait: the block asks `stop_requested`, and leaves by `leave`."""
    _finishing.append(None)
    try:
        yield
    finally:
        _finishing.pop()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within `finishing`, let a signal end the block at once: whoever called it can write a checkpoint."""
    held = len(_finishing)
    _finishing.clear()
    try:
        leave_if_stopped()
        yield
    finally:
        _finishing.extend([None] * held)


def stop_requested() -> bool:
    """Return whether a signal asked to stop."""
    return bool(_signals)


def leave_if_stopped() -> None:
    """Leave if a signal asked to, and no block is to finish; also where a library has swallowed the exception."""
    if _signals and not _finishing:
        leave()


def leave() -> NoReturn:
    """Raise KeyboardInterrupt after Ctrl-C, else SystemExit(143)."""
    if _signals and _signals[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)
