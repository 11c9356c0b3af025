"""The ZIP around a Word document, looked at before anybody unpacks it."""

import re
import struct
import zipfile
from typing import IO

from .blocks import Limits, Refusal

ENTRIES = 10_000
RATIO = 200
SMALL = 10 * 1024 * 1024
"""Bytes that may come out of any archive, however few went in."""
XML = 64 * 1024 * 1024
"""Bytes of one XML part: as a tree it takes several times that."""
PIECE = 64 * 1024
MAIN = b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"

_local = struct.Struct("<4s22xHH")
_DECLARES = re.compile(rb"<!(?:DOCTYPE|ENTITY)")
_ENCODING = re.compile(rb"""<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)""")
_LONGEST_MARK = 2 * len("<!DOCTYPE")


def check(file: IO[bytes], limits: Limits) -> None:
    """Raises a Refusal. Afterwards the file is a Word document that is as large as it says."""
    if not zipfile.is_zipfile(file):
        raise Refusal("truncated", "The Word document ends in the middle: its last part is missing. Upload it again.")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_entries(archive, file, limits)
            _check_kind(archive)
            for entry in archive.infolist():
                if entry.filename.casefold().endswith((".xml", ".rels")):
                    _check_xml(archive, entry)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, struct.error):
        raise _damaged() from None
    file.seek(0)


def _check_entries(archive: zipfile.ZipFile, file: IO[bytes], limits: Limits) -> None:
    entries = archive.infolist()
    if any(entry.flag_bits & 1 for entry in entries):
        raise encrypted()
    packed, whole = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if len(entries) > ENTRIES or whole > limits.unpacked or (whole > SMALL and whole > RATIO * packed):
        raise _bomb(f"It unpacks to {whole:,} bytes in {len(entries):,} parts, far more than a document needs.")
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise _bomb("It has two parts of one name.")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise _bomb("Its parts overlap.")
        file.seek(entry.header_offset)
        magic, name, extra = _local.unpack(file.read(_local.size))
        if magic != b"PK\x03\x04":
            raise _damaged()
        end = entry.header_offset + _local.size + name + extra + entry.compress_size
    if end > archive.start_dir:
        raise _bomb("Its parts overlap.")


def _check_kind(archive: zipfile.ZipFile) -> None:
    names = {entry.filename.casefold(): entry for entry in archive.infolist()}
    types = names.get("[content_types].xml")
    told = archive.read(types) if types and types.file_size <= SMALL else b""
    if b"macroEnabled" in told or any(name.endswith("vbaproject.bin") for name in names):
        raise Refusal("macros", "The document carries macros, which are programs. Save it as .docx, without them, and upload that.")
    if MAIN not in told and MAIN not in told.replace(b"\0", b""):
        raise Refusal("wrong_type", "The file is a ZIP archive, but no Word document.")


def _check_xml(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Office writes no DTDs, and a DTD can make a lot of a few bytes, or name files of ours."""
    if entry.file_size > XML:
        raise _bomb(f"Its part {entry.filename[:100]!a} unpacks to {entry.file_size:,} bytes.")
    with archive.open(entry) as part:
        held = part.read(PIECE)
        _check_encoding(held)
        while held:
            if _DECLARES.search(held.replace(b"\0", b"")):
                raise Refusal("bomb", "The Word document declares entities of its own, which no word processor does. It is not read.")
            piece = part.read(PIECE)
            held = held[-_LONGEST_MARK:] + piece if piece else b""


def _check_encoding(head: bytes) -> None:
    """In one of the two that the format knows, so that what we look for would be found."""
    if not head.startswith((b"<", b"\xef\xbb\xbf", b"\xff\xfe<\0", b"\xfe\xff\0<", b" ", b"\n", b"\r", b"\t")):
        raise _damaged()
    declared = _ENCODING.search(head[:400].replace(b"\0", b""))
    if declared and declared[1].upper() not in (b"UTF-8", b"UTF-16", b"US-ASCII", b"ASCII"):
        raise _damaged()


def encrypted() -> Refusal:
    return Refusal("encrypted", "The document is encrypted and asks for a password. Upload it without one.")


def _bomb(why: str) -> Refusal:
    return Refusal("bomb", f"The Word document is not put together like one. {why} It is not read.")


def _damaged() -> Refusal:
    return Refusal("damaged", "The Word document is damaged: it can't be unpacked. Save it anew and upload that.")
