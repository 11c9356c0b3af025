"""Who may listen on the bus: credentials for event consumers, what nats-server is answered when they connect, and the end of connections whose credential is no good any more."""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from prometheus_client import Counter as Count

from libs.events import Origin, uuid7
from libs.events.log import Unavailable
from libs.events.subjects import PRIVATE_CATEGORIES
from libs.runtime.nkeys import Issuer, NotAToken, read
from libs.runtime.waiting import within
from services.gateway.accounts import Accounts
from services.gateway.attempts import Attempts, TooMany
from services.gateway.commands import Commands
from services.gateway.domain.bus import BusAccess, CreateCredential, Credential, RevokeCredential
from services.gateway.domain.errors import NotFound
from services.gateway.domain.user import LOCAL, Principal
from services.gateway.views import bus, users
from services.gateway.views.database import DOWN

log = logging.getLogger(__name__)

ACCOUNT = "CONSUMERS"
"""Of the bus, apart from the services': it has no streams, and only the feed comes in."""
ASKED, QUEUE = "$SYS.REQ.USER.AUTH", "gateways"
CONNECTIONS, KICK = "sys.connections", "sys.kick"
PREFIX = "tyb_"
"""What passwords begin with, so that one in the wrong place is noticed."""
SWEEP = 15.0
"""Seconds between looks at who is connected: each gateway looks, so that whoever is left does."""
PATIENCE = 1.5
"""Seconds for an answer: the server waits for two."""
GATHER = 0.5
"""Seconds in which all servers of a cluster tell who is connected: how many they are is not known."""
AT_ONCE = 100
PAGE = 1000
SUBSCRIPTIONS = 100
CONNECTIONS_OF_ONE = 500
"""Connections of one user, whatever the credentials: a server has room for 10,000 of all."""

_answers = Count("trainyard_bus_consumers_total", "Event consumers that wanted onto the bus", ["answer"])
_ended = Count("trainyard_bus_consumers_ended_total", "Connections of event consumers that were ended, their credential being no good any more")


class NoIssuer(Exception):
    """The gateway has no key with which to let anybody onto the bus."""


class Denied(Exception):
    """No such credential, or another password: the consumer isn't told which."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Of a server's question what matters here."""

    class Server(msgspec.Struct, frozen=True):
        id: str

    class Caller(msgspec.Struct, frozen=True):
        host: str = ""

    class Given(msgspec.Struct, frozen=True, rename={"password": "pass"}):
        user: str = ""
        password: str = ""

    server_id: Server
    user_nkey: str
    client_info: Caller
    connect_opts: Given


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    cid: int
    authorized_user: str = ""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Of a server's list of connections what matters here."""

    class Server(msgspec.Struct, frozen=True):
        id: str

    class Listed(msgspec.Struct, frozen=True):
        connections: list[Connection] = []

    server: Server
    data: Listed


class Doorkeeper:
    def __init__(
        self,
        nc: Client,
        db: asyncpg.Pool,
        commands: Commands,
        accounts: Accounts,
        *,
        issuer: Issuer | None,
        servers: str,
        local: bool,
        attempts: Attempts,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._nc = nc
        self._db = db
        self._commands = commands
        self._accounts = accounts
        self._issuer = issuer
        self._local = local
        self._attempts = attempts
        self._now = now
        self._answering: set[asyncio.Task[None]] = set()
        self._revoked = asyncio.Event()
        self._held = Counter[str]()
        """Connections of each user: those seen at the last look, and those let in here since."""
        self.servers = addresses(servers)

    # What people do

    async def create(self, principal: Principal, workspace: str, name: str) -> tuple[str, Credential, str]:
        """Its id, itself and the password, which is in this answer and nowhere else."""
        if self._issuer is None:
            raise NoIssuer
        if principal.role_in(workspace) is None:
            raise NotFound(what="Workspace", id=workspace)
        id, password = uuid7(time.time_ns() // 1_000_000, os.urandom(10)), PREFIX + secrets.token_urlsafe(24)
        command = CreateCredential(user_id=principal.id, credential_id=id, workspace=workspace, name=name, password_sha256=_sha256(password))
        outcome = await self._commands.run(command, origin=_own(principal))
        return id, outcome.state.credentials[id], password

    async def held(self, principal: Principal) -> dict[str, Credential]:
        access, _ = await bus.load(self._db, principal.tenant, principal.id)
        if access is None:
            access, _ = await self._commands.newest(BusAccess, principal.id, tenant=principal.tenant)
        return access.credentials if access else {}

    async def revoke(self, principal: Principal, credential_id: str) -> None:
        await self._commands.run(RevokeCredential(user_id=principal.id, credential_id=credential_id), origin=_own(principal))
        self._revoked.set()

    # What servers of the bus ask

    async def run(self) -> None:
        """Until cancelled."""
        if self._issuer is None:
            await asyncio.Event().wait()
        listening = await self._nc.subscribe(ASKED, queue=QUEUE, cb=self._asked)
        try:
            while True:
                self._revoked.clear()
                try:
                    await self.sweep()
                except (*DOWN, Unavailable, nats.errors.Error) as error:
                    log.warning("bus: who is connected could not be looked at: %s", str(error) or type(error).__name__)
                try:
                    await within(SWEEP, self._revoked.wait())
                except TimeoutError:
                    continue
        finally:
            await _quietly(listening)

    async def _asked(self, msg: Msg) -> None:
        """One that is too many is not answered: the server gives up by itself, and the consumer comes again."""
        if len(self._answering) < AT_ONCE:
            task = asyncio.create_task(self._answer(msg))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, msg: Msg) -> None:
        assert self._issuer
        try:
            asked = msgspec.convert(read(msg.data.decode())["nats"], Asked)
        except (NotAToken, msgspec.MsgspecError, LookupError, UnicodeDecodeError) as error:
            log.warning("bus: a question that can't be read: %s", error)
            return
        about = {"subject": asked.user_nkey, "issued_at": int(self._now())}
        try:
            verdict = {"jwt": self._issuer.claims(audience=ACCOUNT, nats=await self._judged(asked), name=asked.connect_opts.user, **about)}
            outcome = "let in"
        except (Denied, TooMany) as refused:
            outcome = "denied" if isinstance(refused, Denied) else "too many"
            verdict = {"error": outcome}
        except (*DOWN, Unavailable, nats.errors.Error) as error:
            log.warning("bus: a consumer can't be looked up: %s", str(error) or type(error).__name__)
            outcome, verdict = "out of order", {"error": "out of order"}
        _answers.labels(outcome).inc()
        claims = self._issuer.claims(audience=asked.server_id.id, nats={**verdict, "type": "authorization_response"}, **about)
        try:
            await msg.respond(claims.encode())
        except (nats.errors.Error, OSError) as error:
            log.warning("bus: an answer could not be sent: %s", error)

    async def _judged(self, asked: Asked) -> dict[str, Any]:
        """What the consumer may do. Only failures count against an address, and never shut out the honest ones behind it: after too many the log is asked no more."""
        user, address = asked.connect_opts.user, asked.client_info.host
        found = (await within(PATIENCE, self._good([user], newer=self._attempts.allow(address=address)))).get(user)
        if found is None or not hmac.compare_digest(_sha256(asked.connect_opts.password), found.sha256):
            self._attempts.count(address=address)
            raise Denied
        owner, _, id = user.partition(".")
        if self._held[owner] >= CONNECTIONS_OF_ONE:
            raise TooMany(round(SWEEP))
        self._held[owner] += 1
        return permissions(found.workspace, inbox=id)

    async def sweep(self) -> None:
        """Ends connections whose credential is no good any more, one whose user can't be told among them, and those of a user who has too many."""
        connected = await self._connected()
        good = await self._good({connection.authorized_user for _, connection in connected})
        held = Counter[str]()
        for server, connection in connected:
            owner = connection.authorized_user.partition(".")[0]
            if connection.authorized_user not in good or held[owner] >= CONNECTIONS_OF_ONE:
                await self._end(server, connection)
            else:
                held[owner] += 1
        self._held = held

    async def _end(self, server: str, connection: Connection) -> None:
        """One that can't be ended holds up no other: it is met again at the next look."""
        try:
            await self._nc.request(f"{KICK}.{server}", json.dumps({"cid": connection.cid}).encode(), timeout=1)
        except (nats.errors.Error, OSError) as error:
            log.warning("bus: a connection of %s could not be ended: %s", connection.authorized_user, str(error) or type(error).__name__)
            return
        log.info("bus: ended a connection of %s", connection.authorized_user)
        _ended.inc()

    async def _connected(self) -> list[tuple[str, Connection]]:
        found: list[tuple[str, Connection]] = []
        offset, more = 0, True
        while more:
            answers = await self._ask_servers({"acc": ACCOUNT, "auth": True, "limit": PAGE, "offset": offset})
            found += [(told.server.id, connection) for told in answers for connection in told.data.connections]
            more = any(len(told.data.connections) == PAGE for told in answers)
            offset += PAGE
        return found

    async def _ask_servers(self, question: dict[str, Any]) -> list[Told]:
        answers: list[Told] = []

        async def told(msg: Msg) -> None:
            answers.append(msgspec.json.decode(msg.data, type=Told))

        inbox = self._nc.new_inbox()
        listening = await self._nc.subscribe(inbox, cb=told)
        try:
            await self._nc.publish(CONNECTIONS, json.dumps(question).encode(), reply=inbox)
            await asyncio.sleep(GATHER)
        finally:
            await _quietly(listening)
        if not answers:
            raise Unavailable("no server of the bus tells who is connected")
        return answers

    async def _good(self, names: Iterable[str], *, newer: bool = True) -> dict[str, Credential]:
        """Of these users of the bus those that may be on it now, with what lets them in. `newer`: also those that only the log knows."""
        parted = {name: parts for name in names if (parts := _parts(name)) and (self._local or parts[0] != LOCAL.id)}
        rows = {row.id: row for row in await bus.good(self._db, [id for _, id in parted.values()])} if parted else {}
        good: dict[str, Credential] = {}
        for name, (user_id, id) in parted.items():
            if (row := rows.get(id)) is None:
                if newer and (credential := await self._newer(user_id, id)):
                    good[name] = credential
            elif row.user_id == user_id:
                good[name] = Credential(workspace=row.workspace, name=row.name, sha256=row.sha256, created_at=row.created_at)
        return good

    async def _newer(self, user_id: str, id: str) -> Credential | None:
        """One that the view doesn't show (yet)."""
        access, _ = await self._commands.newest(BusAccess, user_id, tenant=user_id)
        if access is None or (credential := access.credentials.get(id)) is None:
            return None
        if user_id != LOCAL.id and await self._accounts.user(user_id) is None:
            return None
        own = credential.workspace == user_id
        return credential if own or credential.workspace in await users.workspaces_of(self._db, user_id) else None


def permissions(workspace: str, *, inbox: str) -> dict[str, Any]:
    """Listening to one workspace's feed, less what nobody is told, and nothing else. There is nothing that a listener has to publish."""
    return {
        "pub": {"deny": [">"]},
        "sub": {"allow": [subject(workspace), f"_INBOX_{inbox}.>"], "deny": [f"feed.*.{category}.>" for category in sorted(PRIVATE_CATEGORIES)]},
        "subs": SUBSCRIPTIONS,
        "data": -1,
        "payload": -1,
        "type": "user",
    }


def subject(workspace: str) -> str:
    return f"feed.{workspace}.>"


def bus_user(user_id: str, credential_id: str) -> str:
    return f"{user_id}.{credential_id}"


def addresses(urls: str) -> list[str]:
    """Without users and passwords."""
    split = [urlsplit(url.strip()) for url in urls.split(",")]
    return [f"{url.scheme}://{url.netloc.rpartition('@')[2]}" for url in split]


def _parts(name: str) -> tuple[str, str] | None:
    """Whose, and which: None when it is no user of ours."""
    user_id, _, id = name.partition(".")
    return (user_id, id) if (user_id == LOCAL.id or _is_id(user_id)) and _is_id(id) else None


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _sha256(password: str) -> str:
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).hexdigest()


def _own(principal: Principal) -> Origin:
    return Origin(tenant=principal.tenant, actor=principal.id, correlation=str(uuid.uuid4()))


async def _quietly(listening: Any) -> None:
    """The bus may be away already."""
    try:
        await listening.unsubscribe()
    except (nats.errors.Error, OSError):
        return
