"""A ZIP of stored objects that nobody has to store: names, sizes and checksums give every byte around them."""

import struct
from collections.abc import Sequence

from libs.events import Claim, ExportedFile

_MOST, _MANY = 0xFFFFFFFF, 0xFFFF
_PLAIN, _LARGE = 20, 45
"""Versions of the format: without and with numbers of 64 bits (zip64)."""
_UNIX = 3 << 8
_UTF8 = 1 << 11
_MIDNIGHT, _FIRST_DAY = 0, 1 << 5 | 1
"""1980-01-01, the format's first day: the same files make the same ZIP."""
_MODE = 0o100644 << 16


def layout(files: Sequence[ExportedFile]) -> list[bytes | Claim]:
    """The ZIP from its first byte to its last, files in the order of their names and not deflated."""
    parts: list[bytes | Claim] = []
    directory: list[bytes] = []
    offset = 0
    for file in sorted(files, key=lambda file: file.name):
        header = _header(file)
        directory.append(_entry(file, offset))
        parts += [header, file.content]
        offset += len(header) + file.content.size
    return [*parts, b"".join(directory) + _end(count=len(files), size=sum(map(len, directory)), offset=offset)]


def _header(file: ExportedFile) -> bytes:
    name, flags = _name(file)
    size = file.content.size
    large = size >= _MOST
    extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
    short = min(size, _MOST)
    fields = (b"PK\3\4", _LARGE if large else _PLAIN, flags, 0, _MIDNIGHT, _FIRST_DAY, file.crc32, short, short, len(name), len(extra))
    return struct.pack("<4sHHHHHIIIHH", *fields) + name + extra


def _entry(file: ExportedFile, offset: int) -> bytes:
    name, flags = _name(file)
    size = file.content.size
    wide = ([size, size] if size >= _MOST else []) + ([offset] if offset >= _MOST else [])
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version, short = _LARGE if wide else _PLAIN, min(size, _MOST)
    fields = (b"PK\1\2", _UNIX | version, version, flags, 0, _MIDNIGHT, _FIRST_DAY, file.crc32, short, short, len(name), len(extra))
    return struct.pack("<4sHHHHHHIIIHHHHHII", *fields, 0, 0, 0, _MODE, min(offset, _MOST)) + name + extra


def _end(*, count: int, size: int, offset: int) -> bytes:
    large = b""
    if count >= _MANY or size >= _MOST or offset >= _MOST:
        large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, _UNIX | _LARGE, _LARGE, 0, 0, count, count, size, offset)
        large += struct.pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
    short = min(count, _MANY)
    return large + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, short, short, min(size, _MOST), min(offset, _MOST), 0)


def _name(file: ExportedFile) -> tuple[bytes, int]:
    return file.name.encode(), 0 if file.name.isascii() else _UTF8
