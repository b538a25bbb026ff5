"""Kinds of files by content: the images that are read, and what else lies where an image should be."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

HEAD = 4096
"""Bytes at the start of a file that its kind is recognised from."""

IMAGE_ENDINGS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm",
    "pbm", "pnm", "jp2", "j2k", "jpx", "tga", "avif", "avifs", "ico", "qoi",
    "heic", "heif", "hif", "jxl",
})  # fmt: skip
"""A file with one of these endings (any case) is meant as an image, whatever it holds."""

RAW_ENDINGS = frozenset({"cr2", "cr3", "nef", "arw", "dng", "orf", "rw2", "raf", "pef", "srw", "3fr", "iiq"})
"""Files of cameras; many are TIFF files whose first image is a thumbnail."""

_MEANT_AS_IMAGES = IMAGE_ENDINGS | RAW_ENDINGS

PLUGINS = {"HEIF": ("pillow_heif", "pi_heif"), "JXL": ("pillow_jxl",)}
"""Modules that add a format to Pillow, the first that is installed."""


@dataclass(frozen=True)
class FileKind:
    """What a file holds: its name with an article, whether it is an image, and what to do where it is not read."""

    name: str
    is_image: bool
    remedy: str = ""

    @property
    def fault(self) -> str | None:
        """Why it cannot be used as an image, and the way out; None for a format that is read."""
        return f"{self.name}: {self.remedy}" if self.remedy else None


UNKNOWN = FileKind("a file of unknown kind", False, "put the image in its place, or take it out")
EMPTY = FileKind("an empty file (0 bytes)", False, "copy or download it again, or take it out")


def _read(name: str) -> FileKind:
    return FileKind(f"a {name} image", is_image=True)


def _other_image(name: str, remedy: str = "convert it to PNG or JPEG") -> FileKind:
    return FileKind(name, True, remedy)


def _no_image(name: str, remedy: str = UNKNOWN.remedy) -> FileKind:
    return FileKind(name, False, remedy)


_RAW = _other_image("a raw file of a camera", "export it as JPEG or PNG")
_ARCHIVE = _no_image("an archive", "unpack it")
_VIDEO = _no_image("a video", "save its frames as images")
_AGAIN = "download the image itself, or take it out"

SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\xff\xd8\xff", _read("JPEG")),
    (0, b"\x89PNG\r\n\x1a\n", _read("PNG")),
    (0, b"GIF87a", _read("GIF")),
    (0, b"GIF89a", _read("GIF")),
    (8, b"WEBPVP8", _read("WebP")),
    (8, b"CR\x02\x00", _RAW),  # within a TIFF
    (0, b"II*\0", _read("TIFF")),
    (0, b"MM\0*", _read("TIFF")),
    (0, b"II+\0", _read("TIFF")),
    (0, b"MM\0+", _read("TIFF")),
    (0, b"\0\0\0\x0cjP  ", _read("JPEG 2000")),
    (0, b"\xff\x4f\xff\x51", _read("JPEG 2000")),
    (0, b"qoif", _read("QOI")),
    (0, b"IIRO", _RAW),
    (0, b"IIRS", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"II\xbc", _other_image("a JPEG XR image")),
    (0, b"8BPS", _other_image("a Photoshop file", "export it as PNG or JPEG")),
    (0, b"gimp xcf", _other_image("a GIMP file", "export it as PNG or JPEG")),
    (0, b"%!PS", _other_image("a PostScript file", "export it as PNG")),
    (0, b"\xc5\xd0\xd3\xc6", _other_image("a PostScript file", "export it as PNG")),
    (128, b"DICM", _other_image("a DICOM file", "export it as PNG, 8 or 16 bits")),
    (0, b"SIMPLE  =", _other_image("a FITS file", "export it as PNG, 8 or 16 bits")),
    (0, b"v/1\x01", _other_image("an OpenEXR image", "export it as PNG")),
    (0, b"#?RADIANCE", _other_image("a Radiance HDR image", "export it as PNG")),
    (0, b"DDS ", _other_image("a DDS texture")),
    (0, b"icns", _other_image("a macOS icon")),
    (0, b"BPG\xfb", _other_image("a BPG image")),
    (0, b"FLIF", _other_image("a FLIF image")),
    (0, b"AT&TFORM", _other_image("a DjVu document", "export its pages as PNG")),
    (0, b"/* XPM */", _other_image("an XPM image")),
    (0, b"\x93NUMPY", _other_image("a NumPy array", "save it as a PNG or TIFF image")),
    (0, b"%PDF-", _no_image("a PDF document", "export its pages as PNG")),
    (0, b"\x89HDF\r\n\x1a\n", _no_image("an HDF5 file", "save the images in it as files")),
    (0, b"PAR1", _no_image("a Parquet table", "save the images in it as files, or name it as `table`")),
    (0, b"SQLite format 3\0", _no_image("an SQLite database")),
    (4, b"mdat", _VIDEO),
    (8, b"AVI ", _VIDEO),
    (0, b"\x1a\x45\xdf\xa3", _VIDEO),
    (0, b"PK\x03\x04", _ARCHIVE),
    (0, b"\x1f\x8b", _ARCHIVE),
    (0, b"BZh", _ARCHIVE),
    (0, b"\xfd7zXZ\0", _ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", _ARCHIVE),
    (0, b"Rar!\x1a\x07", _ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (257, b"ustar", _ARCHIVE),
    (0, b"\0\x05\x16\x07", _no_image("an AppleDouble file of macOS", "take it out")),
    (0, b"L\0\0\0\x01\x14\x02\0", _no_image("a Windows shortcut", "copy the image itself in")),
    (0, b"book\0\0\0\0mark", _no_image("a macOS alias", "copy the image itself in")),
    (0, b"bplist00", _no_image("a placeholder or property list of macOS", "download the image itself")),
)  # fmt: skip
"""Offset, bytes and kind, the first that fits."""

BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})

TEXTS: tuple[tuple[str, FileKind], ...] = (
    (r"version https://git-lfs\.github\.com/", _no_image("a Git LFS pointer", "run `git lfs pull` in its repository")),
    (r"(/|(\.\./)*\.git/)annex/objects/", _no_image("a git-annex pointer", "run `git annex get .` in its repository")),
    (r"(md5: \w+\s+)?outs:\s+- ?md5:", _no_image("a DVC pointer", "run `dvc pull` in its repository")),
    (r"(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*(<!doctype html|<html|<head|<body)", _no_image("an HTML page", _AGAIN)),
    (
        r"(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*(<!doctype svg.*?>\s*)?<(\w+:)?svg\b",
        _other_image("an SVG drawing", "export it as PNG"),
    ),
    (r"<\?xml|<[a-z][\w:.-]*[\s>/]", _no_image("an XML file", _AGAIN)),
    (r"[{[]\s*([\"{\[\]}]|-?\d|true|false|null|$)", _no_image("a JSON file", _AGAIN)),
    (
        r"data:image/|/9j/[\w+/=\s]{20}|iVBORw0KGgo[\w+/=\s]{9}",
        _no_image("an image as base64 text", "decode it to a file of bytes"),
    ),
    (r"HTTP/1\.\d \d{3}", _no_image("an HTTP response", _AGAIN)),
    (
        r"[^\n]{1,300}\.(jpe?g|png|webp|tiff?|bmp|gif)\s*$",
        _no_image("a link stored as text", "copy the image itself in"),
    ),
    (r"", _no_image("a text file")),
)
"""Patterns at the start of a text, any case, and the kind; the first that fits."""

_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")


def is_image(name: str) -> bool:
    """Return whether a file is meant as an image by its ending."""
    return "." in name and name.rpartition(".")[2].lower() in _MEANT_AS_IMAGES


def kind_of(head: bytes, name: str = "") -> FileKind | None:
    """Return the kind of a file from its first `HEAD` bytes and, for raw files, its name; None where it is unknown."""
    kind = _signed(head) or _of_brands(head) or _of_plain_header(head)
    if kind is not None:
        is_raw = kind.name == "a TIFF image" and name.rpartition(".")[2].lower() in RAW_ENDINGS
        return _RAW if is_raw else kind
    text = _text(head)
    if text is None:
        return None
    return next(kind for pattern, kind in TEXTS if re.match(pattern, text, re.IGNORECASE | re.DOTALL))


def kind_of_file(path: str | Path) -> FileKind | None:
    """Return the kind of a file on disk. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return kind_of(file.read(HEAD), str(path))


def plugin(format_name: str) -> str | None:
    """Return the installed module that reads a format of `PLUGINS`, or None."""
    return next((module for module in PLUGINS[format_name] if importlib.util.find_spec(module)), None)


def _signed(head: bytes) -> FileKind | None:
    return next((kind for at, magic, kind in SIGNATURES if head.startswith(magic, at)), None)


def _of_plain_header(head: bytes) -> FileKind | None:
    """Return the kind of a file whose first bytes alone are no proof, or that has none."""
    if not head:
        return EMPTY
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return _read("BMP")
    if re.match(rb"P[1-6][\s#]", head):
        return _read("Netpbm")
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return _of_plugin("JXL", "a JPEG XL image", "pip install pillow-jxl-plugin")
    zeros = not head.strip(b"\0") and len(head) > 18  # 18: the header of a TGA image without a pixel
    return _no_image("a file of zeros", "copy or download it again") if zeros else None


def _of_plugin(format_name: str, name: str, install: str) -> FileKind:
    return FileKind(name, True, "" if plugin(format_name) else f"{install}, or convert it to JPEG or PNG")


def _of_brands(head: bytes) -> FileKind | None:
    """Return the kind of an ISO media file (ISO/IEC 14496-12) by the brands that it names."""
    if head[4:8] != b"ftyp":
        return None
    length = int.from_bytes(head[:4], "big")
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))}
    if brands & AVIF_BRANDS:
        return _read("AVIF")
    if brands & HEIC_BRANDS:
        return _of_plugin("HEIF", "a HEIC image", "pip install pillow-heif")
    return _RAW if b"crx " in brands else _VIDEO


def _text(head: bytes) -> str | None:
    """Return the start of a text in any usual encoding, without leading blanks; None for other bytes."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        decoded = head[: len(head) // 2 * 2].decode("utf-16", "replace")
        return decoded.lstrip() if "\ufffd" not in decoded[:-1] else None
    if _CONTROLS.search(head):
        return None
    return head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
