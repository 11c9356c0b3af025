"""What every form of a table comes down to: batches of columns of texts."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import polars as pl

from services.datasets.confined.frames import Refusal

LONGEST_NAME = 200
GROUP_CELLS = 4_000_000
"""Of a row group of a Parquet file, which is what has to be in memory to write one."""


class Batch(NamedTuple):
    frame: pl.DataFrame
    """A column for each of the source's names, called by its place."""
    refused: dict[str, int]
    """Rows that came between and can't be used."""


class Source(Protocol):
    """The same batches each time."""

    names: list[str]
    types: dict[int, pl.DataType]
    """Of the columns, by place, that have one already; the others are texts."""
    unreadable: dict[int, str]
    """The columns that aren't in the batches, and why."""
    notes: list[str]
    decimal: str
    """What stands before the decimals where a column by itself doesn't tell."""
    done: int
    """Bytes that were read so far."""

    def batches(self) -> Iterator[Batch]: ...


def place(index: int) -> str:
    return f"c{index}"


def group_rows(columns: int) -> int:
    return max(500, min(250_000, GROUP_CELLS // max(1, columns)))


def named(header: list[str], notes: list[str]) -> list[str]:
    """Unnamed and repeated columns are told apart by their place."""
    names: dict[str, None] = {}
    repeated: list[str] = []
    for number, cell in enumerate(header, start=1):
        told = " ".join(storable(cell).split())[:LONGEST_NAME]
        name = told or f"column_{number}"
        if name in names:
            name = f"{name}_{number}"
            repeated.append(told)
        while name in names:
            name += "_"
        names[name] = None
    if repeated:
        several = ", ".join(repr(name) for name in dict.fromkeys(repeated[:5]))
        notes.append(f"{len(repeated)} columns have the name of another ({several}); each has its place added to it.")
    return list(names)


def storable(text: str) -> str:
    """NUL and half characters are shown as unreadable."""
    text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def count(refused: Counter[str], reason: str, rows: int = 1) -> None:
    if rows:
        refused[reason] += rows


def too_many_columns(found: int, most: int) -> Refusal:
    return Refusal("too_many_columns", f"The table has {found:,} columns; {most:,} are the most. Leave out those that don't matter.")
