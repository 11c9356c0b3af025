"""Runs, which is what people call train jobs, and what was exported of them: their tables, what fills them, what reads them."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import (
    Claim,
    ExportCompleted,
    ExportedFile,
    JobCreated,
    PreparationCompleted,
    ProjectDeleted,
    Recorded,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingSampled,
    TrainingStarted,
)
from services.gateway.domain.jobs import EXPORT, TRAIN, Status, run_id
from services.gateway.views.jobs import Paced
from services.gateway.views.rows import Change, Drop, Operation, Put
from services.gateway.views.schema import JSON, BigInteger, Boolean, Column, DateTime, Index, Integer, Table, Text, views

runs = Table(
    "runs",
    views,
    Column("id", Text, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("smoke", Boolean, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("total_steps", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("evaluation", JSON, nullable=False),
    Column("final", JSON, nullable=False),
    Column("samples", JSON, nullable=False),
    Column("snapshot", JSON),
    Column("splits", JSON, nullable=False),
    Column("checkpoint_step", BigInteger, nullable=False),
    Column("steps", JSON),
    Column("artifacts", JSON, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Index("runs_of_project", "project_id", "created_at", "id"),
)
exports = Table(
    "exports",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("training_job_id", Text, nullable=False),
    Column("files", JSON),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("exports_of_project", "project_id", "created_at", "id"),
)


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case JobCreated(kind=kind) as event if kind == TRAIN:
            yield Put(runs, _new_run(recorded, event))
        case JobCreated(kind=kind) as event if kind == EXPORT:
            row = {"id": event.job_id, "tenant": recorded.tenant, "project_id": event.project_id, "training_job_id": event.inputs["training_job_id"]}
            yield Put(exports, {**row, "files": None, "created_at": recorded.at})
        case PreparationCompleted(job_id=id, snapshot=Claim() as snapshot, splits=splits):
            yield Change(runs, id, {"snapshot": _json(snapshot), "splits": splits})
        case TrainingStarted(job_id=id, attempt=1, device=device):
            yield Change(runs, id, {"attempt": 1, "device": device, "started_at": recorded.at})
        case TrainingStarted(job_id=id, attempt=attempt, device=device):
            yield Change(runs, id, {"attempt": attempt, "device": device})
        case TrainingProgressed(job_id=id) as event:
            yield Change(runs, id, {"step": event.step, "total_steps": event.total_steps, "metrics": {**event.metrics, "epoch": event.epoch}})
        case TrainingEvaluated(job_id=id, metrics=metrics):
            yield Change(runs, id, {"evaluation": metrics})
        case TrainingSampled(job_id=id, samples=samples):
            yield Change(runs, id, {"samples": samples})
        case TrainingCheckpointed(job_id=id, step=step, steps=steps):
            yield Change(runs, id, {"checkpoint_step": step, "steps": _json(steps)})
        case TrainingCompleted(job_id=id) as event:
            artifacts = {name: _json(claim) for name, claim in event.artifacts.items()}
            result = {"step": event.step, "artifacts": artifacts, "steps": _json(event.steps), "final": event.metrics, "summary": event.summary}
            yield Change(runs, id, {**result, "finished_at": recorded.at})
        case TrainingFailed(job_id=id, steps=Claim() as steps) | TrainingCancelled(job_id=id, steps=Claim() as steps):
            yield Change(runs, id, {"steps": _json(steps), "finished_at": recorded.at})
        case TrainingFailed(job_id=id) | TrainingCancelled(job_id=id):
            yield Change(runs, id, {"finished_at": recorded.at})
        case ExportCompleted(job_id=id, files=files):
            yield Change(exports, id, {"files": msgspec.to_builtins(files)})
        case ProjectDeleted(project_id=id):
            yield Drop(runs, "project_id", [id])
            yield Drop(exports, "project_id", [id])
        case _:
            return


def _new_run(recorded: Recorded, event: JobCreated) -> dict[str, Any]:
    return {
        "id": event.job_id,
        "run_id": run_id(event.job_id),
        "tenant": recorded.tenant,
        "project_id": event.project_id,
        "method": event.spec.get("method", ""),
        "smoke": event.spec.get("smoke", False),
        "spec": event.spec,
        "attempt": 0,
        "device": "",
        "step": 0,
        "total_steps": 0,
        "metrics": {},
        "evaluation": {},
        "final": {},
        "samples": [],
        "snapshot": None,
        "splits": {},
        "checkpoint_step": 0,
        "steps": None,
        "artifacts": {},
        "summary": {},
        "created_at": recorded.at,
        "started_at": None,
        "finished_at": None,
    }


def _json(claim: Claim) -> dict[str, Any]:
    return msgspec.to_builtins(claim)


class Run(Paced, frozen=True, kw_only=True):
    """A run as people see it. `steps` is the log of its steps as far as it is stored, `checkpoint_step` the last one that it could go on behind."""

    job_id: str
    run_id: str
    project_id: str
    status: Status
    cancel_requested: bool
    message: str
    error: str | None
    progress: int
    method: str
    smoke: bool
    spec: dict[str, Any]
    attempt: int
    device: str
    step: int
    total_steps: int
    metrics: dict[str, float | None]
    """The newest of each: of the last step told, of the last evaluation, and of the end."""
    samples: list[dict[str, Any]]
    snapshot: Claim | None
    splits: dict[str, int]
    checkpoint_step: int
    steps: Claim | None
    artifacts: dict[str, Claim]
    summary: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


async def latest(db: asyncpg.Pool, tenant: str, project_id: str) -> Run | None:
    row = await db.fetchrow(
        """select r.*, j.status, j.cancel_requested, j.message, j.error, j.progress, j.finished_at as ended_at,
                  j.left_over, j.made, j.seconds, j.paced_at from runs r join jobs j on j.id = r.id
            where r.tenant = $1 and r.project_id = $2 order by r.created_at desc, r.id desc limit 1""",
        tenant,
        project_id,
    )
    return _run(row) if row else None


async def job_of(db: asyncpg.Pool, tenant: str, id: str) -> str | None:
    """The train job of a run, by its own id or the run's."""
    return await db.fetchval("select id from runs where tenant = $1 and (id = $2 or run_id = $2)", tenant, id)


def _run(row: asyncpg.Record) -> Run:
    def read(column: str, kind: Any) -> Any:
        return msgspec.json.decode(row[column], type=kind)

    numbers = dict[str, float | None]
    return Run(
        job_id=row["id"],
        run_id=row["run_id"],
        project_id=row["project_id"],
        status=Status(row["status"]),
        cancel_requested=row["cancel_requested"],
        message=row["message"],
        error=row["error"],
        progress=row["progress"],
        method=row["method"],
        smoke=row["smoke"],
        spec=read("spec", dict[str, Any]),
        attempt=row["attempt"],
        device=row["device"],
        step=row["step"],
        total_steps=row["total_steps"],
        metrics=read("metrics", numbers) | read("evaluation", numbers) | read("final", numbers),
        samples=read("samples", list[dict[str, Any]]),
        snapshot=read("snapshot", Claim) if row["snapshot"] else None,
        splits=read("splits", dict[str, int]),
        checkpoint_step=row["checkpoint_step"],
        steps=read("steps", Claim) if row["steps"] else None,
        artifacts=read("artifacts", dict[str, Claim]),
        summary=read("summary", dict[str, Any]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["ended_at"],
        left_over=row["left_over"],
        made=row["made"],
        seconds=row["seconds"],
        paced_at=row["paced_at"],
    )


async def exported(db: asyncpg.Pool, tenant: str, project_id: str) -> list[ExportedFile]:
    """The files of the latest export that was completed; none when there is none."""
    files = await db.fetchval(
        "select files from exports where tenant = $1 and project_id = $2 and files is not null order by created_at desc, id desc limit 1", tenant, project_id
    )
    return msgspec.json.decode(files, type=list[ExportedFile]) if files else []
