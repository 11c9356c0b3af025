"""Jobs: their table, what fills it, what reads it."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import (
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProgressed,
    PreparationStarted,
    Recorded,
)
from services.gateway.domain.jobs import Job, Status
from services.gateway.views.rows import Change, Operation, Put
from services.gateway.views.schema import JSON, SEEN, BigInteger, Boolean, Column, Computed, DateTime, Index, Integer, Table, Text, views

STATUS = """case when phase in ('failed', 'cancelled') then phase
                 when phase = 'completed' and stage = stages ->> -1 then 'succeeded'
                 when phase = 'started' and stage = stages ->> -1 then 'running'
                 when phase = '' then 'queued'
                 else 'preparing' end"""
"""Follows from the latest fact of the latest stage; domain/jobs.py says the same of a story."""

jobs = Table(
    "jobs",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("stages", JSON, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("stage", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("status", Text, Computed(STATUS, persisted=True)),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("result", JSON),
    Column("error", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Column("version", BigInteger, nullable=False),
    Index("jobs_of_project", "project_id", "created_at", "id"),
    Index("jobs_newest", "tenant", "created_at", "id"),
)

SEEN.append("""create view jobs_seen as
select j.*, case when j.status <> 'succeeded' then j.status
                 when exists (select from parts p where p.job_id = j.id and p.state = 'broken') then 'failed'
                 when exists (select from parts p where p.job_id = j.id and p.state = 'pending') then 'running'
                 else 'succeeded' end as shown
  from jobs j""")
"""A job shows success only when its rows can be read too. `status` is what the log says, `shown` what people see."""

_COLUMNS = "id, project_id, kind, shown, cancel_requested, progress, result, error, created_at, started_at, finished_at, version"


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case JobCreated() as event:
            yield Put(
                jobs,
                {
                    "id": event.job_id,
                    "tenant": recorded.tenant,
                    "project_id": event.project_id,
                    "kind": event.kind,
                    "stages": event.stages,
                    "inputs": event.inputs,
                    "stage": "",
                    "phase": "",
                    "cancel_requested": False,
                    "progress": 0,
                    "result": None,
                    "error": None,
                    "created_at": recorded.at,
                    "started_at": None,
                    "finished_at": None,
                    "version": recorded.seq,
                },
            )
        case JobCancelRequested(job_id=id):
            yield Change(jobs, id, {"cancel_requested": True, "version": recorded.seq})
        case PreparationStarted(job_id=id):
            yield Change(jobs, id, {"stage": "preparation", "phase": "started", "started_at": recorded.at})
        case PreparationProgressed(job_id=id, done=done, total=total):
            yield Change(jobs, id, {"progress": min(99, 100 * done // max(1, total))})
        case PreparationCompleted(job_id=id) as event:
            result = {"rows": event.rows, "valid": event.valid, "refused": event.refused}
            yield Change(jobs, id, {"stage": "preparation", "phase": "completed", "progress": 100, "result": result, "finished_at": recorded.at})
        case PreparationFailed(job_id=id, message=message):
            yield Change(jobs, id, {"stage": "preparation", "phase": "failed", "error": message, "finished_at": recorded.at})
        case PreparationCancelled(job_id=id):
            yield Change(jobs, id, {"stage": "preparation", "phase": "cancelled", "finished_at": recorded.at})
        case _:
            return


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A job as people see it."""

    id: str
    project_id: str
    kind: str
    shown: str
    cancel_requested: bool
    progress: int
    result: Any
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int


async def get(db: asyncpg.Pool, tenant: str, job_id: str) -> Row | None:
    row = await db.fetchrow(f"select {_COLUMNS} from jobs_seen where tenant = $1 and id = $2", tenant, job_id)
    return Row(**row) if row else None


async def of_project(
    db: asyncpg.Pool, tenant: str, project_id: str, *, kinds: list[str] | None, statuses: list[str] | None, limit: int, offset: int
) -> tuple[list[Row], int]:
    """Newest first, with the number of all that match."""
    where = "tenant = $1 and project_id = $2 and ($3::text[] is null or kind = any($3)) and ($4::text[] is null or shown = any($4))"
    arguments = (tenant, project_id, kinds, statuses)
    rows = await db.fetch(f"select {_COLUMNS} from jobs_seen where {where} order by created_at desc, id desc limit $5 offset $6", *arguments, limit, offset)
    total = len(rows) if offset == 0 and len(rows) < limit else await db.fetchval(f"select count(*) from jobs_seen where {where}", *arguments)
    return [Row(**row) for row in rows], total


async def load(db: asyncpg.Pool, tenant: str, job_id: str) -> tuple[Job | None, int]:
    row = await db.fetchrow(
        "select id, project_id, kind, stages, status, cancel_requested, created_at, version from jobs where tenant = $1 and id = $2", tenant, job_id
    )
    if row is None:
        return None, 0
    state = Job(
        id=row["id"],
        kind=row["kind"],
        stages=msgspec.json.decode(row["stages"]),
        status=Status(row["status"]),
        project_id=row["project_id"],
        cancel_requested=row["cancel_requested"],
        created_at=row["created_at"],
    )
    return state, row["version"]
