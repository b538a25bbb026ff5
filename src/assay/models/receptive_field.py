"""How much of an image one position of the last map sees, and how far apart such positions are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from assay.models.backbones import evaluating

Pair = tuple[float, float]

WHOLE = float("inf")

# Function -> its parameters in order, for those that look through a window.
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
    """What a position sees, in pixels of the image, rows and columns; infinite where that is all of it.

    stride: from one position to the next. field: the side of the square that can change its value.
    """

    stride: Pair = (1.0, 1.0)
    field: Pair = (1.0, 1.0)

    def through(self, kernel: Pair, stride: Pair, dilation: Pair) -> ReceptiveField:
        """Return after a window: the field grows by (k - 1) d times the stride so far (Araujo et al. 2019)."""
        grown = (f + (k - 1) * d * s for f, k, d, s in zip(self.field, kernel, dilation, self.stride, strict=True))
        apart = (s * t for s, t in zip(self.stride, stride, strict=True))
        return ReceptiveField(_pair(tuple(apart)), _pair(tuple(grown)))

    def joined(self, other: ReceptiveField) -> ReceptiveField:
        """Return of two maps joined: the wider."""
        wider = (
            _pair(tuple(map(max, one, two))) for one, two in ((self.stride, other.stride), (self.field, other.field))
        )
        return ReceptiveField(*wider)

    def everywhere(self) -> ReceptiveField:
        return ReceptiveField(self.stride, (WHOLE, WHOLE))

    def to_json(self) -> dict[str, int | None]:
        """Return the larger of rows and columns; a field of None is the whole image."""
        field = max(self.field)
        return {"stride": int(max(self.stride)), "receptive_field": None if field == WHOLE else int(field)}


def receptive_field(backbone: nn.Module, *, size: int) -> ReceptiveField:
    """Return follow one blank image of size x size through a backbone, to its last map (or its tokens).

    What is known is what convolutions, pooling, attention and linear layers over tokens do. Gates that weigh
    channels by their mean over the map (squeeze and excitation) are left out, as is usual.
    """
    image = next(backbone.parameters()).new_zeros(1, 3, size, size)
    network: Callable[[Tensor], Any] = getattr(backbone, "forward_features", backbone)
    with evaluating(backbone), torch.inference_mode(), _Following(image) as followed:
        answer = network(image)
    # Of an answer that is no map any more, what the last map saw.
    found: ReceptiveField = next(followed.of(answer), followed.last)
    return found


class _Following(TorchFunctionMode):
    """Keeps what each tensor sees, as functions make one of another."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.last = ReceptiveField()
        # With the tensors, so that none is freed and its identity used again.
        self._known: dict[int, tuple[Tensor, ReceptiveField]] = {id(image): (image, self.last)}

    def of(self, values: Any) -> Iterator[ReceptiveField]:
        """What is known of the tensors among some values, in order."""
        if isinstance(values, Tensor):
            if id(values) in self._known:
                yield self._known[id(values)][1]
        elif isinstance(values, list | tuple):
            for value in values:
                yield from self.of(value)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = list(self.of([*args, *kwargs.values()]))
        result = func(*args, **kwargs)
        if before:
            self._note(getattr(func, "__name__", ""), args, kwargs, before, result)
        return result

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], before: list[ReceptiveField], result: Any
    ) -> None:
        seen = before[0]
        for other in before[1:]:
            seen = seen.joined(other)
        if name in WINDOWS:
            seen = seen.through(*_window(name, args, kwargs))
        elif (name in PRODUCTS and len(before) > 1) or (name == "linear" and args[0].ndim == 3):
            seen = seen.everywhere()
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if not isinstance(tensor, Tensor) or (name in OVER_MAPS and _of_no_map(tensor)):
                continue
            self._known[id(tensor)] = (tensor, seen)
            self.last = seen


def _window(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Pair, Pair, Pair]:
    """Return kernel, stride and dilation."""
    given = dict(zip(WINDOWS[name], args, strict=False)) | kwargs
    if name == "conv2d":
        kernel = _pair(tuple(given["weight"].shape[2:]))
        return kernel, _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    kernel = _pair(given["kernel_size"])
    return kernel, _pair(given.get("stride") or kernel), _pair(given.get("dilation", 1))


def _of_no_map(tensor: Tensor) -> bool:
    """Return whether nothing is left of a map's rows and columns."""
    return tensor.ndim < 4 or tuple(tensor.shape[2:]) == (1, 1)


def _pair(value: Any) -> Pair:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return float(values[0]), float(values[-1])
