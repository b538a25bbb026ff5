"""The layers of a network, and the receptive field of its last map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from assay.models.backbones import evaluating

Pair = tuple[float, float]

WHOLE = float("inf")  # the field of a position that the whole image can change

# Parameters, in order, of the functions with a sliding window.
WINDOWS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride"),
}
OVER_MAPS = frozenset({"mean", "amax", "max", "std", "var", "sum", "adaptive_avg_pool2d", "adaptive_max_pool2d"})
ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")
PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "baddbmm", "einsum", *ATTENTION})


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of a position, in pixels of the image: rows and columns.

    stride: from one position to the next. field: side of the area that can change its value; infinite for all of it.
    """

    stride: Pair = (1.0, 1.0)
    field: Pair = (1.0, 1.0)

    def through(self, kernel: Pair, stride: Pair, dilation: Pair) -> ReceptiveField:
        """Return the field after a window: it grows by (k - 1) d times the stride so far (Araujo et al. 2019)."""
        grown = (f + (k - 1) * d * s for f, k, d, s in zip(self.field, kernel, dilation, self.stride, strict=True))
        product = (s * t for s, t in zip(self.stride, stride, strict=True))
        return ReceptiveField(_pair(tuple(product)), _pair(tuple(grown)))

    def joined(self, other: ReceptiveField) -> ReceptiveField:
        """Return the wider field of two joined maps."""
        wider = (
            _pair(tuple(map(max, one, two))) for one, two in ((self.stride, other.stride), (self.field, other.field))
        )
        return ReceptiveField(*wider)

    def everywhere(self) -> ReceptiveField:
        return ReceptiveField(self.stride, (WHOLE, WHOLE))

    def to_json(self) -> dict[str, int | None]:
        """Return the larger values of rows and columns; a field of None is the whole image."""
        field = max(self.field)
        return {"stride": int(max(self.stride)), "receptive_field": None if field == WHOLE else int(field)}


def receptive_field(backbone: nn.Module, *, size: int) -> ReceptiveField:
    """Return the receptive field of a backbone's last map, or of its tokens, for images of size x size.

    One blank image is followed through convolutions, pooling, attention and linear layers over tokens. Gates that
    weigh channels by their mean over the map (squeeze and excitation) are left out, as is usual.
    """
    image = next(backbone.parameters()).new_zeros(1, 3, size, size)
    network: Callable[[Tensor], Any] = getattr(backbone, "forward_features", backbone)
    with evaluating(backbone), torch.inference_mode(), _Following(image) as followed:
        output = network(image)
    field: ReceptiveField = next(followed.of(output), followed.last)  # the last map's, of an output that is none
    return field


class _Following(TorchFunctionMode):
    """Tracks the receptive field of each tensor through the functions that compute it."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.last = ReceptiveField()
        # The tensors too, so that none is freed and its id used again.
        self._known: dict[int, tuple[Tensor, ReceptiveField]] = {id(image): (image, self.last)}

    def of(self, values: Any) -> Iterator[ReceptiveField]:
        """Yield the known fields of the tensors among some values, in order."""
        if isinstance(values, Tensor):
            if id(values) in self._known:
                yield self._known[id(values)][1]
        elif isinstance(values, list | tuple):
            for value in values:
                yield from self.of(value)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = list(self.of([*args, *kwargs.values()]))
        result = func(*args, **kwargs)
        if before:
            self._note(getattr(func, "__name__", ""), args, kwargs, before, result)
        return result

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], before: list[ReceptiveField], result: Any
    ) -> None:
        field = reduce(ReceptiveField.joined, before)
        if name in WINDOWS:
            field = field.through(*_window(name, args, kwargs))
        elif (name in PRODUCTS and len(before) > 1) or (name == "linear" and args[0].ndim == 3):
            field = field.everywhere()
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if not isinstance(tensor, Tensor) or (name in OVER_MAPS and _of_no_map(tensor)):
                continue
            self._known[id(tensor)] = (tensor, field)
            self.last = field


def _window(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Pair, Pair, Pair]:
    """Return kernel, stride and dilation of a call."""
    given = {**dict(zip(WINDOWS[name], args, strict=False)), **kwargs}
    if name == "conv2d":
        kernel = _pair(tuple(given["weight"].shape[2:]))
        return kernel, _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    kernel = _pair(given["kernel_size"])
    return kernel, _pair(given.get("stride") or kernel), _pair(given.get("dilation", 1))


def _of_no_map(tensor: Tensor) -> bool:
    """Return whether a tensor has no rows and columns of a map left."""
    return tensor.ndim < 4 or tuple(tensor.shape[2:]) == (1, 1)


def _pair(value: Any) -> Pair:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return float(values[0]), float(values[-1])


# The table of layers: the output of each for an image, and its parameters.


@dataclass(frozen=True)
class Layer:
    """A module without children or with parameters; `shape` is that of its output, None where it was not called."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # without the batch
    parameters: int  # held directly; shared ones count at the first layer

    def to_json(self) -> Mapping[str, object]:
        return asdict(self)


def layers(network: nn.Module, *, size: int) -> list[Layer]:
    """Return the layers in the order in which an image of size x size pixels passes them.

    Layers with parameters that are not called follow at the end, so that the parameters add up to all.
    """
    counts = _direct_parameters(network)
    names = {module: name for name, module in network.named_modules()}
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}

    def begun(module: nn.Module, given: Any) -> None:
        shapes.setdefault(module, None)  # before those within it

    def called(module: nn.Module, given: Any, output: Any) -> None:
        shapes[module] = _shape(output)

    leaves = [module for module in names if counts[module] or not list(module.children())]
    hooks = [module.register_forward_pre_hook(begun) for module in leaves]
    hooks += [module.register_forward_hook(called) for module in leaves]
    try:
        device = next(network.parameters()).device
        with evaluating(network), torch.inference_mode():
            network(torch.zeros(1, 3, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    uncalled = [module for module in leaves if counts[module] and module not in shapes]
    passed = [module for module in shapes if counts[module] or not isinstance(module, nn.Identity)]
    return [
        Layer(names[module], type(module).__name__, shapes.get(module), counts[module])
        for module in (*passed, *uncalled)
    ]


def _direct_parameters(network: nn.Module) -> dict[nn.Module, int]:
    """Return the number of parameters that each module holds directly."""
    counted: set[nn.Parameter] = set()
    counts = {}
    for module in network.modules():
        new = [one for one in module.parameters(recurse=False) if one not in counted]
        counted.update(new)
        counts[module] = sum(one.numel() for one in new)
    return counts


def _shape(output: Any) -> tuple[int, ...] | None:
    """Return the shape, without the batch, of a tensor or of the first one among several."""
    if isinstance(output, Tensor):
        return tuple(output.shape[1:])
    if isinstance(output, tuple | list):
        return next((_shape(one) for one in output if isinstance(one, Tensor | tuple | list)), None)
    return None
