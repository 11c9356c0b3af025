"""The base model of a project: looked up, judged and remembered before anything is loaded."""

import logging
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, UnsetType

from libs.config import Gateway
from libs.events import FineTune
from libs.events.log import EventLog
from libs.storage import Storage
from services.gateway import trained
from services.gateway.api.finetuneflow.hardware import Hardware
from services.gateway.api.finetuneflow.training import NAMES, TrainStart, wanted
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, answered, origin, tenant
from services.gateway.commands import Commands
from services.gateway.domain import vram
from services.gateway.domain.errors import NotFound
from services.gateway.domain.project import Project, ResolveModel, is_own, row_length
from services.gateway.hub import Hub, HubDown, Info, Model, NoSuchModel, NotAllowed, TokenRefused, Vram, well_formed
from services.gateway.questions import NoAnswer, Questions
from services.gateway.views import projects

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds for the training service to say what it has: an answer without it is one too."""
METHODS = ("full", "lora", "qlora")
SHAPING = ("per_device_batch_size", "max_seq_length", "lora_r", "lora_dropout", "gradient_checkpointing", "optimizer")
"""The hyperparameters that memory depends on."""

Fit = Literal["fits", "smaller", "no"]


class ModelAsked(msgspec.Struct, kw_only=True):
    model_id: Annotated[str, Meta(min_length=1, max_length=300)]
    preset: str | UnsetType = UNSET
    """With `hyperparams`: what the memory is estimated for, as they would be sent to train/start."""
    hyperparams: dict[str, Any] = {}


class Fits(msgspec.Struct, kw_only=True):
    """`fits`: as estimated. `smaller`: with fewer rows at once, which the trainer does by itself, and gradient_checkpointing. `no`: not even then."""

    gpu_name: str | None
    vram_total_gb: float
    full: Fit
    lora: Fit
    qlora: Fit


class ModelOut(Info, frozen=True, kw_only=True):
    revision: str
    """The commit that was looked at, and that will be trained."""
    hardware: Fits | None = None
    """How it would fit the GPU where training runs; null without one, without an estimate, or while the training service does not answer."""


@post("/projects/{project_id:uuid}/model/resolve", status_code=200, summary="Choose the base model, and see what it is and needs")
async def resolve_model(
    request: AnyRequest,
    project_id: FromPath[UUID],
    data: JSONBody[ModelAsked],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    hub: NamedDependency[Hub],
    log: NamedDependency[EventLog],
    storage: NamedDependency[Storage],
    questions: NamedDependency[Questions],
    settings: NamedDependency[Gateway],
) -> Response[ModelOut]:
    """An id of the model hub, `trainyard/tiny-llama`, a folder, or `trainyard/<run or job id>` of a completed run of this workspace. Only its configuration is read.
    `valid` is false when it can't be fine-tuned; `warnings` say why."""
    if not well_formed(data.model_id):
        raise Refused(422, "model_id: must be an id of the model hub like 'meta-llama/Llama-3.1-8B', or the path of a folder", field="model_id")
    settings_for = wanted(TrainStart(preset=data.preset, hyperparams=data.hyperparams))
    here, id = tenant(request), str(project_id)
    project, _ = await commands.newest(Project, id, tenant=here, known=await projects.load(db, here, id))
    if project is None or project.deleted:
        raise NotFound(what="Project", id=id)
    try:
        if is_own(data.model_id):
            model = (await trained.find(data.model_id, tenant=here, db=db, log=log, storage=storage, commands=commands, smoke=settings.smoke)).model
        else:
            model = await hub.describe(data.model_id)
    except NoSuchModel as error:
        raise _not_found(data.model_id) from error
    except NotAllowed as error:
        code = "hub_token_refused" if isinstance(error, TokenRefused) else "model_not_accessible"
        raise Refused(400, str(error), code=code, field="model_id") from error
    except HubDown as error:
        raise Refused(503, f"Service unavailable: {error}. Try again in a moment", context={"part": "the model hub"}, headers={"Retry-After": "5"}) from error
    longest = row_length(project, model.info.max_position_embeddings)
    info = _with_memory(model, msgspec.convert({"base_model": "any", "max_seq_length": longest} | settings_for["hyperparams"], FineTune))
    command = ResolveModel(project_id=id, base_model_id=info.model_id, model_info=msgspec.to_builtins(info), revision=model.revision)
    outcome = await commands.run(command, origin=origin(request))
    fits = await _fits(info, questions)
    shown = ModelOut(**msgspec.structs.asdict(info), revision=model.revision, hardware=fits)
    return answered(outcome, msgspec.structs.replace(shown, warnings=[*info.warnings, *_doubts(info, fits)]), status=200)


handlers: list[Any] = [resolve_model]


def _with_memory(model: Model, tuning: FineTune) -> Info:
    """Only for shapes whose memory can be counted."""
    shape, count = model.shape, model.info.num_parameters
    if shape is None or count is None:
        return model.info
    least = msgspec.structs.replace(tuning, per_device_batch_size=1, gradient_checkpointing=True)

    def each(tuning: FineTune) -> Vram:
        needed = {method: vram.need(shape, count, msgspec.structs.replace(tuning, method=method)) for method in METHODS}
        return Vram(**{method: round(size / 1e9, 2) for method, size in needed.items()})

    return msgspec.structs.replace(
        model.info,
        estimated_training_vram_gb=each(tuning),
        least_training_vram_gb=each(least),
        estimated_for={name: getattr(tuning, name) for name in NAMES if name in SHAPING},
    )


async def _fits(info: Info, questions: Questions) -> Fits | None:
    needed, least = info.estimated_training_vram_gb, info.least_training_vram_gb
    if needed is None or least is None:
        return None
    try:
        machine = await questions.ask("hardware", {}, answer=Hardware, patience=PATIENCE)
    except NoAnswer as error:
        log.info("nobody says whether a model fits: %s", error)
        return None
    if not machine.cuda_available or machine.vram_total_gb is None:
        return None
    there = machine.vram_total_gb * 1024**3 / 1e9
    fit: dict[str, Fit] = {method: "fits" if getattr(needed, method) <= there else "smaller" if getattr(least, method) <= there else "no" for method in METHODS}
    return Fits(gpu_name=machine.gpu_name, vram_total_gb=machine.vram_total_gb, full=fit["full"], lora=fit["lora"], qlora=fit["qlora"])


def _doubts(info: Info, fits: Fits | None) -> list[str]:
    """Said, not refused: an estimate is one, and another machine may be on its way."""
    if fits is None or info.least_training_vram_gb is None:
        return []
    where, least = f"the {fits.vram_total_gb:g} GB of {fits.gpu_name or 'the GPU'}", info.least_training_vram_gb
    none = [method for method in METHODS if getattr(fits, method) == "no"]
    if len(none) == len(METHODS):
        return [f"No method fits into {where}: even qlora takes about {least.qlora:g} GB. Take a smaller model, or a smaller max_seq_length"]
    return [f"{' and '.join(none)} would not fit into {where}"] if none else []


def _not_found(model_id: str) -> Refused:
    context: dict[str, Any] = {}
    if model_id.startswith("/"):
        message = f"There is no folder '{model_id}' here that may be read: folders lie under those of TRAINYARD_SOURCE_ROOTS"
    elif is_own(model_id):
        message = f"There is no run '{model_id}' here that has completed"
    else:
        message = f"Model '{model_id}' not found on HuggingFace Hub"
        context = {"hint": "A private model is only seen with a token that may read it: TRAINYARD_HF_TOKEN"}
    return Refused(404, message, code="model_not_found", context=context)
