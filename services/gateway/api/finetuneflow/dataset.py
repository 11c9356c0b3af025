"""The data set of a project: its examples, and what became of every row that was uploaded."""

from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.words import stamp
from services.gateway.api.requests import AnyRequest, Limit, Offset, answered, origin
from services.gateway.commands import Commands
from services.gateway.domain.example import DeleteExample
from services.gateway.views import examples
from services.gateway.views.examples import Group

Split = Literal["preview", "train", "eval"]


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
    limit: Limit = 50,
    offset: Offset = 0,
) -> ExamplePage:
    id = await known(request, project_id, db, commands)
    rows = await examples.page(db, id, split=split, is_valid=is_valid, limit=limit, offset=offset)
    groups = await examples.groups(db, id)
    total = sum(group.count for group in groups if split in (None, group.split) and is_valid in (None, group.is_valid))
    return ExamplePage(items=[_out(row) for row in rows], total=total, stats=_counts(groups))


@delete("/projects/{project_id:uuid}/dataset/examples/{example_id:uuid}", status_code=204, summary="Delete one example")
async def delete_example(
    request: AnyRequest, project_id: FromPath[UUID], example_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[None]:
    id = await known(request, project_id, db, commands)
    return answered(await commands.run(DeleteExample(project_id=id, example_id=str(example_id)), origin=origin(request)), None, status=204)


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
    groups = await examples.groups(db, id)
    refused = await examples.page(db, id, split=None, is_valid=False, limit=limit, offset=offset)
    return DatasetStats(
        total=sum(group.count for group in groups),
        valid=sum(group.count for group in groups if group.is_valid),
        invalid=sum(group.count for group in groups if not group.is_valid),
        by_split={group.split: _split(group) for group in sorted(groups, key=lambda group: group.split, reverse=True) if group.is_valid},
        validation_errors=await examples.reasons(db, id),
        refused=[RefusedRow(file_id=row.file_id, row=row.row, reason=row.reason, message=row.message) for row in refused],
    )


handlers: list[Any] = [list_examples, delete_example, dataset_stats]


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


def _split(group: Group) -> SplitStats:
    return SplitStats(count=group.count, avg_tokens=round(group.tokens / group.count), min_tokens=group.least, max_tokens=group.most)
