"""Webhooks: endpoints that are told of what happens, with a log of what was sent. The document names the events and their bodies; the rest is ours."""

import os
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from libs.config import Gateway
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, InWorkspace, Limit, Offset, answered, fingerprint, if_match, new_id, origin, tenant
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.domain.webhook import ChangeWebhook, CreateWebhook, DeleteWebhook, PingWebhook, ReplayWebhook, Webhook
from services.gateway.domain.workspace import MANAGE
from services.gateway.views import webhooks
from services.gateway.webhooks.addresses import networks, why_not_url
from services.gateway.webhooks.signing import Seal, new_secret

Url = Annotated[str, Meta(min_length=1, max_length=2048)]
Pattern = Annotated[str, Meta(pattern=r"^[a-z_*]+(\.[a-z_*]+)?$", max_length=100)]
Patterns = Annotated[list[Pattern], Meta(max_length=50)]
Format = Literal["contract", "cloudevents"]
Description = Annotated[str, Meta(max_length=1000)]
State = Literal["pending", "delivered", "failed", "dropped"]


class WebhookNew(msgspec.Struct, kw_only=True):
    """`events` may have patterns like `training.*`; none at all means everything. `format`: the document's bodies, or every public fact as a CloudEvent."""

    url: Url
    events: Patterns = []
    format: Format = "contract"
    description: Description = ""


class WebhookPatch(msgspec.Struct, kw_only=True):
    """`rotate_secret` gives a new one; for `overlap_hours` both sign."""

    url: Url | UnsetType = UNSET
    events: Patterns | UnsetType = UNSET
    format: Format | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    rotate_secret: bool = False
    overlap_hours: Annotated[float, Meta(ge=0, le=168)] = 24.0


class Replay(msgspec.Struct, kw_only=True, rename={"start": "from"}):
    """`from` is a position in the log, as `trainyard-sequence` and the deliveries name it."""

    start: Annotated[int, Meta(ge=1, le=2**53)]


class WebhookOut(msgspec.Struct, kw_only=True):
    """`delivered_up_to` is a position in the log. `secret` is shown once, when it is new."""

    id: str
    url: str
    events: Any
    format: str
    description: str
    active: bool
    disabled_because: str | None
    delivered_up_to: int | None
    consecutive_failures: int
    failing_since: str | None
    next_attempt_at: str | None
    created_at: str
    updated_at: str
    secret: str | UnsetType = UNSET


class WebhookPage(msgspec.Struct, kw_only=True):
    total: int
    webhooks: list[WebhookOut]


class DeliveryOut(msgspec.Struct, kw_only=True):
    """`id` is what the endpoint gets as webhook-id, `sequence` where a replay can begin."""

    id: str | None
    sequence: int
    type: str
    state: str
    attempts: int
    response_status: int | None
    response_body: str
    error: str
    duration_ms: int | None
    attempted_at: str | None
    created_at: str


class DeliveryPage(msgspec.Struct, kw_only=True):
    """`next` is the `before` of the page that follows, null at the end."""

    deliveries: list[DeliveryOut]
    next: int | None


class Queued(msgspec.Struct, kw_only=True):
    status: Literal["queued"]
    sequence: int


@post("/webhooks", status_code=201, summary="Register an endpoint", operation_class=InWorkspace)
async def create_webhook(
    request: AnyRequest,
    data: JSONBody[WebhookNew],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    settings: NamedDependency[Gateway],
) -> Response[WebhookOut]:
    """The answer has the secret that signs; it is not shown again. Signed as Standard Webhooks says: any of its libraries verifies it."""
    about = origin(request, needs=MANAGE)
    seal = _seal(settings)
    _check(data.url, settings)
    id = new_id(request)
    command = CreateWebhook(
        webhook_id=id,
        url=data.url,
        secret=seal.close(new_secret(os.urandom(32)), about=id),
        events=data.events,
        format=data.format,
        description=data.description,
        request=fingerprint(data),
        others=await webhooks.count(db, about.tenant),
        most=settings.webhooks_per_workspace,
    )
    outcome = await commands.run(command, origin=about)
    secret = seal.open(outcome.state.secret, about=id)
    return answered(outcome, _from_state(outcome.state, secret), status=201, location=f"/webhooks/{id}")


@get("/webhooks", summary="List endpoints, newest first", operation_class=InWorkspace)
async def list_webhooks(request: AnyRequest, db: NamedDependency[asyncpg.Pool], limit: Limit = 50, offset: Offset = 0) -> WebhookPage:
    rows, total = await webhooks.page(db, tenant(request, needs=MANAGE), limit=limit, offset=offset)
    return WebhookPage(total=total, webhooks=[_from_row(row) for row in rows])


@get("/webhooks/{webhook_id:uuid}", summary="One endpoint")
async def get_webhook(
    request: AnyRequest, webhook_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[WebhookOut]:
    if row := await webhooks.get(db, tenant(request), str(webhook_id)):
        return Response(_from_row(row), headers={"ETag": f'"{row.version}"'})
    state, version = await commands.newest(Webhook, str(webhook_id), tenant=tenant(request))
    if state is None or state.deleted:
        raise NotFound(what="Webhook", id=str(webhook_id))
    return Response(_from_state(state), headers={"ETag": f'"{version}"'})


@patch("/webhooks/{webhook_id:uuid}", summary="Change, enable, disable an endpoint, or rotate its secret")
async def change_webhook(
    request: AnyRequest,
    webhook_id: FromPath[UUID],
    data: JSONBody[WebhookPatch],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    settings: NamedDependency[Gateway],
) -> Response[WebhookOut]:
    """What happens while it is disabled is not sent afterwards: replay it."""
    id = str(webhook_id)
    if data.url is not UNSET:
        _check(data.url, settings)
    secret = new_secret(os.urandom(32)) if data.rotate_secret else ""
    command = ChangeWebhook(
        webhook_id=id,
        url=data.url or None,
        events=None if data.events is UNSET else data.events,
        format=data.format or None,
        description=None if data.description is UNSET else data.description,
        active=None if data.active is UNSET else data.active,
        secret=_seal(settings).close(secret, about=id) if secret else "",
        overlap=timedelta(hours=data.overlap_hours),
    )
    outcome = await commands.run(command, origin=origin(request), if_match=if_match(request))
    row = await webhooks.get(db, tenant(request), id) if outcome.visible else None
    return answered(outcome, _from_row(row, secret) if row else _from_state(outcome.state, secret), status=200)


@delete("/webhooks/{webhook_id:uuid}", status_code=204, summary="Delete an endpoint")
async def delete_webhook(request: AnyRequest, webhook_id: FromPath[UUID], commands: NamedDependency[Commands]) -> Response[None]:
    outcome = await commands.run(DeleteWebhook(webhook_id=str(webhook_id)), origin=origin(request), if_match=if_match(request))
    return answered(outcome, None, status=204)


@get("/webhooks/{webhook_id:uuid}/deliveries", summary="What was sent to an endpoint, newest first")
async def list_deliveries(
    request: AnyRequest,
    webhook_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    wanted: Annotated[State | None, QueryParameter(name="state")] = None,
    before: Annotated[int, QueryParameter(ge=1, le=2**62)] = 2**62,
    limit: Limit = 50,
) -> DeliveryPage:
    id = str(webhook_id)
    if await webhooks.get(db, tenant(request), id) is None:
        known, _ = await commands.newest(Webhook, id, tenant=tenant(request))
        if known is None or known.deleted:
            raise NotFound(what="Webhook", id=id)
    rows = await webhooks.deliveries(db, id, state=wanted, before=before, limit=limit)
    return DeliveryPage(deliveries=[_delivery(row) for row in rows], next=rows[-1].seq if len(rows) == limit else None)


@post("/webhooks/{webhook_id:uuid}/test", status_code=202, summary="Send a ping")
async def ping_webhook(request: AnyRequest, webhook_id: FromPath[UUID], commands: NamedDependency[Commands]) -> Response[Queued]:
    """It is sent in its turn, behind what waits already."""
    outcome = await commands.run(PingWebhook(webhook_id=str(webhook_id)), origin=origin(request))
    return answered(outcome, Queued(status="queued", sequence=outcome.seq), status=202)


@post("/webhooks/{webhook_id:uuid}/replay", status_code=202, summary="Send everything from a position on once more")
async def replay_webhook(request: AnyRequest, webhook_id: FromPath[UUID], data: JSONBody[Replay], commands: NamedDependency[Commands]) -> Response[Queued]:
    """In order, before anything newer; also what happened before the endpoint was registered."""
    outcome = await commands.run(ReplayWebhook(webhook_id=str(webhook_id), start=data.start), origin=origin(request))
    return answered(outcome, Queued(status="queued", sequence=outcome.seq), status=202)


handlers: list[Any] = [create_webhook, list_webhooks, get_webhook, change_webhook, delete_webhook, list_deliveries, ping_webhook, replay_webhook]


def _seal(settings: Gateway) -> Seal:
    if not settings.secret:
        raise Refused(503, "TRAINYARD_SECRET is not set: without it the gateway can't keep the secrets of webhooks. Ask the operator", code="no_secret")
    return Seal(settings.secret)


def _check(url: str, settings: Gateway) -> None:
    if why := why_not_url(url, networks(settings.egress_allow)):
        raise Refused(400, f"url {why}", code="validation_error", field="url")


def _from_row(row: webhooks.Row, secret: str = "") -> WebhookOut:
    return WebhookOut(
        id=row.id,
        url=row.url,
        events=row.events,
        format=row.format,
        description=row.description,
        active=row.active,
        disabled_because=row.why_inactive or None,
        delivered_up_to=row.cursor,
        consecutive_failures=row.fails,
        failing_since=_stamp(row.failing_since),
        next_attempt_at=_stamp(row.next_at),
        created_at=_at(row.created_at),
        updated_at=_at(row.updated_at),
        secret=secret or UNSET,
    )


def _from_state(state: Webhook, secret: str = "") -> WebhookOut:
    """As the facts say, when the view doesn't show it yet."""
    return WebhookOut(
        id=state.id,
        url=state.url,
        events=state.events,
        format=state.format,
        description=state.description,
        active=state.active,
        disabled_because=state.why_inactive or None,
        delivered_up_to=state.delivered,
        consecutive_failures=0,
        failing_since=None,
        next_attempt_at=None,
        created_at=_at(state.created_at),
        updated_at=_at(state.updated_at),
        secret=secret or UNSET,
    )


def _delivery(row: webhooks.Delivery) -> DeliveryOut:
    return DeliveryOut(
        id=row.id,
        sequence=row.seq,
        type=row.type,
        state=row.state,
        attempts=row.attempts,
        response_status=row.status,
        response_body=row.response,
        error=row.error,
        duration_ms=row.milliseconds,
        attempted_at=_stamp(row.attempted_at),
        created_at=_at(row.created_at),
    )


def _at(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamp(at: datetime | None) -> str | None:
    return _at(at) if at else None
