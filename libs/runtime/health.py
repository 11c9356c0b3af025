"""Whether a process lives, and whether it can do its work: /livez, /readyz and /metrics."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client import generate_latest

from libs.runtime.http import Server
from libs.runtime.waiting import within

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[str]]
"""Says what is wrong, or nothing."""


async def report(checks: dict[str, Check], *, patience: float = 2.0) -> dict[str, str]:
    """Each part with what is wrong with it, "" when all is well; all asked at once, none waited for long."""
    parts = dict(checks)  # as they are now: a process that starts has more by the time they have answered
    answers = await asyncio.gather(*(_ask(check, patience) for check in parts.values()))
    return dict(zip(parts, answers, strict=True))


async def _ask(check: Check, patience: float) -> str:
    try:
        return await within(patience, check())
    except TimeoutError:
        return f"no answer within {patience:g} s"
    except Exception as error:  # noqa: BLE001  # whatever a part fails with IS the answer
        return str(error) or type(error).__name__


class Probes:
    """The small HTTP server of a service that has no other."""

    def __init__(self, checks: dict[str, Check], *, port: int) -> None:
        self._checks = checks
        self._server = Server(self._app, host="127.0.0.1", port=port)

    async def serve(self) -> None:
        await self._server.serve()

    def stop(self) -> None:
        self._server.stop()

    async def _app(self, scope: dict[str, Any], _: Any, send: Any) -> None:
        match scope.get("path"):
            case "/livez":
                status, body, kind = 200, b"ok", b"text/plain"
            case "/readyz":
                parts = await report(self._checks)
                status = 503 if any(parts.values()) else 200
                body, kind = msgspec.json.encode({"ready": status == 200, "parts": {part: wrong or "ok" for part, wrong in parts.items()}}), b"application/json"
            case "/metrics":
                status, body, kind = 200, generate_latest(), b"text/plain; version=0.0.4"
            case _:
                status, body, kind = 404, b"not found: /livez, /readyz and /metrics are here", b"text/plain"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
