"""The layers of a network: what each gives for an image, and its parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.models.backbones import evaluating


@dataclass(frozen=True)
class Layer:
    """A module that computes or holds parameters by itself; `shape` of what it gives, None where it was not called."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # without the batch
    parameters: int  # of its own, shared ones at the first layer that has them

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layers(network: nn.Module, *, size: int) -> list[Layer]:
    """Return the layers in the order in which an image of size x size pixels passes them; their parameters add up to all.

    Those that were not called by themselves, but hold parameters, follow at the end.
    """
    own = _own_parameters(network)
    names = {module: name for name, module in network.named_modules()}
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}

    def begun(module: nn.Module, given: Any) -> None:
        shapes.setdefault(module, None)  # before those within it

    def called(module: nn.Module, given: Any, answer: Any) -> None:
        shapes[module] = _shape(answer)

    looked_at = [module for module in names if own[module] or not list(module.children())]
    hooks = [module.register_forward_pre_hook(begun) for module in looked_at]
    hooks += [module.register_forward_hook(called) for module in looked_at]
    try:
        device = next(network.parameters()).device
        with evaluating(network), torch.inference_mode():
            network(torch.zeros(1, 3, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    uncalled = [module for module in looked_at if own[module] and module not in shapes]
    passed = [module for module in shapes if own[module] or not isinstance(module, nn.Identity)]
    return [
        Layer(names[module], type(module).__name__, shapes.get(module), own[module]) for module in (*passed, *uncalled)
    ]


def _own_parameters(network: nn.Module) -> dict[nn.Module, int]:
    """Return parameters that each module holds directly."""
    seen: set[nn.Parameter] = set()
    found = {}
    for module in network.modules():
        new = [one for one in module.parameters(recurse=False) if one not in seen]
        seen.update(new)
        found[module] = sum(one.numel() for one in new)
    return found


def _shape(answer: Any) -> tuple[int, ...] | None:
    """Return of a tensor, or of the first one among several."""
    if isinstance(answer, Tensor):
        return tuple(answer.shape[1:])
    if isinstance(answer, tuple | list):
        return next((_shape(one) for one in answer if isinstance(one, Tensor | tuple | list)), None)
    return None
