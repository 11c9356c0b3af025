"""The application: rooms, what they need, and how everything that goes wrong is said."""

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import asyncpg
import msgspec
from litestar import Litestar, Response, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.routes import HTTPRoute

from libs.config import Gateway
from libs.events.log import EventLog
from libs.storage import Storage
from services.gateway.accounts import Accounts
from services.gateway.api import docs, platform
from services.gateway.api.autotrainx.progress import Sockets
from services.gateway.api.datagen import auth as datagen_auth
from services.gateway.api.deep_learning import auth, datasets, predict, webhooks
from services.gateway.api.deep_learning import models as fitted
from services.gateway.api.deep_learning import training as fitting
from services.gateway.api.deep_learning.limits import ANONYMOUS
from services.gateway.api.finetuneflow import (
    chunks,
    dataset,
    download,
    export,
    files,
    generation,
    hardware,
    health,
    jobs,
    logs,
    models,
    projects,
    rehearsal,
    training,
)
from services.gateway.api.lora import credits
from services.gateway.api.problems import problem
from services.gateway.api.requests import AnyRequest, find
from services.gateway.api.unknown import refuse_unknown_keys
from services.gateway.api.v2 import bus_credentials, events, keys, presets, users, workspaces
from services.gateway.api.v2 import credits as grants
from services.gateway.audience import Audience
from services.gateway.bus_access import Doorkeeper
from services.gateway.commands import Commands
from services.gateway.edge import Edge, dressed
from services.gateway.health import Health
from services.gateway.hub import Hub
from services.gateway.limits import Limits
from services.gateway.live import Live
from services.gateway.places import Places
from services.gateway.questions import Questions

ROOMS = {
    platform: "platform",
    docs: "platform",
    health: "platform",
    projects: "finetuneflow: projects",
    files: "finetuneflow: files",
    chunks: "finetuneflow: chunks",
    generation: "finetuneflow: data set",
    dataset: "finetuneflow: data set",
    download: "finetuneflow: data set",
    rehearsal: "finetuneflow: data set",
    models: "finetuneflow: model",
    hardware: "finetuneflow: hardware",
    training: "finetuneflow: training",
    logs: "finetuneflow: training",
    export: "finetuneflow: export",
    jobs: "finetuneflow: jobs",
    events: "v2: events",
    auth: "deep-learning-platform: people",
    datasets: "deep-learning-platform: data sets",
    fitting: "deep-learning-platform: training",
    fitted: "deep-learning-platform: models",
    predict: "deep-learning-platform: models",
    webhooks: "deep-learning-platform: webhooks",
    datagen_auth: "datagen: people",
    keys: "v2: people",
    users: "v2: people",
    bus_credentials: "v2: events",
    workspaces: "v2: people",
    grants: "v2: people",
    presets: "v2: presets",
    credits: "lora-training: credits",
}
JSON_LIMIT = 1024 * 1024


class Parts(msgspec.Struct, kw_only=True):
    """What the routes are given by name."""

    settings: Gateway
    db: asyncpg.Pool
    log: EventLog
    storage: Storage
    commands: Commands
    health: Health
    live: Live
    places: Places
    audience: Audience
    hub: Hub
    questions: Questions
    accounts: Accounts
    doorkeeper: Doorkeeper


def create_app(parts: Parts, limits: Limits | None = None) -> Edge:
    given = {field: getattr(parts, field) for field in parts.__struct_fields__}
    sockets = Sockets(db=parts.db, log=parts.log, live=parts.live, places=parts.places, audience=parts.audience, storage=parts.storage, commands=parts.commands)
    settings = parts.settings
    app = _by_kind(_litestar(given), sockets, parts.audience)
    return Edge(
        app,
        host=settings.host,
        cors_origins=settings.cors_origins,
        who=parts.accounts.principal,
        local=settings.auth == "local",
        limits=limits,
        anonymous=msgspec.structs.replace(ANONYMOUS, limit=settings.anonymous_per_hour),
    )


def openapi() -> dict[str, Any]:
    """The document that /openapi.json serves; needs no server."""
    return docs.openapi(_litestar(dict.fromkeys(Parts.__struct_fields__)))


def app_version() -> str:
    try:
        return version("trainyard")
    except PackageNotFoundError:
        return "0.1.0"


def _litestar(given: dict[str, Any]) -> Litestar:
    app = Litestar(
        [Router("/", route_handlers=room.handlers, tags=[tag]) for room, tag in ROOMS.items()],
        dependencies={name: Provide(_giver(value), sync_to_thread=False) for name, value in given.items()},
        before_request=_first(given["places"]),
        exception_handlers={Exception: _say},
        request_max_body_size=JSON_LIMIT,
        openapi_config=OpenAPIConfig(title="trainyard", version=app_version(), path="/schema", render_plugins=[]),
        logging_config=None,
        signature_types=[Accounts, asyncpg.Pool, Audience, Commands, Doorkeeper, EventLog, Gateway, Health, Hub, Live, Places, Questions, Storage],
    )
    _one_by_one(app)
    return app


def _first(places: Places) -> Callable[[AnyRequest], Awaitable[None]]:
    """Before any route."""

    async def before(request: AnyRequest) -> None:
        await find(request, places)
        await refuse_unknown_keys(request)

    return before


def _one_by_one(app: Litestar) -> None:
    """What the routes are given is there already: in tasks of their own, as the framework would fetch it, that took a tenth of a request."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for _, model in route.route_handler_map.values():
                model.dependency_batches = [{dependency} for batch in model.dependency_batches for dependency in batch]


def _by_kind(http: Any, sockets: Any, audience: Audience) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await (sockets if scope["type"] == "websocket" else http)(scope, receive, send)
        finally:
            audience.leave(scope)

    return app


def _giver(value: object) -> Any:
    def give() -> object:
        return value

    return give


def _say(request: Any, error: Exception) -> Response[Any]:
    status, body, headers = dressed(request.scope, problem(error, request.scope.get("route_handler")))
    return Response(body, status_code=status, headers=headers, media_type=headers.pop("content-type"))
