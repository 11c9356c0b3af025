"""Everything a run leaves behind, read once and without the platform's own eyes where that is possible: what the checker judges."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
from nats.aio.client import Client
from sqlalchemy import Table

from infra.embedded import Servers
from libs.config import Gateway, load
from libs.events.log import EventLog, RawFact
from libs.runtime import bus
from libs.storage import Storage, StorageDown
from services.gateway.loader import load_next
from services.gateway.views.database import connection, create_views, pool
from services.gateway.views.runner import apply
from services.gateway.views.schema import views
from tests.kit.processes import still_training
from tests.kit.record import Op

STAGES = ("preparation", "training", "export")
CHECKED = "views_checked"
BATCH = 37
"""Facts per transaction of the rebuilt views: other cuts than the live ones had."""


@dataclass(frozen=True)
class Fact:
    """One fact of the log, taken apart without libs.events."""

    seq: int
    subject: str
    body: bytes
    id: str
    type: str
    tenant: str
    at: datetime
    correlation: str
    data: dict[str, Any]

    @property
    def category(self) -> str:
        return self.type.partition(".")[0]

    @property
    def stage(self) -> str:
        """Empty unless a service wrote it about a job."""
        return self.category if self.category in STAGES else ""


@dataclass(frozen=True)
class Copied:
    """One row of core.event_log."""

    seq: int
    subject: str
    aggregate: str
    id: str
    body: bytes


@dataclass(frozen=True)
class Stored:
    """One object. Parts and uploads are small in tests: their bytes are kept."""

    key: str
    sha256: str
    content: bytes


@dataclass(frozen=True)
class Lease:
    name: str
    holder: str
    valid: bool


@dataclass(frozen=True)
class Delivery:
    """What a webhook's receiver got."""

    url: str
    id: str
    seq: int
    body: bytes
    taken: bool
    """Else it was refused, and must come again."""
    signed: bool
    """With the endpoint's own secret."""


@dataclass
class Evidence:
    facts: list[Fact]
    last: int
    """Where the server says that the log ends."""
    copied: list[Copied]
    parked: list[str]
    checkpoint: int
    live: dict[str, dict[str, str]]
    """Table -> id -> row as PostgreSQL writes it."""
    rebuilt: dict[str, dict[str, str]]
    rebuild_failed: str
    rows: dict[str, list[dict[str, Any]]]
    """The live views' rows as values, without the contents of examples."""
    objects: dict[str, Stored]
    consumers: list[dict[str, Any]]
    """Of the log."""
    workers: list[dict[str, Any]]
    """Consumers of WORK."""
    work: list[str]
    """Subjects of the leases that still lie in WORK."""
    trainers: list[str]
    """Processes in which a run is trained."""
    leases: list[Lease]
    alive: set[int]
    litter: list[str]
    """Files that no server of ours keeps on purpose."""
    followers: int = 1
    """Processes that follow the log on their own: the projector, and the scheduler of each training service."""
    ops: list[Op] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    """In the order in which they came."""
    limit_mb: int = 500

    def lines(self, key: str) -> list[dict[str, Any]]:
        """None of an object that isn't there or is damaged: that is another invariant's business."""
        stored = self.objects.get(key)
        if stored is None or stored.sha256 != key.rsplit("/", 1)[1]:
            return []
        return [json.loads(line) for line in stored.content.splitlines()]


async def collect(servers: Servers, ops: Sequence[Op] = (), deliveries: Sequence[Delivery] = (), *, limit_mb: int = 500, followers: int = 1) -> Evidence:
    """To be called when everything has come to rest: reads change nothing but a scratch schema that is gone afterwards."""
    settings = load(Gateway, servers.environ("gateway", port=1))
    storage = Storage(settings)
    nc = await bus.connect(servers.nats_url("infra"), name="infra")
    try:
        log = EventLog(nc, source="/checker")
        raw = [fact async for fact in log.scan_raw(">")]
        last = (await log.position()).last
        rebuilt, rebuild_failed = await _rebuilt(servers.database_url, raw, storage)
        database = await asyncpg.connect(servers.database_url, server_settings={"search_path": "views, core", "timezone": "UTC"})
        try:
            return Evidence(
                facts=[fact_of(fact) for fact in raw],
                last=last,
                copied=[
                    Copied(row["seq"], row["subject"], row["aggregate"], str(row["id"]), row["body"])
                    for row in await database.fetch("select * from event_log order by seq")
                ],
                parked=[f"{row['seq']}: {row['error']}" for row in await database.fetch("select * from parked order by seq")],
                checkpoint=await database.fetchval("select seq from checkpoints where name = 'views'"),
                live=await _texts(database, "views"),
                rebuilt=rebuilt,
                rebuild_failed=rebuild_failed,
                rows={table.name: await _values(database, table) for table in views.sorted_tables},
                objects=await _objects(storage),
                consumers=await consumers(nc, "EV"),
                workers=await consumers(nc, "WORK"),
                work=await leases_left(nc),
                trainers=still_training(servers.home.path),
                leases=[Lease(**row) for row in await database.fetch("select name, holder, until > clock_timestamp() as valid from leases")],
                alive={pid for pid in servers.home.pids.values() if pid},
                litter=litter(servers.home.path, servers.store.root),
                followers=followers,
                ops=list(ops),
                deliveries=list(deliveries),
                limit_mb=limit_mb,
            )
        finally:
            await database.close()
    finally:
        await nc.close()
        storage.close()


def fact_of(raw: RawFact) -> Fact:
    envelope = json.loads(raw.data)
    return Fact(
        seq=raw.seq,
        subject=raw.subject,
        body=raw.data,
        id=envelope["id"],
        type=envelope["type"],
        tenant=envelope["tenant"],
        at=datetime.fromisoformat(envelope["time"]),
        correlation=envelope["correlationid"],
        data=envelope["data"],
    )


def litter(home: Path, store: Path) -> list[str]:
    """Drafts of files that should have been renamed or removed, uploads that were cut off, folders of runs that are over."""
    drafts = [path for path in home.glob("**/*.draft") if path.is_file()]
    partial = [path for path in store.glob("**/*") if path.is_file() and (path.suffix == ".partial" or path.name.startswith("."))]
    runs = [path for path in home.glob("runs/*/*") if path.name != "lock"]
    return [str(path.relative_to(home)) for path in (*drafts, *partial, *runs)]


async def _rebuilt(url: str, raw: list[RawFact], storage: Storage) -> tuple[dict[str, dict[str, str]], str]:
    """The views as this version's own code makes them of the whole log, in a schema beside the live one."""
    session = await connection(url, schema=CHECKED)
    loading = await pool(url, schema=CHECKED, size=2)
    try:
        async with session.transaction():
            await create_views(session, CHECKED)
        reached = 0
        for start in range(0, len(raw), BATCH):
            batch = raw[start : start + BATCH]
            await apply(session, batch, reached, schema=CHECKED, copy=False)
            reached = batch[-1].seq
        try:
            while await load_next(loading, storage):
                pass
        except StorageDown as damaged:
            return await _texts(session, CHECKED), str(damaged)
        return await _texts(session, CHECKED), ""
    finally:
        await session.execute(f'drop schema if exists "{CHECKED}" cascade')
        await session.execute("delete from checkpoints where name = $1", CHECKED)
        await session.execute('delete from versions where "schema" = $1', CHECKED)
        session.terminate()
        await loading.close()


async def _texts(session: Any, schema: str) -> dict[str, dict[str, str]]:
    return {
        table.name: dict(
            await session.fetch(f'select t.{_key(table)}, {"md5(t::text)" if table.name == "examples" else "t::text"} from "{schema}"."{table.name}" t')
        )
        for table in views.sorted_tables
    }


async def _values(session: Any, table: Table) -> list[dict[str, Any]]:
    columns = "id, tenant, project_id, file_id, job_id, position, row, is_valid" if table.name == "examples" else "*"
    return [dict(row) for row in await session.fetch(f'select {columns} from "{table.name}" order by {_key(table)}')]


def _key(table: Table) -> str:
    (column,) = table.primary_key.columns
    return f'"{column.name}"'


async def _objects(storage: Storage) -> dict[str, Stored]:
    """Through the store's own API, as everyone reads them."""
    keys = [key for key, _ in await storage.keys(most=1_000_000)]
    eight = asyncio.Semaphore(8)

    async def read(key: str) -> Stored:
        async with eight:
            content = b"".join([chunk async for chunk in storage.chunks(key)])
        return Stored(key=key, sha256=hashlib.sha256(content).hexdigest(), content=content)

    return {stored.key: stored for stored in await asyncio.gather(*map(read, keys))}


async def consumers(nc: Client, stream: str) -> list[dict[str, Any]]:
    answer = json.loads((await nc.request(f"$JS.API.CONSUMER.LIST.{stream}", b"{}", timeout=5)).data)
    return answer.get("consumers") or []


async def leases_left(nc: Client) -> list[str]:
    """Subjects of all messages in WORK."""
    answer = json.loads((await nc.request("$JS.API.STREAM.INFO.WORK", b'{"subjects_filter": ">"}', timeout=5)).data)
    return sorted(answer["state"].get("subjects") or {})


def undone(consumer: dict[str, Any]) -> int:
    """What it has not heard yet, and what it has not acknowledged."""
    return consumer["num_pending"] + consumer["num_ack_pending"]
