"""Jobs: their table, what fills it, what reads it."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Float

from libs.events import (
    Claim,
    ExportCancelled,
    ExportCompleted,
    ExportFailed,
    ExportProgressed,
    ExportStarted,
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProgressed,
    PreparationStarted,
    Recorded,
    TrainingAttemptLost,
    TrainingBatchReduced,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
)
from libs.pace import Speed, eta_seconds
from services.gateway.domain.jobs import Job, Status
from services.gateway.views.rows import Change, Operation, Put
from services.gateway.views.schema import JSON, SEEN, BigInteger, Boolean, Column, Computed, DateTime, Index, Integer, Table, Text, views

STATUS = """case when phase in ('failed', 'cancelled') then phase
                 when phase = 'completed' and stage = stages ->> -1 then 'succeeded'
                 when phase = 'started' and stage = stages ->> -1 then 'running'
                 when phase in ('started', 'completed') and stage <> 'preparation' then 'running'
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
    Column("started_by", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("status", Text, Computed(STATUS, persisted=True)),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("left_over", BigInteger, nullable=False),
    Column("made", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("paced_at", DateTime(timezone=True)),
    Column("result", JSON),
    Column("error", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Column("version", BigInteger, nullable=False),
    Index("jobs_of_project", "project_id", "created_at", "id"),
    Index("jobs_newest", "tenant", "created_at", "id"),
    Index("jobs_trained_by", "started_by", postgresql_where="kind = 'train'"),
)

SEEN.append("""create view jobs_seen as
select j.*, case when j.status <> 'succeeded' then j.status
                 when exists (select from parts p where p.job_id = j.id and p.state = 'broken') then 'failed'
                 when exists (select from parts p where p.job_id = j.id and p.state = 'pending') then 'running'
                 else 'succeeded' end as shown,
       case when j.status = 'succeeded' and exists (select from parts p where p.job_id = j.id and p.state = 'broken')
            then 'Some of its rows are missing or damaged in the object store; delete the file and upload it again.'
            else j.error end as why
  from jobs j""")
"""A job shows success only when its rows can be read too. `status` is what the log says, `shown` what people see."""

_COLUMNS = """id, project_id, kind, shown, cancel_requested, progress, message, result, why as error, created_at, started_at, finished_at, version,
              left_over, made, seconds, paced_at"""


_MERGED = 50
"""Percent of an export of a merged model, when it is merged."""


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
                    "started_by": recorded.envelope.actor,
                    "stage": "",
                    "phase": "",
                    "cancel_requested": False,
                    "progress": 0,
                    "message": "",
                    **_AT_NO_PACE,
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
        case PreparationProgressed(job_id=id, done=done, total=total, message=message) as event:
            yield Change(jobs, id, {"progress": _share(done, total), "message": message, **_paced(recorded, event, left=total - done)})
        case PreparationCompleted(job_id=id, parts=0, snapshot=Claim()):  # nothing but a snapshot is for the stage that comes next
            yield Change(jobs, id, {"stage": "preparation", "phase": "completed"})
        case PreparationCompleted(job_id=id) as event:
            yield _ended(recorded, id, "preparation", "completed", progress=100, result=_prepared(event))
        case PreparationFailed(job_id=id, message=message):
            yield _ended(recorded, id, "preparation", "failed", error=message)
        case PreparationCancelled(job_id=id):
            yield _ended(recorded, id, "preparation", "cancelled")
        case TrainingStarted(job_id=id, merge=True, attempt=attempt):
            began = {"started_at": recorded.at, "message": "Merging the adapter into its base"} if attempt == 1 else {"message": "Merging once more"}
            yield Change(jobs, id, {"stage": "training", "phase": "started", **began, **_AT_NO_PACE})
        case TrainingStarted(job_id=id, attempt=1, device=device):
            message = f"Loading the model on {device or 'a worker'}"
            yield Change(jobs, id, {"stage": "training", "phase": "started", "progress": 0, "message": message, **_AT_NO_PACE})
        case TrainingStarted(job_id=id, resumed_from=step):  # what was done stays to be seen
            message = f"Going on behind step {step}" if step else "Beginning anew, for the worker was lost"
            yield Change(jobs, id, {"stage": "training", "phase": "started", "message": message, **_AT_NO_PACE})
        case TrainingProgressed(job_id=id, step=step, total_steps=total) as event:
            yield Change(
                jobs, id, {"progress": _share(step, total), "message": event.doing or f"Step {step}/{total}", **_paced(recorded, event, left=total - step)}
            )
        case TrainingBatchReduced(job_id=id, micro_tokens=tokens):
            yield Change(jobs, id, {"message": f"The device's memory is small: {tokens} tokens at once from here on, with the same result"})
        case TrainingAttemptLost(job_id=id, attempt=attempt, cause=cause):
            yield Change(jobs, id, {"message": f"Attempt {attempt} was lost ({cause}): it will go on from its last checkpoint, or begin again", **_AT_NO_PACE})
        case TrainingCompleted(job_id=id, merge=True):
            yield Change(jobs, id, {"stage": "training", "phase": "completed", "progress": _MERGED, **_AT_NO_PACE})
        case TrainingCompleted(job_id=id) as event:
            files = {name: claim.size for name, claim in event.artifacts.items()}
            result = {"steps": event.step, "attempt": event.attempt, "metrics": event.metrics, "artifacts": files, "summary": event.summary}
            yield _ended(recorded, id, "training", "completed", progress=100, result=result)
        case TrainingFailed(job_id=id, message=message):
            yield _ended(recorded, id, "training", "failed", error=message)
        case TrainingCancelled(job_id=id):
            yield _ended(recorded, id, "training", "cancelled")
        case ExportStarted(job_id=id, merged=True):
            yield Change(jobs, id, {"stage": "export", "phase": "started"})
        case ExportStarted(job_id=id):
            yield Change(jobs, id, {"stage": "export", "phase": "started", "started_at": recorded.at})
        case ExportProgressed(job_id=id, done=done, total=total, doing=doing) as event:
            yield Change(jobs, id, {"progress": _share(done, total), "message": doing, **_paced(recorded, event, left=total - done)})
        case ExportCompleted(job_id=id, files=files):
            yield _ended(recorded, id, "export", "completed", progress=100, result={"files": {file.name: file.content.size for file in files}})
        case ExportFailed(job_id=id, message=message):
            yield _ended(recorded, id, "export", "failed", error=message)
        case ExportCancelled(job_id=id):
            yield _ended(recorded, id, "export", "cancelled")
        case _:
            return


def _prepared(event: PreparationCompleted) -> dict[str, Any]:
    made = {name: value for name in ("generator", "model", "tokenizer", "splits", "refused_files", "notes", "task") if (value := getattr(event, name))}
    return {"rows": event.rows, "valid": event.valid, "refused": event.refused} | made


def _ended(recorded: Recorded, job_id: str, stage: str, phase: str, **columns: Any) -> Change:
    return Change(jobs, job_id, {"stage": stage, "phase": phase, "message": "", **_AT_NO_PACE, **columns, "finished_at": recorded.at})


_AT_NO_PACE: dict[str, Any] = {"left_over": 0, "made": 0, "seconds": 0.0, "paced_at": None}


def _paced(recorded: Recorded, event: PreparationProgressed | TrainingProgressed | ExportProgressed, *, left: int) -> dict[str, Any]:
    return {"left_over": left, "made": event.made, "seconds": event.seconds, "paced_at": recorded.at}


def _share(done: int, total: int) -> int:
    """Never all of it before the end."""
    return max(0, min(99, 100 * done // max(1, total)))


def columns(operation: Operation) -> dict[str, Any]:
    """What a fact changes of its job's row, for who reads the log itself."""
    match operation:
        case Put(table=table, row=row) if table is jobs:
            return dict(row)
        case Change(table=table, columns=changed) if table is jobs:
            return dict(changed)
        case _:
            return {}


class Paced(msgspec.Struct, frozen=True, kw_only=True):
    """What was left to do, and how fast it went, when that was told last."""

    left_over: int
    made: int
    seconds: float
    paced_at: datetime | None

    def until_done(self, now: datetime) -> int | None:
        if self.paced_at is None:
            return None
        return eta_seconds(self.left_over, Speed(made=self.made, seconds=self.seconds), since=(now - self.paced_at).total_seconds())


class Row(Paced, frozen=True, kw_only=True):
    """A job as people see it."""

    id: str
    project_id: str
    kind: str
    shown: str
    cancel_requested: bool
    progress: int
    message: str
    result: Any
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int


async def get(db: asyncpg.Pool, tenant: str, job_id: str) -> Row | None:
    row = await db.fetchrow(f"select {_COLUMNS} from jobs_seen where tenant = $1 and id = $2", tenant, job_id)
    return Row(**row) if row else None


async def active(db: asyncpg.Pool, tenants: list[str]) -> tuple[list[tuple[str, str]], int]:
    """Workspace and id of the jobs that have not ended, oldest first, and up to which position of the log that is true."""
    row = await db.fetchrow(
        """select array(select tenant || '/' || id from jobs
                         where tenant = any($1) and status in ('queued', 'preparing', 'running') order by created_at, id) as found,
                  (select seq from checkpoints where name = current_schema()) as seq""",
        tenants,
    )
    return [(tenant, id) for tenant, _, id in (text.partition("/") for text in row["found"])], row["seq"]


async def of_project(
    db: asyncpg.Pool, tenant: str, project_id: str, *, kinds: list[str] | None, statuses: list[str] | None, limit: int, offset: int
) -> tuple[list[Row], int]:
    """Newest first, with the number of all that match."""
    where = "tenant = $1 and project_id = $2 and ($3::text[] is null or kind = any($3)) and ($4::text[] is null or shown = any($4))"
    arguments = (tenant, project_id, kinds, statuses)
    rows = await db.fetch(f"select {_COLUMNS} from jobs_seen where {where} order by created_at desc, id desc limit $5 offset $6", *arguments, limit, offset)
    total = len(rows) if offset == 0 and len(rows) < limit else await db.fetchval(f"select count(*) from jobs_seen where {where}", *arguments)
    return [Row(**row) for row in rows], total


async def all_of_project(db: asyncpg.Pool, tenant: str, project_id: str) -> list[tuple[str, bool]]:
    """Also when that is gone; with whether it goes on and nobody has asked for its end."""
    rows = await db.fetch(
        """select id, status in ('queued', 'preparing', 'running') and not cancel_requested as goes_on
             from jobs where tenant = $1 and project_id = $2 order by created_at, id""",
        tenant,
        project_id,
    )
    return [(row["id"], row["goes_on"]) for row in rows]


async def going_on(db: asyncpg.Pool, tenant: str, ids: list[str]) -> list[str]:
    """Those of the jobs that go on, and whose end nobody has asked for."""
    rows = await db.fetch(
        "select id from jobs where tenant = $1 and id = any($2) and status in ('queued', 'preparing', 'running') and not cancel_requested order by id",
        tenant,
        ids,
    )
    return [row["id"] for row in rows]


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
