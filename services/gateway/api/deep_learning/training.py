"""Training: a model is fitted to a data set, looked at and stopped."""

import math
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from libs.config import Gateway
from libs.events import Fit
from libs.events.log import EventLog
from libs.storage import Missing, Storage
from services.gateway.api.asked import as_asked
from services.gateway.api.charges import starter
from services.gateway.api.deep_learning.words import STATUS, stamp, stamp_or_none
from services.gateway.api.hyperparams import Hyperparams, synonyms
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, answered, caller, fingerprint, need, new_id, origin, tenant, tenants
from services.gateway.api.stopping import stop
from services.gateway.commands import Commands
from services.gateway.domain.dataset import StartFit
from services.gateway.domain.errors import JobEnded, NotFound
from services.gateway.domain.jobs import Job, Status
from services.gateway.domain.model import Model
from services.gateway.domain.quota import CONCURRENT
from services.gateway.domain.workspace import CHANGE
from services.gateway.live import Live
from services.gateway.places import KINDS, Places
from services.gateway.views import datasets, models
from services.gateway.views.models import FitRow

MODEL_TYPES = ("gradient_boosting", "mlp", "ft_transformer", "resnet18", "resnet34", "resnet50", "resnet101", "vit", "convnext")
"""Besides ids of image classifiers on the model hub."""
IMAGES_ONLY = ("vit", "convnext")
TABLES_ONLY = ("gradient_boosting", "mlp", "ft_transformer")
WIDEST = {"ft_transformer": 2_000}
"""Features at most. Of some columns a run makes more than one, and refuses then too."""

NOT_ASKED_FOR = ("trainer", "model_type", "smoke", "validation_split", "patience", "monitor")
NAMES = tuple(field for field in Fit.__struct_fields__ if field not in NOT_ASKED_FOR)
HYPERPARAMETERS = Hyperparams(
    spec=Fit,
    names=NAMES,
    synonyms=synonyms(NAMES) | {"n_estimators": "epochs", "num_boost_round": "epochs"},
    choices={"scheduler": {"none": "constant"}, "optimizer": {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd", "RMSprop": "rmsprop"}},
)
IMAGES = {"learning_rate": 5e-5, "batch_size": 8, "epochs": 3}
"""Where nobody says otherwise, of what is only for images."""
BOOSTING = {"learning_rate": 0.1}
"""Of trees: with the step of a network a hundred of them would hardly differ from the mean."""
PATIENCE = {True: 5, False: 10}

Monitor = Literal["val_loss", "val_accuracy", "val_f1", "val_f1_score", "val_mae", "val_rmse", "val_r2"]


class EarlyStopping(msgspec.Struct, kw_only=True):
    enabled: bool = True
    patience: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    monitor: Monitor = "val_loss"


class TrainingStart(msgspec.Struct, kw_only=True):
    dataset_id: UUID
    model_type: Annotated[str, Meta(min_length=1, max_length=300)]
    hyperparameters: dict[str, Any] = {}
    validation_split: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    early_stopping: EarlyStopping = msgspec.field(default_factory=EarlyStopping)


class TrainingQueued(msgspec.Struct, kw_only=True):
    """`estimated_time` in seconds: as runs of this kind took so far, else by the size of the data set."""

    job_id: str
    status: str
    created_at: str
    estimated_time: int
    model_type: str
    hyperparameters: dict[str, Any]
    """All that the run will use, under the names that were sent."""


class TrainingStatus(msgspec.Struct, kw_only=True):
    job_id: str
    status: str
    progress: int
    current_epoch: int
    total_epochs: int
    metrics: dict[str, float | None]
    started_at: str | None
    elapsed_time: int
    remaining_time: int | None
    """In seconds, as the run goes now; null while nothing is known."""
    completed_at: str | None
    dataset_id: str
    model_id: str | None
    message: str
    error: str | None


class TrainingResults(msgspec.Struct, kw_only=True):
    """`training_history` has one entry for each epoch; `report` what else was measured: the confusion matrix, the importance of the features."""

    job_id: str
    status: str
    model_id: str | None
    final_metrics: dict[str, float | None]
    training_history: dict[str, list[float | None]]
    duration: int
    completed_at: str
    report: dict[str, Any]


class TrainingStopped(msgspec.Struct, kw_only=True):
    job_id: str
    status: str
    message: str


@post("/training/start", status_code=201, summary="Fit a model to a data set")
async def start_training(
    request: AnyRequest,
    data: JSONBody[TrainingStart],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    places: NamedDependency[Places],
    settings: NamedDependency[Gateway],
) -> Response[TrainingQueued]:
    """A data set that is still being processed is waited for. Five of your runs may be queued or running at once: a sixth is a 429."""
    place = await _place(request, str(data.dataset_id), places)
    fit = _fit(data, smoke=settings.smoke)
    row = await datasets.get(db, place, str(data.dataset_id))
    await _suits(db, row, fit.model_type)
    job_id, asked = new_id(request), fingerprint(data)
    command = StartFit(
        dataset_id=str(data.dataset_id), job_id=job_id, fit=fit, request=asked, starter=starter(request, settings, "deep-learning-platform", most=CONCURRENT)
    )
    outcome = await commands.run(command, origin=origin(request, place=place))
    created, at = await as_asked(log, place, job_id, asked)
    queued = TrainingQueued(
        job_id=job_id,
        status="queued",
        created_at=stamp(at),
        estimated_time=await _estimate(request, db, fit, row),
        model_type=fit.model_type,
        hyperparameters=HYPERPARAMETERS.echoed(created.spec, data.hyperparameters),
    )
    return answered(outcome, queued, status=201, location=f"/training/status/{job_id}")


@get("/training/status/{job_id:uuid}", summary="How a run is doing")
async def training_status(
    request: AnyRequest, job_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> TrainingStatus:
    now = datetime.now(UTC)
    if row := await _row(request, job_id, db, commands):
        return _status(row, now)
    state = await _known(request, job_id, commands)
    return TrainingStatus(
        job_id=state.id,
        status=STATUS[state.status],
        progress=0,
        current_epoch=0,
        total_epochs=0,
        metrics={},
        started_at=None,
        elapsed_time=0,
        remaining_time=None,
        completed_at=None,
        dataset_id="",
        model_id=None,
        message="",
        error=None,
    )


@get("/training/results/{job_id:uuid}", summary="What a run came to")
async def training_results(
    request: AnyRequest,
    job_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    storage: NamedDependency[Storage],
) -> TrainingResults:
    """409 before it has completed."""
    row = await _row(request, job_id, db, commands)
    status = row.status if row else (await _known(request, job_id, commands)).status
    if row is None or status is not Status.SUCCEEDED or row.finished_at is None:
        why = f"it {'was stopped' if status is Status.CANCELLED else 'failed'}: {row.error or ''}" if row and status.ended else "it has not completed yet"
        raise Refused(409, f"There are no results of this run, {why.rstrip(': ')}", code="no_results")
    summary: dict[str, Any] = msgspec.json.decode(row.summary)
    return TrainingResults(
        job_id=row.job_id,
        status=STATUS[status],
        model_id=row.job_id if row.has_model else None,
        final_metrics=msgspec.json.decode(row.final),
        training_history=await _history(request, row, summary, db, storage),
        duration=_seconds(row, row.finished_at),
        completed_at=stamp(row.finished_at),
        report=summary.get("report", {}),
    )


@post("/training/stop/{job_id:uuid}", status_code=200, summary="Stop a run that is queued or under way")
async def stop_training(request: AnyRequest, job_id: FromPath[UUID], commands: NamedDependency[Commands], live: NamedDependency[Live]) -> TrainingStopped:
    """Says what came of it: waits for the end of the run, five seconds at most. 409 when it had ended otherwise."""
    state = await _known(request, job_id, commands)
    if state.status.ended and state.status is not Status.CANCELLED:
        raise JobEnded(job_id=state.id, status=STATUS[state.status])
    job = state if state.status.ended else await stop(state.id, reason="stopped by its owner", commands=commands, live=live, about=origin(request))
    return TrainingStopped(job_id=job.id, status=STATUS[job.status], message=_STOPPED.get(job.status, "It stops as soon as its worker has noticed"))


handlers: list[Any] = [start_training, training_status, training_results, stop_training]

_STOPPED = {
    Status.CANCELLED: "Training job stopped successfully",
    Status.SUCCEEDED: "The run completed before it could be stopped",
    Status.FAILED: "The run failed before it could be stopped",
}
_SECONDS_A_ROW = {"gradient_boosting": 2e-6, "mlp": 4e-5, "ft_transformer": 4e-4, "resnet18": 1e-3, "resnet34": 2e-3, "resnet50": 3e-3, "resnet101": 6e-3}
"""In an epoch, of a table on one core, where there is no run yet that tells better."""
_IMAGE = 0.1
_BESIDES = 8.0
"""Seconds in which a run begins and saves its model, likewise."""
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FAR = 20
"""Times as many rows: what an epoch costs whatever it holds is most of a small run, which says nothing of one so much larger."""
_HISTORY = "history.json"
_MONITORED = {"val_f1_score": "val_f1"}
"""As it is called where it is told."""
_BYTES_A_ROW = {True: 50_000, False: 100}
"""Of images, and of a table, while nobody has counted the rows."""


def _fit(data: TrainingStart, *, smoke: bool) -> Fit:
    only_images = data.model_type in IMAGES_ONLY or "/" in data.model_type
    if data.model_type not in MODEL_TYPES and not _HUB.fullmatch(data.model_type):
        raise Refused(422, f"model_type: must be one of {', '.join(MODEL_TYPES)}, or the id of an image classifier on the model hub", field="model_type")
    usual = IMAGES if only_images else BOOSTING if data.model_type == "gradient_boosting" else {}
    besides = usual | {"model_type": data.model_type}
    chosen = HYPERPARAMETERS.understood(data.hyperparameters, besides)
    stopping = data.early_stopping
    patience = (stopping.patience or PATIENCE[only_images]) if stopping.enabled else 0
    rest = {"smoke": smoke, "validation_split": data.validation_split, "patience": patience, "monitor": _MONITORED.get(stopping.monitor, stopping.monitor)}
    return msgspec.convert(besides | chosen | rest, Fit)


async def _place(request: AnyRequest, dataset_id: str, places: Places) -> str:
    """The workspace of the data set, which the body names and not the path."""
    principal = caller(request)
    place = await places.of(KINDS["dataset_id"], dataset_id, principal)
    need(principal, place, CHANGE)
    return place


async def _suits(db: asyncpg.Pool, row: datasets.Row | None, model_type: str) -> None:
    """As far as it is known already what the data set holds."""
    if row is None or row.status != "ready":
        return
    images = await datasets.holds_images(db, row.id)
    if images and model_type in TABLES_ONLY:
        raise Refused(422, f"model_type: {model_type} is for tables, and this data set holds images", field="model_type")
    if not images and (model_type in IMAGES_ONLY or "/" in model_type):
        raise Refused(422, f"model_type: {model_type} is for images, and this data set is a table", field="model_type")
    if model_type in WIDEST and (features := await datasets.features(db, row.id)) > WIDEST[model_type]:
        why = f"takes {WIDEST[model_type]:,} features at most, and this data set has {features:,}: take gradient_boosting or mlp"
        raise Refused(422, f"model_type: {model_type} {why}", field="model_type")


async def _estimate(request: AnyRequest, db: asyncpg.Pool, fit: Fit, row: datasets.Row | None) -> int:
    images = fit.model_type in IMAGES_ONLY or "/" in fit.model_type
    rows = 0
    if row:
        rows = msgspec.json.decode(row.result)["valid"] if row.status == "ready" else row.size / _BYTES_A_ROW[images]
    usual = _SECONDS_A_ROW.get(fit.model_type, _IMAGE)
    if known := await models.pace(db, tenants(request), fit.model_type, rows=rows):
        each, besides = known.each if rows <= _FAR * known.rows else min(known.each, usual), known.besides
    else:
        each, besides = usual, _BESIDES
    return max(1, math.ceil(rows * fit.epochs * each + besides))


async def _row(request: AnyRequest, job_id: UUID, db: asyncpg.Pool, commands: Commands) -> FitRow | None:
    """As long as its model can't be asked for yet, a run has not completed."""
    row = await models.fit(db, tenant(request), str(job_id))
    if row and row.status is Status.SUCCEEDED and row.dataset_id and not row.has_model:
        model, _ = await commands.newest(Model, row.job_id, tenant=tenant(request))
        if model is None or not model.deleted:
            return msgspec.structs.replace(row, status=Status.RUNNING, finished_at=None)
    return row


async def _history(request: AnyRequest, row: FitRow, summary: dict[str, Any], db: asyncpg.Pool, storage: Storage) -> dict[str, list[float | None]]:
    """Of a long run the facts have only some epochs, and a file of its model has all. Null where one isn't known any more, for the model was deleted."""
    told = await models.history(db, row.job_id)
    if not row.dataset_id or len(told) >= summary["epochs"]:
        return {name: [epoch.get(name) for epoch in told] for name in _told(told)}
    files = await models.artifacts(db, tenant(request), row.job_id) or {}
    if _HISTORY in files:
        with suppress(Missing):
            return msgspec.json.decode(await storage.get(files[_HISTORY]), type=dict[str, list[float | None]])
    known = {round(epoch["epoch"] or 0): epoch for epoch in told}
    return {name: [known.get(number, {}).get(name) for number in range(1, summary["epochs"] + 1)] for name in _told(told)}


async def _known(request: AnyRequest, job_id: UUID, commands: Commands) -> Job:
    state, _ = await commands.newest(Job, str(job_id), tenant=tenant(request))
    if state is None or state.kind != "train":
        raise NotFound(what="Training job", id=str(job_id))
    return state


def _status(row: FitRow, now: datetime) -> TrainingStatus:
    spec: dict[str, Any] = msgspec.json.decode(row.spec)
    steps: dict[str, float | None] = msgspec.json.decode(row.metrics)
    evaluated: dict[str, float | None] = msgspec.json.decode(row.evaluation)
    told = {_CALLED.get(name, name): value for name, value in (evaluated or steps).items() if name not in _NO_METRICS}
    running = row.status is Status.RUNNING
    epoch, epochs = int(evaluated.get("epoch") or steps.get("epoch") or 0), math.ceil(spec.get("epochs") or spec.get("num_epochs") or 0)
    behind = min(99, 100 * epoch // epochs) if running and epochs else 0
    return TrainingStatus(
        job_id=row.job_id,
        status=STATUS[row.status],
        progress=max(row.progress, behind) if running or row.status.ended else 0,
        current_epoch=epoch,
        total_epochs=epochs,
        metrics=told,
        started_at=stamp_or_none(row.started_at),
        elapsed_time=_seconds(row, row.finished_at or now),
        remaining_time=row.until_done(now) if running and not row.cancel_requested else None,
        completed_at=stamp_or_none(row.finished_at),
        dataset_id=row.dataset_id or "",
        model_id=row.job_id if row.has_model else None,
        message=row.message,
        error=row.error,
    )


_NO_METRICS = ("epoch", "learning_rate", "grad_norm", "tokens_per_second", "tokens", "memory", "memory_gb")
_CALLED = {"train_loss": "loss"}
"""Before the first epoch is over, as it is called from then on."""


def _told(history: list[dict[str, float | None]]) -> list[str]:
    return [name for name in dict.fromkeys(name for epoch in history for name in epoch) if name not in _NO_METRICS]


def _seconds(row: FitRow, until: datetime) -> int:
    return max(0, round((until - row.started_at).total_seconds())) if row.started_at else 0
