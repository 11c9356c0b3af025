"""What can be done to a data set, and what forbids it."""

from datetime import datetime

import msgspec

from libs.events import (
    MEASURED,
    DatasetCreated,
    DatasetDeleted,
    DatasetInputs,
    DatasetSpec,
    DatasetUsed,
    Event,
    File,
    Fit,
    FitInputs,
    JobCancelRequested,
    JobCreated,
    Recorded,
)
from services.gateway.domain.credit import Purse
from services.gateway.domain.errors import DatasetBusy, DatasetNotUsable, IdempotencyKeyReused, MonitorUnfit, NotFound
from services.gateway.domain.jobs import PREPARE, STAGES, TRAIN
from services.gateway.domain.quota import Quota, Starter, charged


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str
    dataset_type: str
    target: str
    task: str = ""
    """What can be learned of it, once that is known: who brought it has said so, or it was found when it was prepared."""
    file: File
    created_at: datetime
    active_jobs: frozenset[str] = frozenset()
    """Jobs that may still run."""
    runs: frozenset[str] = frozenset()
    """Its train jobs, those that have ended too."""
    unusable: str = ""
    """Why nothing can be fitted to it; empty as long as it is prepared, or being so."""
    request: str = ""
    deleted: bool = False


class CreateDataset(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose bytes are stored already; the job that it names prepares it."""

    dataset_id: str
    name: str
    description: str
    dataset_type: str
    target: str
    file: File
    request: str


class DeleteDataset(msgspec.Struct, frozen=True, kw_only=True):
    dataset_id: str
    cancel: bool = False


class StartFit(msgspec.Struct, frozen=True, kw_only=True):
    """One that is still being prepared is waited for."""

    dataset_id: str
    job_id: str
    fit: Fit
    request: str = ""
    starter: Starter = Starter()


Command = CreateDataset | DeleteDataset | StartFit


def evolve(dataset: Dataset | None, recorded: Recorded) -> Dataset | None:
    event = recorded.event
    if isinstance(event, DatasetCreated):
        return Dataset(
            id=event.dataset_id,
            name=event.name,
            description=event.description,
            dataset_type=event.dataset_type,
            target=event.target,
            task=named_task(event.dataset_type),
            file=event.file,
            created_at=recorded.at,
            active_jobs=frozenset({event.file.job_id}),
            request=event.request,
        )
    if dataset is None:
        return None
    match event:
        case DatasetUsed(job_id=job):
            return msgspec.structs.replace(dataset, active_jobs=dataset.active_jobs | {job}, runs=dataset.runs | {job})
        case DatasetDeleted():
            return msgspec.structs.replace(dataset, deleted=True)
        case _:
            return dataset


def decide(dataset: Dataset | None, command: Command, purse: Purse | None = None, quota: Quota | None = None) -> list[Event]:
    """`purse` and `quota` are those of who starts a run."""
    if isinstance(command, CreateDataset):
        return _create(dataset, command)
    if dataset is None or dataset.deleted:
        raise NotFound(what="Dataset", id=command.dataset_id)
    match command:
        case DeleteDataset():
            if dataset.active_jobs and not command.cancel:
                raise DatasetBusy(job_ids=sorted(dataset.active_jobs))
            cancelled = [JobCancelRequested(job_id=job, reason="data set deleted") for job in sorted(dataset.active_jobs)]
            return [*cancelled, DatasetDeleted(dataset_id=dataset.id, job_id=dataset.file.job_id)]
        case StartFit():
            return _start(dataset, command, purse, quota)


def named_task(dataset_type: str) -> str:
    """Read as the datasets service reads it; empty where it is left to the target."""
    wanted = dataset_type.strip().casefold()
    return wanted if wanted in MEASURED else ""


def _create(dataset: Dataset | None, command: CreateDataset) -> list[Event]:
    if dataset is not None:
        if dataset.request != command.request:
            raise IdempotencyKeyReused(id=dataset.id)
        return []  # the same request again
    created = DatasetCreated(
        dataset_id=command.dataset_id,
        name=command.name,
        description=command.description,
        dataset_type=command.dataset_type,
        target=command.target,
        file=command.file,
        request=command.request,
    )
    job = JobCreated(
        job_id=command.file.job_id,
        kind=PREPARE,
        stages=STAGES[PREPARE],
        inputs=msgspec.to_builtins(DatasetInputs(dataset_id=command.dataset_id, file=command.file)),
        spec=msgspec.to_builtins(DatasetSpec(dataset_type=command.dataset_type, target=command.target)),
        request=command.request,
    )
    return [created, job]


def _start(dataset: Dataset, command: StartFit, purse: Purse | None, quota: Quota | None) -> list[Event]:
    if command.job_id in dataset.runs:
        return []  # the same request again
    if dataset.unusable:
        raise DatasetNotUsable(reason=dataset.unusable)
    if dataset.task and command.fit.monitor not in MEASURED[dataset.task]:
        raise MonitorUnfit(monitor=command.fit.monitor, task=dataset.task, measured=", ".join(MEASURED[dataset.task]))
    besides = charged(command.starter, purse, quota, job_id=command.job_id)
    job = JobCreated(
        job_id=command.job_id,
        kind=TRAIN,
        stages=STAGES[TRAIN],
        inputs=msgspec.to_builtins(FitInputs(dataset_id=dataset.id, source=dataset.file.job_id)),
        spec=msgspec.to_builtins(command.fit),
        request=command.request,
        payer=command.starter.payer,
        price=command.starter.price,
    )
    return [DatasetUsed(dataset_id=dataset.id, job_id=command.job_id), *besides, job]
