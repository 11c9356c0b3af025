"""What was made of a run, to take away: started, listed, and downloaded file by file or as one ZIP."""

from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from libs.events import ExportedFile
from libs.events.log import EventLog
from libs.storage import Storage
from services.gateway.api import downloads, zipping
from services.gateway.api.asked import as_asked
from services.gateway.api.downloads import Content
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.words import STATUS
from services.gateway.api.requests import AnyRequest, answered, fingerprint, new_id, origin, tenant
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.domain.project import ExportRun, in_hand
from services.gateway.views import jobs, runs

ZIP = "finetuneflow_export.zip"
FIRST = ["adapter_model.safetensors", "adapter_config.json", "training_config.json", "metrics.json", "report.md"]
"""As the document lists them; the others come behind."""


class ExportAsked(msgspec.Struct, kw_only=True):
    merged: bool = False
    """The whole model too, its adapter merged into the base model; in a folder `merged`."""


class ExportQueued(msgspec.Struct, kw_only=True):
    job_id: str
    status: str
    message: str = "Export job enqueued"


class FileOut(msgspec.Struct, kw_only=True):
    filename: str
    size_bytes: int


class FilesOut(msgspec.Struct, kw_only=True):
    files: list[FileOut]


@post("/projects/{project_id:uuid}/export", status_code=202, summary="Export the latest successful run")
async def start_export(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    data: JSONBody[ExportAsked | None] = None,
) -> Response[ExportQueued]:
    """404 before any run has succeeded. While the same run is being exported already, and with a merged model where one is wanted, that job is the answer."""
    merged = data is not None and data.merged
    command = ExportRun(project_id=str(project_id), job_id=new_id(request), merged=merged, request=fingerprint(data if merged else None))
    outcome = await commands.run(command, origin=origin(request))
    if not outcome.events and command.job_id in outcome.state.works:
        await as_asked(log, tenant(request), command.job_id, command.request)
    job_id = command.job_id if command.job_id in outcome.state.works else in_hand(outcome.state, merged=merged)
    row = None if outcome.events else await jobs.get(db, tenant(request), job_id)
    return answered(outcome, ExportQueued(job_id=job_id, status=STATUS[row.shown] if row else "queued"), status=202)


@get("/projects/{project_id:uuid}/export/files", summary="Files of the latest export")
async def list_exported(request: AnyRequest, project_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]) -> FilesOut:
    files = await _exported(request, project_id, db, commands)
    listed = [FileOut(filename=file.name, size_bytes=file.content.size) for file in sorted(files, key=_place)]
    return FilesOut(files=[*listed, FileOut(filename=ZIP, size_bytes=downloads.size(zipping.layout(files)))] if files else [])


@get("/projects/{project_id:uuid}/export/download", summary="All files of the latest export as one ZIP", responses=downloads.ANSWERS)
async def download_all(
    request: AnyRequest, project_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands], storage: NamedDependency[Storage]
) -> Response[Any]:
    """Ranges and conditional requests work; the same export is the same ZIP, byte for byte."""
    return await _download(request, storage, await _exported(request, project_id, db, commands), ZIP)


@get("/projects/{project_id:uuid}/export/download/{filename:str}", summary="One file of the latest export", responses=downloads.ANSWERS)
async def download_one(
    request: AnyRequest,
    project_id: FromPath[UUID],
    filename: FromPath[str],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    storage: NamedDependency[Storage],
) -> Response[Any]:
    """Ranges and conditional requests work."""
    return await _download(request, storage, await _exported(request, project_id, db, commands), filename)


@get("/projects/{project_id:uuid}/export/download/merged/{filename:str}", summary="One file of the latest export's merged model", responses=downloads.ANSWERS)
async def download_merged(
    request: AnyRequest,
    project_id: FromPath[UUID],
    filename: FromPath[str],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    storage: NamedDependency[Storage],
) -> Response[Any]:
    """Ranges and conditional requests work."""
    return await _download(request, storage, await _exported(request, project_id, db, commands), f"merged/{filename}")


handlers: list[Any] = [start_export, list_exported, download_all, download_one, download_merged]


async def _exported(request: AnyRequest, project_id: UUID, db: asyncpg.Pool, commands: Commands) -> list[ExportedFile]:
    return await runs.exported(db, tenant(request), await known(request, project_id, db, commands))


async def _download(request: AnyRequest, storage: Storage, files: list[ExportedFile], filename: str) -> Response[Any]:
    found: Content = zipping.layout(files) if files and filename == ZIP else [file.content for file in files if file.name == filename]
    if not found:
        raise NotFound(what="File", id=filename)
    return await downloads.send(request, storage, found, filename=filename.rpartition("/")[2])


def _place(file: ExportedFile) -> tuple[int, str]:
    return FIRST.index(file.name) if file.name in FIRST else len(FIRST), file.name
