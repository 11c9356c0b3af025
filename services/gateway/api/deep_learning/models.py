"""Models: listed, looked at, downloaded and deleted."""

from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get
from litestar.di import NamedDependency
from litestar.enums import MediaType
from litestar.params import FromPath, QueryParameter

from libs.storage import Storage
from services.gateway.api import downloads
from services.gateway.api.deep_learning.words import Limit, Page, stamp
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, InWorkspace, answered, if_match, origin, tenant, tenants
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.domain.model import DeleteModel
from services.gateway.views import models


class ModelOut(msgspec.Struct, kw_only=True):
    id: str
    name: str
    model_type: str
    accuracy: float | None
    """On the rows that were held out; null for a regression."""
    created_at: str
    size_mb: float


class ModelPage(msgspec.Struct, kw_only=True):
    total: int
    page: int
    limit: int
    models: list[ModelOut]


class ModelDetail(ModelOut, kw_only=True):
    architecture: dict[str, Any]
    performance: dict[str, float | None]
    training_config: dict[str, Any]
    report: dict[str, Any]
    lineage: dict[str, Any]
    """The data that made it: the data set, the job that prepared it, and the hash of what was learned from."""
    files: dict[str, int]
    """What can be downloaded, with its size in bytes."""


@get("/models", summary="List models", operation_class=InWorkspace)
async def list_models(
    request: AnyRequest,
    db: NamedDependency[asyncpg.Pool],
    page: Page = 1,
    limit: Limit = 10,
    model_type: Annotated[str | None, QueryParameter(name="model_type", max_length=300)] = None,
    sort_by: Annotated[models.Sort, QueryParameter(name="sort_by")] = "created_at",
    order: Annotated[Literal["asc", "desc"] | None, QueryParameter(name="order")] = None,
) -> ModelPage:
    """The newest first, the most accurate first, or by name."""
    descending = (order or ("asc" if sort_by == "name" else "desc")) == "desc"
    rows, total = await models.page(db, tenants(request), model_type=model_type, sort=sort_by, descending=descending, limit=limit, offset=(page - 1) * limit)
    return ModelPage(total=total, page=page, limit=limit, models=[ModelOut(**_fields(row)) for row in rows])


@get("/models/{model_id:uuid}", summary="One model")
async def get_model(request: AnyRequest, model_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool]) -> Response[ModelDetail]:
    if (row := await models.get(db, tenant(request), str(model_id))) is None:
        raise NotFound(what="Model", id=str(model_id))
    summary: dict[str, Any] = msgspec.json.decode(row.summary)
    spec: dict[str, Any] = msgspec.json.decode(row.spec)
    artifacts: dict[str, Any] = msgspec.json.decode(row.artifacts)
    detail = ModelDetail(
        **_fields(row),
        architecture=summary.get("architecture", {}),
        performance=_performance(msgspec.json.decode(row.final)),
        training_config={"dataset_id": row.dataset_id} | {name: value for name, value in spec.items() if name not in ("trainer", "model_type")},
        report=summary.get("report", {}),
        lineage={"dataset_id": row.dataset_id, "job_id": row.id, "snapshot_sha256": row.snapshot_sha256},
        files={name: claim["size"] for name, claim in artifacts.items()},
    )
    return Response(detail, headers={"ETag": f'"{row.version}"'})


@get("/models/{model_id:uuid}/download/{filename:str}", summary="Download a file of a model", responses=downloads.ANSWERS)
async def download_model(
    request: AnyRequest, model_id: FromPath[UUID], filename: FromPath[str], db: NamedDependency[asyncpg.Pool], storage: NamedDependency[Storage]
) -> Response[Any]:
    """The weights as safetensors, the whole as ONNX, how an input is prepared, and a card with an example that loads it. Ranges work."""
    if (artifacts := await models.artifacts(db, tenant(request), str(model_id))) is None:
        raise NotFound(what="Model", id=str(model_id))
    if (claim := artifacts.get(filename)) is None:
        raise Refused(404, f"This model has no file '{filename[:100]}'")
    return await downloads.send(request, storage, [claim], filename=filename)


@delete("/models/{model_id:uuid}", status_code=204, summary="Delete a model", media_type=MediaType.JSON)
async def delete_model(request: AnyRequest, model_id: FromPath[UUID], commands: NamedDependency[Commands]) -> Response[None]:
    """Its files are gone; that it was made, and of what, stays in the log."""
    outcome = await commands.run(DeleteModel(model_id=str(model_id)), origin=origin(request), if_match=if_match(request))
    return answered(outcome, None, status=204)


handlers: list[Any] = [list_models, get_model, download_model, delete_model]


def _fields(row: models.Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "model_type": row.model_type,
        "accuracy": row.accuracy,
        "created_at": stamp(row.created_at),
        "size_mb": round(row.size / 1_000_000, 3),
    }


def _performance(final: dict[str, float | None]) -> dict[str, float | None]:
    """On the rows that were held out."""
    return {name.removeprefix("val_"): value for name, value in final.items() if name.startswith("val_")}
