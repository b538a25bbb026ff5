"""The entries of a tar file in order.

`tarfile` takes longer for a header than hashing a small image does. Plain headers, which are nearly all, are parsed
here; whatever is not plain, and every fault, is left to it.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 512
_PLAIN = re.compile(
    rb"(?:[0-7]{6}[0-7 ][\0 ]){3}([0-7]{11})[\0 ][0-7]{11}[\0 ]([0-7]{6})[\0 ]{2}0"
    rb"[\0-\x7f]{172}(?:[0-7]{6}[0-7 ][\0 ]|\0{8}){2}\0"
)
"""Bytes 100 to 345 of the header of a file (POSIX 1003.1, ustar): mode, owner, group, size, time, checksum, type 0,
link and names, device, and no prefix of the name; all numbers are octal."""

Entry = tuple[str, bytes, int, int]
"""Name, type, first byte and size."""


def entries(content: BinaryIO, tar: tarfile.TarFile) -> Iterator[Entry]:
    """Yield the entries of an opened tar file, of which `content` is the file; it may be read or moved in between.

    `tar.offset` is where the next header should be. Raises what `tarfile` raises.
    """
    while (member := tar.next()) is not None:  # of a plain header too, where it is the first
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
        yield member.name, member.type, member.offset_data, member.size
        overridden = not tar.pax_headers.keys().isdisjoint(tarfile.PAX_FIELDS)
        while not overridden and (entry := _plain(content, tar.offset)) is not None:
            _, _, first, size = entry
            tar.offset = first + -(-size // BLOCK) * BLOCK
            yield entry
        content.seek(0)  # elsewhere `tarfile` looks for the end of the former entry first, and so for a cut


def _plain(content: BinaryIO, offset: int) -> Entry | None:
    """Return the entry whose header is at an offset, or None where that is no plain header of ASCII characters."""
    content.seek(offset)
    header = content.read(BLOCK)
    numbers = _PLAIN.match(header, 100)
    if numbers is None or len(header) < BLOCK or not header.isascii():
        return None
    # The lower half of Adler-32 is 1 plus the sum of all bytes, modulo 65,521, which 512 ASCII characters stay below.
    # A checksum counts its own 8 bytes as blanks.
    total = (zlib.adler32(header) - zlib.adler32(header[148:156])) & 0xFFFF
    if total + 8 * ord(" ") != int(numbers[2], 8):
        return None
    name = header[:100].partition(b"\0")[0]
    return name.decode("ascii"), tarfile.REGTYPE, offset + BLOCK, int(numbers[1], 8)
