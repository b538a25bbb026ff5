"""Headers of tar files that are parsed without `tarfile` give what it gives, and the same messages."""

from __future__ import annotations

import io
import tarfile

import pytest

from assay.errors import DataError
from assay.labels.readers import tar_entries
from assay.labels.readers.shard_index import _of_tar

JPEG = b"\xff\xd8\xff" + b"x" * 700
NAMES = ("a.jpg", "./b.JPG", "c/d.e.jpg", "c/d.e.json", "/out.jpg", "../up.jpg", "n" * 96 + ".jpg", "o" * 90 + ".jpg",
         "p" * 80 + "/" + "q" * 80 + ".jpg", "r" * 300 + ".jpg", "\u00e9.jpg", "empty.jpg", ".hidden.jpg", "a.png",
         "last.txt")  # fmt: skip


def content_of(format_: int, pax: dict[str, str] | None = None) -> bytes:
    """Return a tar file of images, folders and links."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=format_, pax_headers=pax) as tar:
        for number, name in enumerate(NAMES):
            if format_ == tarfile.USTAR_FORMAT and len(name) > 255:
                continue
            about = tarfile.TarInfo(name)
            content = b'{"label": "a"}' if name.endswith("json") else JPEG[: 200 + 64 * number]
            about.size = 0 if name == "empty.jpg" else len(content)
            about.mtime = number + (0.5 if name == "a.png" else 0)
            about.uid = 1 << (30 if name == "c/d.e.jpg" and format_ != tarfile.USTAR_FORMAT else 10)
            tar.addfile(about, io.BytesIO(content))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                other = tarfile.TarInfo(f"{number}-{kind.decode()}.jpg")
                other.type, other.linkname = kind, "a.jpg" if kind != tarfile.DIRTYPE else ""
                tar.addfile(other)
    return held.getvalue()


def outcomes(contents: list[bytes]) -> list[object]:
    """Return the rows of each shard, or the message."""
    results = list[object]()
    for content in contents:
        try:
            results.append(_of_tar("a.tar", io.BytesIO(content), None))
        except DataError as error:
            results.append(str(error))
    return results


def require_alike(contents: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Compare with what `tarfile` alone makes of them."""
    ours = outcomes(contents)
    with monkeypatch.context() as patched:
        patched.setattr(tar_entries, "_plain", lambda content, offset: None)
        assert ours == outcomes(contents)
    return ours


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_whole_and_cut_files_of_each_format(format_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(format_)
    cuts = [content[:end] for end in range(512, len(content), 2777)]
    blocks = [content[:end] for end in range(1024, len(content), 512 * 11)]
    results = require_alike([content, *cuts, *blocks], monkeypatch)
    assert isinstance(results[0], tuple)
    assert any("cut off" in str(one) for one in results)


def test_names_and_sizes_of_a_global_header_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [content_of(tarfile.PAX_FORMAT, pax) for pax in ({"path": "all.jpg"}, {"size": "3"}, {"comment": "x"})]
    require_alike(contents, monkeypatch)


def test_damaged_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(content_of(tarfile.USTAR_FORMAT))
    damaged = []
    for at in (0, 99, 100, 108, 120, 124, 135, 136, 147, 148, 155, 156, 157, 257, 329, 337, 345, 500):
        for value in (0, 32, 49, 255):
            wrong = bytearray(content)
            wrong[1024 + at] = value
            damaged.append(bytes(wrong))
            if 0 <= value < 128 and not 148 <= at < 156:  # with the checksum that fits
                header = wrong[1024:1536]
                header[148:156] = b" " * 8
                wrong[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(header)
                damaged.append(bytes(wrong))
    require_alike(damaged, monkeypatch)


def test_a_header_of_each_format_is_plain() -> None:
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        about = tarfile.TarInfo("c/a.jpg")
        about.size = 703
        held = io.BytesIO(about.tobuf(format_))
        assert tar_entries._plain(held, 0) == ("c/a.jpg", tarfile.REGTYPE, 512, 703)
