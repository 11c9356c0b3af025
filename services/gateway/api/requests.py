"""What the families share in reading a request and finishing an answer."""

import hashlib
import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.openapi.spec import OpenAPIType, Operation, Parameter, Schema
from litestar.params import QueryParameter

from libs import telemetry
from libs.events import Origin, uuid7
from services.gateway.api.problems import Refused
from services.gateway.commands import Outcome
from services.gateway.domain.errors import NotFound, RoleMissing
from services.gateway.domain.user import Principal
from services.gateway.domain.workspace import CHANGE, READ, Power, may
from services.gateway.places import KINDS, Places

Offset = Annotated[int, QueryParameter(ge=0, le=10_000_000)]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]

_NAMESPACE = uuid.UUID("6f1c2f0e-7d0e-5f1b-9a44-0b6c3c1f7e55")
_ETAG = re.compile(r'(?:W/)?"?(\d{1,18})"?')
_KEY = re.compile(r"[\x20-\x7e]{1,255}")

_PLACE = "workspace"

ONLY_ASKS = {"only_asks": True}
"""`opt` of a POST that changes nothing: who may read may send it."""

AnyRequest = Request[Any, Any, Any]


@dataclass
class InWorkspace(Operation):
    """Of routes for what is in no workspace yet, and for lists."""

    def __post_init__(self) -> None:
        about = "Id of a workspace that you are in: something new is made there instead of in your own, and a list is of it alone"
        self.parameters = [*(self.parameters or []), Parameter("X-Workspace", "header", schema=Schema(type=OpenAPIType.STRING), description=about)]


async def find(request: AnyRequest, places: Places) -> None:
    """Before any route: in which workspace the thing in its path is, and whether the caller's role there is enough. Who is in no other pays nothing for it."""
    principal = caller(request)
    if not principal.workspaces:
        return
    for name, id in request.path_params.items():
        if kind := KINDS.get(name):
            place = await places.of(kind, str(id), principal)
            reads = request.method == "GET" or "only_asks" in request.route_handler.opt
            need(principal, place, kind.reading if reads else kind.changing)
            request.scope[_PLACE] = place  # pyright: ignore[reportGeneralTypeIssues]
            return


def caller(request: AnyRequest) -> Principal:
    return request.scope["principal"]  # pyright: ignore[reportTypedDictNotRequiredAccess, reportGeneralTypeIssues]  # put there by the edge


async def asked_by(request: AnyRequest, principal: Principal) -> None:
    """At a door where only the body says who asks: counts the request for that one, or refuses it."""
    await request.scope["count"](principal)  # pyright: ignore[reportTypedDictNotRequiredAccess, reportGeneralTypeIssues]  # put there by the edge


def tenant(request: AnyRequest, *, needs: Power | None = None) -> str:
    """The workspace of the thing in the path; for something new the one that X-Workspace names, or else the caller's own."""
    principal = caller(request)
    place: str | None = request.scope.get(_PLACE)  # pyright: ignore[reportAssignmentType]
    if place is None:
        place = _named(request) or principal.tenant
        needs = needs or (READ if request.method == "GET" else CHANGE)
    if needs:
        need(principal, place, needs)
    return place


def need(principal: Principal, place: str, power: Power) -> None:
    """A workspace that somebody is not in is not there for him."""
    if (role := principal.role_in(place)) is None:
        raise NotFound(what="Workspace", id=place)
    if not may(role, power):
        raise RoleMissing(role=role, needs=power)


def tenants(request: AnyRequest) -> list[str]:
    """The workspaces that a list is of: all that the caller is in, or the one that X-Workspace names."""
    return [tenant(request)] if _named(request) else caller(request).everywhere


def origin(request: AnyRequest, *, needs: Power | None = None, place: str = "") -> Origin:
    return Origin(tenant=place or tenant(request, needs=needs), actor=caller(request).id, correlation=str(uuid.uuid4()), traceparent=telemetry.traceparent())


def new_id(request: AnyRequest) -> str:
    """A fresh id, or always the same one for the same caller, path and Idempotency-Key."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
    if not _KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key must be 1 to 255 printable ASCII characters")
    principal, place = caller(request), tenant(request)
    elsewhere = [] if place == principal.tenant else [place]
    return str(uuid.uuid5(_NAMESPACE, "\n".join((principal.id, request.url.path, key, *elsewhere))))


def fingerprint(body: object) -> str:
    """Tells a repeated request from a different one under the same key."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()[:32]


def if_match(request: AnyRequest) -> int | None:
    """The version that the caller has seen; None when any will do."""
    given = request.headers.get("if-match")
    if given is None or given.strip() == "*":
        return None
    if (found := _ETAG.fullmatch(given.strip())) is None:
        raise Refused(400, 'If-Match must be one ETag of an earlier answer, like "42", or *')
    return int(found[1])


def answered(outcome: Outcome[Any], body: Any, *, status: int, location: str = "") -> Response[Any]:
    headers = {} if body is None else {"ETag": f'"{outcome.version}"'}
    if location:
        headers["Location"] = location
    if not outcome.visible:
        headers["X-Event-Seq"] = str(outcome.seq)
    return Response(body, status_code=status, headers=headers)


def _named(request: AnyRequest) -> str:
    """Looked up by hand: to read all headers into a mapping costs more than many a request."""
    for name, value in request.scope["headers"]:
        if name == b"x-workspace":
            return value.decode("latin-1").strip().lower()
    return ""
