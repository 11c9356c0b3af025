"""The rows of data sets: parts that wait to be loaded, examples, and what people did to single ones."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import ExampleDeleted, PreparationProduced, ProjectDeleted, ProjectFileDeleted, Recorded
from services.gateway.domain.example import Example
from services.gateway.views.chunks import HIDDEN, OUTDATED
from services.gateway.views.rows import Drop, Operation, Put
from services.gateway.views.schema import JSON, BigInteger, Boolean, Column, DateTime, Index, Integer, Table, Text, views

parts = Table(
    "parts",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("part", Integer, nullable=False),
    Column("key", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("valid", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("parts_of_job", "job_id", "state"),
    Index("parts_of_file", "file_id"),
    Index("parts_pending", "seq", postgresql_where="state = 'pending'"),
    Index("parts_by_key", "key"),
)
examples = Table(
    "examples",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("row", Integer, nullable=False),
    Column("split", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Column("is_valid", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("token_count", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("examples_of_project", "project_id", "position", "row"),
    Index("examples_of_job", "job_id"),
    Index("examples_of_file", "file_id"),
)
example_edits = Table(
    "example_edits",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("example_edits_of_project", "project_id"),
)


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case PreparationProduced(job_id=job_id, part=part, content=content) as event:
            yield Put(
                parts,
                {
                    "id": f"{job_id}/{part}",
                    "tenant": recorded.tenant,
                    "job_id": job_id,
                    "file_id": event.file_id,
                    "part": part,
                    "key": content.key,
                    "sha256": content.sha256,
                    "size": content.size,
                    "rows": event.rows,
                    "valid": event.valid,
                    "state": "pending",
                    "seq": recorded.seq,
                    "created_at": recorded.at,
                },
            )
        case ExampleDeleted(project_id=project_id, example_id=id):
            yield Put(example_edits, {"id": id, "tenant": recorded.tenant, "project_id": project_id, "deleted": True, "version": recorded.seq})
        case ProjectFileDeleted(file_id=file_id, job_id=job_id):
            yield Drop(parts, "job_id", [job_id] if job_id else [])
            yield Drop(parts, "file_id", [file_id])
            yield Drop(examples, "file_id", [file_id])
        case ProjectDeleted(project_id=project_id, job_ids=job_ids):
            yield Drop(parts, "job_id", job_ids)
            yield Drop(examples, "project_id", [project_id])
            yield Drop(example_edits, "project_id", [project_id])
        case _:
            return


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An example as people see it; a refused one holds what was in the file, with the reason."""

    id: str
    split: str
    data: Any
    is_valid: bool
    token_count: int
    created_at: datetime
    file_id: str
    row: int
    format: str
    reason: str
    message: str


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """How many examples of one split, usable or refused, and how long they are."""

    split: str
    is_valid: bool
    count: int
    tokens: int
    least: int
    most: int


_THERE = f"not exists (select from example_edits e where e.id = x.id and e.deleted) and x.job_id not in {HIDDEN}"


async def page(db: asyncpg.Pool, project_id: str, *, split: str | None, is_valid: bool | None, limit: int, offset: int) -> list[Row]:
    """In the order of the files they came from."""
    rows = await db.fetch(
        f"""select x.id, x.split, x.data, x.is_valid, x.token_count, x.created_at, x.file_id, x.row, x.format, x.reason, x.message
              from examples x
             where x.project_id = $1 and ($2::text is null or x.split = $2) and ($3::bool is null or x.is_valid = $3) and {_THERE}
             order by x.position, x.row limit $4 offset $5""",
        project_id,
        split,
        is_valid,
        limit,
        offset,
    )
    return [Row(**row) for row in rows]


async def groups(db: asyncpg.Pool, project_id: str) -> list[Group]:
    rows = await db.fetch(
        f"""select x.split, x.is_valid, count(*) as count, sum(x.token_count) as tokens, min(x.token_count) as least, max(x.token_count) as most
              from examples x where x.project_id = $1 and {_THERE} group by 1, 2""",
        project_id,
    )
    return [Group(**row) for row in rows]


async def reasons(db: asyncpg.Pool, project_id: str) -> dict[str, int]:
    rows = await db.fetch(
        f"select x.reason, count(*) from examples x where x.project_id = $1 and not x.is_valid and {_THERE} group by 1 order by 2 desc, 1",
        project_id,
    )
    return dict(rows)


async def next_part(db: asyncpg.Pool) -> asyncpg.Record | None:
    """The oldest that waits to be loaded, whether what it was made from is still there, and whether anybody wants it any more."""
    return await db.fetchrow(
        f"""select p.*, j.kind, j.project_id, {OUTDATED} and j.status in ('succeeded', 'failed', 'cancelled') as outdated,
                  case j.kind when 'ingest' then exists (select from files f where f.job_id = p.job_id)
                              else exists (select from projects o where o.id = j.project_id)
                                   and (p.file_id = '' or exists (select from files f where f.id = p.file_id)) end as owned
             from parts p left join jobs j on j.id = p.job_id where p.state = 'pending' order by p.seq limit 1"""
    )


async def load(db: asyncpg.Pool, tenant: str, project_id: str, example_id: str) -> tuple[Example | None, int]:
    row = await db.fetchrow(
        """select coalesce(e.deleted, false) as deleted, coalesce(e.version, 0) as version
             from examples x left join example_edits e on e.id = x.id where x.tenant = $1 and x.project_id = $2 and x.id = $3""",
        tenant,
        project_id,
        example_id,
    )
    return (Example(id=example_id, deleted=row["deleted"]), row["version"]) if row else (None, 0)
