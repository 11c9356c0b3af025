"""The base model of a project: looked up, judged and remembered before anything is loaded."""

from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, answered, origin
from services.gateway.commands import Commands
from services.gateway.domain.project import ResolveModel
from services.gateway.hub import Hub, HubDown, Info, NoSuchModel, NotAllowed, well_formed


class ModelAsked(msgspec.Struct, kw_only=True):
    model_id: Annotated[str, Meta(min_length=1, max_length=300)]


class ModelOut(Info, frozen=True, kw_only=True):
    revision: str
    """The commit that was looked at, and that will be trained."""


@post("/projects/{project_id:uuid}/model/resolve", status_code=200, summary="Choose the base model, and see what it is and needs")
async def resolve_model(
    request: AnyRequest,
    project_id: FromPath[UUID],
    data: JSONBody[ModelAsked],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    hub: NamedDependency[Hub],
) -> Response[ModelOut]:
    """An id of the model hub, `trainyard/tiny-llama`, or a folder. Only its configuration is read. `valid` is false when it can't be fine-tuned; `warnings` say why."""
    if not well_formed(data.model_id):
        raise Refused(422, "model_id: must be an id of the model hub like 'meta-llama/Llama-3.1-8B', or the path of a folder", field="model_id")
    id = await known(request, project_id, db, commands)
    try:
        model = await hub.describe(data.model_id)
    except NoSuchModel as error:
        raise _not_found(data.model_id) from error
    except NotAllowed as error:
        raise Refused(400, str(error), code="model_not_accessible", field="model_id") from error
    except HubDown as error:
        raise Refused(503, f"Service unavailable: {error}. Try again in a moment", context={"part": "the model hub"}, headers={"Retry-After": "5"}) from error
    info: dict[str, Any] = msgspec.to_builtins(model.info)
    command = ResolveModel(project_id=id, base_model_id=model.info.model_id, model_info=info, revision=model.revision)
    outcome = await commands.run(command, origin=origin(request))
    return answered(outcome, ModelOut(**msgspec.structs.asdict(model.info), revision=model.revision), status=200)


handlers: list[Any] = [resolve_model]


def _not_found(model_id: str) -> Refused:
    if model_id.startswith("/"):
        return Refused(404, f"There is no folder '{model_id}' here that may be read: folders lie under those of TRAINYARD_SOURCE_ROOTS")
    return Refused(404, f"Model '{model_id}' not found on HuggingFace Hub")
