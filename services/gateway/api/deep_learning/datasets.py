"""Data sets: uploaded, listed, looked at and deleted."""

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
from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Reference, RequestBody, Schema
from litestar.params import FromPath, FromQuery, QueryParameter

from libs.config import Gateway
from libs.events import File, uuid7
from libs.events.log import Unavailable
from libs.sniff import PARQUET
from libs.storage import Storage
from services.gateway.api import uploads
from services.gateway.api.deep_learning.words import Limit, Page, stamp
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, InWorkspace, answered, fingerprint, if_match, new_id, origin, tenant, tenants
from services.gateway.api.uploads import Form, Limits
from services.gateway.commands import Commands
from services.gateway.domain.dataset import CreateDataset, Dataset, DeleteDataset
from services.gateway.domain.errors import NotFound
from services.gateway.views import datasets

TOLD_BY_CONTENT = frozenset({"application/json", "application/jsonl", "text/csv", "text/plain", "application/zip", PARQUET})
TOLD_BY_NAME = frozenset({"csv", "tsv", "txt", "json", "jsonl", "ndjson"})
"""Of what isn't text as the platform writes it: a table in another encoding. Whoever reads it finds out."""
BINARY = "application/octet-stream"
INSTEAD = "send a table (CSV, JSON, Parquet), or a ZIP of one or of images"
KIND = "dataset"
"""Of a file, beside finetuneflow's two."""
_LONGEST = {"name": 200, "description": 10_000, "dataset_type": 50, "target": 200}


class DatasetOut(msgspec.Struct, kw_only=True):
    """`status`: processing, ready, or failed, and then `error` says why."""

    id: str
    name: str
    description: str
    dataset_type: str
    file_size: int
    uploaded_at: str
    status: str
    error: str | None = None


class Uploaded(DatasetOut, kw_only=True):
    job_id: str
    """The job that prepares it; `GET /jobs/{id}` tells how far it is."""


class Metadata(msgspec.Struct, kw_only=True):
    """`rows` are those that can be used; `features` and `target` the columns that a model is given and has to say."""

    rows: int
    columns: int
    features: list[str]
    target: str | None
    refused: dict[str, int]
    """Rows that can't be used, by the reason."""
    notes: list[str]
    """What was assumed in reading it."""
    schema: list[msgspec.Raw]
    """Each column: its type, what is missing, its range or its commonest values."""


class DatasetDetail(DatasetOut, kw_only=True):
    job_id: str
    progress: int
    message: str
    metadata: Metadata | None
    """Once it is ready."""


class DatasetPage(msgspec.Struct, kw_only=True):
    total: int
    page: int
    limit: int
    datasets: list[DatasetOut]


@dataclass
class Upload(InWorkspace):
    """The form is read as it streams in, so the framework can't tell what it holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields: dict[str, Reference | Schema] = {name: Schema(type=OpenAPIType.STRING, max_length=longest) for name, longest in _LONGEST.items()}
        fields["file"] = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        form = Schema(type=OpenAPIType.OBJECT, required=["file", "name"], properties=fields)
        self.request_body = RequestBody(content={"multipart/form-data": OpenAPIMediaType(schema=form)}, required=True)


@post("/datasets/upload", status_code=201, request_max_body_size=None, summary="Upload a data set", operation_class=Upload)
async def upload_dataset(
    request: AnyRequest, commands: NamedDependency[Commands], storage: NamedDependency[Storage], settings: NamedDependency[Gateway]
) -> Response[Uploaded]:
    """CSV, JSON (records or lines), Parquet, a ZIP of one of these, or a ZIP of images: a folder for each class, or a manifest
    (a table in the ZIP) with the columns `file` and `label`.

    The column to be predicted is `target` where it is sent, else the one called label, target, class or y, else the last.
    `dataset_type` classification or regression decides what is learned; anything else leaves that to the target.
    """
    about, dataset_id = origin(request), new_id(request)
    limits = Limits(file_mb=settings.max_dataset_mb, total_mb=settings.max_dataset_mb, accepted=TOLD_BY_CONTENT | {BINARY}, files_field="file", instead=INSTEAD)
    form = await uploads.receive(request, storage, limits=limits, new_key=lambda: f"{about.tenant}/{dataset_id}/{_fresh()}")
    try:
        command = _command(form, dataset_id)
        outcome = await commands.run(command, origin=about)
    except Unavailable:
        raise  # the facts may be in the log: what is stored stays until the sweep knows better
    except Exception:
        await uploads.discard(storage, form.files)
        raise
    if not outcome.events:
        await uploads.discard(storage, form.files)
    out = Uploaded(**_of(outcome.state), job_id=outcome.state.file.job_id)
    return answered(outcome, out, status=201, location=f"/datasets/{dataset_id}")


@get("/datasets", summary="List data sets", operation_class=InWorkspace)
async def list_datasets(
    request: AnyRequest,
    db: NamedDependency[asyncpg.Pool],
    page: Page = 1,
    limit: Limit = 10,
    sort_by: Annotated[datasets.Sort, QueryParameter(name="sort_by")] = "created_at",
    order: Annotated[Literal["asc", "desc"], QueryParameter(name="order")] = "desc",
) -> DatasetPage:
    rows, total = await datasets.page(db, tenants(request), sort=sort_by, descending=order == "desc", limit=limit, offset=(page - 1) * limit)
    return DatasetPage(total=total, page=page, limit=limit, datasets=[DatasetOut(**_fields(row)) for row in rows])


@get("/datasets/{dataset_id:uuid}", summary="One data set, and what is in it")
async def get_dataset(
    request: AnyRequest, dataset_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[DatasetDetail]:
    if row := await datasets.get(db, tenant(request), str(dataset_id)):
        detail = DatasetDetail(**_fields(row), job_id=row.job_id, progress=row.progress or 0, message=row.message or "", metadata=await _metadata(db, row))
        return Response(detail, headers={"ETag": f'"{row.version}"'})
    state, version = await commands.newest(Dataset, str(dataset_id), tenant=tenant(request))
    if state is None or state.deleted:
        raise NotFound(what="Dataset", id=str(dataset_id))
    detail = DatasetDetail(**_of(state), job_id=state.file.job_id, progress=0, message="", metadata=None)
    return Response(detail, headers={"ETag": f'"{version}"'})


@delete("/datasets/{dataset_id:uuid}", status_code=204, summary="Delete a data set", media_type=MediaType.JSON)
async def delete_dataset(
    request: AnyRequest, dataset_id: FromPath[UUID], commands: NamedDependency[Commands], cancel: FromQuery[bool] = False
) -> Response[None]:
    """409 while a job uses it, unless `?cancel=true` cancels that first. Models that were made of it stay."""
    outcome = await commands.run(DeleteDataset(dataset_id=str(dataset_id), cancel=cancel), origin=origin(request), if_match=if_match(request))
    return answered(outcome, None, status=204)


handlers: list[Any] = [upload_dataset, list_datasets, get_dataset, delete_dataset]


def _command(form: Form, dataset_id: str) -> CreateDataset:
    if len(form.files) != 1:
        raise Refused(422, "file: one file is required", field="file")
    for field, longest in _LONGEST.items():
        if len(form.fields.get(field, "")) > longest:
            raise Refused(422, f"{field}: at most {longest} characters", field=field)
    (uploaded,) = form.files
    name = form.fields.get("name", "").strip()
    if not name:
        raise Refused(422, "name: must not be empty", field="name")
    if uploaded.mime_type == BINARY and uploaded.filename.rpartition(".")[2].lower() not in TOLD_BY_NAME:
        raise uploads.unsupported(uploaded.filename, uploaded.mime_type, field="file", instead=INSTEAD)
    base = uuid.UUID(dataset_id)
    file = File(
        file_id=str(uuid.uuid5(base, "file")),
        filename=uploaded.filename,
        kind=KIND,
        mime_type=uploaded.mime_type,
        size=uploaded.content.size,
        sha256=uploaded.content.sha256,
        key=uploaded.content.key,
        job_id=str(uuid.uuid5(base, "job")),
    )
    told = {field: form.fields.get(field, "").strip() for field in ("description", "dataset_type", "target")}
    asked = fingerprint([name, told, file.filename, file.sha256])
    return CreateDataset(dataset_id=dataset_id, name=name, **told, file=file, request=asked)


async def _metadata(db: asyncpg.Pool, row: datasets.Row) -> Metadata | None:
    if row.status != "ready":
        return None
    result = msgspec.json.decode(row.result)
    columns = await datasets.columns_of(db, row.id)
    return Metadata(
        rows=result["valid"],
        columns=len(columns),
        features=[column.name for column in columns if column.role == "feature"],
        target=next((column.name for column in columns if column.role == "target"), None),
        refused=result["refused"],
        notes=result.get("notes", []),
        schema=[column.about for column in columns],
    )


def _fields(row: datasets.Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "dataset_type": row.dataset_type,
        "file_size": row.size,
        "uploaded_at": stamp(row.created_at),
        "status": row.status,
        "error": row.why if row.status == "failed" else None,
    }


def _of(state: Dataset) -> dict[str, Any]:
    """As the facts say, when the view doesn't show it yet."""
    return {
        "id": state.id,
        "name": state.name,
        "description": state.description,
        "dataset_type": state.dataset_type,
        "file_size": state.file.size,
        "uploaded_at": stamp(state.created_at),
        "status": "failed" if state.unusable else "processing",
        "error": state.unusable or None,
    }


def _fresh() -> str:
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
