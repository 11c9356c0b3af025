"""The gateway: `python -m services.gateway` serves; `rebuild` makes the views anew from the log; `users` adds and changes users."""

import argparse
import asyncio
import logging
import os
import secrets
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
from nats.aio.client import Client

from libs.config import Gateway, Refused
from libs.events.log import EventLog, Unavailable
from libs.runtime import bus, process
from libs.runtime.broker import Broker, broker
from libs.runtime.http import Server
from libs.runtime.nkeys import Issuer, NotASeed
from libs.runtime.waiting import unless
from libs.storage import Storage
from services.gateway import migrations, people, reactions, registry
from services.gateway.accounts import Accounts
from services.gateway.app import Parts, app_version, create_app
from services.gateway.attempts import Attempts
from services.gateway.audience import Audience
from services.gateway.bus_access import Doorkeeper
from services.gateway.commands import Commands
from services.gateway.domain.credit import prices
from services.gateway.edge import is_loopback
from services.gateway.health import Health
from services.gateway.hub import Hub
from services.gateway.limits import BusCounters, Limits, Silent
from services.gateway.live import Live
from services.gateway.loader import Loader
from services.gateway.passwords import Passwords
from services.gateway.places import Places
from services.gateway.questions import Questions
from services.gateway.rebuild import Busy, rebuild, say
from services.gateway.rooms import rooms
from services.gateway.tokens import LEAST_SECRET, Signer
from services.gateway.views import users
from services.gateway.views.database import DOWN, LIVE, ensure_views, pool
from services.gateway.views.progress import Progress, teller
from services.gateway.views.runner import Projector, same_log
from services.gateway.views.schema import fingerprint
from services.gateway.webhooks.addresses import Network, networks
from services.gateway.webhooks.posting import Poster
from services.gateway.webhooks.sender import Sender
from services.gateway.webhooks.signing import Seal

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.gateway", description=__doc__)
    orders = parser.add_subparsers(dest="order", metavar="{serve,rebuild,users}")
    orders.add_parser("serve", help="serve the API; this is the default")
    orders.add_parser("rebuild", help="make the views anew from the log")
    people.arguments(orders)
    order = parser.parse_args()
    process.run("gateway", Gateway, {"rebuild": rebuild_views, "users": partial(change_users, order)}.get(order.order, serve))


async def serve(settings: Gateway, stop: asyncio.Event) -> None:
    refuse_unsafe(settings)
    refuse_bad_prices(settings)
    egress, issuer = allowed(settings), issuer_of(settings)
    holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    progress, storage = Progress(), Storage(settings)
    nc, event_log, live = await unless(stop, _bus(settings))
    db = await unless(stop, _database(settings, event_log, storage))
    health = Health(event_log, db, storage, progress, version=app_version())
    commands = Commands(event_log, progress, rooms(db), fill=health.fill)
    passwords = Passwords()
    accounts = _accounts(settings, event_log, db, commands, passwords, health)
    doorkeeper = _doorkeeper(settings, nc, db, commands, accounts, issuer)
    hub = Hub(endpoint=settings.hf_endpoint, token=settings.hf_token, roots=settings.source_roots)
    parts = Parts(
        settings=settings,
        db=db,
        log=event_log,
        storage=storage,
        commands=commands,
        health=health,
        live=live,
        places=Places(db, event_log),
        audience=Audience(accounts.principal, most=settings.streams_per_user, every=settings.access_check_seconds),
        hub=hub,
        questions=Questions(nc),
        accounts=accounts,
        doorkeeper=doorkeeper,
    )
    limits = await unless(stop, _limits(settings, nc))
    app = create_app(parts, limits)
    server = Server(app, host=settings.host, port=settings.port)
    reacting = broker(settings.nats_url, name="gateway")
    reactions.subscribe(reacting, storage, event_log, commands, db)
    registry.subscribe(reacting, storage, event_log, db)
    await progress.listen(nc)
    await live.listen(nc)
    await unless(stop, reacting.start())
    sweep = reactions.Sweep(event_log, db, storage, progress, holder=holder, older_than=timedelta(hours=settings.sweep_after_hours))
    poster = Poster(egress)
    sender = Sender(db, commands, progress, poster, Seal(settings.secret), holder=holder)
    try:
        await _until(
            stop,
            server.serve(),
            Projector(event_log, db, settings.database_url, tell=teller(nc, progress), holder=holder).run(),
            Loader(db, storage, progress, holder=holder).run(),
            health.watch(),
            sweep.run(),
            sender.run(),
            *([limits.run()] if limits else []),
            doorkeeper.run(),
            ending=lambda: _end(live, server, reacting),
        )
    finally:
        await asyncio.wait([asyncio.create_task(nc.close())], timeout=0.3)
        db.terminate()
        storage.close()
        hub.close()
        passwords.close()


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
    short = len(settings.secret.encode()) < LEAST_SECRET
    if short and (settings.auth == "jwt" or settings.secret):
        command = "python -c 'import secrets; print(secrets.token_hex(32))'"
        raise Refused(f"TRAINYARD_SECRET must have at least {LEAST_SECRET} bytes, the same for all gateways: {command} makes one")
    if settings.auth == "local" and not is_loopback(settings.host):
        raise Refused(f"TRAINYARD_HOST={settings.host}: without tokens (AUTH=local) only a loopback address may be listened on, like 127.0.0.1")


async def change_users(order: argparse.Namespace, settings: Gateway, stop: asyncio.Event) -> None:
    nc, event_log, _ = await unless(stop, _bus(settings))
    db, storage, passwords = await pool(settings.database_url), Storage(settings), Passwords()
    try:
        progress = Progress()
        await progress.listen(nc)
        health = Health(event_log, db, storage, progress, version=app_version())
        commands = Commands(event_log, progress, rooms(db), fill=health.fill)
        accounts = _accounts(settings, event_log, db, commands, passwords, health)

        async def listed() -> list[users.Row]:
            return (await users.page(db, limit=1_000_000))[0]

        await people.do(order, accounts, listed, tell=say)
    finally:
        passwords.close()
        storage.close()
        db.terminate()
        await nc.close()


def _accounts(settings: Gateway, event_log: EventLog, db: asyncpg.Pool, commands: Commands, passwords: Passwords, health: Health) -> Accounts:
    attempts = Attempts(per_name=settings.login_attempts, per_address=6 * settings.login_attempts)
    signer = Signer(settings.secret or secrets.token_hex(LEAST_SECRET))
    return Accounts(event_log, db, commands, passwords=passwords, signer=signer, attempts=attempts, fill=health.fill, credits=settings.new_user_credits)


def refuse_bad_prices(settings: Gateway) -> None:
    try:
        prices(settings.prices)
    except ValueError as error:
        raise Refused(f"TRAINYARD_PRICES: {error}") from error


def _doorkeeper(settings: Gateway, nc: Client, db: asyncpg.Pool, commands: Commands, accounts: Accounts, issuer: Issuer | None) -> Doorkeeper:
    attempts = Attempts(per_name=settings.login_attempts, per_address=6 * settings.login_attempts)
    servers = settings.nats_public_url or settings.nats_url
    return Doorkeeper(nc, db, commands, accounts, issuer=issuer, servers=servers, local=settings.auth == "local", attempts=attempts)


def issuer_of(settings: Gateway) -> Issuer | None:
    try:
        return Issuer(settings.nats_issuer_seed) if settings.nats_issuer_seed else None
    except NotASeed as error:
        raise Refused("TRAINYARD_NATS_ISSUER_SEED is not the seed of an account's key (SA…): `python -m infra.nats.issuer` makes one") from error


def allowed(settings: Gateway) -> list[Network]:
    try:
        return networks(settings.egress_allow)
    except ValueError as error:
        raise Refused(f"TRAINYARD_EGRESS_ALLOW: {error}; networks divided by commas are right, like 10.0.0.0/8,127.0.0.1/32") from error


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


async def _limits(settings: Gateway, nc: Client) -> Limits | None:
    """The owner of a machine has none."""
    if settings.auth == "local" or not settings.rate_limits:
        return None
    counters = BusCounters(nc)
    while True:
        try:
            await counters.check()
            return Limits(counters, factor=settings.rate_limits)
        except Silent as silent:
            log.warning("waiting for the counters of the rate limits: %s", silent)
            await asyncio.sleep(0.5)


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
    """Streams end first: the server waits for its connections, and would only cut sockets off.

    What reactions have in hand goes back meanwhile, which takes the task that is returned.
    """
    giving_back = asyncio.create_task(reacting.stop(), name="reactions")
    await live.drain()
    live.close()
    await live.deserted(0.3)
    server.stop()
    return giving_back


if __name__ == "__main__":
    main()
