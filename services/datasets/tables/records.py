"""JSON: a list of rows, or one row a line. The columns are all the keys there are, in the order in which they appear."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import polars as pl

from libs.rows import Unusable
from libs.sniff import HEAD, sniff
from services.datasets.confined.frames import Progress, Refusal, Say
from services.datasets.formats.json_document import read_document
from services.datasets.formats.json_lines import read_lines

from .source import Batch, count, named, place, storable, too_many_columns

CELLS = 200_000
"""Of one batch."""
PIECE = 1024 * 1024
AS_ROWS = "Write the table as a list of objects, one for each row (in pandas: orient='records')."


class Records:
    def __init__(self, file: IO[bytes], *, most_columns: int, say: Say) -> None:
        self.types: dict[int, pl.DataType] = {}
        self.unreadable: dict[int, str] = {}
        self.notes: list[str] = []
        self.decimal = "."
        self.done = 0
        self._file = file
        self._say = say
        file.seek(0)
        self._read = read_lines if sniff(file.read(HEAD)) == "application/jsonl" else read_document
        self._keys = self._all_keys(most_columns)
        self.names = named(self._keys, self.notes)
        if len(self._keys) == 1:
            raise Refusal("one_column", f"The rows have one field, {self._keys[0][:100]!r}. There must be a target and something to tell it by.")

    def batches(self) -> Iterator[Batch]:
        most = max(1, CELLS // max(1, len(self._keys)))
        rows: list[dict[str, Any]] = []
        refused = Counter[str]()
        for row in self._rows():
            if isinstance(row, Unusable):
                count(refused, row.code)
            else:
                rows.append(row)
            if len(rows) + refused.total() >= most:
                yield Batch(self._frame(rows), refused)
                rows, refused = [], Counter[str]()
        yield Batch(self._frame(rows), refused)

    def _all_keys(self, most: int) -> list[str]:
        keys: dict[str, None] = {}
        why: Unusable | None = None
        rows, only = 0, {}
        for row in self._rows():
            if isinstance(row, Unusable):
                why = why or row
                continue
            rows, only = rows + 1, row
            keys |= dict.fromkeys(row)
            if len(keys) > most:
                raise too_many_columns(len(keys), most)
        if not keys and why:
            raise Refusal("no_rows", f"There are no rows in the file that can be read. The first: {why.message}")
        if not keys:
            raise Refusal("empty", "The file holds no rows.")
        if rows == 1 and all(isinstance(value, dict | list) for value in only.values()):
            raise Refusal("no_rows", f"The file is one object of columns. {AS_ROWS}")
        return list(keys)

    def _rows(self) -> Iterator[dict[str, Any] | Unusable]:
        self._file.seek(0)
        self.done = 0
        for _, _, value in self._read(self._pieces()):
            if isinstance(value, dict | Unusable):
                yield value
            else:
                yield Unusable("not_an_object", f"A row is an object with named fields. {AS_ROWS}")

    def _pieces(self) -> Iterator[bytes]:
        while piece := self._file.read(PIECE):
            self.done += len(piece)
            self._say(Progress(done=0))  # to look for all the keys takes a while
            yield piece

    def _frame(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        return pl.DataFrame({place(n): pl.Series([_text(row.get(key)) for row in rows], dtype=pl.String) for n, key in enumerate(self._keys)})


def _text(value: Any) -> str:
    """As it would stand in a CSV."""
    match value:
        case str():
            return storable(value)
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case _:
            return json.dumps(value)
