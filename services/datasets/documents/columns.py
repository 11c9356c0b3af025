"""Parquet: its rows as JSON lines, for whoever reads those."""

import os
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Any

import msgspec

from .blocks import LONGEST, Block, Found, Limits, Progress, Refusal

os.environ["POLARS_MAX_THREADS"] = "1"  # the stacks of more would fill the memory that there may be

import polars as pl

ROWS = 1_000
MOST_ROWS = 10_000_000
MOST_COLUMNS = 1_000
DEEPEST = 8
"""Lists and structures in one another."""
MORE = "_more"
LONGEST_ROW = 300_000
"""Characters; no row of so many is used."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def read(file: IO[bytes], limits: Limits) -> Iterator[Found]:
    try:
        yield from _read(BytesIO(file.read()))
    except (pl.exceptions.PolarsError, ValueError, OverflowError) as error:  # the latter of dates that only a damaged file has
        raise _damaged(error) from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # what the library, which isn't Python, calls an error of its own
            raise _damaged(error) from None
        raise


def _read(file: BytesIO) -> Iterator[Found]:
    table = pl.scan_parquet(file)
    schema = table.collect_schema()
    if len(schema) > MOST_COLUMNS or any(_depth(kind) > DEEPEST for kind in schema.dtypes()):
        raise Refusal("too_complex", f"The Parquet file has more than {MOST_COLUMNS:,} columns, or more than {DEEPEST} lists and structures in one another.")
    total = table.select(pl.len()).collect().item()
    if not total:
        raise Refusal("empty", "The Parquet file holds no rows.")
    if total > MOST_ROWS:
        raise Refusal("too_many_rows", f"The Parquet file has {total:,} rows; at most {MOST_ROWS:,} are read of one. Divide it and upload its parts.")
    done = 0
    for frame in table.collect_batches(chunk_size=ROWS, maintain_order=True):
        yield from _blocks(frame)
        done += frame.height
        yield Progress(done=done, total=total)


def _blocks(frame: pl.DataFrame) -> Iterator[Block]:
    held = ""
    for row in frame.iter_rows(named=True):
        held += _encode(_restored(_without_nulls(row))).decode()[:LONGEST_ROW] + "\n"
        while len(held) > LONGEST:
            yield Block(text=held[:LONGEST], before="")
            held = held[LONGEST:]
    if held:
        yield Block(text=held, before="")


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    """What our own tables hold as JSON, because its form differs from row to row: what else there is of an example, and of a turn."""
    if isinstance(meta := _object(row.get("meta")), dict):
        row["meta"] = meta
    if isinstance(turns := row.get("messages"), list):
        row["messages"] = [turn | more if isinstance(turn, dict) and (more := _object(turn.pop(MORE, None))) else turn for turn in turns]
    return row


def _object(text: Any) -> dict[str, Any] | None:
    try:
        value = _decode(text) if isinstance(text, str) and text.startswith("{") else None
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _without_nulls(value: Any) -> Any:
    """What a row of JSON would leave out, a table has as null."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _depth(kind: Any) -> int:
    if isinstance(kind, pl.Struct):
        return 1 + max((_depth(field.dtype) for field in kind.fields), default=0)
    return 1 + _depth(kind.inner) if isinstance(kind, pl.List | pl.Array) else 0


def _damaged(error: BaseException) -> Refusal:
    return Refusal("damaged", f"The Parquet file can't be made out ({type(error).__name__}). Write it anew and upload that.")
