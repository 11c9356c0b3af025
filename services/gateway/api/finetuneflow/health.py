"""Whether the platform is up, in this family's words: `redis` is the bus."""

from typing import Any

import msgspec
from litestar import get
from litestar.di import NamedDependency

from services.gateway.api.problems import Refused
from services.gateway.health import Health


class HealthOut(msgspec.Struct, kw_only=True):
    status: str = "ok"
    db: str = "connected"
    redis: str = "connected"
    bus: str = "connected"
    storage: str = "connected"
    version: str


@get("/health", summary="Whether all parts are up; 503 names the part that is not")
async def get_health(health: NamedDependency[Health]) -> HealthOut:
    down = {part: wrong for part, wrong in (await health.parts()).items() if wrong}
    if down:
        raise Refused(
            503, f"Service unavailable: {', '.join(f'{part} ({wrong})' for part, wrong in down.items())}", context={"parts": down}, headers={"Retry-After": "2"}
        )
    return HealthOut(version=health.version)


handlers: list[Any] = [get_health]
