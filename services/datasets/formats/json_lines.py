"""JSON lines: a bad line refuses only itself."""

from collections.abc import Iterable, Iterator

from .decoding import parse
from .lines import bare, lines
from .row import MAX_ROW, Found, too_large


def read_lines(chunks: Iterable[bytes]) -> Iterator[Found]:
    return parsed(enumerate(lines(chunks), start=1))


def parsed(numbered: Iterable[tuple[int, bytes]]) -> Iterator[Found]:
    for number, line in numbered:
        if len(line) > MAX_ROW and len(bare(line)) > MAX_ROW:
            yield number, line, too_large()
        elif raw := line.strip():
            yield number, raw, parse(raw)
