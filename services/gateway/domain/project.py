"""What can be done to a project, and what forbids it."""

from datetime import datetime
from typing import Any

import msgspec

from libs.events import (
    Event,
    File,
    JobCancelRequested,
    JobCreated,
    ProjectCreated,
    ProjectDeleted,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectUpdated,
    Recorded,
)
from services.gateway.domain.errors import FileBusy, IdempotencyKeyReused, NotFound, ProjectBusy, ProjectFull
from services.gateway.domain.jobs import INGEST

MB = 1024 * 1024


class Project(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str
    task_type: str
    config: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    files: dict[str, File] = {}
    active_jobs: frozenset[str] = frozenset()
    """Jobs that may still run."""
    request: str = ""
    deleted: bool = False


class CreateProject(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    name: str
    description: str
    task_type: str
    config: dict[str, Any]
    request: str


class ChangeProject(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves a field as it is; `config` is merged."""

    project_id: str
    name: str | None = None
    description: str | None = None
    task_type: str | None = None
    config: dict[str, Any] | None = None


class DeleteProject(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    cancel: bool = False


class AddFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Files whose bytes are stored already. Each gets a job of its own that reads it."""

    project_id: str
    files: list[File]
    limit_mb: int


class DeleteFile(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    file_id: str
    cancel: bool = False


Command = CreateProject | ChangeProject | DeleteProject | AddFiles | DeleteFile


def evolve(project: Project | None, recorded: Recorded) -> Project | None:
    event = recorded.event
    if isinstance(event, ProjectCreated):
        return Project(
            id=event.project_id,
            name=event.name,
            description=event.description,
            task_type=event.task_type,
            config=event.config,
            created_at=recorded.at,
            updated_at=recorded.at,
            request=event.request,
        )
    if project is None:
        return None
    match event:
        case ProjectUpdated():
            change = {field: value for field in ("name", "description", "task_type") if (value := getattr(event, field)) is not None}
            return msgspec.structs.replace(project, **change, config={**project.config, **(event.config or {})}, updated_at=recorded.at)
        case ProjectFilesAdded(files=files):
            added = {file.file_id: file for file in files}
            jobs = {file.job_id for file in files if file.job_id}
            return msgspec.structs.replace(project, files=project.files | added, active_jobs=project.active_jobs | jobs, updated_at=recorded.at)
        case ProjectFileDeleted(file_id=gone):
            rest = {id: file for id, file in project.files.items() if id != gone}
            return msgspec.structs.replace(project, files=rest, updated_at=recorded.at)
        case ProjectDeleted():
            return msgspec.structs.replace(project, deleted=True)
        case _:
            return project


def decide(project: Project | None, command: Command) -> list[Event]:
    if isinstance(command, CreateProject):
        return _create(project, command)
    if project is None or project.deleted:
        raise NotFound(what="Project", id=command.project_id)
    match command:
        case ChangeProject():
            return _change(project, command)
        case DeleteProject():
            if project.active_jobs and not command.cancel:
                raise ProjectBusy(job_ids=sorted(project.active_jobs))
            cancelled = [JobCancelRequested(job_id=job, reason="project deleted") for job in sorted(project.active_jobs)]
            return [*cancelled, ProjectDeleted(project_id=project.id, job_ids=[file.job_id for file in project.files.values() if file.job_id])]
        case AddFiles():
            return _add(project, command)
        case DeleteFile():
            return _delete_file(project, command)


def _create(project: Project | None, command: CreateProject) -> list[Event]:
    if project is None:
        return [
            ProjectCreated(
                project_id=command.project_id,
                name=command.name,
                description=command.description,
                task_type=command.task_type,
                config=command.config,
                request=command.request,
            )
        ]
    if project.request != command.request:
        raise IdempotencyKeyReused(id=project.id)
    return []  # the same request again


def _change(project: Project, command: ChangeProject) -> list[Event]:
    wanted = {field: value for field in ("name", "description", "task_type") if (value := getattr(command, field)) not in (None, getattr(project, field))}
    config = {key: value for key, value in (command.config or {}).items() if key not in project.config or not _same(project.config[key], value)}
    if not wanted and not config:
        return []
    return [ProjectUpdated(project_id=project.id, **wanted, config=config or None)]


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: for Python 1 and true are equal."""
    return msgspec.json.encode(one, order="deterministic") == msgspec.json.encode(other, order="deterministic")


def _add(project: Project, command: AddFiles) -> list[Event]:
    new = [file for file in command.files if file.file_id not in project.files]
    if any(project.files[file.file_id].sha256 != file.sha256 for file in command.files if file not in new):
        raise IdempotencyKeyReused(id=project.id)
    if not new:
        return []  # the same request again
    if sum(file.size for file in (*project.files.values(), *new)) > command.limit_mb * MB:
        raise ProjectFull(limit_mb=command.limit_mb)
    jobs = [
        JobCreated(
            job_id=file.job_id,
            kind=INGEST,
            stages=["preparation"],
            project_id=project.id,
            inputs={"project_id": project.id, "file": msgspec.to_builtins(file)},
            spec={"train_share": project.config.get("train_eval_split", 0.9)},
        )
        for file in new
    ]
    return [ProjectFilesAdded(project_id=project.id, files=new), *jobs]


def _delete_file(project: Project, command: DeleteFile) -> list[Event]:
    if (file := project.files.get(command.file_id)) is None:
        raise NotFound(what="File", id=command.file_id)
    deleted = ProjectFileDeleted(project_id=project.id, file_id=file.file_id, key=file.key, job_id=file.job_id)
    if file.job_id not in project.active_jobs:
        return [deleted]
    if not command.cancel:
        raise FileBusy(job_ids=[file.job_id])
    return [JobCancelRequested(job_id=file.job_id, reason="file deleted"), deleted]
