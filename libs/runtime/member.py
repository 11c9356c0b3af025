"""How a service takes part: connected to bus, log and object store, and answering probes from its first moment to its last."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from nats.aio.client import Client

from libs.config import Service
from libs.events.log import EventLog, Unavailable
from libs.runtime import bus
from libs.runtime.health import Check, Probes
from libs.runtime.waiting import unless
from libs.storage import Storage

log = logging.getLogger(__name__)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    nc: Client
    log: EventLog
    storage: Storage
    checks: dict[str, Check]
    """Asked by /readyz; a service adds its own."""


@asynccontextmanager
async def member(name: str, settings: Service, stop: asyncio.Event) -> AsyncIterator[Member]:
    """Waits for the bus as long as it takes, or until Stopped."""
    checks: dict[str, Check] = {"bus": starting}
    async with _probes(checks, port=settings.health_port):
        nc = await unless(stop, bus.connect(settings.nats_url, name=name))
        storage = Storage(settings)
        try:
            event_log = EventLog(nc, source=f"/{name}")
            await unless(stop, _checked(event_log))
            checks |= {"bus": _connected(nc), "log": _answers(event_log), "storage": storage.check}
            yield Member(nc=nc, log=event_log, storage=storage, checks=checks)
        finally:
            storage.close()
            await nc.close()


@asynccontextmanager
async def _probes(checks: dict[str, Check], *, port: int) -> AsyncIterator[None]:
    if port == 0:
        yield
        return
    probes = Probes(checks, port=port)
    serving = asyncio.create_task(probes.serve())
    try:
        yield
    finally:
        probes.stop()
        await serving


async def _checked(event_log: EventLog) -> None:
    while True:
        try:
            return await event_log.check()
        except Unavailable as error:
            log.warning("waiting for the log: %s", error)
            await asyncio.sleep(0.5)


async def starting() -> str:
    """A check of what is not there yet."""
    return "not reached yet"


def _connected(nc: Client) -> Check:
    async def check() -> str:
        return "" if nc.is_connected else "not connected"

    return check


def _answers(event_log: EventLog) -> Check:
    async def check() -> str:
        await event_log.position()
        return ""

    return check
