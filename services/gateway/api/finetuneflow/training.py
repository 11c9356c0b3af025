"""Training: started, looked at and cancelled."""

from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from libs.config import Gateway
from libs.events import FineTune, JobCreated
from libs.events.log import EventLog
from libs.storage import Storage
from services.gateway import trained
from services.gateway.api.asked import as_asked
from services.gateway.api.charges import starter
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.words import STATUS, eta, progress, stamp_or_none
from services.gateway.api.hyperparams import Hyperparams, synonyms
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, answered, fingerprint, new_id, origin, tenant
from services.gateway.api.stopping import stop
from services.gateway.commands import Commands
from services.gateway.domain.errors import JobEnded, NotFound
from services.gateway.domain.jobs import Job, Status, run_id
from services.gateway.domain.project import OwnBase, Project, StartTraining, is_own
from services.gateway.hub import NoSuchModel
from services.gateway.live import Live
from services.gateway.presets import Preset, presets
from services.gateway.views import projects, runs
from services.gateway.views.runs import Run

NOT_ASKED_FOR = ("base_model", "revision", "ancestors", "root", "root_revision", "method", "preset", "smoke")
NAMES = tuple(field for field in FineTune.__struct_fields__ if field not in NOT_ASKED_FOR)
HYPERPARAMS = Hyperparams(
    spec=FineTune,
    names=NAMES,
    synonyms=synonyms(NAMES),
    within="hyperparams",
    choices={
        "optimizer": {
            "adamw_torch": "adamw",
            "adamw_torch_fused": "adamw",
            "adamw8bit": "adamw_8bit",
            "adamw_bnb_8bit": "adamw_8bit",
        },
        "lr_scheduler": {"constant_with_warmup": "constant"},
    },
)


class TrainStart(msgspec.Struct, kw_only=True):
    method: Literal["lora", "qlora", "full"] | UnsetType = UNSET
    """`qlora`, or that of the preset, unless it is sent."""
    preset: str | UnsetType = UNSET
    """One of GET /v2/presets. What is sent in `hyperparams` counts more."""
    hyperparams: dict[str, Any] = {}


class TrainQueued(msgspec.Struct, kw_only=True):
    job_id: str
    run_id: str
    status: str = "queued"
    message: str = "Training job enqueued on gpu_queue"
    method: str
    preset: str = ""
    base_model_id: str
    smoke: bool
    hyperparams: dict[str, Any]
    """All that the run will use, under the names that were sent."""


class Metrics(msgspec.Struct, kw_only=True):
    step: int
    total_steps: int
    train_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    tokens_per_second: float | None = None


class TrainStatus(msgspec.Struct, kw_only=True):
    run_id: str
    job_id: str
    status: str
    method: str
    progress_pct: int
    current_metrics: Metrics
    started_at: str | None
    elapsed_seconds: int
    eta_seconds: int | None
    """Until the last step, as the run goes now; null while nothing is known: before it goes on, when it stands still, and once it has ended."""
    finished_at: str | None
    message: str
    error_message: str | None
    base_model_id: str
    smoke: bool
    attempt: int
    cancel_requested: bool
    hyperparams: dict[str, Any]
    checkpoint_step: int


class NoRuns(msgspec.Struct, kw_only=True):
    status: str = "no_runs"


class Cancelled(msgspec.Struct, kw_only=True):
    status: str
    message: str
    job_id: str | None = None


@post("/projects/{project_id:uuid}/train/start", status_code=202, summary="Fine-tune the project's base model on its data set")
async def start_training(
    request: AnyRequest,
    project_id: FromPath[UUID],
    data: JSONBody[TrainStart],
    commands: NamedDependency[Commands],
    db: NamedDependency[asyncpg.Pool],
    log: NamedDependency[EventLog],
    storage: NamedDependency[Storage],
    settings: NamedDependency[Gateway],
) -> Response[TrainQueued]:
    """Files that are still being read are waited for. 409 while another run of the project is queued or running, 402 where the run costs more credits than you have."""
    job_id, request_ = new_id(request), fingerprint(data)
    command = StartTraining(
        project_id=str(project_id),
        job_id=job_id,
        **wanted(data),
        own=await own_base(str(project_id), tenant(request), db=db, log=log, storage=storage, commands=commands, smoke=settings.smoke),
        smoke=settings.smoke,
        request=request_,
        starter=starter(request, settings, "finetuneflow"),
    )
    outcome = await commands.run(command, origin=origin(request))
    created, _ = await as_asked(log, tenant(request), job_id, request_)
    return answered(outcome, _queued(created, data.hyperparams), status=202)


@get("/projects/{project_id:uuid}/train/status", summary="How the latest run is doing")
async def train_status(
    request: AnyRequest, project_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> TrainStatus | NoRuns:
    """`{"status": "no_runs"}` before any run."""
    run = await runs.latest(db, tenant(request), await known(request, project_id, db, commands))
    return _seen(run, now=datetime.now(UTC)) if run else NoRuns()


@post("/projects/{project_id:uuid}/train/cancel", status_code=200, summary="Cancel the run that is queued or under way")
async def cancel_training(request: AnyRequest, project_id: FromPath[UUID], commands: NamedDependency[Commands], live: NamedDependency[Live]) -> Cancelled:
    """Says what came of it: waits for the end of the run, five seconds at most. 200 also when none is active."""
    here = tenant(request)
    project, _ = await commands.newest(Project, str(project_id), tenant=here)
    if project is None or project.deleted:
        raise NotFound(what="Project", id=str(project_id))
    if not project.run:
        return _NOTHING
    try:
        job = await stop(project.run, reason="cancelled by its owner", commands=commands, live=live, about=origin(request))
    except JobEnded:
        return _NOTHING
    return _came_to(job)


handlers: list[Any] = [start_training, train_status, cancel_training]

_NOTHING = Cancelled(status="no_active_job", message="No training job is active for this project")


def wanted(data: TrainStart) -> dict[str, Any]:
    """As the command has it: what is sent counts more than its preset, and is checked."""
    preset = _preset(data.preset) if data.preset else None
    method = data.method or (preset.method if preset else "qlora")
    given = (understood(preset.hyperparams, method) if preset else {}) | understood(data.hyperparams, method)
    return {"method": method, "preset": data.preset or "", "hyperparams": given}


async def own_base(project_id: str, tenant: str, *, db: asyncpg.Pool, log: EventLog, storage: Storage, commands: Commands, smoke: bool) -> OwnBase | None:
    """What the project's base is made of, where it was trained here."""
    project, _ = await commands.newest(Project, project_id, tenant=tenant, known=await projects.load(db, tenant, project_id))
    if project is None or not is_own(project.base_model_id):
        return None
    try:
        found = await trained.find(project.base_model_id, tenant=tenant, db=db, log=log, storage=storage, commands=commands, smoke=smoke)
    except NoSuchModel:
        return OwnBase(tenant=tenant, model_id=project.base_model_id, ancestors=[], unusable="the run that it is of is not there any more")
    info = found.model.info
    return found.base if info.valid else msgspec.structs.replace(found.base, unusable="; ".join(info.warnings))


def _preset(name: str) -> Preset:
    if (found := presets().get(name)) is None:
        raise Refused(422, f"preset: there is none of this name, only {', '.join(presets())}", field="preset")
    return found


def understood(given: dict[str, Any], method: str) -> dict[str, Any]:
    return HYPERPARAMS.understood(given, {"base_model": "any", "method": method})


def _queued(created: JobCreated, given: dict[str, Any]) -> TrainQueued:
    return TrainQueued(
        job_id=created.job_id,
        run_id=run_id(created.job_id),
        method=created.spec["method"],
        preset=created.spec.get("preset", ""),
        base_model_id=created.spec["base_model"],
        smoke=created.spec["smoke"],
        hyperparams=HYPERPARAMS.echoed(created.spec, given),
    )


def _seen(run: Run, *, now: datetime) -> TrainStatus:
    took = ((run.finished_at or now) - run.started_at).total_seconds() if run.started_at else 0
    named = {name: run.metrics.get(name) for name in ("train_loss", "eval_loss", "learning_rate", "epoch", "tokens_per_second")}
    return TrainStatus(
        run_id=run.run_id,
        job_id=run.job_id,
        status=STATUS[run.status.value],
        method=run.method,
        progress_pct=progress(run.status.value, run.progress),
        current_metrics=Metrics(step=run.step, total_steps=run.total_steps, **named),
        started_at=stamp_or_none(run.started_at),
        elapsed_seconds=max(0, round(took)),
        eta_seconds=eta(run.status.value, run.cancel_requested, run, now),
        finished_at=stamp_or_none(run.finished_at) if run.status.ended else None,
        message=run.message,
        error_message=run.error,
        base_model_id=run.spec.get("base_model", ""),
        smoke=run.smoke,
        attempt=run.attempt,
        cancel_requested=run.cancel_requested,
        hyperparams=HYPERPARAMS.echoed(run.spec, {}),
        checkpoint_step=run.checkpoint_step,
    )


def _came_to(job: Job) -> Cancelled:
    match job.status:
        case Status.CANCELLED:
            return Cancelled(status="cancelled", message="Training job cancelled", job_id=job.id)
        case Status.SUCCEEDED | Status.FAILED:
            return Cancelled(status=STATUS[job.status.value], message="The training job ended by itself before it could be cancelled", job_id=job.id)
        case _:
            return Cancelled(status="cancelling", message="The training job will be cancelled as soon as its worker has noticed", job_id=job.id)
