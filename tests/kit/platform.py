"""The whole platform as real processes of its own, any of which may be killed: servers, two gateways, the data set service."""

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

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
from tests.kit.servers import fresh_home

SOON = 1 / 3600
"""A second, in hours: how old an object that nothing refers to becomes where a test waits for the sweep."""


class Platform:
    def __init__(self, servers: Servers, *, gateways: int, datasets: int, environ: Mapping[str, str]) -> None:
        self.servers = servers
        self._environ = environ
        self._extra = itertools.count(1)
        self.gateways = [self._service("gateway", n) for n in range(gateways)]
        self.datasets = [self._service("datasets", n) for n in range(datasets)]

    @property
    def services(self) -> list[Process]:
        return [*self.gateways, *self.datasets]

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
            if dead := await self.leases_of_the_dead():
                return f"leases of the dead: {dead}"
            consumers: list[dict[str, Any]] = json.loads((await nc.request("$JS.API.CONSUMER.LIST.EV", b"{}", timeout=5)).data).get("consumers") or []
        busy = {consumer["name"]: consumer["num_pending"] + consumer["num_ack_pending"] for consumer in consumers if consumer["config"].get("durable_name")}
        followers = [consumer for consumer in consumers if not consumer["config"].get("durable_name")]
        if any(busy.values()) or len(followers) != 1:
            return f"consumers with work to do: {busy}, {len(followers)} followers of the log: {[(f['created'], f.get('push_bound')) for f in followers]}"
        return ""

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
        """Keys of objects that no row of the views names."""
        storage = Storage(load(Gateway, self.servers.environ("gateway", port=1)))
        try:
            keys = {key for key, _ in await storage.keys(most=1_000_000)}
        finally:
            storage.close()
        async with self.database() as session:
            return keys - {row["key"] for row in await session.fetch("select key from files union select key from parts")}

    def _service(self, name: str, n: int, environ: Mapping[str, str] | None = None) -> Process:
        label = f"{name}-{n + 1}" if n else name
        self.servers.home.choose_ports([label])
        return self.servers.service(name, port=self.servers.home.ports[label], label=label, environ={**self._environ, **(environ or {})})


def url(gateway: Process) -> str:
    return f"http://{gateway.part.address}"


@contextmanager
def platform(*, gateways: int = 2, datasets: int = 1, environ: Mapping[str, str] | None = None) -> Iterator[Platform]:
    with fresh_home() as home, Servers(home, Settings(port=0)) as servers:
        made = Platform(servers, gateways=gateways, datasets=datasets, environ={"TRAINYARD_LOG_LEVEL": "warning", **(environ or {})})
        for service in made.services:
            service.spawn()
        wait_ready(made.services)
        yield made


def backends(postmaster: int) -> list[int]:
    """Processes in which PostgreSQL serves somebody."""
    return [pid for pid, command in children(postmaster) if b"trainyard trainyard" in command]


def children(parent: int) -> list[tuple[int, bytes]]:
    """(id, command line) of each."""
    found: list[tuple[int, bytes]] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append((int(process.name), (process / "cmdline").read_bytes()))
        except (OSError, ValueError):
            continue
    return sorted(found)


def left_running(home: Path) -> list[str]:
    """Processes that were started for this home and still live: none, once the servers are stopped."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if int(process.name) != os.getpid() and (f"TRAINYARD_HOME={home}".encode() in environ.split(b"\0") or f"{home}/".encode() in command):
            found.append(f"{process.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


def client(**options: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=15, limits=httpx.Limits(max_connections=100), **options)  # pyright: ignore[reportArgumentType]
