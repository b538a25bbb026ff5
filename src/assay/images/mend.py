"""Damaged image files: what is sound of them, and what is wrong with the others."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from assay.labels.file_kinds import HEAD

TRUNCATED = "it is truncated: copy or download it again"

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_KEPT = (*_PNG_PIXELS, b"eXIf")
_MOST_EXIF = 1 << 16  # bytes
_END_OF_JPEG, _SCAN = b"\xff\xd9", b"\xff\xda"


def sound_part(data: bytes) -> bytes | None:
    """Return an image without the damage that leaves its pixels whole; None where there is no such damage.

    A JPEG may lack its end mark. A PNG may hold texts, profiles or other notes that are broken or too large; a JPEG
    may hold such segments, and a WebP such chunks.
    """
    if data.startswith(_PNG):
        kept = _PNG + b"".join(chunk for name, chunk in _png_chunks(data) if _is_kept(name, chunk))
        return kept if len(kept) < len(data) else None
    if data[8:12] == b"WEBP":
        return _webp_pixels(data)
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    plain = _without_notes(data)
    if _is_cut(plain):
        return _with_end_mark(plain)
    return plain if len(plain) < len(data) else None


def damage(data: bytes, error: str) -> str:
    """Return what is wrong with an image that a decoder refused with `error`, and the way out."""
    if not data[len(data) // 2 :].strip(b"\0") and len(data) > HEAD:
        return "its second half is zeros: copy or download it again"
    return TRUNCATED if _is_cut(data) or "truncated" in error.casefold() else f"it is broken: {error}"


def ends_in_zeros(file: BinaryIO) -> bool:
    """Return whether a JPEG ends in zeros in place of its end: a decoder takes them for pixels, without an error."""
    at = file.tell()
    try:
        file.seek(-min(len(_END_OF_JPEG), file.seek(0, 2)), 2)
        if file.read().strip(b"\0"):
            return False
        file.seek(0)
        return _is_cut(file.read())
    finally:
        file.seek(at)


def _is_kept(name: bytes, chunk: bytes) -> bool:
    return name in _PNG_PIXELS or (name in _PNG_KEPT and len(chunk) <= _MOST_EXIF)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and bytes of the chunks whose checksum is right; after another, from the next that holds pixels."""
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
            yield name, data[at:end]
            at = end
        else:
            following = [start for name in _PNG_PIXELS if (start := data.find(name, at + 8)) >= 0]
            at = min(following) - 4 if following else len(data)


def _webp_pixels(data: bytes) -> bytes | None:
    """Return a WebP with its pixels alone; None where it is plain already, animated or transparent, or lacks pixels."""
    at, end = 12, len(data)
    while at + 8 <= end and data[at : at + 4] not in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM"):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    chunk = data[at : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")]
    if at == 12 or chunk[:3] != b"VP8" or len(chunk) < 8 + int.from_bytes(chunk[4:8], "little"):
        return None
    chunk += b"\0" * (len(chunk) % 2)
    return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


def _without_notes(data: bytes) -> bytes:
    """Return a JPEG without comments and application segments, but for those of JFIF, Exif and Adobe's colours."""
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != _SCAN and at + 4 <= len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_note = marker == 0xFE or 0xE0 <= marker <= 0xEF
        if not is_note or marker in (0xE0, 0xEE) or (marker == 0xE1 and data[at + 4 : at + 8] == b"Exif"):
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[at:]))


def _with_end_mark(data: bytes) -> bytes | None:
    """Return a JPEG with the end mark that it lacks; None where pixels are missing too.

    A decoder fills in missing pixels without an error, and takes any bytes for them. Where none is missing, what
    stands between the last pixels and the end mark changes nothing.
    """
    body = data.rstrip(b"\0").rstrip(b"\xff")
    ended, padded = body + _END_OF_JPEG, body + b"\x55\xaa" * 2048 + _END_OF_JPEG
    one, other = (_pixels(padding) for padding in (ended, padded))
    return ended if one is not None and one == other else None


def _pixels(data: bytes) -> bytes | None:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.tobytes()
    except Exception:  # a decoder that is fed broken bytes may raise anything at all
        return None


def _is_cut(data: bytes) -> bool:
    """Return whether the end of a file of a known format is missing."""
    size = len(data)
    if data.startswith(b"\xff\xd8\xff"):
        return data.rfind(_END_OF_JPEG) < max(data.rfind(_SCAN), 2)
    if data.startswith((_PNG, b"GIF8")):
        return b"IEND" not in data if data.startswith(_PNG) else not data.endswith(b";")
    if data.startswith((b"RIFF", b"BM")):
        lengths = data[4:8] if data.startswith(b"RIFF") else data[2:6]
        return int.from_bytes(lengths, "little") > size
    if data[4:8] in (b"ftyp", b"jP  "):
        return _boxes_end(data) > size
    return data.startswith((b"II*\0", b"MM\0*")) and _strips_end(data) > size


def _boxes_end(data: bytes) -> int:
    """Return where the last box of an ISO media file ends, which may be beyond the data."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        at = at + length if length >= 8 else len(data)  # 0: to the end of the file
    return at


def _strips_end(data: bytes) -> int:
    """Return where the last strip or tile of a TIFF ends, or its directory, which may be beyond the data."""
    directory = int.from_bytes(data[4:8], "little" if data.startswith(b"II") else "big")
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            tags = getattr(image, "tag_v2", {})
            pairs = [zip(tags.get(at, ()), tags.get(size, ()), strict=False) for at, size in ((273, 279), (324, 325))]
            return max((at + size for pair in pairs for at, size in pair), default=directory)
    except Exception:  # no directory that can be read
        return directory + 2
