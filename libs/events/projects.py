"""Projects: a fine-tune from its documents to its adapter. The gateway is the only writer."""

from typing import Any

import msgspec

from .envelope import Event


class File(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file; its bytes lie under `key` in the object store."""

    file_id: str
    filename: str
    kind: str
    mime_type: str
    size: int
    sha256: str
    key: str
    job_id: str = ""
    """The ingest job that reads it."""


class ProjectCreated(Event, frozen=True, kw_only=True, tag="project.created"):
    KEY = ("project_id",)
    FOUNDS = True
    project_id: str
    name: str
    description: str = ""
    task_type: str = ""
    config: dict[str, Any] = {}
    request: str = ""
    """Fingerprint of the request, so that a repeated Idempotency-Key is told from a re-used one."""


class ProjectUpdated(Event, frozen=True, kw_only=True, tag="project.updated"):
    """What was changed, and only that; `config` is merged into the one before."""

    KEY = ("project_id",)
    project_id: str
    name: str | None = None
    description: str | None = None
    task_type: str | None = None
    config: dict[str, Any] | None = None


class ProjectFilesAdded(Event, frozen=True, kw_only=True, tag="project.files_added"):
    KEY = ("project_id",)
    project_id: str
    files: list[File]


class ProjectFileDeleted(Event, frozen=True, kw_only=True, tag="project.file_deleted"):
    """The file, what was read from it and its objects are gone."""

    KEY = ("project_id",)
    project_id: str
    file_id: str
    key: str
    job_id: str = ""


class ProjectModelResolved(Event, frozen=True, kw_only=True, tag="project.model_resolved"):
    """The base model that the project fine-tunes. `model_info` is what its configuration says; `revision` the commit it was read at."""

    KEY = ("project_id",)
    project_id: str
    base_model_id: str
    model_info: dict[str, Any]
    revision: str = ""


class ProjectRunStarted(Event, frozen=True, kw_only=True, tag="project.run_started"):
    """In one batch with the train job: of two starts only one can append it."""

    KEY = ("project_id",)
    project_id: str
    job_id: str


class ProjectWorkStarted(Event, frozen=True, kw_only=True, tag="project.work_started"):
    """Another job reads the project: nobody can delete what it reads without seeing it."""

    KEY = ("project_id",)
    project_id: str
    job_id: str
    kind: str
    merged: bool = False
    """Of an export: the whole model is wanted, too."""


class ProjectDeleted(Event, frozen=True, kw_only=True, tag="project.deleted"):
    """The project, its files, its examples and the objects of all its jobs are gone. Which jobs it had is in its own facts: there may be more than one fact holds."""

    KEY = ("project_id",)
    project_id: str
    job_ids: list[str] = []
    """Some of them. Nobody fills it any more."""
