"""The data set of a project: its examples, looked through, mended and judged, and what became of every row that was uploaded."""

from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get, patch
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from libs.rows import Unusable, checked, count_tokens
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.words import stamp
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, Limit, Offset, answered, if_match, origin
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.domain.example import ChangeExample, Content, DeleteExample, Example
from services.gateway.views import examples
from services.gateway.views.examples import Group, Wanted

MOST_DATA = 48 * 1024
"""Bytes of an example that people may write: with all around it, it still is one fact."""

Split = Literal["preview", "train", "eval"]
Format = Literal["alpaca", "prompt_completion", "question_answer", "messages", "sharegpt", "preference", "text"]
Words = Annotated[str, Meta(max_length=500)]


class ExampleOut(msgspec.Struct, kw_only=True):
    id: str
    split: str
    data: Any
    is_valid: bool
    token_count: int
    created_at: str
    file_id: str
    row: int
    format: str
    reason: str | None = None
    message: str | None = None


class ExamplePatch(msgspec.Struct, kw_only=True):
    """What is not sent stays."""

    data: dict[str, Any] | UnsetType = UNSET
    """A whole row, in any form that an uploaded one may have."""
    split: Literal["train", "eval"] | UnsetType = UNSET
    is_valid: bool | UnsetType = UNSET
    reason: Words | UnsetType = UNSET
    """Why it is not valid, in your words: shown as its message."""


class Counts(msgspec.Struct, kw_only=True):
    total: int
    valid: int
    invalid: int
    train: int
    eval: int
    avg_token_count: int


class ExamplePage(msgspec.Struct, kw_only=True):
    items: list[ExampleOut]
    total: int
    stats: Counts


class SplitStats(msgspec.Struct, kw_only=True):
    count: int
    avg_tokens: int
    min_tokens: int
    max_tokens: int


class RefusedRow(msgspec.Struct, kw_only=True):
    """A row of an uploaded file that can't be used."""

    file_id: str
    row: int
    reason: str
    message: str


class DatasetStats(msgspec.Struct, kw_only=True):
    total: int
    valid: int
    invalid: int
    by_split: dict[str, SplitStats]
    validation_errors: dict[str, int]
    refused: list[RefusedRow]
    """The first of them, `limit` and `offset` page through the rest."""


@get("/projects/{project_id:uuid}/dataset/examples", summary="Examples, in the order of their files")
async def list_examples(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    split: Annotated[Split | None, QueryParameter(name="split")] = None,
    is_valid: Annotated[bool | None, QueryParameter(name="is_valid")] = None,
    reason: Annotated[str | None, QueryParameter(name="reason", max_length=100)] = None,
    file_id: Annotated[UUID | None, QueryParameter(name="file_id")] = None,
    format: Annotated[Format | None, QueryParameter(name="format")] = None,
    q: Annotated[str | None, QueryParameter(name="q", min_length=2, max_length=200)] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> ExamplePage:
    """`q` is looked for in all that they say, in upper or lower case; `reason` is a code as in the statistics. `stats` is of all examples, `total` of those asked for."""
    id = await known(request, project_id, db, commands)
    wanted = Wanted(split=split, is_valid=is_valid, reason=reason, file_id=str(file_id) if file_id else None, format=format, text=q)
    if any(text and "\0" in text for text in (reason, q)):
        raise Refused(400, "The character NUL is in no example")
    try:
        async with examples.looking(db) as session:
            dataset = await examples.dataset(session, id)
            rows = await examples.page(session, id, dataset, wanted, limit=limit, offset=offset)
            complete = 0 < len(rows) < limit or (not rows and offset == 0)
            total = offset + len(rows) if complete else await examples.count_found(session, id, dataset, wanted)
    except TimeoutError as error:
        if not q:
            raise
        message = f"q: to search all examples takes longer than {examples.PATIENCE:g} seconds; narrow it down with split, is_valid, reason, format or file_id"
        raise Refused(422, message, field="q") from error
    return ExamplePage(items=[_out(row) for row in rows], total=total, stats=_counts(dataset.groups))


@get("/projects/{project_id:uuid}/dataset/examples/{example_id:uuid}", summary="One example")
async def get_example(
    request: AnyRequest, project_id: FromPath[UUID], example_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[ExampleOut]:
    row = await examples.get(db, await known(request, project_id, db, commands), str(example_id))
    if row is None:
        raise NotFound(what="Example", id=str(example_id))
    return Response(_out(row), headers={"ETag": f'"{row.version}"'})


@patch("/projects/{project_id:uuid}/dataset/examples/{example_id:uuid}", summary="Edit an example, move it to another split, or judge it")
async def change_example(
    request: AnyRequest,
    project_id: FromPath[UUID],
    example_id: FromPath[UUID],
    data: JSONBody[ExamplePatch],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
) -> Response[ExampleOut]:
    """Edited data is checked as an uploaded row is, and makes a refused row valid. `is_valid` is your own judgement, it counts more than any check and stays until
    you change it; a row whose form was refused can't be made valid without an edit. With If-Match it is done only on the version you have seen. A training that
    is started goes by what was edited before."""
    if data.reason and data.is_valid is not False:
        raise Refused(422, "reason: goes with is_valid=false", field="reason")
    id = await known(request, project_id, db, commands)
    command = ChangeExample(
        project_id=id,
        example_id=str(example_id),
        content=None if data.data is UNSET else _content(data.data),
        split=data.split or None,
        is_valid=None if data.is_valid is UNSET else data.is_valid,
        message=data.reason or "",
    )
    outcome = await commands.run(command, origin=origin(request), if_match=if_match(request))
    return answered(outcome, _from_state(outcome.state), status=200)


@delete("/projects/{project_id:uuid}/dataset/examples/{example_id:uuid}", status_code=204, summary="Delete one example")
async def delete_example(
    request: AnyRequest, project_id: FromPath[UUID], example_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[None]:
    """With If-Match only the version you have seen."""
    command = DeleteExample(project_id=await known(request, project_id, db, commands), example_id=str(example_id))
    return answered(await commands.run(command, origin=origin(request), if_match=if_match(request)), None, status=204)


@get("/projects/{project_id:uuid}/dataset/stats", summary="What the data set consists of, and why rows were refused")
async def dataset_stats(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    limit: Limit = 100,
    offset: Offset = 0,
) -> DatasetStats:
    id = await known(request, project_id, db, commands)
    async with examples.looking(db) as session:
        dataset = await examples.dataset(session, id)
        lengths = await examples.lengths(session, dataset)
        refused = await examples.page(session, id, dataset, Wanted(is_valid=False), limit=limit, offset=offset)
    valid = [group for group in dataset.groups if group.is_valid]
    return DatasetStats(
        total=dataset.count(Wanted()),
        valid=dataset.count(Wanted(is_valid=True)),
        invalid=dataset.count(Wanted(is_valid=False)),
        by_split={split: _split([group for group in valid if group.split == split], lengths[split]) for split in sorted(lengths, reverse=True)},
        validation_errors=_reasons(dataset.groups),
        refused=[RefusedRow(file_id=row.file_id, row=row.row, reason=row.reason, message=row.message) for row in refused],
    )


handlers: list[Any] = [list_examples, get_example, change_example, delete_example, dataset_stats]


def _content(row: dict[str, Any]) -> Content:
    try:
        usable = checked(row)
    except Unusable as why:
        raise Refused(422, f"data: {why.message}", code=why.code, field="data") from why
    size = len(msgspec.json.encode(usable.data))
    if size > MOST_DATA:
        message = f"data: {size} bytes are more than the {MOST_DATA} that an edited example can have; delete this one, and upload the longer one as a file"
        raise Refused(422, message, code="example_too_large", field="data")
    return Content(format=usable.format, data=usable.data, tokens=count_tokens(usable.content))


def _out(row: examples.Row) -> ExampleOut:
    return ExampleOut(
        id=row.id,
        split=row.split,
        data=row.data,
        is_valid=row.is_valid,
        token_count=row.token_count,
        created_at=stamp(row.created_at),
        file_id=row.file_id,
        row=row.row,
        format=row.format,
        reason=row.reason or None,
        message=row.message or None,
    )


def _from_state(state: Example) -> ExampleOut:
    return ExampleOut(
        id=state.id,
        split=state.split,
        data=state.data,
        is_valid=state.is_valid,
        token_count=state.tokens,
        created_at=stamp(state.created_at),
        file_id=state.file_id,
        row=state.row,
        format=state.format,
        reason=state.reason or None,
        message=state.message or None,
    )


def _counts(groups: list[Group]) -> Counts:
    """Splits and lengths count what can be trained on."""
    valid = [group for group in groups if group.is_valid]
    count = sum(group.count for group in valid)
    return Counts(
        total=sum(group.count for group in groups),
        valid=count,
        invalid=sum(group.count for group in groups if not group.is_valid),
        train=sum(group.count for group in valid if group.split == "train"),
        eval=sum(group.count for group in valid if group.split == "eval"),
        avg_token_count=round(sum(group.tokens for group in valid) / count) if count else 0,
    )


def _split(groups: list[Group], lengths: examples.Lengths) -> SplitStats:
    count = sum(group.count for group in groups)
    return SplitStats(count=count, avg_tokens=round(sum(group.tokens for group in groups) / count), min_tokens=lengths.least, max_tokens=lengths.most)


def _reasons(groups: list[Group]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in groups:
        if not group.is_valid:
            counts[group.reason] = counts.get(group.reason, 0) + group.count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
