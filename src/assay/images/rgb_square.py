"""Image files to squares of RGB bytes, with Pillow and numpy alone.

`assay export --onnx` writes this file into the program beside the network, so it imports nothing of Assay.
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image

Levels: TypeAlias = "tuple[float, float]"
"""The values that become black and white, of images of more than 8 bits a channel."""

_AS_RGB = frozenset(("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"))
_NUMBERS = frozenset(("I", "F", "I;16", "I;16L", "I;16B", "I;16N"))
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_UNPACKED = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""What libtiff decompresses is in the order of this machine, also where Pillow takes it for the file's."""


class ColourError(ValueError):
    """Colours that are not read."""


def upright_rgb(
    image: Image.Image, file: BinaryIO, *, levels: Levels | None = None, at_least: int | None = None
) -> Image.Image:
    """Return an image opened from `file` as upright 8-bit RGB: its first frame, alpha laid over white.

    With `at_least` a JPEG may come at 1/2, 1/4 or 1/8 of its size, which is far quicker, but never with a
    side below `at_least` (unless it was smaller to begin with). Raises ColourError.
    """
    if at_least is not None:
        image.draft(None, (at_least, at_least))  # does nothing for other formats
    values = deep_values(image, file)
    image.load()
    orientation = _orientation(image)  # after loading: Pillow turns TIFFs itself, and then gives 1
    upright = _rgb(image) if values is None else _scaled(values, levels)
    return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


def square(
    image: Image.Image,
    side: int,
    *,
    size: int,
    policy: str = "squash",
    centre_crop: tuple[int, int] | None = None,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Image.Image:
    """Return RGB as a square of `side` pixels; `size` is the side that `centre_crop` (height, width) refers to.

    The two resizings around a centre crop are done as one, from the original: the same geometry, without the loss of
    detail of a small image in between.
    """
    box_width, box_height = box(*image.size, size=size, policy=policy, centre_crop=centre_crop)
    kept_width, kept_height = min(box_width, image.width), min(box_height, image.height)
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    width = max(1, round(side * kept_width / box_width))
    height = max(1, round(side * kept_height / box_height))
    resized = image.resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(left, top, left + kept_width, top + kept_height),
        reducing_gap=3.0,  # a cheap reduction by a whole number first; at 3 the result is the same to the eye
    )
    if (width, height) == (side, side):
        return resized
    padded = Image.new("RGB", (side, side), fill)
    padded.paste(resized, ((side - width) // 2, (side - height) // 2))
    return padded


def box(
    width: int, height: int, *, size: int, policy: str = "squash", centre_crop: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Return width and height of the centred part that becomes the square; with padding it exceeds the image."""
    box_width, box_height = float(width), float(height)
    if policy != "squash":
        box_width = box_height = float((min if policy == "crop" else max)(width, height))
    if centre_crop is None:
        return box_width, box_height
    rows, columns = centre_crop
    return box_width * columns / size, box_height * rows / size


def least_side(side: int, *, size: int, centre_crop: tuple[int, int] | None = None) -> int:
    """Return the `at_least` of an image that becomes a square of `side` pixels."""
    smallest = min(centre_crop) if centre_crop else size
    return math.ceil(side * size / smallest)


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened image, which is not loaded yet, has more than 8 bits a channel."""
    return image.mode in _NUMBERS or (image.mode in ("RGB", "RGBA") and ";16" in raw_mode(image))


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of an opened image, which is not loaded yet, lie in its file: `RGB;16B`."""
    tiles = getattr(image, "tile", None)
    arguments: Any = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def deep_values(image: Image.Image, file: BinaryIO) -> np.ndarray[Any, Any] | None:
    """Load an image of more than 8 bits a channel as numbers (H, W), (H, W, 3) or (H, W, 4); None for any other."""
    if not is_deep(image):
        return None
    raw = raw_mode(image)
    if image.mode in _NUMBERS:
        if raw in _UNPACKED and image.tile[0][0] == "libtiff":  # type: ignore[attr-defined]
            _unpack_as(_UNPACKED[raw], image)
        numbers = np.array(image)
        return numbers.view(np.uint32) if raw.startswith("I;32") and not raw.endswith("S") else numbers
    upper = np.array(image).astype(np.uint16)
    # Pillow keeps the upper bytes of 16-bit RGB. Unpacked in the other order of bytes, it gives the lower ones.
    file.seek(0)
    swapped = "RGBA" if raw.startswith("LA") else raw[:-1] + ("L" if raw.endswith("B") else "B")
    with Image.open(file, formats=[str(image.format)]) as again:
        _unpack_as(swapped, again)
        lower: np.ndarray[Any, Any] = np.array(again)
    if raw.startswith("LA"):  # unpacked as its bytes: grey, which is three colours in `upper`, and alpha, two each
        lower = lower[:, :, (1, 1, 1, 3)]
    return np.asarray(upper * np.uint16(256) + lower)


def _unpack_as(raw: str, image: Any) -> None:
    """Have the pixels of an opened image unpacked in another way than its header says."""
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in image.tile
    ]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data: taken as upright, as viewers do
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return _from_lab(image)
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    if image.mode not in _AS_RGB:
        raise ColourError(f"its colours are stored as {image.mode}, which is not read; save it as RGB")
    return image.convert("RGB") if image.mode != "RGB" else image


def _over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert converted is not None
    return converted


def _scaled(values: np.ndarray[Any, Any], levels: Levels | None) -> Image.Image:
    """Return numbers as RGB, those of an alpha channel as its shares of 65,535."""
    if values.ndim == 2:
        return Image.fromarray(_bytes(values, levels)).convert("RGB")
    colours = _bytes(values[:, :, :3], levels)
    if values.shape[2] == 3:
        return Image.fromarray(colours)
    return _over_white(Image.fromarray(np.dstack([colours, _bytes(values[:, :, 3], None)])))


def _bytes(values: np.ndarray[Any, Any], levels: Levels | None) -> np.ndarray[Any, Any]:
    """Return numbers scaled to 0..255, between `levels` where they are given.

    Without them 16-bit numbers are divided by 257. The white of wider ones is unknown: fractions of 1, bytes and
    16-bit numbers are recognised by their range, anything else is stretched from its minimum to its maximum.
    """
    if levels is None and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = levels or (0.0, 0.0)
    numbers = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    if levels is None:
        low, high = _guessed_levels(numbers, fractions=values.dtype.kind == "f")
    shares = (numbers - low) * (255 / (high - low or 1.0))
    return np.asarray(np.rint(shares.clip(0, 255)), np.uint8)


def _guessed_levels(numbers: np.ndarray[Any, Any], *, fractions: bool) -> Levels:
    low, high = float(numbers.min()), float(numbers.max())
    if low < 0 or high > 65535:
        return low, high
    if high > 255:
        return 0.0, 65535.0
    return (0.0, 1.0) if high <= 1 and fractions else (0.0, 255.0)
