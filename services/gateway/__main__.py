"""`python -m services.gateway`: serve. `python -m services.gateway rebuild`: make the views anew from the log."""

import argparse
import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import asyncpg
from nats.aio.client import Client

from libs.config import Gateway, Refused
from libs.events.log import EventLog, Unavailable
from libs.runtime import bus, process
from libs.runtime.broker import Broker, broker
from libs.runtime.http import Server
from libs.runtime.waiting import unless
from libs.storage import Storage
from services.gateway import migrations, reactions
from services.gateway.app import Parts, app_version, create_app
from services.gateway.commands import Commands
from services.gateway.edge import is_loopback
from services.gateway.health import Health
from services.gateway.hub import Hub
from services.gateway.live import Live
from services.gateway.loader import Loader
from services.gateway.questions import Questions
from services.gateway.rebuild import Busy, rebuild
from services.gateway.rooms import rooms
from services.gateway.views.database import DOWN, LIVE, ensure_views, pool
from services.gateway.views.progress import Progress, teller
from services.gateway.views.runner import Projector, same_log
from services.gateway.views.schema import fingerprint

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="services.gateway", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["serve", "rebuild"], default="serve")
    command = parser.parse_args().command
    process.run("gateway", Gateway, serve if command == "serve" else rebuild_views)


async def serve(settings: Gateway, stop: asyncio.Event) -> None:
    refuse_unsafe(settings)
    holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    progress, storage = Progress(), Storage(settings)
    nc, event_log, live = await unless(stop, _bus(settings))
    db = await unless(stop, _database(settings, event_log, storage))
    health = Health(event_log, db, storage, progress, version=app_version())
    commands = Commands(event_log, progress, rooms(db), fill=health.fill)
    hub = Hub(endpoint=settings.hf_endpoint, token=settings.hf_token, roots=settings.source_roots)
    parts = Parts(settings=settings, db=db, log=event_log, storage=storage, commands=commands, health=health, live=live, hub=hub, questions=Questions(nc))
    app = create_app(parts)
    server = Server(app, host=settings.host, port=settings.port)
    reacting = broker(settings.nats_url, name="gateway")
    reactions.subscribe(reacting, storage)
    await progress.listen(nc)
    await live.listen(nc)
    await unless(stop, reacting.start())
    sweep = reactions.Sweep(event_log, db, storage, progress, holder=holder, older_than=timedelta(hours=settings.sweep_after_hours))
    try:
        await _until(
            stop,
            server.serve(),
            Projector(event_log, db, settings.database_url, tell=teller(nc, progress), holder=holder).run(),
            Loader(db, storage, progress, holder=holder).run(),
            health.watch(),
            sweep.run(),
            ending=lambda: _end(live, server, reacting),
        )
    finally:
        await asyncio.wait([asyncio.create_task(nc.close())], timeout=0.3)
        db.terminate()
        storage.close()
        hub.close()


async def rebuild_views(settings: Gateway, stop: asyncio.Event) -> None:
    nc, event_log, _ = await _bus(settings)
    storage = Storage(settings)
    try:
        work = asyncio.create_task(rebuild(event_log, storage, settings.database_url))
        asked = asyncio.create_task(stop.wait())
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not work.done():
            work.cancel()
            raise Refused("interrupted: the views are as they were")
        await work
    finally:
        await nc.close()
        storage.close()


def refuse_unsafe(settings: Gateway) -> None:
    if settings.auth == "jwt":
        raise Refused("TRAINYARD_AUTH=jwt: people and tokens are not part of this version yet; only `local` is")
    if not is_loopback(settings.host):
        raise Refused(f"TRAINYARD_HOST={settings.host}: without tokens (AUTH=local) only a loopback address may be listened on, like 127.0.0.1")


async def _bus(settings: Gateway) -> tuple[Client, EventLog, Live]:
    async def reconnected() -> None:
        await live.resync()

    nc = await bus.connect(settings.nats_url, name="gateway", reconnected_cb=reconnected)
    event_log = EventLog(nc, source="/gateway")
    live = Live(event_log)
    while True:
        try:
            await event_log.check()
            break
        except Unavailable as error:
            log.warning("waiting for the log: %s", error)
            await asyncio.sleep(0.5)
    return nc, event_log, live


async def _database(settings: Gateway, event_log: EventLog, storage: Storage) -> asyncpg.Pool:
    """Waits for PostgreSQL, brings `core` up to date, and makes the views anew when this version sees them differently."""
    while True:
        try:
            await migrations.upgrade(settings.database_url)
            break
        except DOWN as error:
            log.warning("waiting for the database: %s", str(error) or type(error).__name__)
            await asyncio.sleep(1)
    db = await pool(settings.database_url)
    while await ensure_views(db, LIVE) != fingerprint():
        log.info("the views are of another version: made anew from the log")
        try:
            await rebuild(event_log, storage, settings.database_url, tell=log.info)
        except Busy:
            await asyncio.sleep(1)  # another replica is at it
    await same_log(event_log, db)
    return db


async def _until(stop: asyncio.Event, *work: Coroutine[Any, Any, None], ending: Callable[[], Awaitable["asyncio.Task[None]"]]) -> None:
    """Runs everything until asked to stop, or until one part fails: then all end, and the failure is said. With what comes before and after, an end takes two seconds at most."""
    tasks = [asyncio.create_task(part, name=part.__qualname__) for part in work]
    asked = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({asked, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    tasks.append(await ending())
    for task in (asked, *tasks[1 : len(work)]):
        task.cancel()
    _, late = await asyncio.wait(tasks, timeout=1.3)
    for task in late:
        log.warning("cut short: %s has not ended", task.get_name())
    for task in done - {asked}:
        task.result()


async def _end(live: Live, server: Server, reacting: Broker) -> "asyncio.Task[None]":
    """Streams end first: the server waits for its connections. What reactions have in hand goes back meanwhile, which takes the task that is returned."""
    giving_back = asyncio.create_task(reacting.stop(), name="reactions")
    await live.drain()
    live.close()
    server.stop()
    return giving_back


if __name__ == "__main__":
    main()
