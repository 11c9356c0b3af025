"""Credits and quotas: their tables, what fills them, what reads them."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import (
    CreditCaptured,
    CreditGranted,
    CreditReleased,
    CreditReserved,
    PreparationCancelled,
    PreparationFailed,
    QuotaTaken,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
)
from services.gateway.domain.credit import Granted, Purse
from services.gateway.domain.quota import Quota
from services.gateway.views.jobs import jobs
from services.gateway.views.rows import Change, Operation, Put
from services.gateway.views.schema import SEEN, BigInteger, Boolean, Column, DateTime, Index, Table, Text, views

purses = Table(
    "purses",
    views,
    Column("id", Text, primary_key=True),
    Column("balance", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
)
"""By user. People stay in here when they are deleted: money is never forgotten."""
reservations = Table(
    "reservations",
    views,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Index("reservations_of_user", "user_id", "state"),
)
"""By job; `state` is reserved, captured or released."""
entries = Table(
    "credit_entries",
    views,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("grant_id", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Index("credit_entries_newest", "user_id", "seq"),
    Index("credit_entries_granted", "user_id", postgresql_where="kind = 'granted'"),
)
taken = Table(
    "quota_jobs",
    views,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("ended", Boolean, nullable=False),
    Index("quota_jobs_newest", "user_id", "seq"),
    Index("quota_jobs_active", "user_id", postgresql_where="not ended"),
)

SEEN.append(f"""create function get_user_training_stats(user_id text)
returns table (runs_started bigint, runs_completed bigint, runs_failed bigint, runs_cancelled bigint, runs_active bigint, credits_used bigint, credits_reserved bigint)
language sql stable
begin atomic
    select count(*), count(*) filter (where status = 'succeeded'), count(*) filter (where status = 'failed'), count(*) filter (where status = 'cancelled'),
           count(*) filter (where status in ('queued', 'preparing', 'running')),
           (select coalesce(sum(r.amount), 0)::bigint from {reservations.name} r where r.user_id = get_user_training_stats.user_id and r.state = 'captured'),
           (select coalesce(sum(r.amount), 0)::bigint from {reservations.name} r where r.user_id = get_user_training_stats.user_id and r.state = 'reserved')
      from {jobs.name} where kind = 'train' and started_by = get_user_training_stats.user_id;
end""")
"""For who reads the database. Bound to the tables, not to their names: it is right whatever the caller's search path, and moves along when the views are swapped."""


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case CreditGranted() as event:
            yield from _moved(recorded, event, kind="granted", grant_id=event.grant_id, request=event.request)
        case CreditReserved(job_id=job) as event:
            yield from _moved(recorded, event, kind="reserved", job_id=job)
            yield Put(reservations, {"id": job, "user_id": event.user_id, "amount": event.amount, "state": "reserved"})
        case CreditCaptured(job_id=job) as event:
            yield from _moved(recorded, event, kind="captured", job_id=job)
            yield Change(reservations, job, {"state": "captured"})
        case CreditReleased(job_id=job) as event:
            yield from _moved(recorded, event, kind="released", job_id=job)
            yield Change(reservations, job, {"state": "released"})
        case QuotaTaken(user_id=user, job_id=job):
            yield Put(taken, {"id": job, "user_id": user, "seq": recorded.seq, "ended": False})
        case (
            TrainingCompleted(job_id=job)
            | TrainingFailed(job_id=job)
            | TrainingCancelled(job_id=job)
            | PreparationFailed(job_id=job)
            | PreparationCancelled(job_id=job)
        ):
            yield Change(taken, job, {"ended": True})
        case _:
            return


def _moved(recorded: Recorded, event: Any, *, kind: str, job_id: str = "", grant_id: str = "", request: str = "") -> Iterator[Operation]:
    now = {"balance": event.balance, "version": recorded.seq}
    yield Put(purses, {"id": event.user_id, **now})
    yield Change(purses, event.user_id, now)
    told = {"user_id": event.user_id, "amount": event.amount, "balance": event.balance, "reason": event.reason}
    yield Put(
        entries,
        {"id": recorded.id, **told, "seq": recorded.seq, "kind": kind, "job_id": job_id, "grant_id": grant_id, "request": request, "at": recorded.at},
    )


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a user's credits. `balance` is what could be spent afterwards."""

    id: str
    kind: str
    amount: int
    balance: int
    job_id: str
    reason: str
    at: datetime


async def page(db: asyncpg.Pool, user_id: str, *, limit: int, offset: int) -> tuple[list[Entry], int]:
    """The newest first, with the number of all."""
    rows = await db.fetch(
        "select id, kind, amount, balance, job_id, reason, at from credit_entries where user_id = $1 order by seq desc limit $2 offset $3",
        user_id,
        limit,
        offset,
    )
    total = await db.fetchval("select count(*) from credit_entries where user_id = $1", user_id)
    return [Entry(**row) for row in rows], total


async def purse(db: asyncpg.Pool, tenant: str, user_id: str) -> tuple[Purse | None, int]:
    """A user's purse is in the user's own workspace, and nobody's is in another one."""
    row = await db.fetchrow(
        """select balance, version,
                  (select json_object_agg(r.id, r.amount) from reservations r where r.user_id = p.id and r.state = 'reserved') as reserved,
                  (select json_object_agg(e.grant_id, json_build_object('request', e.request, 'balance', e.balance)) from credit_entries e where e.user_id = p.id and e.kind = 'granted') as grants
             from purses p where id = $1 and $1 = $2""",
        user_id,
        tenant,
    )
    if row is None:
        return None, 0
    reserved = msgspec.json.decode(row["reserved"], type=dict[str, int]) if row["reserved"] else {}
    grants = msgspec.json.decode(row["grants"], type=dict[str, Granted]) if row["grants"] else {}
    return Purse(user_id=user_id, balance=row["balance"], reserved=reserved, grants=grants), row["version"]


async def quota(db: asyncpg.Pool, tenant: str, user_id: str) -> tuple[Quota | None, int]:
    """Without the jobs that are known to have ended."""
    row = await db.fetchrow(
        """select (select max(seq) from quota_jobs where user_id = $1 and $1 = $2) as version,
                  array(select id from quota_jobs where user_id = $1 and $1 = $2 and not ended) as active""",
        user_id,
        tenant,
    )
    return (Quota(user_id=user_id, active=frozenset(row["active"])), row["version"]) if row["version"] else (None, 0)
