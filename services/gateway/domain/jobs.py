"""What can be done to a job from outside. Its stages are facts of the services that do them."""

from datetime import datetime
from enum import StrEnum

import msgspec

from libs.events import Event, JobCancelRequested, JobCreated, PreparationCancelled, PreparationCompleted, PreparationFailed, PreparationStarted, Recorded
from services.gateway.domain.errors import JobEnded, NotFound

INGEST = "ingest"


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
    """The last stage is the run itself, those before it prepare for it. None: the event changes nothing."""
    match event:
        case PreparationStarted():
            return _begun("preparation", stages)
        case PreparationCompleted():
            return Status.SUCCEEDED if stages[-1:] == ["preparation"] else Status.PREPARING
        case PreparationFailed():
            return Status.FAILED
        case PreparationCancelled():
            return Status.CANCELLED
        case _:
            return None


def decide(job: Job | None, command: Command) -> list[Event]:
    if job is None:
        raise NotFound(what="Job", id=command.job_id)
    if job.cancel_requested or job.status is Status.CANCELLED:
        return []  # asking twice is not an error
    if job.status.ended:
        raise JobEnded(job_id=job.id, status=job.status.value)
    return [JobCancelRequested(job_id=job.id, reason=command.reason)]


def _begun(stage: str, stages: list[str]) -> Status:
    return Status.RUNNING if stages[-1:] == [stage] else Status.PREPARING
