"""The whole platform as real processes of its own, any of which may be killed: servers, gateways, and as many of the other services as a test needs."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import asyncpg
import httpx
from nats.aio.client import Client

from infra.embedded import Process, Servers, Settings
from infra.embedded.process import wait_ready
from libs.config import Gateway, load
from libs.events.log import EventLog
from libs.runtime import bus
from libs.storage import Storage
from tests.kit.eventually import eventually
from tests.kit.evidence import Delivery, Evidence, collect, consumers, leases_left, undone
from tests.kit.gateway import own_port
from tests.kit.processes import still_training
from tests.kit.record import Op
from tests.kit.servers import fresh_home

SOON = 1 / 3600
"""A second, in hours: how old an object that nothing refers to becomes where a test waits for the sweep."""


class Platform:
    def __init__(self, servers: Servers, *, gateways: int, datasets: int, training: int, export: int, environ: Mapping[str, str]) -> None:
        self.servers = servers
        self._environ = environ
        self._extra = itertools.count(1)
        self.gateways = [self._service("gateway", n) for n in range(gateways)]
        self.datasets = [self._service("datasets", n) for n in range(datasets)]
        self.training = [self._service("training", n) for n in range(training)]
        self.export = [self._service("export", n) for n in range(export)]

    @property
    def services(self) -> list[Process]:
        return [*self.gateways, *self.datasets, *self.training, *self.export]

    @property
    def processes(self) -> list[Process]:
        return [self.servers[name] for name in ("nats", "postgres", "s3")] + self.services

    @property
    def urls(self) -> list[str]:
        return [url(gateway) for gateway in self.gateways]

    def log_of(self, process: Process) -> str:
        return process.log.read_text(errors="replace")

    @asynccontextmanager
    async def log(self) -> AsyncIterator[EventLog]:
        async with self.bus() as nc:
            yield EventLog(nc, source="/tests")

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Client]:
        """As `infra`, who may do everything."""
        nc = await bus.connect(self.servers.nats_url("infra"), name="infra")
        try:
            yield nc
        finally:
            await nc.close()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        session = await asyncpg.connect(self.servers.database_url, timeout=3, command_timeout=5, server_settings={"search_path": "views, core"})
        try:
            yield session
        finally:
            session.terminate()

    async def projecting(self) -> Process | None:
        """The gateway that holds the projector's lease."""
        try:
            async with self.database() as session:
                holder = await session.fetchval("select holder from leases where name = 'projector' and until > clock_timestamp()")
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            return None
        return next((gateway for gateway in self.gateways if holder and f"-{gateway.pid}-" in holder), None)

    async def two_roles(self) -> tuple[Process, Process]:
        """(the gateway that projects, one that doesn't)."""
        first = await eventually(self.projecting)
        assert first
        return first, next(gateway for gateway in self.gateways if gateway is not first)

    async def rest(self, patience: float) -> str:
        """Empty once all jobs have ended, the views have everything, the parts are loaded and nobody has anything to do; else what still goes on."""
        deadline = time.monotonic() + patience
        while True:
            try:
                restless = await self._restless()
            except Exception as error:  # noqa: BLE001  # right after an outage anything may still be away
                restless = f"{type(error).__name__}: {error}"
            if not restless or time.monotonic() > deadline:
                return restless
            await asyncio.sleep(0.3)

    async def _restless(self) -> str:
        async with self.bus() as nc, self.database() as session:
            last = (await EventLog(nc, source="/tests").position()).last
            if (seq := await session.fetchval("select seq from checkpoints where name = 'views'")) != last:
                return f"the views are at {seq}, the log ends at {last}"
            if running := await session.fetchval("select count(*) from jobs where status not in ('succeeded', 'failed', 'cancelled')"):
                return f"{running} jobs run"
            if pending := await session.fetchval("select count(*) from parts where state = 'pending'"):
                return f"{pending} parts wait to be loaded"
            if untold := await session.fetchval("select count(*) from webhook_endpoints where newest > cursor or replay_from is not null"):
                return f"{untold} webhook endpoints have not been told everything"
            if dead := await self.leases_of_the_dead():
                return f"leases of the dead: {dead}"
            facts, leases, held = await consumers(nc, "EV"), await consumers(nc, "WORK"), await leases_left(nc)
        busy = {found["name"]: work for found in (*facts, *leases) if found["config"].get("durable_name") and (work := undone(found))}
        followers = [found for found in facts if not found["config"].get("durable_name")]
        if busy or len(followers) != self.followers:
            return f"consumers with work to do: {busy}, {len(followers)} followers of the log: {[(f['created'], f.get('push_bound')) for f in followers]}"
        if held:
            return f"leases of runs are left: {held}"
        if training := still_training(self.servers.home.path):
            return f"a run is still trained: {training}"
        return ""

    @property
    def followers(self) -> int:
        """Who follows the log without a durable: the projector, and each training service's scheduler."""
        return 1 + len(self.training)

    async def collect(self, ops: Sequence[Op] = (), deliveries: Sequence[Delivery] = (), *, limit_mb: int = 500) -> Evidence:
        return await collect(self.servers, ops, deliveries, limit_mb=limit_mb, followers=self.followers)

    async def sweep(self) -> None:
        """One more gateway, for whom objects grow old within a second, removes what nothing refers to; then it goes."""
        sweeper = self._service("gateway", 100 + next(self._extra), {"TRAINYARD_SWEEP_AFTER_HOURS": str(SOON)})
        sweeper.spawn()
        await eventually(lambda: asyncio.to_thread(sweeper.ready), patience=sweeper.part.patience)
        try:
            await eventually(self._nothing_unreferenced, patience=20)
        finally:
            sweeper.stop()
            del self.servers.processes[sweeper.name]
        await eventually(self._no_dead_leases)

    async def leases_of_the_dead(self) -> list[str]:
        async with self.database() as session:
            valid = await session.fetch("select name, holder from leases where until > clock_timestamp()")
        return [name for name, holder in valid if not any(f"-{gateway.pid}-" in holder for gateway in self.gateways)]

    async def _no_dead_leases(self) -> bool:
        return not await self.leases_of_the_dead()

    async def _nothing_unreferenced(self) -> bool:
        return not await self.unreferenced()

    async def unreferenced(self) -> set[str]:
        """Keys of objects that nothing in the views names that is still there."""
        storage = Storage(load(Gateway, self.servers.environ("gateway", port=1)))
        try:
            keys = {key for key, _ in await storage.keys(most=1_000_000)}
        finally:
            storage.close()
        async with self.database() as session:
            known = await session.fetch(
                """select key from files union select key from parts
                    union select o.id from objects o join jobs j on j.id = o.job_id join projects p on p.id = j.project_id
                    union select o.id from objects o join datasets d on d.job_id = split_part(o.id, '/', 2)
                    union select o.id from objects o join jobs j on j.id = split_part(o.id, '/', 2) join runs r on r.id = j.id
                           where j.project_id = '' and (j.status not in ('succeeded', 'failed', 'cancelled') or o.id = r.steps ->> 'key' or strpos(r.artifacts::text, o.id) > 0)"""
            )
        return keys - {row["key"] for row in known}

    def _service(self, name: str, n: int, environ: Mapping[str, str] | None = None) -> Process:
        label = f"{name}-{n + 1}" if n else name
        return self.servers.service(name, port=own_port(self.servers, label), label=label, environ={**self._environ, **(environ or {})})


def url(gateway: Process) -> str:
    return f"http://{gateway.part.address}"


@contextmanager
def platform(*, gateways: int = 2, datasets: int = 1, training: int = 0, export: int = 0, environ: Mapping[str, str] | None = None) -> Iterator[Platform]:
    with fresh_home() as home, Servers(home, Settings(port=0)) as servers:
        numbers = {"gateways": gateways, "datasets": datasets, "training": training, "export": export}
        made = Platform(servers, **numbers, environ={"TRAINYARD_LOG_LEVEL": "warning", **(environ or {})})
        for service in made.services:
            service.spawn()
        wait_ready(made.services)
        yield made


def client(**options: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=15, limits=httpx.Limits(max_connections=100), **options)  # pyright: ignore[reportArgumentType]
