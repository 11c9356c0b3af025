"""One JSON document: a list of rows, such a list as the only key of an object, or one object that is a row."""

import json
import re
from collections.abc import Iterable, Iterator

from libs.rows import Unusable

from .decoding import invalid, parse, tolerant, too_deep
from .lines import BOM
from .row import MAX_RAW, MAX_ROW, Found, not_utf8, too_large

MAX_FILE = 64 * 1024 * 1024

_NEXT = re.compile(r"[^ \t\n\r]")
_LIST = re.compile(r"[ \t\n\r]*\[")
_WRAPPED = re.compile(r'[ \t\n\r]*\{[ \t\n\r]*"([^"\\]*)"[ \t\n\r]*:[ \t\n\r]*\[')
_WRAPPER_END = re.compile(r"\][ \t\n\r]*\}\Z")
_ROW_KEYS = {"messages", "conversations", "history"}  # a list under one of these belongs to a row


def read_document(chunks: Iterable[bytes]) -> Iterator[Found]:
    data = _whole(chunks)
    if len(data) > MAX_FILE:
        yield (
            1,
            bytes(data[: MAX_RAW * 4]),
            Unusable("row_too_large", f"A JSON file may have {MAX_FILE >> 20} MiB; write one row per line (JSON lines), which may be larger."),
        )
        return
    text = data.removeprefix(BOM).rstrip(b" \t\n\r").decode("utf-8", "surrogateescape")
    del data
    if start := _LIST.match(text):
        yield from _elements(text, start.end(), wrapped=False)
    elif (start := _WRAPPED.match(text)) and start[1] not in _ROW_KEYS and _WRAPPER_END.search(text, len(text) - MAX_RAW):
        yield from _elements(text, start.end(), wrapped=True)
    else:
        yield _single(text)


def _whole(chunks: Iterable[bytes]) -> bytearray:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_FILE:
            break
    return data


def _single(text: str) -> Found:
    raw = _bytes(text.lstrip(" \t\n\r"))
    if not raw:
        return 1, raw, Unusable("json_invalid", "The file is empty.")
    if raw.startswith(b"{") and len(raw) > MAX_ROW:
        return (
            1,
            raw,
            Unusable(
                "row_too_large",
                f"The file is one object of more than {MAX_ROW // 1024} KiB, or was cut; write a list of rows, or one row per line (JSON lines).",
            ),
        )
    return 1, raw, parse(raw)


def _elements(text: str, at: int, *, wrapped: bool) -> Iterator[Found]:
    """One element at a time in memory. From a fault on, which has no end that could be told, the file is one refused row."""
    decoder, number = tolerant(), 0
    at = _skip(text, at)
    ended = text.startswith("]", at)
    while not ended:
        number += 1
        try:
            value, after = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            yield _rest(text, at, number, invalid(error))
            return
        except RecursionError:
            yield _rest(text, at, number, too_deep())
            return
        raw = _bytes(text[at:after])
        yield number, raw, _checked(raw, value)
        at = _skip(text, after)
        ended = text.startswith("]", at)
        if not ended and not text.startswith(",", at):
            yield _rest(text, at, number + 1, invalid(json.JSONDecodeError("Expecting ',' or ']'", text, at)))
            return
        if not ended:
            at = _skip(text, at + 1)
    at = _skip(text, at + 1)
    if wrapped and text.startswith("}", at):
        at += 1
    if at < len(text):
        yield _rest(text, at, number + 1, invalid(json.JSONDecodeError("Extra data after the list of rows", text, at)))


def _checked(raw: bytes, value: object) -> object:
    if len(raw) > MAX_ROW:
        return too_large()
    return value if _is_utf8(raw) else not_utf8()


def _rest(text: str, at: int, number: int, why: Unusable) -> Found:
    raw = _bytes(text[at : at + MAX_RAW])
    if not _is_utf8(raw):
        why = not_utf8()
    return number, raw, Unusable(why.code, f"{why.message} The file was not read beyond this place.")


def _skip(text: str, at: int) -> int:
    found = _NEXT.search(text, at)
    return found.start() if found else len(text)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_utf8(raw: bytes) -> bool:
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
