"""A ZIP, looked at before anything is taken out of it."""

import lzma
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from services.datasets.confined.frames import Limits, Refusal

RATIO = 200
SMALL = 64 * 1024 * 1024
"""Bytes that may come out of any archive, however few went in."""
PIECE = 1024 * 1024
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
JUNK = ("__macosx", "thumbs.db", "desktop.ini")

_local = struct.Struct("<4s22xHH")


class Entry:
    """A file in the archive."""

    def __init__(self, info: zipfile.ZipInfo) -> None:
        self.info = info
        self.path = PurePosixPath(info.filename)

    @property
    def name(self) -> str:
        return self.info.filename

    @property
    def extension(self) -> str:
        return self.path.suffix.casefold()


class Package:
    """What can be taken out of it safely, and why the rest can't."""

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self.skipped = Counter[str]()
        self.entries: list[Entry] = []
        try:
            self._archive = zipfile.ZipFile(file)
            found = [info for info in self._archive.infolist() if not info.is_dir() and not _is_junk(info.filename)]
            _check(found, self._archive, file, limits)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error):
            raise _damaged() from None
        for info in sorted(found, key=lambda info: info.filename):
            if why := _why_not(info):
                self.skipped[why] += 1
            else:
                self.entries.append(Entry(info))

    def pieces(self, entry: Entry, *, most: int) -> Iterator[bytes]:
        """Counted while they come: what the archive says of itself is a stranger's word. ValueError: there are more, or they aren't those that were packed."""
        size = 0
        try:
            with self._archive.open(entry.info) as packed:
                while piece := packed.read(PIECE):
                    size += len(piece)
                    if size > most:
                        raise TooLarge
                    yield piece
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as error:
            raise Damaged from error

    def content(self, entry: Entry, *, most: int) -> bytes:
        return b"".join(self.pieces(entry, most=most))


class TooLarge(Exception):
    """More comes out than may."""


class Damaged(Exception):
    """What comes out isn't what was packed."""


def unpacked(package: Package, entry: Entry, file: IO[bytes], limits: Limits) -> None:
    try:
        for piece in package.pieces(entry, most=limits.unpacked):
            file.write(piece)
    except TooLarge:
        raise _bomb("More comes out of it than it says.") from None
    except Damaged:
        raise _damaged() from None
    file.flush()
    file.seek(0)


def _is_junk(name: str) -> bool:
    """What systems leave in archives and nobody put there."""
    parts = name.replace("\\", "/").casefold().split("/")
    return any(part in JUNK for part in parts) or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))


def _why_not(info: zipfile.ZipInfo) -> str:
    parts = info.filename.split("/")
    if info.flag_bits & 1:
        return "encrypted"
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        return "symlink"
    if info.filename.startswith("/") or "\\" in info.filename or ".." in parts or ":" in parts[0]:
        return "unsafe_path"
    if info.filename.casefold().endswith((".zip", ".gz", ".tar", ".7z", ".rar")):
        return "nested_archive"
    return ""


def _check(entries: list[zipfile.ZipInfo], archive: zipfile.ZipFile, file: IO[bytes], limits: Limits) -> None:
    if len(entries) > limits.images:
        raise Refusal("too_many_entries", f"The ZIP holds {len(entries):,} files; {limits.images:,} are the most. Divide it.")
    packed, whole = sum(info.compress_size for info in entries), sum(info.file_size for info in entries)
    if whole > limits.unpacked or (whole > SMALL and whole > RATIO * packed):
        raise _bomb(f"It says that {whole:,} bytes come out of {packed:,}.")
    end = 0
    for info in sorted(entries, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _bomb("Its files overlap.")
        file.seek(info.header_offset)
        magic, name, extra = _local.unpack(file.read(_local.size))
        if magic != b"PK\x03\x04":
            raise _damaged()
        end = info.header_offset + _local.size + name + extra + info.compress_size
    if end > archive.start_dir:
        raise _bomb("Its files overlap.")


def _bomb(why: str) -> Refusal:
    return Refusal("bomb", f"The ZIP is not put together like one that holds data. {why} It is not unpacked.")


def _damaged() -> Refusal:
    return Refusal("damaged", "The ZIP is damaged: it can't be unpacked. Pack it anew and upload that.")
