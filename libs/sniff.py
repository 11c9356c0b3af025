"""What a file is, told by its first 64 KiB and never by its name."""

import codecs
import csv
import io
import json
import re

HEAD = 64 * 1024

PARQUET = "application/vnd.apache.parquet"

_MAGIC = (
    (b"%PDF-", "application/pdf"),
    (b"PAR1", PARQUET),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x7fELF", "application/x-executable"),
    (b"MZ", "application/x-executable"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x1f\x8b", "application/gzip"),
)
_JSON_START = re.compile(r"""\{\s*["'}]|\[\s*[{\]]""")
_NEXT_LINE_IS_A_ROW = re.compile(r"\}[ \t]*(?:\r\n|\n|\r)\s*\{")  # within one JSON document a comma or a bracket would come between
_COLUMN = re.compile(r"(?:\w[\w #/.-]{0,63})?")


def sniff(head: bytes) -> str:
    """application/json, application/jsonl, text/csv, text/plain, or the type of what can't be read as text.

    A table of one column is text/plain: nothing but its name tells it from prose.
    """
    head = head[:HEAD]
    for magic, mime_type in _MAGIC:
        if head.startswith(magic):
            return mime_type
    text = _text(head)
    if text is None:
        return "application/octet-stream"
    if kind := _json(text):
        return kind
    return "text/csv" if _is_table(text, cut=len(head) >= HEAD) else "text/plain"


def is_word(head: bytes) -> bool:
    """Whether a ZIP begins as a DOCX does; whoever opens it knows for sure."""
    return head.startswith(b"PK\x03\x04") and b"[Content_Types].xml" in head and b"word/" in head


def is_utf16(head: bytes) -> bool:
    return head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _text(head: bytes) -> str | None:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # not final: the last character may be cut
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.removeprefix("\ufeff")


def _json(text: str) -> str:
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        return ""
    if _NEXT_LINE_IS_A_ROW.search(start):
        return "application/jsonl"
    first, _, others = start.partition("\n")
    if _parses(first):
        return "application/jsonl" if others.strip() else "application/json"
    return "application/json" if _JSON_START.match(start) or _parses(start) else ""


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_table(text: str, *, cut: bool) -> bool:
    """A header of distinct names, and most records as wide as it."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",", ";", "\t", key=first.count)
    header, *records = [record for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if record] or [[]]
    if len(header) < 2 or len(set(header)) < len(header) or not all(map(_COLUMN.fullmatch, header)):
        return False
    if cut:
        records = records[:-1]
    return sum(len(record) == len(header) for record in records) * 3 >= len(records) * 2
