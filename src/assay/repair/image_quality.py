"""Images that are dark, bright, blurred, without information, grey among colour, or of an odd aspect or size.

Each measure has an absolute limit, beyond which a person would agree, and one relative to the data: an image counts
only where it is also far from the middle of all images and of its own class. A set that is dark as a whole, tiles of
calm water or garments on white are how that data looks, and none of them is named.

All is measured on images reduced to at most 64 pixels a side, so that a limit means the same at any resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from assay.arrays import Bools, Doubles, Floats, Ints, Pixels, Reals
from assay.images.colour import GREY
from assay.images.file_facts import FileFacts
from assay.labels.samples import Samples

Quality = Literal["dark", "bright", "low_information", "blurred", "greyscale", "odd_aspect", "odd_size"]

SIDE = 64  # pixels that images are reduced to
BLOCK = 256  # images measured at a time
TAIL = 0.01  # share of the pixels that may be brighter than a dark image, or darker than a bright one
LEAST_CLASS = 20  # images of a class from which on its middle counts

MOST_LIGHT = 70.0  # levels of 255 that a dark image reaches; a bright one stays as near to white
LIGHT_SHARE = 0.5  # of the middle of the data
MOST_SPAN = 20.0  # levels
SPAN_SHARE = 0.25
MOST_SHARPNESS = 0.12
SHARPNESS_SHARE = 0.35
NOISE = 0.4  # levels between neighbours, from rounding and JPEG, which are no detail
LEAST_DETAIL = 1.2  # levels a pixel; of less it cannot be known whether it is blurred
MOST_CHROMA = 3.0  # levels between the channels of a grey pixel
MOST_GREY = 1 / 3  # of the images: beyond it the data is a mixture
MOST_FLAGGED = 0.15  # of the images of a class, or of all: beyond it that is how they look
ASPECT_FACTOR, SIZE_FACTOR = 1.8, 2.5  # from the middle
SPREADS = 4.0  # robust standard deviations from the middle, of aspect and size


@dataclass(frozen=True, eq=False)
class Measures:
    """Measures (N,) of images.

    light: the level that 1 % of the pixels exceed in their largest channel, so that a saturated red is not dark.
    shade: 255 less the level that 1 % of the pixels stay below in their smallest channel.
    span: the levels of brightness from the darkest to the brightest pixel, without 1 % at either end.
    sharpness: 0 of an image without detail finer than two pixels, about 0.5 of a sharp photograph.
    detail: standard size of the change of brightness between neighbours of twice the pixel.
    chroma: difference of the largest and the smallest channel that 1 % of the pixels exceed.
    """

    light: Doubles
    shade: Doubles
    span: Doubles
    sharpness: Doubles
    detail: Doubles
    chroma: Doubles


@dataclass(frozen=True, eq=False)
class Flagged:
    """Images of one fault: rows, the worst first, scores from 0 to 1, and the value and limit of each in words."""

    rows: Ints
    scores: Doubles
    texts: tuple[str, ...]


def reduced(pixels: Pixels) -> Pixels:
    """Return images (N, S, S, 3) as area means of at most 64 pixels a side; about 0.1 ms an image."""
    side = min(pixels.shape[1], SIDE)
    if side == pixels.shape[1]:
        return pixels
    small = np.empty((len(pixels), side, side, 3), np.uint8)
    for row, image in enumerate(pixels):
        small[row] = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return small


def flagged_images(samples: Samples, pixels: Pixels, facts: FileFacts) -> dict[Quality, Flagged]:
    """Return the images (N, S, S, 3) of low quality or odd shape, beside all and those of its classes."""
    return low_quality(measure(pixels), classes=classes_of(samples)) | odd_shapes(facts)


def classes_of(samples: Samples) -> Bools:
    """Return which classes (N, W) each image has, of all heads."""
    present = [head.present(codes) for head, codes in zip(samples.space, samples.codes(), strict=True)]
    return np.concatenate([np.zeros((len(samples), 0), np.bool_), *present], axis=1)


def measure(pixels: Pixels) -> Measures:
    """Return the measures of images (N, S, S, 3); about 0.4 ms an image."""
    blocks = [_measured(reduced(pixels[first : first + BLOCK])) for first in range(0, len(pixels), BLOCK)]
    columns = np.concatenate(blocks, axis=1) if blocks else np.empty((6, 0))
    return Measures(*columns)


def _measured(images: Pixels) -> Doubles:
    """Return the six measures (6, n) of reduced images."""
    red, green, blue = (np.ascontiguousarray(images[..., channel]) for channel in range(3))  # 5 times as fast as axis 3
    luma = sum(share * channel for share, channel in zip(GREY.astype(np.float32), (red, green, blue), strict=True))
    largest = np.maximum(np.maximum(red, green), blue)
    smallest = np.minimum(np.minimum(red, green), blue)
    (light,), (shade,) = _quantiles(largest, 1 - TAIL), _quantiles(255 - smallest, 1 - TAIL)
    low, high = _quantiles(np.rint(luma).astype(np.uint8), TAIL, 1 - TAIL)
    fine, coarse = _change(luma, NOISE), _change(_halved(luma), NOISE / 2)
    sharpness = 2 * fine / np.maximum(coarse, 1e-3) - 1  # a gradient halves where the pixel is halved, noise grows
    (chroma,) = _quantiles(largest - smallest, 1 - TAIL)
    return np.stack([light, shade, high - low, np.maximum(sharpness, 0), coarse, chroma])


def _quantiles(levels: Pixels, *shares: float) -> list[Doubles]:
    """Return quantiles (n,) of the levels (n, H, W) of each image; numpy sorts bytes in linear time."""
    ordered = np.sort(levels.reshape(len(levels), -1), axis=1, kind="stable")
    last = ordered.shape[1] - 1
    return [ordered[:, round(share * last)].astype(np.float64) for share in shares]


def _halved(luma: Floats) -> Floats:
    """Return means of 2 x 2 pixels; an odd row or column at the end is left out."""
    rows, columns = luma.shape[1] // 2 * 2, luma.shape[2] // 2 * 2
    pairs = luma[:, :rows:2, :columns] + luma[:, 1:rows:2, :columns]
    return np.asarray((pairs[:, :, ::2] + pairs[:, :, 1::2]) / 4)


def _change(luma: Floats, noise: float) -> Floats:
    """Return the root mean square (n,) of the differences between neighbouring pixels, without that of the noise."""
    down, across = np.diff(luma, axis=1), np.diff(luma, axis=2)
    squares = [np.einsum("nij,nij->n", d, d) / max(1, d[0].size) for d in (down, across)]
    return np.asarray(np.sqrt(np.maximum(sum(squares) / 2 - noise**2, 0)))


def low_quality(measures: Measures, *, classes: Bools | None = None) -> dict[Quality, Flagged]:
    """Return the images that are dark, bright, without information, blurred or grey among colour.

    An image is named under the first of these that holds, so that black ones are not listed as blurred too; greyscale
    stands beside the others. `classes` (N, W) tell which classes an image has, of all heads.
    """
    groups = np.zeros((len(measures.light), 0), np.bool_) if classes is None else classes
    masks: dict[Quality, tuple[Reals, Reals]] = {
        "dark": (measures.light, _limits(measures.light, groups, most=MOST_LIGHT, share=LIGHT_SHARE)),
        "bright": (measures.shade, _limits(measures.shade, groups, most=MOST_LIGHT, share=LIGHT_SHARE)),
        "low_information": (measures.span, _limits(measures.span, groups, most=MOST_SPAN, share=SPAN_SHARE)),
        "blurred": (measures.sharpness, _sharpness_limits(measures, groups)),
    }
    free = np.ones(len(groups), np.bool_)
    flagged: dict[Quality, Flagged] = {}
    for kind, (values, limits) in masks.items():
        rows = np.flatnonzero(free & (values < limits))
        free[rows] = False
        flagged[kind] = _flagged(kind, rows, values, limits)
    grey = measures.chroma <= MOST_CHROMA
    rows = np.flatnonzero(grey) if grey.sum() <= MOST_GREY * len(grey) else np.empty(0, np.int64)
    flagged["greyscale"] = _flagged("greyscale", rows, measures.chroma, np.full(len(groups), MOST_CHROMA + 1))
    return flagged


def _limits(values: Reals, groups: Bools, *, most: float, share: float) -> Doubles:
    """Return the limit of each image: `most`, or less where a share of the middle of all, or of its class, is less.

    It is the lowest of those of its classes, of `groups` (N, W), and 0 in a class where too many were below it; images
    of no class of some size are one class.
    """
    if not len(values):
        return np.empty(0)
    limits = np.full(len(values), min(most, share * float(np.median(values))))
    large = groups[:, groups.sum(axis=0) >= LEAST_CLASS]
    classes = [members for members in (~large.any(axis=1), *large.T) if members.any()]
    for members in classes:
        limits[members] = np.minimum(limits[members], share * float(np.median(values[members])))
    below = values < limits
    for members in classes:
        if below[members].mean() > MOST_FLAGGED:
            limits[members] = 0.0
    return limits


def _sharpness_limits(measures: Measures, groups: Bools) -> Doubles:
    """Return the limits of sharpness; -1 for images that are too plain to be judged."""
    limits = _limits(measures.sharpness, groups, most=MOST_SHARPNESS, share=SHARPNESS_SHARE)
    return np.where(measures.detail < LEAST_DETAIL, -1.0, limits)


TEXTS: Mapping[Quality, str] = {
    "dark": "99 % of its pixels are darker than {value:.0f} of 255",
    "bright": "99 % of its pixels are brighter than {other:.0f} of 255",
    "low_information": "98 % of its pixels lie within {value:.0f} of 255 levels of brightness",
    "blurred": "sharpness {value:.2f}, where this data allows {limit:.2f}",
    "greyscale": "no colour, though most images have some",
    "odd_aspect": "{value:.2f} times as wide as high; the middle of the data is {limit:.2f}",
    "odd_size": "{value:.0f} pixels a side; the middle of the data is {limit:.0f}",
}
"""What is said of one image, by its value and limit; `other` is 255 less the value."""


def _flagged(kind: Quality, rows: Ints, values: Reals, limits: Reals) -> Flagged:
    """Return rows sorted by how far they are below their limits."""
    scores = 1 - np.maximum(values[rows], 0) / np.maximum(limits[rows], 1e-9)
    order = np.argsort(-scores, kind="stable")
    return Flagged(rows[order], scores[order], _texts(kind, values[rows[order]], limits[rows[order]]))


def _texts(kind: Quality, values: Reals, limits: Reals) -> tuple[str, ...]:
    pairs = zip(values.tolist(), limits.tolist(), strict=True)
    return tuple(TEXTS[kind].format(value=value, other=255 - value, limit=limit) for value, limit in pairs)


def odd_shapes(facts: FileFacts) -> dict[Quality, Flagged]:
    """Return the images whose aspect or size is far from the middle of the data, by a factor and by its spread."""
    sides = np.sqrt(facts.widths.astype(np.float64) * facts.heights)
    aspects = facts.widths / np.maximum(facts.heights, 1)
    return {
        "odd_aspect": _odd("odd_aspect", aspects, ASPECT_FACTOR),
        "odd_size": _odd("odd_size", sides, SIZE_FACTOR),
    }


def _odd(kind: Quality, values: Reals, factor: float) -> Flagged:
    if not len(values):
        return Flagged(np.empty(0, np.int64), np.empty(0), ())
    middle = float(np.median(values))
    distances = np.abs(np.log(values / middle))
    limit = max(np.log(factor), SPREADS * 1.4826 * float(np.median(distances)))
    rows = np.flatnonzero(distances > limit)
    order = rows[np.argsort(-distances[rows], kind="stable")]
    scores = 1 - limit / distances[order]
    return Flagged(order, scores, _texts(kind, values[order], np.full(len(order), middle)))
