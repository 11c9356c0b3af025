"""The chunks that a project's documents were cut into, and which of all that jobs made is shown."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import ProjectDeleted, ProjectFileDeleted, Recorded
from services.gateway.views.rows import Drop, Operation
from services.gateway.views.schema import JSON, BigInteger, Column, DateTime, Index, Integer, Table, Text, views

chunks = Table(
    "chunks",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("chunk_index", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("token_count", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("chunks_of_project", "project_id", "position", "chunk_index"),
    Index("chunks_of_file", "file_id"),
    Index("chunks_of_job", "job_id"),
)

MADE = "('chunk', 'preview', 'generate')"
"""Kinds of jobs that make rows of a project: what one of them made takes the place of what an earlier one did."""

OUTDATED = f"""(j.kind in {MADE} and (j.status <> 'succeeded'
    or exists (select from jobs n where n.project_id = j.project_id and n.kind = j.kind and n.status = 'succeeded' and (n.created_at, n.id) > (j.created_at, j.id))))"""
"""Of a job j: its rows are not shown, because they are not all there, never will be, or newer ones are."""

HIDDEN = f"(select j.id from jobs j where j.project_id = $1 and {OUTDATED})"


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case ProjectFileDeleted(file_id=file_id):
            yield Drop(chunks, "file_id", [file_id])
        case ProjectDeleted(project_id=project_id):
            yield Drop(chunks, "project_id", [project_id])
        case _:
            return


class Row(msgspec.Struct, frozen=True):
    """Fields in the order of the query's columns."""

    id: str
    file_id: str
    chunk_index: int
    content: str
    token_count: int
    metadata: Any
    created_at: datetime


async def page(db: asyncpg.Pool, project_id: str, *, file_id: str | None, limit: int, offset: int) -> tuple[list[Row], int]:
    """In the order of the documents, with the number of all that match."""
    where = f"project_id = $1 and ($2::text is null or file_id = $2) and job_id not in {HIDDEN}"
    rows = await db.fetch(
        f"""select id, file_id, chunk_index, content, token_count, metadata, created_at from chunks
             where {where} order by position, chunk_index limit $3 offset $4""",
        project_id,
        file_id,
        limit,
        offset,
    )
    total = len(rows) if offset == 0 and len(rows) < limit else await db.fetchval(f"select count(*) from chunks where {where}", project_id, file_id)
    return [Row(*row) for row in rows], total


async def clear(db: asyncpg.Pool) -> None:
    """Removes what is outdated for good; the sweep then finds that nothing refers to its objects."""
    gone = await db.fetch(
        f"""select distinct p.job_id from parts p join jobs j on j.id = p.job_id where j.status in ('succeeded', 'failed', 'cancelled') and {OUTDATED}"""
    )
    for row in gone:  # a job at a time: whoever else writes examples waits for it
        async with db.acquire() as session, session.transaction():
            for table in ("chunks", "example_edits", "examples", "parts"):
                await session.execute(f"delete from {table} where job_id = $1", row["job_id"])
