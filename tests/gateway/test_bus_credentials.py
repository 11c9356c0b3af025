"""Event consumers on the bus: what a credential opens, what it doesn't, and how it ends. On a real nats-server, with a client that anybody could have."""

import asyncio
import gc
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.embedded import Process, Servers
from libs.events import BusCredentialCreated, BusCredentialRevoked, CreditGranted, Origin, QuotaTaken
from libs.events.asyncapi import document
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.runtime.nkeys import Issuer, NotASeed, new_seed
from services.gateway.app import app_version
from services.gateway.attempts import Attempts, TooMany
from services.gateway.bus_access import CONNECTIONS_OF_ONE, Asked, Connection, Doorkeeper, addresses
from services.gateway.domain.bus import MOST, CreateCredential, RevokeCredential, decide, evolve
from services.gateway.domain.errors import NotFound, TooManyBusCredentials
from services.gateway.views.database import pool
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.given import given
from tests.kit.people import Person, registered

DOCS = Path(__file__).parents[2] / "docs" / "consumers.md"
MINUTE = 60.0
"""Within which connections end: what is promised. It usually takes half a second."""
CREATE = CreateCredential(user_id="u", credential_id="c", workspace="u", name="", password_sha256="x")

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """While it is expected, and not in somebody else's test."""
    yield
    gc.collect()


class Consumer:
    """A client of the bus, and what befalls it."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.heard: list[Msg] = []
        self.errors: list[str] = []
        self.cut_off = 0
        self.came_back = 0

    @property
    def facts(self) -> list[str]:
        return [msg.subject.split(".", 2)[2].rsplit(".", 1)[0] for msg in self.heard]

    async def listen(self, subject: str, queue: str = "") -> None:
        async def hear(msg: Msg) -> None:
            self.heard.append(msg)

        await self.nc.subscribe(subject, queue=queue, cb=hear)
        await self.nc.flush()

    def refused(self, verb: str) -> set[str]:
        """The server says no in a message of its own, of which the client makes small letters."""
        return {found[1] for error in self.errors if (found := re.search(rf'permissions violation for {verb} to "(.*)"', error))}


@asynccontextmanager
async def consumer(credential: dict[str, Any], **changed: Any) -> AsyncIterator[Consumer]:
    """Raises when the bus doesn't let it in."""

    async def told(error: Exception) -> None:
        here.errors.append(str(error))

    async def disconnected() -> None:
        here.cut_off += 1

    async def reconnected() -> None:
        here.came_back += 1

    nc = Client()
    here = Consumer(nc)
    options = {"allow_reconnect": False, "connect_timeout": 10, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.05, **changed}
    given = {"user": credential["user"], "password": credential["password"], **options}
    try:
        await nc.connect(credential["servers"], error_cb=told, disconnected_cb=disconnected, reconnected_cb=reconnected, **given)
        yield here
    finally:
        await nc.close()


async def made(door: httpx.AsyncClient, person: Person | None, **body: Any) -> dict[str, Any]:
    answer = await door.post("/v2/bus-credentials", json=body, headers=person.headers if person else {})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def project(door: httpx.AsyncClient, person: Person | None, **headers: str) -> str:
    answer = await door.post("/projects", json={"name": "heard of"}, headers={**(person.headers if person else {}), **headers})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def test_a_consumer_hears_what_happens_in_its_workspace_and_nothing_else(door: httpx.AsyncClient, infra_nc: Client):
    ann, bob = await registered(door), await registered(door)
    credential = await made(door, ann, name="dashboard")
    log = EventLog(infra_nc, source="/tests")

    async with consumer(credential) as alone, consumer(credential) as shared:
        await alone.listen(credential["subject"])
        await shared.listen(credential["subject"], queue="workers")
        await door.post("/v2/keys", json={"name": "secret"}, headers=ann.headers)
        await made(door, ann)
        granted = CreditGranted(user_id=ann.id, grant_id="g", amount=1, balance=1)
        await log.append([Write(events=[granted], after=(await newest(log, ann, "credit")))], origin=Origin(tenant=ann.id))
        await log.append([Write(events=[QuotaTaken(user_id=ann.id, job_id="j")], after=0)], origin=Origin(tenant=ann.id))
        await project(door, bob)
        await project(door, ann)
        await eventually(lambda: alone.heard and shared.heard)

        assert alone.facts == shared.facts == ["project.created"]
        assert json.loads(alone.heard[0].data)["tenant"] == ann.id


async def newest(log: EventLog, person: Person, category: str) -> int:
    return max((recorded.seq for recorded in await log.read(f"ev.{person.id}.{category}.*.{person.id}")), default=0)


async def test_a_consumer_can_do_nothing_but_listen(door: httpx.AsyncClient, infra_nc: Client):
    ann, bob = await registered(door), await registered(door)
    credential = await made(door, ann)
    places = [">", "*.>", "feed.>", f"feed.{bob.id}.>", "feed.*.project.>", f"feed.{ann.id}.credit.>", f"ev.{ann.id}.>", "sec.>", "tel.>", "work.>"]
    places += ["ask.>", "proj.>", "sys.>", "$SYS.>", "$SYS.REQ.USER.AUTH", "$JS.>", "$JS.API.>", "_INBOX.>", "_INBOX_gateway.>", "_INBOX_infra.>"]
    writes = [f"ev.{ann.id}.project.created.x", f"sec.{ann.id}.user.key_created.x", f"feed.{ann.id}.project.created.x", "tel.x", "work.x", "ask.predict"]
    writes += ["proj.views", "$JS.API.INFO", "$JS.API.STREAM.DELETE.EV", "$JS.API.DIRECT.GET.EV", "$JS.API.CONSUMER.MSG.NEXT.EV.x", "_INBOX_gateway.x"]
    writes += ["sys.connections", "sys.kick.x", "$SYS.REQ.USER.AUTH", "$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING.CONNZ"]
    before = (await EventLog(infra_nc, source="/tests").position()).last

    async with consumer(credential) as it:
        for place in [*places, f"_INBOX_{credential['id']}.>"]:
            await it.nc.subscribe(place)
        for place in writes:
            await it.nc.publish(place, b"{}", reply=f"ev.{ann.id}.job.created.x")
        await eventually(lambda: it.refused("publish"), of=len(writes))

    assert it.refused("subscription") == {place.lower() for place in places}
    assert it.refused("publish") == {place.lower() for place in writes}
    assert (await EventLog(infra_nc, source="/tests").position()).last == before


async def test_only_the_right_password_lets_in(door: httpx.AsyncClient, servers: Servers, guarded: Process):
    ann, bob = await registered(door), await registered(door)
    credential, other = await made(door, ann), await made(door, bob)
    hers, id = credential["user"].split(".")
    wrong = [
        {"password": ""},
        {"password": credential["password"] + "x"},
        {"password": other["password"]},
        {"user": other["user"]},
        {"user": f"{bob.id}.{id}"},
        {"user": id},
        {"user": hers},
        {"user": "gateway"},
        {"user": "local." + id},
        {"user": "é\0;drop", "password": "é" * 500},
        {"user": ann.username, "password": "correct horse battery"},
    ]

    let_in = []
    for change in wrong:
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            async with consumer({**credential, **change}):
                let_in.append(change)
    async with consumer(credential) as it:
        connected = it.nc.is_connected

    assert let_in == []
    assert connected
    logs = guarded.log.read_text() + servers["nats"].log.read_text()
    assert credential["password"] not in logs
    assert "drop" not in guarded.log.read_text()


async def test_one_sequence_everywhere_and_pages_without_what_the_feed_leaves_out(door: httpx.AsyncClient, infra_nc: Client):
    ann = await registered(door)
    credential = await made(door, ann)
    log = EventLog(infra_nc, source="/tests")

    async with consumer(credential) as it:
        await it.listen(credential["subject"])
        ids = [await project(door, ann) for _ in range(2)]
        after = await newest(log, ann, "credit")
        await log.append([Write(events=[CreditGranted(user_id=ann.id, grant_id="g", amount=1, balance=1)], after=after)], origin=Origin(tenant=ann.id))
        ids.append(await project(door, ann))
        heard = await eventually(lambda: it.heard, of=3)

    page = (await door.get("/v2/events", headers=ann.headers)).json()
    paged = [(found["seq"], found["event"]) for found in page["events"] if found["event"]["type"] == "project.created"]
    streamed: list[tuple[int, Any]] = []
    async with door.stream("GET", "/v2/events", headers={**ann.headers, "Accept": "text/event-stream"}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("id:"):
                streamed.append((int(line[3:]), None))
            elif line.startswith("data:"):
                streamed[-1] = (streamed[-1][0], json.loads(line[5:]))
            if streamed and streamed[-1][1] and streamed[-1][0] == paged[-1][0]:
                break

    assert [(int((msg.headers or {})["Nats-Sequence"]), json.loads(msg.data)) for msg in heard] == paged
    assert [found["event"]["data"]["project_id"] for found in page["events"][-3:]] == ids
    assert [(found["seq"], found["event"]) for found in page["events"]] == streamed
    assert not [found for found in page["events"] if found["event"]["type"].startswith("credit.")]


async def test_a_revoked_credential_is_cut_off_and_is_listed_no_more(door: httpx.AsyncClient):
    ann, bob = await registered(door), await registered(door)
    kept, revoked = await made(door, ann, name="kept"), await made(door, ann, name="revoked")

    async with consumer(kept) as stays, consumer(revoked, allow_reconnect=True) as goes:
        assert (await door.delete(f"/v2/bus-credentials/{revoked['id']}", headers=bob.headers)).status_code == 404
        assert (await door.delete(f"/v2/bus-credentials/{revoked['id']}", headers=ann.headers)).status_code == 204
        await eventually(lambda: any("Authorization Violation" in error for error in goes.errors), patience=MINUTE)
        listed = (await door.get("/v2/bus-credentials", headers=ann.headers)).json()["credentials"]

        assert stays.cut_off == 0
        assert [found["name"] for found in listed] == ["kept"]
        assert listed[0] == {name: value for name, value in kept.items() if name != "password"}
        assert (await door.delete(f"/v2/bus-credentials/{revoked['id']}", headers=ann.headers)).status_code == 404


async def test_a_credential_that_is_made_while_its_user_is_deleted_opens_nothing(door: httpx.AsyncClient, servers: Servers, infra_nc: Client):
    """Another gateway may believe a token for two seconds more, and a credential has no guard in common with its user."""
    ann, bob = await registered(door), await registered(door)
    assert (await door.delete(f"/v2/users/{ann.id}", headers=ann.headers)).status_code == 204
    id, somebodys = str(uuid4()), await made(door, bob)
    late = BusCredentialCreated(user_id=ann.id, credential_id=id, workspace=ann.id, name="", password_sha256=hashlib.sha256(b"late").hexdigest())
    await EventLog(infra_nc, source="/tests").append([Write(events=[late], after=0)], origin=Origin(tenant=ann.id))
    db = await pool(servers.database_url, size=2)
    try:
        await eventually(lambda: db.fetchval("select true from bus_credentials where id = $1", id))
    finally:
        await db.close()

    await denied({**somebodys, "user": f"{ann.id}.{id}", "password": "late"})


async def test_the_docs_program_tells_each_fact_once_and_in_order_also_when_it_was_cut_off(
    door: httpx.AsyncClient, guarded: Process, infra_nc: Client, tmp_path: Path
):
    """From a shell that follows docs/consumers.md, block by block."""
    ann = await registered(door)
    shell = {**os.environ, "API": str(door.base_url).rstrip("/"), "TOKEN": ann.access}
    create, listen, revoke = blocks("sh")
    (tmp_path / "consumer.py").write_text(blocks("python")[0])

    assert '"password": "tyb_' in await run(create, shell, tmp_path)
    before = await project(door, ann)
    async with program(shell, tmp_path) as said:
        await eventually(lambda: said and said[-1].endswith(before))
        cut_off = await kicked(infra_nc, ann)
        during = [await project(door, ann) for _ in range(3)]
        await eventually(lambda: connections(infra_nc, ann))
        during.append(await project(door, ann))
        await eventually(lambda: said and said[-1].endswith(during[-1]))
        assert cut_off == 1
    page = (await door.get("/v2/events", headers=ann.headers)).json()["events"]
    everything = [f"{found['seq']} {found['event']['type']} {found['event']['subject']}" for found in page]

    assert said == everything
    async with program(shell, tmp_path, str(page[-3]["seq"])) as said:
        await eventually(lambda: said, of=2)
    assert said == everything[-2:]
    assert listen.startswith("python3 consumer.py ")  # as `program` does
    await run(revoke, shell, tmp_path)
    assert (await door.get("/v2/bus-credentials", headers=ann.headers)).json()["credentials"] == []


async def test_what_the_docs_give_the_nats_command_opens_the_bus(door: httpx.AsyncClient):
    """The command itself comes from no package index that we use: here a client of the same options stands for it."""
    ann = await registered(door)
    credential = await made(door, ann)
    values = {"SERVERS": ",".join(credential["servers"]), "BUS_USER": credential["user"], "BUS_PASSWORD": credential["password"], "WORKSPACE": ann.id}
    line = re.sub(r"\$(\w+)", lambda found: values[found[1]], blocks("console")[0].strip().removeprefix("$ "))
    command, verb, *options, subject = shlex.split(line)
    given = dict(zip(options[::2], options[1::2], strict=True))

    assert (command, verb, set(given)) == ("nats", "sub", {"--server", "--user", "--password"})
    async with consumer({"servers": given["--server"].split(","), "user": given["--user"], "password": given["--password"]}) as it:
        await it.listen(subject.replace("training", "project"))
        await project(door, ann)
        await eventually(lambda: it.facts == ["project.created"])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


async def run(script: str, shell: dict[str, str], folder: Path) -> str:
    script = script.replace("python3", sys.executable)
    process = await asyncio.create_subprocess_exec("bash", "-euo", "pipefail", "-c", script, cwd=folder, env=shell, stdout=subprocess.PIPE)
    told, _ = await process.communicate()
    assert process.returncode == 0, told
    return told.decode()


@asynccontextmanager
async def program(shell: dict[str, str], folder: Path, *arguments: str) -> AsyncIterator[list[str]]:
    """What it has said until now."""
    said: list[str] = []
    process = await asyncio.create_subprocess_exec(sys.executable, "consumer.py", *arguments, cwd=folder, env=shell, stdout=subprocess.PIPE)

    async def read() -> None:
        assert process.stdout
        while line := await process.stdout.readline():
            said.append(line.decode().rstrip("\n"))

    reading = asyncio.create_task(read())
    try:
        yield said
    finally:
        process.kill()
        await process.wait()
        await reading


async def connections(infra_nc: Client, person: Person) -> list[tuple[str, int]]:
    """(server, number) of each of a person's consumers."""
    answer = json.loads((await infra_nc.request("sys.connections", json.dumps({"acc": "CONSUMERS", "auth": True}).encode(), timeout=2)).data)
    return [(answer["server"]["id"], found["cid"]) for found in answer["data"]["connections"] if found["authorized_user"].startswith(person.id)]


async def kicked(infra_nc: Client, person: Person) -> int:
    found = await connections(infra_nc, person)
    for server, number in found:
        await infra_nc.request(f"sys.kick.{server}", json.dumps({"cid": number}).encode(), timeout=2)
    return len(found)


async def test_a_credential_is_for_a_workspace_that_its_owner_is_in(door: httpx.AsyncClient):
    ann, bob = await registered(door), await registered(door)
    asked = {"workspace": ann.id}

    assert (await door.post("/v2/bus-credentials", json=asked, headers=bob.headers)).status_code == 404
    await door.post(f"/v2/workspaces/{ann.id}/members", json={"username": bob.username, "role": "viewer"}, headers=ann.headers)
    credential: Any = await eventually(lambda: allowed(door, bob, asked))

    async with consumer(credential) as it:
        await it.listen(credential["subject"])
        await project(door, ann)
        await eventually(lambda: it.facts == ["project.created"])


async def allowed(door: httpx.AsyncClient, person: Person, body: dict[str, str]) -> dict[str, Any] | None:
    answer = await door.post("/v2/bus-credentials", json=body, headers=person.headers)
    return answer.json() if answer.status_code == 201 else None


async def test_without_a_gateway_services_connect_and_consumers_come_back_with_the_next(mortal: Servers, its_gateway: Process):
    """Which ends what should have ended meanwhile, whoever let it in; and whoever tries wrong passwords shuts out nobody who is behind the same address."""
    async with client(its_gateway) as api:
        ann, bob, carl = [await registered(api) for _ in range(3)]
        await api.post(f"/v2/workspaces/{ann.id}/members", json={"username": bob.username, "role": "viewer"}, headers=ann.headers)
        kept, revoked, left_behind, local = await made(api, ann), await made(api, ann), await made(api, carl), await made(api, None)
        shared: Any = await eventually(lambda: allowed(api, bob, {"workspace": ann.id}))
    async with (
        consumer(kept) as stays,
        consumer(kept, allow_reconnect=True) as returns,
        consumer(revoked) as one,
        consumer(left_behind) as two,
        consumer(shared) as three,
        consumer(local) as four,
    ):
        async with client(its_gateway) as api:
            await four.listen("feed.local.>")
            await project(api, None)
            await eventually(lambda: four.facts == ["project.created"])
            ends = [(f"/v2/bus-credentials/{revoked['id']}", ann), (f"/v2/users/{carl.id}", carl), (f"/v2/workspaces/{ann.id}/members/{bob.id}", ann)]
            assert [(await api.delete(path, headers=who.headers)).status_code for path, who in ends] == [204, 204, 204]
        its_gateway.kill()

        service = await bus.connect(mortal.nats_url("export"), name="export")
        await service.close()
        await denied(kept)
        await returns.nc.force_reconnect()
        await eventually(lambda: any("Authorization Violation" in error for error in returns.errors))

        with running(mortal, label="next", environ={"TRAINYARD_AUTH": "jwt", "TRAINYARD_LOGIN_ATTEMPTS": "1"}) as after:
            # with tokens there is no owner `local`
            await eventually(lambda: one.cut_off and two.cut_off and three.cut_off and four.cut_off and returns.came_back, patience=MINUTE)
            assert stays.cut_off == 0
            async with client(after) as api:
                await returns.listen(kept["subject"])
                await project(api, ann)
                await eventually(lambda: returns.facts == ["project.created"])
                await asyncio.gather(*(denied({**kept, "password": "guessed"}) for _ in range(10)))
                async with consumer(kept) as honest:
                    assert honest.nc.is_connected
                assert 'trainyard_bus_consumers_total{answer="too many"}' in (await api.get("/metrics")).text


async def denied(credential: dict[str, Any]) -> None:
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        async with consumer(credential):
            return


async def test_everybody_may_read_what_the_bus_tells(door: httpx.AsyncClient):
    answer = await door.get("/asyncapi.json")

    assert answer.status_code == 200
    assert answer.json() == document(version=app_version())


def test_a_user_has_so_many_credentials_and_no_more():
    every = [BusCredentialCreated(user_id="u", credential_id=str(n), workspace="u", name="", password_sha256="x") for n in range(MOST)]
    revoked = BusCredentialRevoked(user_id="u", credential_id="7")

    with pytest.raises(TooManyBusCredentials):
        decide(given(evolve, *every), CREATE)
    assert decide(given(evolve, *every, revoked), CREATE) == [BusCredentialCreated(user_id="u", credential_id="c", workspace="u", name="", password_sha256="x")]
    with pytest.raises(NotFound):
        decide(given(evolve, *every, revoked), RevokeCredential(user_id="u", credential_id="7"))


class Good:
    """Views in which every credential is good."""

    async def fetch(self, _: str, ids: list[str]) -> list[dict[str, Any]]:
        sha256, now = hashlib.sha256(b"right").hexdigest(), datetime.now(UTC)
        return [{"id": id, "user_id": id, "workspace": id, "name": "", "sha256": sha256, "created_at": now} for id in ids]


async def test_one_user_takes_the_place_of_no_other(monkeypatch: pytest.MonkeyPatch):
    attempts, nothing = Attempts(per_name=1, per_address=10), cast("Any", None)
    keeper = Doorkeeper(nothing, cast("Any", Good()), nothing, nothing, issuer=None, servers="nats://a:1", local=False, attempts=attempts)
    greedy, other = str(uuid4()), str(uuid4())

    async def comes(user: str) -> None:
        given, caller = Asked.Given(user=f"{user}.{user}", password="right"), Asked.Caller(host="10.0.0.1")
        asked = Asked(server_id=Asked.Server(id="s"), user_nkey="U", client_info=caller, connect_opts=given)
        await keeper._judged(asked)  # as the server asks; a thousand real connections would take minutes

    for _ in range(CONNECTIONS_OF_ONE):
        await comes(greedy)
    with pytest.raises(TooMany):
        await comes(greedy)
    await comes(other)

    ended: list[int] = []
    users = [greedy] * (CONNECTIONS_OF_ONE + 3) + [other]

    async def connected() -> list[tuple[str, Connection]]:
        return [("s", Connection(cid=cid, authorized_user=f"{user}.{user}")) for cid, user in enumerate(users)]

    async def end(_: str, connection: Connection) -> None:
        ended.append(connection.cid)

    monkeypatch.setattr(keeper, "_connected", connected)
    monkeypatch.setattr(keeper, "_end", end)
    await keeper.sweep()
    with pytest.raises(TooMany):
        await comes(greedy)
    assert ended == [CONNECTIONS_OF_ONE, CONNECTIONS_OF_ONE + 1, CONNECTIONS_OF_ONE + 2]

    users[:] = [other]
    await keeper.sweep()
    await comes(greedy)


def test_addresses_for_consumers_tell_no_passwords():
    assert addresses("nats://gateway:secret@one:4222, tls://two:4222") == ["nats://one:4222", "tls://two:4222"]


@pytest.mark.parametrize(
    "seed",
    ["", "SA", "x" * 58, new_seed()[:-1] + "1", Issuer(new_seed()).public, "SU" + new_seed()[2:]],
    ids=["nothing", "a prefix", "no base32", "a wrong digit", "the public key", "a user's"],
)
def test_what_is_no_seed_of_an_account_is_refused(seed: str):
    with pytest.raises(NotASeed):
        Issuer(seed)
