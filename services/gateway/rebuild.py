"""The views, made anew from the log beside the old ones and swapped in one step; the copy of the log stays as it is."""

import asyncio
import logging
import sys
from collections.abc import Callable

import asyncpg

from libs.config import Refused
from libs.events.log import EventLog, RawFact
from libs.storage import Storage
from services.gateway.loader import load_next
from services.gateway.views.database import LIVE, NEXT, connection, create_views, pool
from services.gateway.views.runner import BATCH, apply
from services.gateway.views.schema import fingerprint

log = logging.getLogger(__name__)

OLD = "views_old"

Tell = Callable[[str], None]


class Busy(Refused):
    """Two at once would be in each other's way."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def rebuild(event_log: EventLog, storage: Storage, url: str, *, tell: Tell = say) -> int:
    """The gateways go on serving the old views meanwhile. Returns the position at which the new ones took over."""
    session = await connection(url, schema=NEXT)
    db = await pool(url, schema=NEXT, size=4)
    try:
        if not await session.fetchval("select pg_try_advisory_lock(7215002)"):
            raise Busy("Another rebuild is running")
        await _drop_old(session)
        async with session.transaction():
            await create_views(session, NEXT)
        reached = await _from_log(event_log, session, tell)
        while True:
            await _load_parts(db, storage, tell)
            swapped = await _swap(session)
            if swapped is not None:
                await _drop_old(session)
                tell(f"views made anew from {swapped} facts")
                return swapped
            reached = await _from_copy(session, reached)
    finally:
        session.terminate()
        await db.close()


async def _from_log(event_log: EventLog, session: asyncpg.Connection, tell: Tell) -> int:
    """In bulk, as far as the live views are when it begins; beyond them the copy of the log isn't written yet."""
    last: int = await session.fetchval("select seq from checkpoints where name = $1", LIVE) or 0
    reached = 0
    batch: list[RawFact] = []
    async for raw in event_log.scan_raw(">"):
        if raw.seq > last:
            break
        batch.append(raw)
        if len(batch) == BATCH:
            await apply(session, batch, reached, schema=NEXT, copy=False)
            reached, batch = raw.seq, []
            if reached % (20 * BATCH) == 0:
                tell(f"{reached} of {last} facts")
    if batch:
        await apply(session, batch, reached, schema=NEXT, copy=False)
        reached = batch[-1].seq
    return reached


async def _from_copy(session: asyncpg.Connection, reached: int) -> int:
    """What came since: the database has it already, so no one waits for the network inside a transaction."""
    while rows := await session.fetch("select seq, subject, body from event_log where seq > $1 order by seq limit $2", reached, BATCH):
        batch = [RawFact(seq=row["seq"], subject=row["subject"], data=row["body"]) for row in rows]
        await apply(session, batch, reached, schema=NEXT, copy=False)
        reached = batch[-1].seq
    return reached


async def _load_parts(db: asyncpg.Pool, storage: Storage, tell: Tell) -> None:
    count = 0
    while await load_next(db, storage):
        count += 1
        if count % 100 == 0:
            tell(f"{count} parts loaded")


async def _swap(session: asyncpg.Connection) -> int | None:
    """Only when the new views have all that the old ones show. The projector waits for the row that is locked here, the loader for the table.

    Renamed, not dropped: a reader may hold some of the old tables and be about to ask for another, and a drop would meet it halfway.
    """
    async with session.transaction():
        live = await session.fetchval("select seq from checkpoints where name = $1 for update", LIVE)
        ours = await session.fetchval("select seq from checkpoints where name = $1 for update", NEXT)
        if ours is None or live is None:
            raise Busy("Another rebuild took over")
        if ours < live or await session.fetchval(f"select exists (select from {NEXT}.parts n where n.state = 'pending')"):
            return None
        await session.execute(f"lock table {LIVE}.parts in access exclusive mode")
        await session.execute(f"alter schema {LIVE} rename to {OLD}; alter schema {NEXT} rename to {LIVE}")
        await session.execute("update checkpoints set seq = $2 where name = $1", LIVE, ours)
        await session.execute("delete from checkpoints where name = $1", NEXT)
        await session.execute('delete from versions where "schema" = $1', NEXT)
        await session.execute('update versions set fingerprint = $2 where "schema" = $1', LIVE, fingerprint())
        return ours


async def _drop_old(session: asyncpg.Connection) -> None:
    """Whoever still reads there may finish; with the little patience of this nobody is held up for long."""
    while True:
        try:
            async with session.transaction():
                await session.execute(f"set local lock_timeout = '100ms'; drop schema if exists {OLD} cascade")
                return
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(0.1)
