"""Strong augmentation: operations drawn from a list, with the list and ranges of RandAugment.

Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space"; FixMatch
(Sohn et al. 2020) takes the same list with a magnitude drawn anew for every operation. The ranges are those of
AutoAugment (Cubuk et al. 2019), but magnitude 0 is the identity and larger ones are stronger throughout: a factor
goes either way from 1, and posterize and solarize begin at the identity. Enlarging is ours, for `some_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, NonNegativeFloat
from torch import Tensor

from assay.arrays import Doubles
from assay.images import colour, geometry
from assay.settings import Settings

STRONGEST = 10.0  # the magnitude of the full reach of an operation
DRAWS = 3  # of an operation: which one, how much, which way
MOST = 16  # operations an image

Name = Literal[
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
    "scale", "scale_x", "scale_y",
]  # fmt: skip


def autocontrasted(images: Tensor, _: Doubles) -> Tensor:
    """Stretch every channel of (B, 3, H, W) to the range from 0 to 1. As ImageOps.autocontrast of Pillow."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = (high - low) * 255 < 0.5  # one byte everywhere: only rounding would be stretched
    low, high = low.masked_fill(flat, 0), high.masked_fill(flat, 1)
    return ((images - low) / (high - low)).clamp_(0, 1)


def equalized(images: Tensor, _: Doubles) -> Tensor:
    """Equalize the histogram of every channel of (B, 3, H, W). As ImageOps.equalize of Pillow."""
    levels = (images * 255).round_().long().flatten(2).flatten(0, 1)  # (3 B, H W)
    first = torch.arange(len(levels), device=levels.device)[:, None] * 256
    counts = torch.bincount((levels + first).flatten(), minlength=256 * len(levels)).view(-1, 256)
    up_to = counts.cumsum(1)
    # Pixels below the highest byte, divided among 255 steps; with less than one a step, the channel stays as it is.
    step = up_to.masked_fill(up_to == levels.shape[1], 0).amax(1, keepdim=True) // 255
    spread = ((step // 2 + up_to - counts) // step.clamp(min=1)).clamp_(max=255)
    spread = torch.where(step > 0, spread, torch.arange(256, device=levels.device))
    return (spread.float() / 255).gather(1, levels).view(images.shape)


def posterized(images: Tensor, bits: Doubles) -> Tensor:
    """Keep the highest `bits` (B,), rounded to 1 to 8, of bytes (B, 3, H, W). As ImageOps.posterize of Pillow."""
    step = _beside(2 ** (8 - np.rint(bits)), images)
    kept = (images * 255).round_().div_(step).floor_().mul_(step).div_(255)
    return torch.where(step == 1, images, kept)


def solarized(images: Tensor, thresholds: Doubles) -> Tensor:
    """Invert the bytes of (B, 3, H, W) from 256 times `thresholds` (B,) on. As ImageOps.solarize of Pillow."""
    return torch.where(images * 255 + 0.5 < _beside(256 * thresholds, images), images, 1 - images)


def sharpened(images: Tensor, factors: Doubles) -> Tensor:
    """Scale the distances of (B, 3, H, W) from a smoothed copy by factors (B,). As ImageEnhance.Sharpness of Pillow."""
    across = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    around = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]  # 3 x 3; a pooling takes 4 times as long
    smooth = images.clone()  # its border stays as it is
    smooth[..., 1:-1, 1:-1].mul_(4).add_(around).div_(13)
    return smooth.lerp_(images, _beside(factors, images)).clamp_(0, 1)


class Operation(NamedTuple):
    """An operation on images with a value for each, which follows from the magnitude.

    The value is `idle` at magnitude 0 and `reach` further at the strongest: either way with even chance, or below it
    only. A plan may set another reach, up to `most`.
    """

    reach: float = 0.0
    most: float = 0.0
    idle: float = 0.0
    either_way: bool = True
    matrix: Callable[[Doubles], Doubles] | None = None  # geometry: where pixels come from
    paint: Callable[[Tensor, Doubles], Tensor] | None = None  # colours: float32 (B, 3, H, W) in [0, 1] to the same


OPERATIONS: dict[Name, Operation] = {
    "identity": Operation(),
    "autocontrast": Operation(paint=autocontrasted),
    "equalize": Operation(paint=equalized),
    "rotate": Operation(30, 180, matrix=geometry.rotated),  # degrees
    "solarize": Operation(1, 1, idle=1, either_way=False, paint=solarized),  # the share of brightness inverted
    "color": Operation(0.9, 1, idle=1, paint=colour.saturated),  # factors of 1 - reach to 1 + reach
    "posterize": Operation(4, 7, idle=8, either_way=False, paint=posterized),  # bits dropped of 8
    "contrast": Operation(0.9, 1, idle=1, paint=colour.contrasted),
    "brightness": Operation(0.9, 1, idle=1, paint=colour.brightened),
    "sharpness": Operation(0.9, 1, idle=1, paint=sharpened),
    "shear_x": Operation(0.3, 1, matrix=lambda shares: geometry.sheared(across=shares)),  # tangents of the angle
    "shear_y": Operation(0.3, 1, matrix=lambda shares: geometry.sheared(down=shares)),
    "translate_x": Operation(150 / 331, 1, matrix=lambda shares: geometry.shifted(right=shares)),  # of the side
    "translate_y": Operation(150 / 331, 1, matrix=lambda shares: geometry.shifted(down=shares)),
    "scale": Operation(0.3, 0.9, idle=1, matrix=lambda factors: geometry.scaled(factors, factors)),
    "scale_x": Operation(0.3, 0.9, idle=1, matrix=lambda factors: geometry.scaled(across=factors)),
    "scale_y": Operation(0.3, 0.9, idle=1, matrix=lambda factors: geometry.scaled(down=factors)),
}
RAND_AUGMENT = tuple(OPERATIONS)[:14]
"""The published list; what follows it is drawn by `some_of` alone."""


Given = tuple[Name, ...] | dict[Name, float | None]  # names alone, or each with its reach or None for the usual one


def _possible(given: Given) -> Given:
    if not given:
        raise ValueError(f"the list of operations is empty; known are {', '.join(OPERATIONS)}")
    if twice := [name for name in OPERATIONS if list(given).count(name) > 1]:
        raise ValueError(f"{twice[0]} is listed twice; list it once")
    for name, reach in given.items() if isinstance(given, dict) else ():
        most = OPERATIONS[name].most
        if reach is not None and reach > most:
            rule = f"reaches {most:g} at most, not {reach:g}" if most else "takes no number; leave it empty"
            raise ValueError(f"{name} {rule}")
    return given


Listed = Annotated[
    tuple[Name, ...] | dict[Name, NonNegativeFloat | None],
    AfterValidator(_possible),
    Field(description="Names of operations, or each with its reach at the strongest; an empty reach is the usual one."),
]
Count = Annotated[int, Field(ge=1, le=MOST, description="Operations an image.")]
Magnitude = Annotated[
    Annotated[float, Field(ge=0, le=STRONGEST)] | Literal["random"],
    Field(description="0 (no effect) to 10 (as far as an operation reaches), or drawn anew for each operation."),
]


def _enough(short: tuple[int, Given]) -> tuple[int, Given]:
    n, given = short
    if n > len(given):
        raise ValueError(f"{n} different operations cannot be drawn from {len(given)}; list more, or draw fewer")
    return short


Short = Annotated[tuple[Count, Listed], AfterValidator(_enough)]


class RandAugment(Settings):
    """RandAugment: n operations an image, each drawn from the published 14."""

    again: ClassVar[bool] = True  # whether one image may draw an operation twice

    n: Count = 2
    magnitude: Magnitude = 9.0

    @property
    def reaches(self) -> dict[Name, float]:
        """The operations to draw from, with the reach of each."""
        return {name: OPERATIONS[name].reach for name in RAND_AUGMENT}


class SomeOf(Settings):
    """n different operations an image, drawn from a list; in short `[n, operations]`."""

    again: ClassVar[bool] = False

    n: Count
    operations: Listed
    magnitude: Magnitude = "random"

    def require_consistent(self) -> None:
        _enough((self.n, self.operations))

    @property
    def reaches(self) -> dict[Name, float]:
        """The operations to draw from, with the reach of each; the order of the list makes no difference."""
        given = self.operations if isinstance(self.operations, dict) else dict.fromkeys(self.operations)
        reaches = ((name, given[name], operation.reach) for name, operation in OPERATIONS.items() if name in given)
        return {name: usual if reach is None else reach for name, reach, usual in reaches}


class Group(NamedTuple):
    """The images of a batch that undergo one operation at the same turn."""

    operation: Operation
    rows: NDArray[np.intp]
    values: Doubles  # one a row


def drawn(draws: Doubles, settings: RandAugment | SomeOf) -> list[Group]:
    """Return the operations on a batch, in order, from 3 n draws an image (B, 3 n) in [0, 1)."""
    which, how_much, which_way = draws.reshape(len(draws), settings.n, DRAWS).transpose(2, 1, 0)  # (n, B) each
    names = list(settings.reaches)
    fixed = settings.magnitude
    share = how_much if fixed == "random" else np.full_like(how_much, fixed / STRONGEST)
    groups = []
    for turn, chosen in enumerate(_chosen(which, len(names), again=settings.again)):
        for number in np.unique(chosen):
            rows = np.flatnonzero(chosen == number)
            operation, reach = OPERATIONS[names[number]], settings.reaches[names[number]]
            way = np.where(operation.either_way & (which_way[turn, rows] < 0.5), 1.0, -1.0)
            groups.append(Group(operation, rows, operation.idle + way * share[turn, rows] * reach))
    return groups


def _chosen(draws: Doubles, count: int, *, again: bool) -> NDArray[np.intp]:
    """Return numbers (n, B) below `count` from draws (n, B); those of an image differ unless `again`."""
    if again:
        return (draws * count).astype(np.intp)
    order = np.repeat(np.arange(count)[:, None], draws.shape[1], axis=1)
    columns = np.arange(draws.shape[1])
    for turn, draw in enumerate(draws):  # Fisher-Yates: a larger n keeps the first ones
        other = turn + (draw * (count - turn)).astype(np.intp)
        order[turn], order[other, columns] = order[other, columns], order[turn].copy()
    return order[: len(draws)]


def moves(settings: RandAugment | SomeOf) -> bool:
    """Return whether any of the operations is one of geometry."""
    return any(OPERATIONS[name].matrix for name in settings.reaches)


def matrices(groups: Sequence[Group], count: int) -> Doubles:
    """Return the matrices (B, 3, 3) of `count` images, as in geometry.py."""
    whole = np.tile(np.eye(3), (count, 1, 1))
    for operation, rows, values in groups:
        if operation.matrix:
            whole[rows] = whole[rows] @ operation.matrix(values)
    return whole


def paint(images: Tensor, groups: Sequence[Group]) -> None:
    """Apply the operations on colours to float32 (B, 3, H, W) in [0, 1], in place."""
    for operation, numbers, values in groups:
        if operation.paint:
            rows = torch.from_numpy(numbers).to(images.device)
            images[rows] = operation.paint(images[rows], values)


def _beside(values: Doubles, images: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(images.device)[:, None, None, None]
