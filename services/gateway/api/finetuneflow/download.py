"""The data set as a file, told in the form that somebody asks for and sent piece by piece."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream

from libs.sniff import PARQUET
from services.gateway.api.finetuneflow import parquet
from services.gateway.api.finetuneflow.dataset import Split
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.tellings import Telling, telling
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest
from services.gateway.commands import Commands
from services.gateway.views import examples
from services.gateway.views.examples import Dataset, Wanted

ROWS, BYTES = 500, 1024 * 1024
"""Of examples in memory."""
ANSWERS = {200: ResponseSpec(bytes, generate_examples=False, description="The file", media_type="*/*")}

MEDIA_TYPES = {"csv": "text/csv", "parquet": PARQUET}

Form = Literal["jsonl", "alpaca", "sharegpt", "messages", "csv", "parquet"]


class Replaced(Exception):
    """The examples gave way to newer ones while they were sent: the connection breaks, so that nobody takes what came for all of it."""


@get("/projects/{project_id:uuid}/dataset/download", summary="All valid examples as a file", responses=ANSWERS)
async def download_dataset(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    form: Annotated[Form, QueryParameter(name="format")] = "jsonl",
    split: Annotated[Split | None, QueryParameter(name="split")] = None,
) -> Stream:
    """Uploaded again it gives the same examples; `jsonl` tells any of them. What a form can't tell is refused with the examples that it can't, and the header
    `X-Left-Out` says what isn't in the file. A cell of a CSV that a spreadsheet would take for a formula has an apostrophe in front, and the column `_quoted`
    names it. Without `split` the file has those of training and evaluation, but no previews."""
    id = await known(request, project_id, db, commands)
    dataset = await examples.dataset(db, id)
    wanted = Wanted(split=split, is_valid=True, previews=split == "preview")
    counts = Counter[str]()
    for group in dataset.groups:
        if wanted.has(group):
            counts[group.format] += group.count
    if not counts:
        raise Refused(404, "There are no valid examples to download", code="no_examples")
    way = telling(form, counts)
    if untold := {format: count for format, count in counts.items() if format not in way.able}:
        message = f"format: {form} can't tell {_counted(untold)} of the {counts.total()} examples in one file; jsonl tells them all"
        raise Refused(422, message, field="format", context={"untold": untold})
    pieces = _pieces(db, id, dataset, wanted, way)
    if way.columns:
        pieces = _table(pieces, way.columns)
    first = await anext(pieces, b"")
    name = f"dataset{f'-{split}' if split else ''}{way.suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-cache", "X-Total-Count": str(counts.total())}
    if left_out := _left_out(dataset, wanted, counts, way):
        headers["X-Left-Out"] = left_out
    return Stream(_from(first, pieces), media_type=MEDIA_TYPES.get(form, "application/jsonl"), headers=headers)


handlers: list[Any] = [download_dataset]


def _left_out(dataset: Dataset, wanted: Wanted, counts: Counter[str], way: Telling) -> str:
    refused = dataset.count(msgspec.structs.replace(wanted, is_valid=False))
    otherwise = {format: count for format, count in counts.items() if format not in way.exact}
    said = [
        f"{refused} refused" if refused else "",
        "which split each is in (ask with split=)" if wanted.split is None else "",
        f"that {_counted(otherwise)} were no conversations" if otherwise else "",
    ]
    return "; ".join(text for text in said if text)


def _counted(formats: dict[str, int]) -> str:
    return " and ".join(f"{count} of the form {format}" for format, count in sorted(formats.items()))


async def _from(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _table(lines: AsyncGenerator[bytes, None], columns: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """All of it is written before a byte is sent: its end says where its beginning is."""
    async with aclosing(lines), parquet.table(lines, columns) as file:
        async for piece in parquet.pieces(file):
            yield piece


async def _pieces(db: asyncpg.Pool, project_id: str, dataset: Dataset, wanted: Wanted, way: Telling) -> AsyncGenerator[bytes, None]:
    """Page behind page and not by a cursor: whoever reads slowly would hold a connection and a transaction for as long."""
    pinned = msgspec.structs.replace(dataset, hidden=True)
    after, held = (0, -1), way.head
    while True:
        async with examples.looking(db) as session:
            rows = await examples.behind(session, project_id, pinned, wanted, after=after, most_rows=ROWS, most_bytes=BYTES)
        if not rows:
            break
        after = (rows[-1].position, rows[-1].row)
        yield held + b"".join(way.tell(row.data) for row in rows)
        held = b""
    if not set(dataset.jobs) <= set((await examples.dataset(db, project_id)).jobs):
        raise Replaced(project_id)
    if held:
        yield held
