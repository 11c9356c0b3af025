"""CSV with a header: commas, semicolons or tabs, whichever the header is divided by."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from libs.rows import QUOTED, Unusable

from .decoding import parse
from .lines import bare, lines
from .row import MAX_ROW, Found, not_utf8, too_large

JSON_COLUMNS = ("messages", "conversations", "history")


def read_table(chunks: Iterable[bytes]) -> Iterator[Found]:
    found = lines(chunks)
    first = next((line for line in found if line.strip()), b"")
    records = _records(chain([first], found), delimiter=_delimiter(first))
    for raw, header in records:
        if isinstance(header, Unusable):
            yield 1, raw, Unusable(header.code, f"The header can't be read, and no row without it. {header.message}")
            return
        yield from _rows(records, names=_names(header))


def _rows(records: Iterable[tuple[bytes, list[str] | Unusable]], *, names: list[str]) -> Iterator[Found]:
    ours = QUOTED in names
    json_columns = [name for name in (*JSON_COLUMNS, *(["meta"] if ours else [])) if name in names]
    for number, (raw, cells) in enumerate(records, start=1):
        if isinstance(cells, Unusable):
            yield number, raw, cells
        elif len(cells) > len(names):
            yield number, raw, Unusable("csv_ragged", f"The record has {len(cells)} fields, but the header names {len(names)}.")
        else:
            row = dict(zip(names, cells, strict=False))
            if ours:
                row = _unquoted(row)
                yield number, raw, _object(row, [column for column in json_columns if column in row])
            else:
                yield number, raw, _object(row, json_columns)


def _object(row: dict[str, str], json_columns: list[str]) -> object:
    value: dict[str, object] = dict(row)
    for column in json_columns:
        cell = row.get(column, "").strip()
        value[column] = parse(cell.encode()) if cell else None
        if isinstance(why := value[column], Unusable):
            return Unusable(why.code, f"Column '{column}' must hold JSON. {why.message}")
    return value


def _unquoted(row: dict[str, str]) -> dict[str, str]:
    """A row of a CSV of our own: without what was added to it, and without columns that are empty."""
    quoted = row.get(QUOTED, "").split()
    plain = {name: cell.removeprefix("'") if name in quoted else cell for name, cell in row.items() if name != QUOTED}
    return {name: cell for name, cell in plain.items() if cell}


def _delimiter(header: bytes) -> str:
    unquoted = re.sub(rb'"[^"]*"', b"", header)
    return max(",", ";", "\t", key=lambda delimiter: unquoted.count(delimiter.encode()))


def _names(header: list[str]) -> list[str]:
    """Unnamed and repeated columns are told apart by their place, so that no cell is lost."""
    names: dict[str, None] = {}
    for place, cell in enumerate(header, start=1):
        name = cell.strip() or f"column_{place}"
        if name in names:
            name = f"{name}_{place}"
        while name in names:
            name += "_"
        names[name] = None
    return list(names)


def _records(found: Iterator[bytes], *, delimiter: str) -> Iterator[tuple[bytes, list[str] | Unusable]]:
    # The limit is one for the process, so it is only ever raised: rows are bounded by MAX_ROW before csv sees them.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    source = _Source(found)
    reader = csv.reader(source, delimiter=delimiter)
    while True:
        source.raw.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except Unusable as why:
            yield bytes(source.raw), why
            continue
        if cells:
            yield bytes(source.raw), source.why_not() or cells


class _Source:
    """Feeds csv.reader line by line and keeps the bytes of the record that it is in."""

    def __init__(self, found: Iterator[bytes]) -> None:
        self.raw = bytearray()
        self._found = found
        self._ended = False

    def __iter__(self) -> "_Source":
        return self

    def __next__(self) -> str:
        line = next(self._found, None)
        if line is None:
            self._ended = True
            raise StopIteration
        self.raw += line
        if len(self.raw) > MAX_ROW and len(bare(self.raw)) > MAX_ROW:
            raise too_large()
        return line.decode("utf-8", "surrogateescape")

    def why_not(self) -> Unusable | None:
        if self._ended:  # csv asked for another line to end this record
            return Unusable("csv_ragged", "A quote that is opened in this record is never closed.")
        try:
            self.raw.decode()
        except UnicodeDecodeError:
            return not_utf8()
        return None
