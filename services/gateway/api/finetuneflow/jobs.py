"""Jobs: what runs or ran for a project, and how to stop it."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from libs.events.log import EventLog
from services.gateway.api.asked import as_asked
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.words import STATUS, SYNONYMS, TYPES, Queued, eta, progress, stamp, stamp_or_none
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, Limit, Offset, answered, origin, tenant
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.domain.jobs import CancelJob, Job
from services.gateway.domain.project import ChunkDocuments, GenerateExamples
from services.gateway.views import jobs


class JobOut(msgspec.Struct, kw_only=True):
    id: str
    type: str
    status: str
    progress_pct: int
    result_summary: dict[str, Any] | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    error_message: str | None
    project_id: str
    cancel_requested: bool
    message: str
    eta_seconds: int | None
    """Until the end, as the work goes now; null while nothing is known: before it goes on, when it stands still, and once it has ended."""


class JobDetail(JobOut, kw_only=True):
    result: Any


class JobPage(msgspec.Struct, kw_only=True):
    jobs: list[JobOut]
    total: int
    limit: int
    offset: int


class Cancelled(msgspec.Struct, kw_only=True):
    status: str = "cancelled"


@get("/projects/{project_id:uuid}/jobs", summary="Jobs of a project, newest first")
async def list_jobs(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    type: Annotated[str | None, QueryParameter(name="type", max_length=50)] = None,
    status: Annotated[str | None, QueryParameter(name="status", max_length=50)] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> JobPage:
    id = await known(request, project_id, db, commands)
    if status is not None and status not in SYNONYMS:
        raise Refused(422, f"status: must be one of {', '.join(sorted(set(STATUS.values())))}", field="status")
    statuses = list(SYNONYMS[status]) if status else None
    rows, total = await jobs.of_project(
        db, tenant(request), id, kinds=[_KINDS.get(type, type)] if type else None, statuses=statuses, limit=limit, offset=offset
    )
    now = datetime.now(UTC)
    return JobPage(jobs=[JobOut(**_fields(row, now=now)) for row in rows], total=total, limit=limit, offset=offset)


@get("/jobs/{job_id:uuid}", summary="One job")
async def get_job(request: AnyRequest, job_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]) -> JobDetail:
    if row := await jobs.get(db, tenant(request), str(job_id)):
        return JobDetail(**_fields(row, now=datetime.now(UTC)), result=row.result)
    state, _ = await commands.newest(Job, str(job_id), tenant=tenant(request))
    if state is None:
        raise NotFound(what="Job", id=str(job_id))
    return JobDetail(
        id=state.id,
        type=TYPES.get(state.kind, state.kind),
        status=STATUS[state.status.value],
        progress_pct=0,
        result_summary=None,
        created_at=stamp(state.created_at),
        started_at=None,
        finished_at=None,
        error_message=None,
        project_id=state.project_id,
        cancel_requested=state.cancel_requested,
        message="",
        eta_seconds=None,
        result=None,
    )


@post("/jobs/{job_id:uuid}/cancel", status_code=200, summary="Cancel a job")
async def cancel_job(request: AnyRequest, job_id: FromPath[UUID], commands: NamedDependency[Commands]) -> Response[Cancelled]:
    """Asked twice is asked once; 409 when the job has ended otherwise. Whoever does the work stops it within moments."""
    return answered(await commands.run(CancelJob(job_id=str(job_id)), origin=origin(request)), Cancelled(), status=200)


_KINDS = {type: kind for kind, type in TYPES.items()}

handlers: list[Any] = [list_jobs, get_job, cancel_job]


async def enqueued(request: AnyRequest, commands: Commands, log: EventLog, command: ChunkDocuments | GenerateExamples, *, message: str) -> Response[Queued]:
    """A job of the project's own that has only to be ordered."""
    outcome = await commands.run(command, origin=origin(request))
    if not outcome.events:
        await as_asked(log, tenant(request), command.job_id, command.request)
    return answered(outcome, Queued(job_id=command.job_id, message=message), status=202)


def _fields(row: jobs.Row, *, now: datetime) -> dict[str, Any]:
    return {
        "id": row.id,
        "type": TYPES.get(row.kind, row.kind),
        "status": STATUS[row.shown],
        "progress_pct": progress(row.shown, row.progress),
        "result_summary": _summary(row),
        "created_at": stamp(row.created_at),
        "started_at": stamp_or_none(row.started_at),
        "finished_at": stamp_or_none(row.finished_at) if row.shown in ("succeeded", "failed", "cancelled") else None,
        "error_message": row.error,
        "project_id": row.project_id,
        "cancel_requested": row.cancel_requested,
        "message": row.message,
        "eta_seconds": eta(row.shown, row.cancel_requested, row, now),
    }


def _summary(row: jobs.Row) -> dict[str, Any] | None:
    if row.result is None:
        return None
    result = msgspec.json.decode(row.result)
    match result:
        case {"steps": int(steps), "metrics": dict(metrics)}:
            return {"steps": steps, **metrics}
        case {"files": dict(files)}:
            return {"files": len(files), "size_bytes": sum(files.values())}
        case {"generator": str()}:
            made = {"total_generated": result["rows"], "valid": result["valid"], "invalid": result["rows"] - result["valid"]}
            return made | {key: result[key] for key in ("refused", "splits", "generator", "model", "notes") if result.get(key)}
        case {"tokenizer": str(tokenizer)}:
            return {"chunks": result["rows"], "tokenizer": tokenizer} | {key: result[key] for key in ("refused_files", "notes") if result.get(key)}
        case _:
            return {"total": result.get("rows", 0), "valid": result.get("valid", 0), "invalid": result.get("rows", 0) - result.get("valid", 0)}
