"""Views of one's own: an empty log, an empty database, and projectors in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
from nats.aio.client import Client

from infra.embedded import Servers
from infra.nats.provision import provision
from libs.events import Origin
from libs.events.log import EventLog, RawFact
from libs.storage import Storage
from services.gateway import migrations
from services.gateway.views.database import LIVE, ensure_views, pool
from services.gateway.views.progress import Progress
from services.gateway.views.runner import Projector
from tests.kit.eventually import eventually
from tests.kit.servers import storage_of

ROOM = 1024**3
ORIGIN = Origin(tenant="local", actor="user-1")


@dataclass
class World:
    """A log that nobody else writes to and a database that nobody else reads."""

    nc: Client
    log: EventLog
    url: str
    db: asyncpg.Pool
    storage: Storage

    def projector(self, holder: str = "first") -> Projector:
        progress = Progress()

        async def tell(step: Any) -> None:
            progress.reached(step)

        return Projector(self.log, self.db, self.url, tell=tell, holder=holder)

    async def caught_up(self, patience: float = 20.0) -> int:
        last = (await self.log.position()).last
        await eventually(lambda: self._reached(last), patience=patience)
        return last

    async def checkpoint(self) -> int:
        return await self.db.fetchval("select seq from core.checkpoints where name = $1", LIVE)

    async def _reached(self, last: int) -> bool:
        return await self.checkpoint() >= last


@asynccontextmanager
async def world(servers: Servers, bus: Servers, nc: Client) -> AsyncIterator[World]:
    """On `bus`, whose log is made anew."""
    await fresh_log(nc, bus)
    storage = storage_of(servers)
    async with database(servers) as url:
        await migrations.upgrade(url)
        db = await pool(url)
        await ensure_views(db, LIVE)
        try:
            yield World(nc=nc, log=EventLog(nc, source="/tests"), url=url, db=db, storage=storage)
        finally:
            db.terminate()
            storage.close()


async def fresh_log(nc: Client, bus: Servers) -> None:
    with suppress(Exception):
        await nc.jetstream().delete_stream("EV")
    await provision(bus.nats_url("infra"), max_bytes=ROOM)


@asynccontextmanager
async def database(servers: Servers) -> AsyncIterator[str]:
    """An empty one beside the servers' own; gone afterwards."""
    name = f"t_{uuid4().hex[:12]}"
    owner, _, address = servers.database_url.removeprefix("postgresql://").rpartition("@")
    address = address.split("/")[0]
    role = owner.split(":")[0]
    master = await asyncpg.connect(f"postgresql://postgres:{servers.home.secrets().postgres_superuser}@{address}/postgres")
    try:
        await master.execute(f"create database {name} owner {role}")
        yield f"postgresql://{owner}@{address}/{name}"
    finally:
        await master.execute(f"drop database {name} with (force)")
        await master.close()


@asynccontextmanager
async def running(projector: Projector) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(projector.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def dump(url: str, schema: str = LIVE) -> dict[str, list[str]]:
    """Every row of every table of a schema, as text."""
    session = await asyncpg.connect(url)
    try:
        names = [row["tablename"] for row in await session.fetch("select tablename from pg_tables where schemaname = $1 order by 1", schema)]
        return {name: [row[0] for row in await session.fetch(f'select t::text from "{schema}"."{name}" t order by 1')] for name in names}
    finally:
        await session.close()


async def copied(db: asyncpg.Pool) -> list[RawFact]:
    rows = await db.fetch("select seq, subject, body from core.event_log order by seq")
    return [RawFact(seq=row["seq"], subject=row["subject"], data=row["body"]) for row in rows]


async def everything(log: EventLog) -> list[RawFact]:
    return [raw async for raw in log.scan_raw(">")]
