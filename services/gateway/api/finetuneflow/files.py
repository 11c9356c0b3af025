"""Files of a project: uploaded, listed and deleted."""

import os
import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.enums import MediaType
from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, FromQuery, QueryParameter

from libs.config import Gateway
from libs.events import Address, File, ProjectFilesAdded, uuid7
from libs.events.log import EventLog, Unavailable
from libs.sniff import PARQUET
from libs.storage import Storage
from services.gateway.api import uploads
from services.gateway.api.finetuneflow.words import stamp
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, answered, if_match, new_id, origin, tenant
from services.gateway.api.uploads import Form, Limits, Uploaded
from services.gateway.commands import Commands
from services.gateway.domain.errors import IdempotencyKeyReused, NotFound
from services.gateway.domain.project import DATASET as UPLOAD
from services.gateway.domain.project import DOCUMENT, AddFiles, DeleteFile, Project
from services.gateway.views import projects

DATASET = frozenset({"application/json", "application/jsonl", "text/csv", "text/plain", PARQUET})
DOCUMENTS = frozenset({"application/pdf", uploads.WORD, uploads.UTF16, "text/plain", "text/markdown"})
KINDS = (DOCUMENT, UPLOAD)


class FileOut(msgspec.Struct, kw_only=True):
    id: str
    filename: str
    kind: str
    status: str
    mime_type: str
    size_bytes: int
    created_at: str
    job_id: str
    """The job that reads a data set's file; `GET /jobs/{id}` tells how far it is. Empty for documents."""


@dataclass
class Upload(Operation):
    """The form is read as it streams in, so the framework can't tell what it holds."""

    def __post_init__(self) -> None:
        files = Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        form = Schema(type=OpenAPIType.OBJECT, required=["files", "kind"], properties={"files": files, "kind": Schema(type=OpenAPIType.STRING, enum=KINDS)})
        self.request_body = RequestBody(content={"multipart/form-data": OpenAPIMediaType(schema=form)}, required=True)


class FilesOut(msgspec.Struct, kw_only=True):
    files: list[FileOut]


@post(
    "/projects/{project_id:uuid}/files/upload",
    status_code=201,
    request_max_body_size=None,
    summary="Upload documents, or files of a data set",
    operation_class=Upload,
)
async def upload_files(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    storage: NamedDependency[Storage],
    settings: NamedDependency[Gateway],
) -> Response[FilesOut]:
    """multipart/form-data with `files` and `kind`. Types are told by content; one bad file refuses the whole request. A data set is then read by a job of its own; documents wait to be cut."""
    here = tenant(request)
    project, _ = await commands.newest(Project, str(project_id), tenant=here, known=await projects.load(db, here, str(project_id)))
    if project is None or project.deleted:
        raise NotFound(what="Project", id=str(project_id))
    base = uuid.UUID(new_id(request))
    limits = Limits(file_mb=settings.max_file_mb, total_mb=settings.max_project_mb, accepted=DATASET | DOCUMENTS)
    form = await uploads.receive(request, storage, limits=limits, new_key=lambda: f"{here}/{project.id}/{_fresh()}")
    try:
        kind = _kind(form)
        files = [
            File(
                file_id=str(uuid.uuid5(base, f"file/{n}")),
                filename=uploaded.filename,
                kind=kind,
                mime_type=_mime_type(uploaded, kind),
                size=uploaded.content.size,
                sha256=uploaded.content.sha256,
                key=uploaded.content.key,
                job_id=str(uuid.uuid5(base, f"job/{n}")) if kind == UPLOAD else "",
            )
            for n, uploaded in enumerate(form.files)
        ]
        if "idempotency-key" in request.headers and (earlier := await _earlier(log, here, project.id, files)):
            await uploads.discard(storage, form.files)
            return Response(FilesOut(files=earlier), status_code=201)
        outcome = await commands.run(AddFiles(project_id=project.id, files=files, limit_mb=settings.max_project_mb), origin=origin(request))
    except Unavailable:
        raise  # the facts may be in the log: what is stored stays until the sweep knows better
    except Exception:
        await uploads.discard(storage, form.files)
        raise
    if outcome.events:
        added = [_out(file, stamp(outcome.events[0].at)) for file in files]
    else:
        await uploads.discard(storage, form.files)
        added = await _again(db, here, project.id, outcome.state, files)
    return answered(outcome, FilesOut(files=added), status=201)


@get("/projects/{project_id:uuid}/files", summary="Files of a project")
async def list_files(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    kind: Annotated[Literal["raw_doc", "dataset_upload"] | None, QueryParameter(name="kind")] = None,
) -> FilesOut:
    rows = await projects.list_files(db, tenant(request), str(project_id), kind=kind)
    if rows is not None:
        return FilesOut(files=[_from_row(row) for row in rows])
    state, _ = await commands.newest(Project, str(project_id), tenant=tenant(request))
    if state is None or state.deleted:
        raise NotFound(what="Project", id=str(project_id))
    return FilesOut(files=[_out(file, stamp(state.updated_at)) for file in state.files.values() if kind in (None, file.kind)])


@delete("/projects/{project_id:uuid}/files/{file_id:uuid}", status_code=204, summary="Delete a file and what was read from it", media_type=MediaType.JSON)
async def delete_file(
    request: AnyRequest, project_id: FromPath[UUID], file_id: FromPath[UUID], commands: NamedDependency[Commands], cancel: FromQuery[bool] = False
) -> Response[None]:
    """409 while a job reads it, unless `?cancel=true` cancels that first."""
    command = DeleteFile(project_id=str(project_id), file_id=str(file_id), cancel=cancel)
    return answered(await commands.run(command, origin=origin(request), if_match=if_match(request)), None, status=204)


handlers: list[Any] = [upload_files, list_files, delete_file]


def _kind(form: Form) -> str:
    if not form.files:
        raise Refused(422, "files: at least one file is required", field="files")
    kind = form.fields.get("kind", "")
    if kind not in KINDS:
        raise Refused(422, f"kind: must be one of {', '.join(KINDS)}", field="kind")
    return kind


def _mime_type(uploaded: Uploaded, kind: str) -> str:
    """A data set may be prose, and prose may look like a table: then its name decides."""
    found = uploaded.mime_type
    if kind == UPLOAD:
        found = "text/plain" if found == "text/markdown" else found
        accepted = DATASET
    else:
        accepted = DOCUMENTS
        ending = uploaded.filename.rpartition(".")[2].lower()
        found = "text/plain" if found in DATASET - {PARQUET} and ending in uploads.TEXTS else found
    if found not in accepted:
        raise uploads.unsupported(uploaded.filename, found)
    return found


async def _earlier(log: EventLog, tenant: str, project_id: str, files: list[File]) -> list[FileOut] | None:
    """What the upload under the same key made, also when its files are deleted by now."""
    for fact in await log.read(Address(tenant=tenant, category="project", key=(project_id,)).under("files_added")):
        if isinstance(fact.event, ProjectFilesAdded) and fact.event.files[0].file_id == files[0].file_id:
            if [(file.filename, file.sha256) for file in fact.event.files] != [(file.filename, file.sha256) for file in files]:
                raise IdempotencyKeyReused
            return [_out(file, stamp(fact.at)) for file in fact.event.files]
    return None


async def _again(db: asyncpg.Pool, tenant: str, project_id: str, state: Project, files: list[File]) -> list[FileOut]:
    """A repeated upload is answered with what the first one made."""
    rows = {row.id: row for row in await projects.list_files(db, tenant, project_id, kind=None) or []}
    return [_from_row(row) if (row := rows.get(file.file_id)) else _out(state.files[file.file_id], stamp(state.updated_at)) for file in files]


def _out(file: File, created_at: str) -> FileOut:
    return FileOut(
        id=file.file_id,
        filename=file.filename,
        kind=file.kind,
        status="ready",
        mime_type=file.mime_type,
        size_bytes=file.size,
        created_at=created_at,
        job_id=file.job_id,
    )


def _from_row(row: projects.FileRow) -> FileOut:
    return FileOut(
        id=row.id,
        filename=row.filename,
        kind=row.kind,
        status="ready",
        mime_type=row.mime_type,
        size_bytes=row.size,
        created_at=stamp(row.created_at),
        job_id=row.job_id,
    )


def _fresh() -> str:
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
