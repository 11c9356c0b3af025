"""What can be done to a job from outside. Its stages are facts of the services that do them."""

import uuid
from datetime import datetime
from enum import StrEnum

import msgspec

from libs.events import (
    Event,
    ExportCancelled,
    ExportCompleted,
    ExportFailed,
    ExportStarted,
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationStarted,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    TrainingStarted,
)
from services.gateway.domain.errors import JobEnded, NotFound

INGEST, CHUNK, PREVIEW, GENERATE, PREPARE, TRAIN, EXPORT = "ingest", "chunk", "preview", "generate", "prepare", "train", "export"
STAGES = {
    INGEST: ["preparation"],
    CHUNK: ["preparation"],
    PREVIEW: ["preparation"],
    GENERATE: ["preparation"],
    PREPARE: ["preparation"],
    TRAIN: ["preparation", "training"],
    EXPORT: ["export"],
}
MERGE_AND_EXPORT = ["training", "export"]
"""Where a merged model is wanted: merging is done by who has the libraries for it."""

_RUNS = uuid.UUID("1d6a3a0e-6c0c-5f0a-8a3e-2f4b7c9d1e55")


class Status(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})


class Job(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    stages: list[str]
    status: Status
    project_id: str = ""
    cancel_requested: bool = False
    created_at: datetime


class CancelJob(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str
    reason: str = ""


Command = CancelJob


def evolve(job: Job | None, recorded: Recorded) -> Job | None:
    event = recorded.event
    if isinstance(event, JobCreated):
        return Job(id=event.job_id, kind=event.kind, stages=event.stages, status=Status.QUEUED, project_id=event.project_id, created_at=recorded.at)
    if job is None or job.status.ended:
        return job
    if isinstance(event, JobCancelRequested):
        return msgspec.structs.replace(job, cancel_requested=True)
    if event is not None and (status := status_after(event, job.stages)):
        return msgspec.structs.replace(job, status=status)
    return job


def status_after(event: Event, stages: list[str]) -> Status | None:
    """Preparation is for the run itself, all other stages are that. None: the event changes nothing."""
    match event:
        case PreparationStarted():
            return _begun("preparation", stages)
        case TrainingStarted():
            return _begun("training", stages)
        case ExportStarted():
            return _begun("export", stages)
        case PreparationCompleted():
            return _done("preparation", stages)
        case TrainingCompleted():
            return _done("training", stages)
        case ExportCompleted():
            return _done("export", stages)
        case PreparationFailed() | TrainingFailed() | ExportFailed():
            return Status.FAILED
        case PreparationCancelled() | TrainingCancelled() | ExportCancelled():
            return Status.CANCELLED
        case _:
            return None


def run_id(job_id: str) -> str:
    """People call what a train job does a run; whoever knows the one id knows the other."""
    return str(uuid.uuid5(_RUNS, job_id))


def decide(job: Job | None, command: Command) -> list[Event]:
    if job is None:
        raise NotFound(what="Job", id=command.job_id)
    if job.cancel_requested or job.status is Status.CANCELLED:
        return []  # asking twice is not an error
    if job.status.ended:
        raise JobEnded(job_id=job.id, status=job.status.value)
    return [JobCancelRequested(job_id=job.id, reason=command.reason)]


def _begun(stage: str, stages: list[str]) -> Status:
    return Status.RUNNING if stages[-1:] == [stage] or stage != "preparation" else Status.PREPARING


def _done(stage: str, stages: list[str]) -> Status:
    if stages[-1:] == [stage]:
        return Status.SUCCEEDED
    return Status.PREPARING if stage == "preparation" else Status.RUNNING
