"""Augmentation: uint8 batches to float batches of the training size.

The draws of an image follow from its key (`counter_rng.image_keys`), whatever else is in the batch. A kind of
augmentation always uses the same positions of that stream, so switching one on leaves the others as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, ValidationInfo, field_validator
from torch import Tensor

from assay.arrays import Doubles, Ints, Keys
from assay.images import geometry, operations
from assay.images.colour import jitter
from assay.images.counter_rng import image_keys, uniform
from assay.images.operations import RandAugment, Short, SomeOf
from assay.settings import Settings, require_rising

__all__ = [
    "Augment",
    "ClassAugment",
    "Erase",
    "Jitter",
    "RandAugment",
    "SomeOf",
    "Variation",
    "augment",
    "framed",
    "image_keys",
    "uniform",
]

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]

_CROP, _MIRROR, _AFFINE = slice(0, 4), slice(4, 6), slice(6, 11)
_JITTER, _ERASE, _PATCHES = slice(11, 15), slice(15, 17), 17  # and 4 a patch from there
MOST_PATCHES = 64
_OPERATIONS = _PATCHES + 4 * MOST_PATCHES  # and 3 an operation from there

NOISE_SD = 0.25  # of Gaussian noise about mid-grey: near that of photographs


class Jitter(Settings):
    """Colour jitter: factors of 1 - x to 1 + x, and the hue in shares of the full circle."""

    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Erase(Settings):
    """Random erasing (Zhong et al. 2017): 1 to `patches` boxes, each with a share of the area."""

    probability: Probability = 0.25
    patches: Annotated[int, Field(ge=1, le=MOST_PATCHES)] = 1
    area: tuple[Share, Share] = (0.02, 0.33)
    ratio: tuple[Positive, Positive] = (0.3, 3.3)
    fill: Literal["constant", "noise"] = "constant"

    _rising = field_validator("area", "ratio")(require_rising)


class Variation(Settings):
    """Augmentation of a training image; by default none.

    `crop` is the share of the area that is kept, `ratio` the proportions of that box; `shift` is a share of the side,
    `rotate` and `shear` are degrees, all three either way; `scale` enlarges. A number for `jitter` means brightness,
    contrast and saturation. `rand_augment` or `some_of` apply some operations of a list to every image, after all of
    these but `erase`.
    """

    crop: tuple[Share, Share] | None = None
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, le=60)] = 0.0
    jitter: Jitter | NonNegativeFloat | None = None
    rand_augment: RandAugment | None = None
    some_of: Short | SomeOf | None = None
    erase: Erase | None = None

    _rising = field_validator("crop", "ratio", "scale")(require_rising)

    def require_consistent(self) -> None:
        if self.rand_augment and self.some_of:
            raise ValueError("rand_augment and some_of both draw operations from a list; give one of them")

    @property
    def idle(self) -> bool:
        """Whether no augmentation is set."""
        return all(getattr(self, name) == field.default for name, field in Variation.model_fields.items())


class ClassSampling(Settings):
    """Sampling of the images of a class."""

    more: float = Field(1.0, gt=0, description="How many times as often as else the images are shown in an epoch.")


class ClassAugment(Variation, ClassSampling):
    """Augmentation and sampling of one class; unset values are those of all others."""

    def over(self, rest: Mapping[str, Any]) -> ClassAugment:
        """Return the settings with unset values taken from those of all others."""
        given = self.model_fields_set
        lists = {"rand_augment", "some_of"}  # of which an image has one: that of a class replaces either
        kept = Variation.model_fields.keys() - given - (lists if given & lists else set())
        unlike = {name: rest[name] for name in kept if name in rest and rest[name] != getattr(self, name)}
        return self.model_copy(update=unlike)


class Augment(Variation):
    """Augmentation of training images, with exceptions for classes.

    `per_class` names classes, as `head/class` where two heads have one of that name; an image of several of
    them takes the settings of the first.
    """

    per_class: dict[str, ClassAugment] = Field({}, description="Exceptions for images of the classes named.")

    @field_validator("per_class")
    @classmethod
    def _over_the_rest(cls, per_class: dict[str, ClassAugment], info: ValidationInfo) -> dict[str, ClassAugment]:
        return {name: of_class.over(info.data) for name, of_class in per_class.items()}


def augment(
    batch: Tensor,
    keys: Keys | None = None,
    *,
    size: int,
    settings: Variation | None = None,
    chosen: Ints | None = None,
) -> Tensor:
    """Return uint8 images (B, 3, S, S) augmented, as float32 (B, 3, size, size) in [0, 1] on the same device.

    Without settings, or with idle ones, images are only resized where S is not `size`; otherwise `keys` (B,) are
    needed. The memory layout is not specified. `chosen` (B,) are positions in `per_class`, -1 for none; images of the
    same settings are resampled together.
    """
    if chosen is None or not isinstance(settings, Augment):
        return _augment_views(batch, keys, size=size, settings=settings)
    groups = {int(entry): np.flatnonzero(chosen == entry) for entry in np.unique(chosen)}
    variations = {-1: settings, **dict(enumerate(settings.per_class.values()))}
    if len(groups) == 1:
        return _augment_views(batch, keys, size=size, settings=variations[next(iter(groups))])
    images = torch.empty(len(batch), 3, size, size, device=batch.device)
    for entry, rows in groups.items():
        of_rows = None if keys is None else keys[rows]
        images[rows] = _augment_views(batch[rows], of_rows, size=size, settings=variations[entry])
    return images


def _augment_views(batch: Tensor, keys: Keys | None, *, size: int, settings: Variation | None) -> Tensor:
    """Return images augmented by the same settings."""
    if settings is None or settings.idle:
        return _shares(geometry.plain(batch, size))
    if keys is None or len(keys) != len(batch):
        raise ValueError(f"{len(batch)} images need as many keys to be augmented")
    strong = _strong(settings)
    chance = uniform(keys, _OPERATIONS + operations.DRAWS * (strong.n if strong else 0))
    groups = operations.drawn(chance[:, _OPERATIONS:], strong) if strong else []
    further = operations.matrices(groups, len(batch)) if strong and operations.moves(strong) else None
    images = _moved(batch, chance, further, size=size, settings=settings)
    if settings.jitter:
        vary = settings.jitter
        if not isinstance(vary, Jitter):
            vary = Jitter(brightness=vary, contrast=vary, saturation=vary)
        images = jitter(images, chance[:, _JITTER], **vary.model_dump())
    operations.paint(images, groups)
    if settings.erase:
        _erase(images, keys, chance, settings.erase)
    return images


def framed(batch: Tensor, frame: geometry.Frame, *, size: int) -> Tensor:
    """Return uint8 (B, 3, S, S) through a frame, as float32 (B, 3, size, size) in [0, 1], without random draws."""
    return geometry.framed(batch, frame, size).div_(255).clamp_(0, 1)


def _strong(settings: Variation) -> RandAugment | SomeOf | None:
    if isinstance(settings.some_of, tuple):
        n, listed = settings.some_of
        return SomeOf(n=n, operations=listed)
    return settings.some_of or settings.rand_augment


def _shares(batch: Tensor) -> Tensor:
    return batch.float().div_(255)


def _moved(batch: Tensor, chance: Doubles, further: Doubles | None, *, size: int, settings: Variation) -> Tensor:
    """Return the images after all geometric augmentation, by a single resampling, or none where idle."""
    matrices = []
    if settings.crop:
        matrices.append(geometry.crop(chance[:, _CROP], area=settings.crop, ratio=settings.ratio))
    if settings.flip != "none":
        across, down = settings.flip != "vertical", settings.flip != "horizontal"
        matrices.append(geometry.mirror(chance[:, _MIRROR], across=across, down=down))
    turns = (settings.rotate, settings.shear, settings.shift, settings.scale) != (0, 0, 0, (1, 1))
    if turns:
        matrices.append(
            geometry.affine(
                chance[:, _AFFINE],
                rotate=settings.rotate,
                scale=settings.scale,
                shear=settings.shear,
                shift=settings.shift,
            )
        )
    if further is not None:
        matrices.append(further)
    if not matrices:
        return _shares(geometry.plain(batch, size))
    whole = reduce(np.matmul, matrices)
    # Rounding may take a weighted mean of whites a little beyond white.
    return geometry.sample(batch, whole, size=size, reflect=turns or further is not None).div_(255).clamp_(0, 1)


def _erase(images: Tensor, keys: Keys, chance: Doubles, erase: Erase) -> None:
    """Erase boxes of (B, 3, H, H) in place, one after another: they are small and in some images only."""
    side = images.shape[-1]
    chosen, number = chance[:, _ERASE].T
    counts = np.where(chosen < erase.probability, 1 + (number * erase.patches).astype(int), 0)
    for row in np.flatnonzero(counts):
        # Drawn on the CPU, whatever the device, so that a key gives the same noise.
        noise = torch.Generator().manual_seed(int(keys[row]))
        patches = chance[row, _PATCHES:_OPERATIONS].reshape(-1, 4)[: counts[row]]
        share = erase.area[0] + (erase.area[1] - erase.area[0]) * patches[:, 0]
        boxes = np.stack(geometry.box(share, patches[:, 1], ratio=erase.ratio))  # (2, patches)
        spans = np.clip(np.rint(boxes * side), 1, side).astype(int)
        starts = (patches[:, 2:].T * (side - spans + 1)).astype(int)
        for (width, height), (left, top) in zip(spans.T, starts.T, strict=True):
            patch = images[row, :, top : top + height, left : left + width]
            if erase.fill == "constant":
                patch.fill_(0.5)
            else:
                drawn = torch.randn(patch.shape, generator=noise).mul_(NOISE_SD).add_(0.5).clamp_(0, 1)
                patch.copy_(drawn)
