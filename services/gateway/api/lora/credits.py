"""What somebody can spend, and what became of it."""

from typing import Any

import asyncpg
import msgspec
from litestar import get
from litestar.di import NamedDependency

from services.gateway.api.auth import person
from services.gateway.api.requests import AnyRequest, Limit, Offset
from services.gateway.commands import Commands
from services.gateway.domain.credit import Purse
from services.gateway.views import credits


class Balance(msgspec.Struct, kw_only=True):
    """`reserved` is put aside for jobs that have not ended; it is no longer in `balance`."""

    balance: int
    reserved: int


class EntryOut(msgspec.Struct, kw_only=True, rename="camel"):
    """`reserved` takes from the balance, `granted` and `released` add to it, `captured` leaves it: what was reserved is spent."""

    id: str
    type: str
    amount: int
    balance_after: int
    job_id: str | None
    reason: str
    created_at: str


class History(msgspec.Struct, kw_only=True):
    items: list[EntryOut]
    total: int
    limit: int
    offset: int


@get("/api/credits", summary="Your credits")
async def balance(request: AnyRequest, db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]) -> Balance:
    """A user who was never granted any has none. What is reserved comes back when the job fails, or is cancelled before it was trained."""
    me = person(request).id
    purse, _ = await commands.newest(Purse, me, tenant=me, known=await credits.purse(db, me, me))
    return Balance(balance=purse.balance, reserved=sum(purse.reserved.values())) if purse else Balance(balance=0, reserved=0)


@get("/api/credits/history", summary="What happened to your credits, newest first")
async def history(request: AnyRequest, db: NamedDependency[asyncpg.Pool], limit: Limit = 50, offset: Offset = 0) -> History:
    found, total = await credits.page(db, person(request).id, limit=limit, offset=offset)
    return History(items=[_out(entry) for entry in found], total=total, limit=limit, offset=offset)


handlers: list[Any] = [balance, history]


def _out(entry: credits.Entry) -> EntryOut:
    at = entry.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return EntryOut(
        id=entry.id,
        type=entry.kind,
        amount=entry.amount,
        balance_after=entry.balance,
        job_id=entry.job_id or None,
        reason=entry.reason,
        created_at=at,
    )
