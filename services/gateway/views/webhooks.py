"""Webhook endpoints: their table, what fills it, what reads it. What is sent to them is no view: services/gateway/webhooks."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import ARRAY

from libs.events import (
    Recorded,
    UserDeleted,
    WebhookCreated,
    WebhookDeleted,
    WebhookDelivered,
    WebhookDisabled,
    WebhookReplayRequested,
    WebhookSecretRotated,
    WebhookTestRequested,
    WebhookUpdated,
)
from services.gateway.domain.webhook import Webhook
from services.gateway.views.rows import Change, Drop, Operation, Put
from services.gateway.views.schema import JSON, BigInteger, Boolean, Column, DateTime, Index, Table, Text, views

webhooks = Table(
    "webhooks",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text, nullable=False),
    Column("previous_until", DateTime(timezone=True)),
    Column("events", JSON, nullable=False),
    Column("patterns", ARRAY(Text), nullable=False),
    Column("format", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("why_inactive", Text, nullable=False),
    Column("delivered", BigInteger, nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("webhooks_newest", "tenant", "created_at", "id"),
)


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case WebhookCreated() as event:
            yield Put(
                webhooks,
                {
                    "id": event.webhook_id,
                    "tenant": recorded.tenant,
                    "url": event.url,
                    "secret": event.secret,
                    "previous_secret": "",
                    "previous_until": None,
                    "events": event.events,
                    "patterns": _patterns(event.events),
                    "format": event.format,
                    "description": event.description,
                    "active": True,
                    "why_inactive": "",
                    "delivered": recorded.seq,
                    "request": event.request,
                    "created_at": recorded.at,
                    "updated_at": recorded.at,
                    "version": recorded.seq,
                },
            )
        case WebhookUpdated() as event:
            changed = {field: value for field in ("url", "events", "format", "description", "active") if (value := getattr(event, field)) is not None}
            if event.events is not None:
                changed["patterns"] = _patterns(event.events)
            if event.active is not None:
                changed["why_inactive"] = "" if event.active else "by_owner"
            yield _touched(recorded, event.webhook_id, **changed)
        case WebhookSecretRotated(webhook_id=id, secret=secret, previous=previous, overlap_seconds=seconds):
            yield _touched(recorded, id, secret=secret, previous_secret=previous, previous_until=recorded.at + timedelta(seconds=seconds))
        case WebhookDisabled(webhook_id=id, reason=reason):
            yield _touched(recorded, id, active=False, why_inactive=reason)
        case WebhookTestRequested(webhook_id=id) | WebhookReplayRequested(webhook_id=id):
            yield Change(webhooks, id, {"version": recorded.seq})
        case WebhookDelivered(webhook_id=id, up_to=up_to):
            yield Change(webhooks, id, {"delivered": up_to, "version": recorded.seq})
        case WebhookDeleted(webhook_id=id):
            yield Drop(webhooks, "id", [id])
        case UserDeleted(user_id=id):  # they were of his own workspace, which has his id
            yield Drop(webhooks, "tenant", [id])
        case _:
            return


def _touched(recorded: Recorded, webhook_id: str, **columns: Any) -> Change:
    return Change(webhooks, webhook_id, {**columns, "updated_at": recorded.at, "version": recorded.seq})


def _patterns(events: list[str]) -> list[str]:
    """As SQL's LIKE has them; none at all is everything."""
    return [event.replace("_", r"\_").replace("*", "%") for event in events] or ["%"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as people see it. `cursor` is how far it has been sent to, None while that is not known yet."""

    id: str
    url: str
    events: Any
    format: str
    description: str
    active: bool
    why_inactive: str
    created_at: datetime
    updated_at: datetime
    version: int
    cursor: int | None
    fails: int
    failing_since: datetime | None
    next_at: datetime | None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: pending, delivered, failed (given up after a day) or dropped (the endpoint was disabled)."""

    seq: int
    id: str | None
    type: str
    state: str
    attempts: int
    status: int | None
    error: str
    response: str
    milliseconds: int | None
    attempted_at: datetime | None
    created_at: datetime


_SEEN = """
select w.id, w.url, w.events, w.format, w.description, w.active, w.why_inactive, w.created_at, w.updated_at, w.version,
       e.cursor, coalesce(e.fails, 0) as fails, e.failing_since, case when e.fails > 0 then e.next_at end as next_at
  from webhooks w left join webhook_endpoints e on e.id = w.id
"""


async def get(db: asyncpg.Pool, tenant: str, webhook_id: str) -> Row | None:
    row = await db.fetchrow(_SEEN + " where w.tenant = $1 and w.id = $2", tenant, webhook_id)
    return Row(**row) if row else None


async def page(db: asyncpg.Pool, tenant: str, *, limit: int, offset: int) -> tuple[list[Row], int]:
    rows = await db.fetch(_SEEN + " where w.tenant = $1 order by w.created_at desc, w.id desc limit $2 offset $3", tenant, limit, offset)
    return [Row(**row) for row in rows], await count(db, tenant)


async def count(db: asyncpg.Pool, tenant: str) -> int:
    return await db.fetchval("select count(*) from webhooks where tenant = $1", tenant)


async def deliveries(db: asyncpg.Pool, webhook_id: str, *, state: str | None, before: int, limit: int) -> list[Delivery]:
    """The newest first."""
    rows = await db.fetch(
        """select * from (
             select d.seq, l.id::text as id, split_part(l.subject, '.', 3) || '.' || split_part(l.subject, '.', 4) as type,
                    case when d.state = 'pending' and d.seq <= e.cursor then 'dropped' else d.state end as state,
                    d.attempts, d.status, d.error, d.response, d.milliseconds, d.attempted_at, d.created_at
               from webhook_deliveries d join webhook_endpoints e on e.id = d.endpoint join event_log l on l.seq = d.seq
              where d.endpoint = $1 and d.seq < $3) d
            where $2::text is null or d.state = $2 order by d.seq desc limit $4""",
        webhook_id,
        state,
        before,
        limit,
    )
    return [Delivery(**row) for row in rows]


async def load(db: asyncpg.Pool, tenant: str, webhook_id: str) -> tuple[Webhook | None, int]:
    row = await db.fetchrow("select * from webhooks where tenant = $1 and id = $2", tenant, webhook_id)
    if row is None:
        return None, 0
    state = Webhook(
        id=row["id"],
        url=row["url"],
        secret=row["secret"],
        events=msgspec.json.decode(row["events"], type=list[str]),
        format=row["format"],
        description=row["description"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        active=row["active"],
        why_inactive=row["why_inactive"],
        previous_secret=row["previous_secret"],
        previous_until=row["previous_until"],
        delivered=row["delivered"],
        request=row["request"],
    )
    return state, row["version"]
