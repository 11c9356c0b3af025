"""Parquet: its columns are typed already, but for texts."""

from collections.abc import Iterator
from typing import IO

import polars as pl

from services.datasets.confined.frames import Refusal

from .source import Batch, named, place, too_many_columns

CELLS = 2_000_000
"""Of one batch."""
SMALLER = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


class Parquet:
    def __init__(self, file: IO[bytes], *, most_columns: int, most_rows: int) -> None:
        self.notes: list[str] = []
        self.decimal = "."
        self.done = 0
        file.seek(0, 2)
        self._size = file.tell()
        file.seek(0)
        self._table = pl.scan_parquet(f"/dev/fd/{file.fileno()}", glob=False)
        schema = self._table.collect_schema()
        if len(schema) > most_columns:
            raise too_many_columns(len(schema), most_columns)
        if len(schema) < 2:
            raise Refusal("one_column", "The table has one column. There must be a target and something to tell it by.")
        self._rows = self._table.select(pl.len()).collect().item()
        if self._rows > most_rows:
            raise Refusal("too_many_rows", f"The table has {self._rows:,} rows; {most_rows:,} are the most. Divide it, or draw some of its rows.")
        self.names = named(schema.names(), self.notes)
        self.types: dict[int, pl.DataType] = {}
        self.unreadable: dict[int, str] = {}
        self._columns: list[pl.Expr] = []
        for n, (name, dtype) in enumerate(schema.items()):
            column = _readable(pl.col(name), dtype)
            if column is None:
                self.unreadable[n] = f"It holds values of the type {str(dtype)[:60]}, which nothing can be learned from here."
                continue
            expression, made = column
            self._columns.append(expression.alias(place(n)))
            if made is not None:
                self.types[n] = made

    def batches(self) -> Iterator[Batch]:
        size = max(1_000, min(100_000, CELLS // max(1, len(self._columns))))
        done = 0
        for frame in self._table.select(self._columns).collect_batches(chunk_size=size, maintain_order=True):
            done += frame.height
            self.done = self._size * done // max(1, self._rows)
            yield Batch(frame, {})


def _readable(column: pl.Expr, dtype: pl.DataType) -> tuple[pl.Expr, pl.DataType | None] | None:
    """As texts where it has no type that means something here; None: not at all."""
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return column.cast(pl.String).str.replace_all("\0", "\ufffd", literal=True).fill_null(""), None
    if isinstance(dtype, pl.Boolean):
        return column, pl.Boolean()
    if isinstance(dtype, SMALLER):
        return column.cast(pl.Int64), pl.Int64()
    if dtype.is_numeric():
        return column.cast(pl.Float64), pl.Float64()
    if isinstance(dtype, pl.Datetime):
        return (column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if dtype.time_zone else column).cast(pl.Datetime("us")), pl.Datetime("us")
    if isinstance(dtype, pl.Date):
        return column.cast(pl.Datetime("us")), pl.Datetime("us")
    if isinstance(dtype, pl.Null):
        return column.cast(pl.String).fill_null(""), None
    return None
