"""Plain text: JSON lines by another name if it begins with one, else a row for each paragraph."""

from collections.abc import Iterable, Iterator
from itertools import chain

from .decoding import parse
from .json_lines import parsed
from .lines import KEPT, bare, lines
from .row import MAX_ROW, Found, not_utf8, too_large


def read_text(chunks: Iterable[bytes]) -> Iterator[Found]:
    numbered = enumerate(lines(chunks), start=1)
    for number, first in numbered:
        if first.strip():
            kind = parsed if isinstance(parse(first.strip()), dict | list) else _paragraphs
            yield from kind(chain([(number, first)], numbered))


def _paragraphs(numbered: Iterable[tuple[int, bytes]]) -> Iterator[Found]:
    """Numbered by their first lines, divided by blank ones."""
    start, held = 0, bytearray()
    for number, line in chain(numbered, [(0, b"")]):
        if line.strip():
            start = start or number
            held += (bare(line) + b"\n")[: KEPT - len(held)]
        elif held:
            raw = bytes(held).removesuffix(b"\n")
            yield start, raw, _text(raw)
            start = 0
            held.clear()


def _text(raw: bytes) -> object:
    if len(raw) > MAX_ROW:
        return too_large()
    try:
        return {"text": raw.decode()}
    except UnicodeDecodeError:
        return not_utf8()
