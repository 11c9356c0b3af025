"""What every request meets first and every answer last: ids, traces, figures, and who may call from where."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import msgspec
from prometheus_client import Counter, Histogram

from libs import telemetry
from services.gateway.api import limits as counted
from services.gateway.api.deep_learning.limits import ANONYMOUS
from services.gateway.api.families import bucket, family
from services.gateway.api.problems import Problem, Refused, media_type, problem
from services.gateway.domain.user import LOCAL, NOBODY, Principal
from services.gateway.limits import Bucket, Limits
from services.gateway.tokens import Bad

log = logging.getLogger("access")

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BODIES = frozenset({"application/json", "multipart/form-data"})
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED = (
    "ETag, Content-Disposition, Content-Range, X-Request-Id, X-Event-Seq, Location, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
)

_requests = Counter("trainyard_requests_total", "Answers by route and status", ["method", "route", "status"])
_seconds = Histogram(
    "trainyard_request_seconds",
    "Time to the first byte of an answer",
    ["method", "route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
_request_id = re.compile(r"[A-Za-z0-9._-]{1,64}")

Scope = dict[str, Any]
Who = Callable[[str], Awaitable[Principal]]
"""Whom a token lets in. Raises Bad."""
Count = Callable[[Principal], Awaitable[None]]
"""Raises Refused when that one has asked too often."""

DOORS = frozenset({"/auth/register", "/auth/login", "/auth/refresh", "/api/v1/auth/token"})
"""POSTs with which people enter: what token they carry along doesn't matter, it is likely to be the one that has just expired."""
REFRESHING = "/auth/refresh"
"""The door to which the body says who asks: many refresh from behind one address."""
OPEN = frozenset({"/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json", "/asyncapi.json"})
"""What everybody may read, as often as they like: nothing in it is anybody's."""


class Edge:
    """ASGI around the application: a plain callable, so that unrouted requests meet it too."""

    def __init__(
        self, app: Any, *, host: str, cors_origins: str, who: Who, local: bool = True, limits: Limits | None = None, anonymous: Bucket = ANONYMOUS
    ) -> None:
        self._app = app
        self._host = host
        self._who = who
        self._local = local
        self._limits = limits
        self._anonymous = anonymous
        self._origins = frozenset(origin.strip().rstrip("/") for origin in cors_origins.split(",") if origin.strip())

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        request_id = given if _request_id.fullmatch(given := headers.get(b"x-request-id", "")) else uuid.uuid4().hex
        scope["request_id"] = request_id
        origin = headers.get(b"origin", "")
        extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff"), *self._cors(origin)]
        headless = scope.get("method") == "HEAD"  # GET without the body; the router knows only GET, the server still has to know
        inner = {**scope, "method": "GET"} if headless else scope
        await self._watched(inner, receive, _Sender(send, extra, headless=headless), headers, origin)

    async def _watched(self, scope: Scope, receive: Any, send: "_Sender", headers: dict[bytes, str], origin: str) -> None:
        method = "HEAD" if send.headless else scope.get("method", "WS")
        started = time.perf_counter()
        with telemetry.span(method, kind=telemetry.SpanKind.SERVER, parent=headers.get(b"traceparent", "")) as span:
            try:
                await self._admitted(scope, receive, send, headers, origin)
            finally:
                route = scope.get("path_template") or "unrouted"
                took = (send.first_byte or time.perf_counter()) - started
                _requests.labels(method, route, send.status).inc()
                _seconds.labels(method, route).observe(took)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.response.status_code", send.status)
                log.info("%s %s %d", method, scope["path"], send.status, extra={"request_id": scope["request_id"], "ms": round(took * 1000, 2), "route": route})

    async def _admitted(self, scope: Scope, receive: Any, send: "_Sender", headers: dict[bytes, str], origin: str) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and origin and b"access-control-request-method" in headers:
            await _preflight(send, allowed=self._allows(origin))
            return
        try:
            self._check_caller(headers, origin)
            scope["principal"] = await self._counted(scope, send, headers)
            _check_request(scope, headers)
        except Exception as refused:  # noqa: BLE001  # whatever is down while somebody asks to be let in is said in the family's form too
            await answer(scope, send, problem(refused))
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if send.status:
                raise
            await answer(scope, send, problem(error))

    def _check_caller(self, headers: dict[bytes, str], origin: str) -> None:
        """A page of anybody's can make a browser call a loopback address: only pages and names of our own may. With tokens nothing is gained by that."""
        if not self._local:
            return
        name = _hostname("//" + headers.get(b"host", ""))
        if not is_loopback(name) and name != self._host:
            raise Refused(403, f"Host '{name[:100]}' is not served here", code="foreign_host")
        if origin and not self._allows(origin):
            raise Refused(403, f"Pages of '{origin[:100]}' may not call this API: add it to TRAINYARD_CORS_ORIGINS", code="foreign_origin")

    def _allows(self, origin: str) -> bool:
        if self._origins:
            return origin in self._origins
        return self._local and is_loopback(_hostname(origin))

    async def _counted(self, scope: Scope, send: "_Sender", headers: dict[bytes, str]) -> Principal:
        """Who asks, if not too often. Whoever can't say it is counted by the address: also a token that is guessed."""
        try:
            principal = await self._principal(scope, headers)
        except (Bad, Refused):
            await self._count(scope, send, NOBODY)
            raise
        if scope.get("method") == "POST" and _path(scope) == REFRESHING:
            scope["count"] = send.count_later(scope, partial(self._count, scope, send))
        elif not _is_open(scope):
            await self._count(scope, send, principal)
        return principal

    async def _count(self, scope: Scope, send: "_Sender", principal: Principal) -> None:
        if self._limits is None:
            return
        if principal == NOBODY:
            standing = await self._limits.count(self._anonymous, counted.caller(scope.get("client")))
        else:
            standing = await self._limits.count(bucket(scope.get("method", "GET"), scope["path"], _raw_path(scope)), principal.id)
        send.add(counted.headers(standing))
        if not standing.allowed:
            raise counted.refusal(standing)

    async def _principal(self, scope: Scope, headers: dict[bytes, str]) -> Principal:
        path = _path(scope)
        if scope.get("method") == "POST" and path in DOORS:
            return NOBODY
        if (token := _token(scope, headers)) is not None:
            scope["token"] = token  # streams ask again
            return await self._who(token)
        if self._local:
            return LOCAL
        if _is_open(scope):
            return NOBODY
        raise Refused(401, "A token is needed: send it as Authorization: Bearer <token>")

    def _cors(self, origin: str) -> list[tuple[bytes, bytes]]:
        if not origin or not self._allows(origin):
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", EXPOSED.encode()),
        ]


class _Sender:
    """Sends on, and remembers what a watcher wants to know."""

    def __init__(self, send: Any, headers: list[tuple[bytes, bytes]], *, headless: bool) -> None:
        self._send = send
        self._headers = headers
        self.headless = headless
        self.status = 0
        self.first_byte = 0.0
        self._ended = False
        self._uncounted: tuple[Scope, Count] | None = None

    def add(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers += headers

    def count_later(self, scope: Scope, count: Count) -> Count:
        """The route says who has asked. Whom it can't name is nobody, and counted when the answer begins."""
        self._uncounted = scope, count
        return self._counted

    async def _counted(self, principal: Principal) -> None:
        if self._uncounted:
            (_, count), self._uncounted = self._uncounted, None
            await count(principal)

    async def __call__(self, message: dict[str, Any]) -> None:
        if self._uncounted and message["type"] == "http.response.start" and message["status"] < 500:
            scope, _ = self._uncounted
            try:
                await self._counted(NOBODY)
            except Refused as refused:
                await answer(scope, self, problem(refused))
                self._ended = True
        if self._ended:
            return
        if message["type"] == "websocket.accept":
            self.status, self.first_byte = 101, time.perf_counter()
            message["headers"] = [*message.get("headers", []), *self._headers]
        elif message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            self.first_byte = time.perf_counter()
            own = {name for name, _ in self._headers if name != b"vary"}
            message["headers"] = [pair for pair in message.get("headers", []) if pair[0].lower() not in own] + self._headers
        elif message["type"] == "http.response.body" and self.headless:
            self._ended = True
            message = {"type": "http.response.body", "body": b""}  # also of a stream that would never end
        await self._send(message)


async def answer(scope: Scope, send: Any, problem: Problem) -> None:
    """A refusal outside of any route."""
    status, body, headers = dressed(scope, problem)
    content = msgspec.json.encode(body)
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"  # refuses the handshake, and says why
    await send({"type": f"{kind}.start", "status": status, "headers": [*pairs, (b"content-length", str(len(content)).encode())]})
    await send({"type": f"{kind}.body", "body": content})


def dressed(scope: Any, problem: Problem) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers in the family's form."""
    status, body = family(scope["path"], _raw_path(scope)).dress(msgspec.structs.replace(problem, request_id=scope.get("request_id", "")))
    headers = {**problem.headers, "content-type": media_type(body)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return status, body, headers


def _is_open(scope: Scope) -> bool:
    path = _path(scope)
    return scope.get("method") == "GET" and (path in OPEN or path.startswith("/static/"))


def _path(scope: Scope) -> str:
    return scope["path"].rstrip("/") or "/"


def _raw_path(scope: Any) -> str:
    return (scope.get("raw_path") or scope["path"].encode()).split(b"?")[0].decode("latin-1")


def _token(scope: Scope, headers: dict[bytes, str]) -> str | None:
    """From the header; for streams from the address too, since a page can set no header there."""
    if (given := headers.get(b"authorization")) is not None:
        scheme, _, token = given.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Bad
        return token.strip()
    if scope["type"] != "websocket" and "text/event-stream" not in headers.get(b"accept", "") and not scope["path"].rstrip("/").endswith("/stream"):
        return None
    parts = scope.get("query_string", b"").split(b"&")
    tokens = [part.partition(b"=")[2] for part in parts if part.partition(b"=")[0] == b"token"]
    if not tokens:
        return None
    scope["query_string"] = b"&".join(part for part in parts if part.partition(b"=")[0] != b"token")
    return unquote_plus(tokens[-1].decode("latin-1"))


def _check_request(scope: Scope, headers: dict[bytes, str]) -> None:
    if b"\x00" in scope["path"].encode("utf-8", "surrogatepass") or b"%00" in scope.get("query_string", b""):
        raise Refused(400, "The address contains the character NUL")
    try:
        scope["path"].encode()
        scope.get("query_string", b"").decode("ascii")
    except UnicodeError:
        raise Refused(400, "The address is not valid text") from None
    has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
    if scope.get("method") in WRITES and has_body:
        kind = headers.get(b"content-type", "").split(";")[0].strip().lower()
        if kind not in BODIES:
            raise Refused(415, f"Content-Type '{kind[:100]}' is not understood here: send application/json or multipart/form-data")


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # half a bracket
        return ""


def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


async def _preflight(send: Any, *, allowed: bool) -> None:
    headers = [
        (b"access-control-allow-methods", METHODS.encode()),
        (
            b"access-control-allow-headers",
            b"Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, If-Range, Last-Event-ID, Range, X-Request-Id, X-Workspace",
        ),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204 if allowed else 403, "headers": headers if allowed else []})
    await send({"type": "http.response.body", "body": b""})
