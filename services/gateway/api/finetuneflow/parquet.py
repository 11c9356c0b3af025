"""Examples as Parquet: written by a process of its own, so that a gateway has neither its library nor a table in memory."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec

from libs.runtime import orphan

REPOSITORY = Path(__file__).parents[4]
COMMAND = ("-P", "-m", "services.gateway.api.finetuneflow.parquet")
AT_ONCE = 2
"""Processes of one gateway; each takes a fifth of a gigabyte for some seconds."""
ROWS, ROW_GROUP = 1_000, 10_000
PIECE = 256 * 1024

MORE = "_more"
"""What a turn has besides role and content, as JSON."""


class NotWritten(Exception):
    """The process that writes tables ended before its work did."""


_turns = asyncio.Semaphore(AT_ONCE)


@asynccontextmanager
async def table(lines: AsyncIterator[bytes], columns: Sequence[str]) -> AsyncIterator[IO[bytes]]:
    """A file of these rows, which come as JSON objects; without a name, and gone when this is left."""
    with TemporaryFile() as file:
        async with _turns:
            await _write(lines, columns, file)
        file.seek(0)
        yield file


async def _write(lines: AsyncIterator[bytes], columns: Sequence[str], file: IO[bytes]) -> None:
    command = (sys.executable, *COMMAND, *columns)
    environ = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=file, env=environ, cwd="/")
    try:
        assert process.stdin
        async for piece in lines:
            process.stdin.write(piece)
            await process.stdin.drain()
        process.stdin.close()
        if await process.wait():
            raise NotWritten(f"exit status {process.returncode}")
    except ConnectionError:
        raise NotWritten(f"exit status {await process.wait()}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece


# In the process


def main() -> None:
    orphan.die_with_parent()
    import polars as pl  # here and not in the gateway, which imports this module too
    from polars.io.plugins import register_io_source

    turn = pl.Struct({"role": pl.String, "content": pl.String, MORE: pl.String})
    kinds: dict[str, Any] = {"history": pl.List(pl.List(pl.String)), "messages": pl.List(turn)}
    schema = {column: kinds.get(column, pl.String) for column in sys.argv[1:]}

    def frames(*_: Any) -> Iterator[pl.DataFrame]:
        while rows := [_row(line) for line in islice(sys.stdin.buffer, ROWS)]:
            yield pl.DataFrame(rows, schema=schema)

    register_io_source(frames, schema=schema).sink_parquet(sys.stdout.buffer, row_group_size=ROW_GROUP, engine="streaming")


def _row(line: bytes) -> dict[str, Any]:
    row = msgspec.json.decode(line)
    if "messages" in row:
        row["messages"] = [_turn(**message) for message in row["messages"]]
    if "meta" in row:
        row["meta"] = msgspec.json.encode(row["meta"]).decode()
    return row


def _turn(role: str, content: Any = None, **others: Any) -> dict[str, str | None]:
    if not isinstance(content, str):
        others["content"] = content
    return {"role": role, "content": content if isinstance(content, str) else None, MORE: msgspec.json.encode(others).decode() if others else None}


if __name__ == "__main__":
    main()
