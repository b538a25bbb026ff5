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
import logging
import math
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeAlias, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from pydantic import Field, PositiveInt

from assay.arrays import Pixels
from assay.errors import DataError, ImageError, PlanError
from assay.images.mend import damage, ends_in_zeros, sound_part
from assay.images.rgb_square import ColourError, Levels, box, least_side, square, upright_rgb
from assay.labels.file_kinds import EMPTY, HEAD, PLUGINS, kind_of, kind_of_file, plugin
from assay.labels.shards import ImageFile
from assay.settings import BlackAndWhite, Settings

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of a file is in the reason too

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

Byte = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, slots=True)
class HeldImage:
    """The bytes of an image in memory, and its name."""

    name: str
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read_bytes(self) -> bytes:
        return self.content

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.content)


AnyImage: TypeAlias = "ImageFile | HeldImage"


class Resize(Settings):
    """Resizing of an image of any shape to a square.

    `squash` ignores the proportions; `crop` takes the centre square; `pad` fits the whole image in and
    fills the rest. `centre_crop` then keeps only the centre (height, width), in pixels of the training
    size, and squashes that back to the full square. `levels` are the values that become black and white, of
    images of more than 8 bits; in a plan those of `data.levels` where none are given.
    """

    policy: Literal["squash", "crop", "pad"] = "squash"
    centre_crop: tuple[PositiveInt, PositiveInt] | None = None
    fill: tuple[Byte, Byte, Byte] = (0, 0, 0)
    levels: BlackAndWhite | None = None


def decode(path: AnyImage, *, at_least: int | None = None, levels: Levels | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB: its first frame, alpha laid over white.

    With `at_least` a JPEG may come at 1/2, 1/4 or 1/8 of its size, which is far quicker, but never with a
    side below `at_least` (unless it was smaller to begin with). `levels` are the black and the white of images of more
    than 8 bits.
    Raises ImageError with the reason, without the path.
    """
    return from_image(path, lambda image, file: upright_rgb(image, file, levels=levels, at_least=at_least))


def size_of(path: AnyImage) -> tuple[int, int]:
    """Return width and height as stored, from the header alone. Raises ImageError."""
    return from_image(path, lambda image, _: image.size)


def resize(image: Image.Image, side: int, *, settings: Resize, size: int | None = None) -> Pixels:
    """Return a square of (side, side, 3) bytes; `size` is the one that `centre_crop` refers to.

    Raises PlanError where the centre crop is larger than `size`.
    """
    size = size or side
    _require_inside(settings, size)
    policy, crop, fill = settings.policy, settings.centre_crop, settings.fill
    return np.array(square(image, side, size=size, policy=policy, centre_crop=crop, fill=fill))


def read_square(path: AnyImage, side: int, *, settings: Resize, size: int | None = None) -> Pixels:
    """Decode and resize, reading no more detail than (side, side, 3) needs. Raises ImageError."""
    at_least = least_side(side, size=size or side, centre_crop=settings.centre_crop)
    return resize(decode(path, at_least=at_least, levels=settings.levels), side, settings=settings, size=size)


def useful_side(width: int, height: int, *, size: int, settings: Resize) -> int:
    """Return the smallest square side that keeps all detail of an image of this size."""
    _require_inside(settings, size)
    return math.ceil(max(box(width, height, size=size, policy=settings.policy, centre_crop=settings.centre_crop)))


def _require_inside(settings: Resize, size: int) -> None:
    """Raise PlanError where the centre crop is larger than the size that it is cut from."""
    if settings.centre_crop is not None and max(settings.centre_crop) > size:
        rows, columns = settings.centre_crop
        raise PlanError(
            f"centre_crop [{rows}, {columns}] does not fit into the size {size} that it is cut from. "
            f"Give a height and a width of {size} at most, or raise the size."
        )


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


def from_image(path: AnyImage, work: Callable[[Image.Image, BinaryIO], Result]) -> Result:
    """Return the result of work on an opened image and its file, or on what is sound of a damaged one.

    Raises ImageError.
    """
    try:
        with _open_image(path, lambda: path.open("rb")) as (image, file):
            return work(image, file)
    except _DamagedError as error:
        reason = str(error)
    data = _bytes_of_image(path, reason)
    with _HUSH:
        sound = sound_part(data)
        if sound is not None:
            try:
                with _open_image(path, lambda: io.BytesIO(sound)) as (image, file):
                    return work(image, file)
            except _DamagedError:  # the first reason says more
                pass
        raise ImageError((reason == UNIDENTIFIED and _unread_tiff(path)) or damage(data, reason))


def _bytes_of_image(path: AnyImage, reason: str) -> bytes:
    """Return the content of what looks like an image. Raises ImageError that says what any other file is."""
    try:
        kind = kind_of_file(path) if isinstance(path, Path) else kind_of(path.read_bytes()[:HEAD], path.name)
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
def _open_image(path: AnyImage, opener: Callable[[], BinaryIO]) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image lazily, and its file; an error then or in the block is raised as ImageError."""
    try:
        _require_content(path)
        with _HUSH, opener() as file, Image.open(file, formats=_formats()) as image:
            _require_size(*image.size)
            if image.format in ("JPEG", "MPO") and ends_in_zeros(file):
                raise _DamagedError("its end is zeros")
            yield image, file
    except (DataError, PlanError):  # of the image, or of its shard
        raise
    except ColourError as error:
        raise ImageError(str(error)) from error
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


def _unread_tiff(path: AnyImage) -> str:
    """Return what pixels a TIFF has that Pillow does not know; nothing for any other file."""
    with path.open("rb") as file, suppress(Exception):  # damaged tables of contents raise anything
        contents = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(contents.next)
        contents.load(file)
        bands, bits = contents.get(TiffImagePlugin.SAMPLESPERPIXEL, 1), contents[TiffImagePlugin.BITSPERSAMPLE][0]
        kind = {2: "signed ", 3: "float "}.get(contents.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "")
        return (
            f"it has {bands} {'band' if bands == 1 else 'bands'} of {bits} {kind}bits, which are not read; save it as "
            "grey or RGB of 8 or 16 bits, or as grey of 32-bit floats"
        )
    return ""


def _require_content(path: AnyImage) -> None:
    """Raise ImageError for what must not be opened: an empty file, or a pipe, which would block."""
    if not isinstance(path, Path):
        if path.size == 0:
            raise ImageError(EMPTY.fault)
        return
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
