"""A bus of one's own, to be killed at will."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.events.log import EventLog
from libs.runtime import bus
from tests.kit.servers import bus_alone, bus_cluster


@dataclass
class Bus:
    url: str
    nodes: list[Process]
    nc: Client

    @property
    def log(self) -> EventLog:
        return EventLog(self.nc, source="/tests")

    async def connect(self, *, node: int | None = None) -> Client:
        return await bus.connect(self.url if node is None else self.url.split(",")[node], name="infra")


@asynccontextmanager
async def own_bus(kind: str) -> AsyncIterator[Bus]:
    """`alone` or `cluster`."""
    with bus_alone() if kind == "alone" else bus_cluster() as parts:
        url = parts.nats_url("infra")
        nc = await bus.connect(url, name="infra")
        yield Bus(url=url, nodes=[parts["nats"]] if isinstance(parts, Servers) else list(parts.processes.values()), nc=nc)
        await nc.close()
