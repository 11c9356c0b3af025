"""What belongs to no family: the welcome, and what operators and their tools ask."""

from typing import Any

from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from prometheus_client import generate_latest

from services.gateway.health import Health


@get("/", summary="Welcome")
async def welcome() -> dict[str, str]:
    return {"message": "Welcome to the Deep Learning Platform"}


@get("/livez", media_type=MediaType.TEXT, include_in_schema=False)
async def livez() -> str:
    """Never depends on others: a restart of this process would not mend them."""
    return "ok"


@get("/readyz", include_in_schema=False)
async def readyz(health: NamedDependency[Health]) -> Response[dict[str, Any]]:
    parts = await health.ready()
    ready = not any(parts.values())
    return Response({"ready": ready, "parts": {part: wrong or "ok" for part, wrong in parts.items()}}, status_code=200 if ready else 503)


@get("/metrics", include_in_schema=False)
async def metrics() -> Response[bytes]:
    return Response(generate_latest(), media_type="text/plain; version=0.0.4")


handlers: list[Any] = [welcome, livez, readyz, metrics]
