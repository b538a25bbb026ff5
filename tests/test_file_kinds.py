"""What a file is, by its content; and what is sound of damaged images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.errors import ImageError
from assay.images.decode import decode, size_of
from assay.labels import file_kinds
from assay.labels.file_kinds import kind_of, kind_of_file

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

OTHERS = {
    "a HEIC image": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "a JPEG XL image": b"\xff\x0a\xfa\x1f",
    "a raw file of a camera": b"II*\0\x10\0\0\0CR\x02\0",
    "a Git LFS pointer": LFS,
    "a git-annex pointer": b"/annex/objects/MD5E-s3--900150983cd24fb0d6963f7d28e17f72.jpg\n",
    "a DVC pointer": b"outs:\n- md5: 900150983cd24fb0d6963f7d28e17f72\n  path: a.jpg\n",
    "an HTML page": b"\xef\xbb\xbf\n<!-- login -->\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "an XML file": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON file": b'{"message": "Not Found"}',
    "an image as base64 text": b"data:image/jpeg;base64,/9j/4AAQSkZJRg==",
    "a link stored as text": b"../shared/1.jpg",
    "a text file": "höher\n".encode("utf-16"),
    "an empty file (0 bytes)": b"",
    "a file of zeros": bytes(100),
    "a video": b"\0\0\0\x18ftypisom\0\0\0\0isommp42",
    "an archive": b"PK\x03\x04\x14\0",
    "a PDF document": b"%PDF-1.7\n",
    "a NumPy array": b"\x93NUMPY\x01\0",
    "an AppleDouble file of macOS": b"\0\x05\x16\x07\0\x02\0\0",
}


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "JPEG", **options)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "PNG")
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_that_is_read_is_called_what_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_kinds, "plugin", lambda _: None)  # whatever is installed here
    kind = kind_of(OTHERS[name])
    assert kind is not None
    assert (kind.name, kind.remedy != "") == (name, True)
    with pytest.raises(ImageError, match="zeros" if name == "a file of zeros" else kind.name.split(" (")[0]):
        decode(put(tmp_path / "a.jpg", OTHERS[name]))


@pytest.mark.parametrize(
    "name", ["jpg", "png", "gif", "bmp", "tif", "webp", "jp2", "ppm", "avif", "qoi", "mpo", "pgm", "dib", "pcx", "tga"]
)
def test_an_image_that_is_read_is_never_called_anything_else(tmp_path: Path, name: str) -> None:
    Image.fromarray(NOISE).convert("L" if name == "pgm" else "RGB").save(tmp_path / f"a.{name}")
    kind = kind_of_file(tmp_path / f"a.{name}")
    assert kind is None if name in ("dib", "pcx", "tga") else kind is not None and kind.is_image and not kind.remedy


def test_a_raw_file_is_no_tiff_though_it_begins_as_one() -> None:
    kind = kind_of(b"II*\0\x08\0\0\0", "photos/a.NEF")
    assert kind is not None
    assert kind.name == "a raw file of a camera"


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_jpeg_that_lacks_its_end_mark_alone_is_read(tmp_path: Path, options: dict[str, bool], lost: int) -> None:
    whole = jpeg(**options)
    path = put(tmp_path / "a.jpg", whole[:-lost])
    assert np.array_equal(np.asarray(decode(path)), np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))
    assert size_of(path) == (80, 60)
    assert decode(path, at_least=15).size == (20, 15)


@pytest.mark.parametrize("lost", [4, 30, 400])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_jpeg_that_lacks_pixels_is_truncated(
    tmp_path: Path, options: dict[str, bool], lost: int, zeros: bool
) -> None:
    path = put(tmp_path / "a.jpg", jpeg(**options)[:-lost] + bytes(lost * zeros))
    with pytest.raises(ImageError, match="it is truncated: copy or download it again"):
        decode(path)


def test_zeros_behind_the_end_mark_are_no_damage(tmp_path: Path) -> None:
    assert decode(put(tmp_path / "a.jpg", jpeg() + bytes(5000))).size == (80, 60)


BIG = zlib.compress(bytes(3_000_000))
NOTES = {
    "text": chunk(b"zTXt", b"k\0\0" + BIG),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG),
    "ICC": chunk(b"iCCP", b"k\0\0" + BIG),
    "many": b"".join(chunk(b"tEXt", b"k%d\0" % i + bytes(1_000_000)) for i in range(66)),
    "wrong checksum": chunk(b"tEXt", b"k\0abc")[:-1] + b"?",
    "short": chunk(b"pHYs", b"z"),
    "beyond the end": struct.pack(">I", 10**9) + b"iTXtabc",
}


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("before", [True, False])
def test_texts_and_profiles_of_any_size_lose_no_sound_png(tmp_path: Path, note: str, before: bool) -> None:
    data = png()
    at = 33 if before else len(data) - 12
    path = put(tmp_path / "a.png", data[:at] + NOTES[note] + data[at:])
    assert np.array_equal(np.asarray(decode(path)), NOISE)
    assert size_of(path) == (80, 60)


def test_a_note_that_claims_to_be_too_large_loses_no_sound_webp(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.webp", lossless=True, xmp=b"abc" * 100)
    data = bytearray((tmp_path / "a.webp").read_bytes())
    at = data.find(b"XMP ") + 4
    data[at : at + 4] = (10**9).to_bytes(4, "little")
    assert np.array_equal(np.asarray(decode(put(tmp_path / "a.webp", bytes(data)))), NOISE)


def test_a_png_whose_pixels_are_damaged_is_refused(tmp_path: Path) -> None:
    data = bytearray(png())
    data[60:90] = bytes(30)
    with pytest.raises(ImageError, match="it is broken"):
        decode(put(tmp_path / "a.png", bytes(data)))


@pytest.mark.parametrize("name", ["gif", "bmp", "tif", "webp", "avif", "jp2", "png", "ppm"])
def test_half_a_file_is_called_truncated(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="it is truncated"):
        decode(path)
