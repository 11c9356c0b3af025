"""The application: rooms, what they need, and how everything that goes wrong is said."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import asyncpg
import msgspec
from litestar import Litestar, Response, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig

from libs.config import Gateway
from libs.events.log import EventLog
from libs.storage import Storage
from services.gateway.api import docs, platform
from services.gateway.api.finetuneflow import dataset, export, files, hardware, health, jobs, logs, models, projects, training
from services.gateway.api.problems import problem
from services.gateway.api.v2 import events
from services.gateway.commands import Commands
from services.gateway.edge import Edge, dressed
from services.gateway.health import Health
from services.gateway.hub import Hub
from services.gateway.live import Live
from services.gateway.questions import Questions

ROOMS = {
    platform: "platform",
    docs: "platform",
    health: "platform",
    projects: "finetuneflow: projects",
    files: "finetuneflow: files",
    dataset: "finetuneflow: data set",
    models: "finetuneflow: model",
    hardware: "finetuneflow: hardware",
    training: "finetuneflow: training",
    logs: "finetuneflow: training",
    export: "finetuneflow: export",
    jobs: "finetuneflow: jobs",
    events: "v2: events",
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
    hub: Hub
    questions: Questions


def create_app(parts: Parts) -> Edge:
    given = {field: getattr(parts, field) for field in parts.__struct_fields__}
    return Edge(_litestar(given), host=parts.settings.host, cors_origins=parts.settings.cors_origins)


def openapi() -> dict[str, Any]:
    """The document that /openapi.json serves; needs no server."""
    return docs.openapi(_litestar(dict.fromkeys(Parts.__struct_fields__)))


def app_version() -> str:
    try:
        return version("trainyard")
    except PackageNotFoundError:
        return "0.1.0"


def _litestar(given: dict[str, Any]) -> Litestar:
    return Litestar(
        [Router("/", route_handlers=room.handlers, tags=[tag]) for room, tag in ROOMS.items()],
        dependencies={name: Provide(_giver(value), sync_to_thread=False) for name, value in given.items()},
        exception_handlers={Exception: _say},
        request_max_body_size=JSON_LIMIT,
        openapi_config=OpenAPIConfig(title="trainyard", version=app_version(), path="/schema", render_plugins=[]),
        logging_config=None,
        signature_types=[asyncpg.Pool, Commands, EventLog, Gateway, Health, Hub, Live, Questions, Storage],
    )


def _giver(value: object) -> Any:
    def give() -> object:
        return value

    return give


def _say(request: Any, error: Exception) -> Response[Any]:
    status, body, headers = dressed(request.scope, problem(error))
    return Response(body, status_code=status, headers=headers, media_type=headers.pop("content-type"))
