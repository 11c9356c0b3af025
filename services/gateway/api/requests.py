"""What the families share in reading a request and finishing an answer."""

import hashlib
import os
import re
import time
import uuid
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.params import QueryParameter

from libs import telemetry
from libs.events import Origin, uuid7
from services.gateway.api.problems import Refused
from services.gateway.commands import Outcome

Offset = Annotated[int, QueryParameter(ge=0, le=10_000_000)]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]

_NAMESPACE = uuid.UUID("6f1c2f0e-7d0e-5f1b-9a44-0b6c3c1f7e55")
_ETAG = re.compile(r'(?:W/)?"?(\d{1,18})"?')
_KEY = re.compile(r"[\x20-\x7e]{1,255}")

AnyRequest = Request[Any, Any, Any]


def origin(request: AnyRequest) -> Origin:
    principal = request.scope["principal"]  # pyright: ignore[reportTypedDictNotRequiredAccess, reportGeneralTypeIssues]  # put there by the edge
    return Origin(tenant=principal.tenant, actor=principal.id, correlation=str(uuid.uuid4()), traceparent=telemetry.traceparent())


def tenant(request: AnyRequest) -> str:
    return origin(request).tenant


def new_id(request: AnyRequest) -> str:
    """A fresh id, or always the same one for the same caller, path and Idempotency-Key."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
    if not _KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key must be 1 to 255 printable ASCII characters")
    return str(uuid.uuid5(_NAMESPACE, "\n".join((origin(request).actor, request.url.path, key))))


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
