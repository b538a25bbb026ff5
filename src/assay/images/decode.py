"""Decoding of image files, in any state, to squares of RGB bytes.

Resampling is Pillow's bilinear filter, which widens with the reduction and so does not alias. It neither rings nor
clips as the bicubic one does, is faster, and matches the bilinear sampling of the augmentation, so that plain and
augmented images look alike to a model.
"""

from __future__ import annotations

import errno
import functools
import importlib
import io
import math
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, PositiveInt

from assay.arrays import Pixels
from assay.errors import ImageError, PlanError
from assay.images.mend import damage, ends_in_zeros, sound_part
from assay.labels.file_kinds import EMPTY, PLUGINS, kind_of_file, plugin
from assay.settings import Settings

# Pillow refuses at 2 x 89,478,485 while it opens a file, by a setting that belongs to the whole process.
# This limit lies just below, so it holds without touching that setting.
MAX_PIXELS = 178_000_000

# Formats of pixels alone. EPS, for one, is a program that Pillow passes to Ghostscript.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "MPO", "JPEG2000", "AVIF",
    "PPM", "TGA", "ICO", "DIB", "PCX", "SGI", "QOI", *PLUGINS,
)  # fmt: skip

UNIDENTIFIED = "its header cannot be read"

Result = TypeVar("Result")

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

Byte = Annotated[int, Field(ge=0, le=255)]


class Resize(Settings):
    """Resizing of an image of any shape to a square.

    `squash` ignores the proportions; `crop` takes the centre square; `pad` fits the whole image in and
    fills the rest. `centre_crop` then keeps only the centre (height, width), in pixels of the training
    size, and squashes that back to the full square.
    """

    policy: Literal["squash", "crop", "pad"] = "squash"
    centre_crop: tuple[PositiveInt, PositiveInt] | None = None
    fill: tuple[Byte, Byte, Byte] = (0, 0, 0)


def decode(path: Path, *, at_least: int | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB: its first frame, alpha laid over white.

    With `at_least` a JPEG may come at 1/2, 1/4 or 1/8 of its size, which is far quicker, but never with a
    side below `at_least` (unless it was smaller to begin with).
    Raises ImageError with the reason, without the path.
    """

    def upright(image: Image.Image) -> Image.Image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does nothing for other formats
        image.load()
        orientation = _orientation(image)  # after loading: Pillow turns TIFFs itself, and then gives 1
        rgb = _rgb(image)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb

    return _from_image(path, upright)


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height as stored, from the header alone. Raises ImageError."""
    return _from_image(path, lambda image: image.size)


def resize(image: Image.Image, side: int, *, settings: Resize, size: int | None = None) -> Pixels:
    """Return a square of (side, side, 3) bytes; `size` is the one that `centre_crop` refers to.

    The two resizings around a centre crop are done as one, from the original: the same geometry, without the loss of
    detail of a small image in between.
    Raises PlanError where the centre crop is larger than `size`.
    """
    box_width, box_height = _box(*image.size, size=size or side, settings=settings)
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
    if (width, height) != (side, side):
        square = Image.new("RGB", (side, side), settings.fill)
        square.paste(resized, ((side - width) // 2, (side - height) // 2))
        resized = square
    return np.array(resized)


def read_square(path: Path, side: int, *, settings: Resize, size: int | None = None) -> Pixels:
    """Decode and resize, reading no more detail than (side, side, 3) needs. Raises ImageError."""
    smallest = size or side
    if settings.centre_crop:
        smallest = min(settings.centre_crop)
    at_least = math.ceil(side * (size or side) / smallest)
    return resize(decode(path, at_least=at_least), side, settings=settings, size=size)


def useful_side(width: int, height: int, *, size: int, settings: Resize) -> int:
    """Return the smallest square side that keeps all detail of an image of this size."""
    return math.ceil(max(_box(width, height, size=size, settings=settings)))


def _box(width: int, height: int, *, size: int, settings: Resize) -> tuple[float, float]:
    """Return width and height of the centred part that becomes the square; with padding it exceeds the image."""
    box_width, box_height = float(width), float(height)
    if settings.policy != "squash":
        box_width = box_height = float((min if settings.policy == "crop" else max)(width, height))
    if settings.centre_crop is None:
        return box_width, box_height
    rows, columns = settings.centre_crop
    if max(rows, columns) > size:
        raise PlanError(
            f"centre_crop [{rows}, {columns}] does not fit into the size {size} that it is cut from. "
            f"Give a height and a width of {size} at most, or raise the size."
        )
    return box_width * columns / size, box_height * rows / size


class _Hush:
    """Suppresses Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` replaces a list of the whole process, so threads that each entered it would undo one
    another's. Here the first thread enters it, and the last one leaves it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._caught.__exit__(None, None, None)


_HUSH = _Hush()


class _DamagedError(ImageError):
    """Bytes that a decoder refused."""


def _from_image(path: Path, work: Callable[[Image.Image], Result]) -> Result:
    """Return the result of work on an image, or on what is sound of a damaged one. Raises ImageError."""
    try:
        with _open_image(path, lambda: open(path, "rb")) as image:
            return work(image)
    except _DamagedError as error:
        reason = str(error)
    data = _bytes_of_image(path, reason)
    with _HUSH:
        sound = sound_part(data)
        if sound is not None:
            try:
                with _open_image(path, lambda: io.BytesIO(sound)) as image:
                    return work(image)
            except _DamagedError:  # the first reason says more
                pass
        raise ImageError(damage(data, reason))


def _bytes_of_image(path: Path, reason: str) -> bytes:
    """Return the content of what looks like an image. Raises ImageError that says what any other file is."""
    try:
        kind = kind_of_file(path)
        if kind is not None and kind.fault is None:
            return path.read_bytes()
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror}") from error
    if kind is not None:
        raise ImageError(kind.fault)
    raise ImageError(
        "it is not an image in a format that is read" if reason == UNIDENTIFIED else f"it is broken: {reason}"
    )


@contextmanager
def _open_image(path: Path, opener: Callable[[], BinaryIO]) -> Iterator[Image.Image]:
    """Open an image lazily; an error then or in the block is raised as ImageError."""
    try:
        _require_content(path)
        with _HUSH, opener() as file, Image.open(file, formats=_formats()) as image:
            _require_size(*image.size)
            if image.format in ("JPEG", "MPO") and ends_in_zeros(file):
                raise _DamagedError("its end is zeros")
            yield image
    except (ImageError, PlanError):
        raise
    except UnidentifiedImageError as error:
        raise _DamagedError(UNIDENTIFIED) from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large()) from error
    except MemoryError as error:
        raise ImageError("there is too little memory to decode it") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of the image
            raise
        if error.strerror:
            raise ImageError(f"it cannot be read: {error.strerror}") from error
        raise _DamagedError(str(error)) from error
    except Exception as error:  # a decoder that is fed broken bytes may raise anything at all
        raise _DamagedError(str(error) or type(error).__name__) from error


def _require_content(path: Path) -> None:
    """Raise ImageError for what must not be opened: an empty file, or a pipe, which would block."""
    try:
        state = path.stat()
    except ValueError as error:  # a name that no file can have
        raise ImageError(f"it cannot be read: {error}") from error
    if not stat.S_ISREG(state.st_mode):
        raise ImageError("it is not a file")
    if state.st_size == 0:
        raise ImageError(EMPTY.fault)


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large())
    if width * height == 0:
        raise ImageError("it has no pixels")


def _too_large() -> str:
    return f"it is larger than {MAX_PIXELS:,} pixels, the most that is decoded"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the FORMATS that this build of Pillow reads, by itself or by a module that is installed."""
    Image.init()
    for module in filter(None, map(plugin, PLUGINS)):
        register = getattr(importlib.import_module(module), "register_heif_opener", None)
        if register is not None:  # the others register themselves
            register()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data: taken as upright, as viewers do
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _NUMBERS:
        return Image.fromarray(_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode not in _AS_RGB:
        raise ImageError(f"its colours are stored as {image.mode}, which is not read; save it as RGB")
    return image.convert("RGB") if image.mode != "RGB" else image


def _bytes(values: NDArray[np.generic]) -> Pixels:
    """Return (H, W) numbers of more than 8 bits scaled to 0..255.

    16-bit numbers are divided by 257. The white of wider ones is unknown: fractions of 1, bytes and 16-bit numbers are
    recognised by their range, anything else is stretched from its minimum to its maximum.
    """
    if values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if low < 0 or high > 65535:
        numbers = (numbers - low) * (255 / (high - low or 1.0))
    elif high > 255:
        numbers /= 257
    elif high <= 1 and values.dtype.kind == "f":
        numbers *= 255
    return np.rint(numbers).astype(np.uint8)
