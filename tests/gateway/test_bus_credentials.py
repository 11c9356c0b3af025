"""Event consumers on the bus: what a credential opens, what it doesn't, and how it ends. On a real nats-server, with a client that anybody could have."""

import gc
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.embedded import Process, Servers
from libs.events import BusCredentialCreated, BusCredentialRevoked, CreditGranted, Origin, QuotaTaken
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.runtime.nkeys import Issuer, NotASeed, new_seed
from services.gateway.bus_access import addresses
from services.gateway.domain.bus import MOST, CreateCredential, RevokeCredential, decide, evolve
from services.gateway.domain.errors import NotFound, TooManyBusCredentials
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.given import given
from tests.kit.people import JWT, Person, registered
from tests.kit.servers import all_servers

DOCS = Path(__file__).parents[2] / "docs" / "consumers.md"
CREATE = CreateCredential(user_id="u", credential_id="c", workspace="u", name="", password_sha256="x")


pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """While the test that expects them lasts."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def yard() -> Iterator[Servers]:
    """Servers of its own: which gateway is asked about a consumer is the bus's choice, so there may be no other here."""
    with all_servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def guard(yard: Servers) -> Iterator[Process]:
    with running(yard, label="guard", environ=JWT) as process:
        yield process


@pytest.fixture(scope="module")
async def api(guard: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(guard) as api:
        yield api


@pytest.fixture(scope="module")
async def infra(yard: Servers) -> AsyncIterator[Client]:
    nc = await bus.connect(yard.nats_url("infra"), name="infra")
    yield nc
    await nc.close()


class Consumer:
    """A client of the bus, and what befalls it."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.heard: list[Msg] = []
        self.errors: list[str] = []
        self.cut_off = 0

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

    nc = Client()
    here = Consumer(nc)
    options = {"allow_reconnect": False, "connect_timeout": 10, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.05, **changed}
    given = {"user": credential["user"], "password": credential["password"], **options}
    try:
        await nc.connect(credential["servers"], error_cb=told, disconnected_cb=disconnected, **given)
        yield here
    finally:
        await nc.close()


async def made(api: httpx.AsyncClient, person: Person | None, **body: Any) -> dict[str, Any]:
    answer = await api.post("/v2/bus-credentials", json=body, headers=person.headers if person else {})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def project(api: httpx.AsyncClient, person: Person | None, **headers: str) -> str:
    answer = await api.post("/projects", json={"name": "heard of"}, headers={**(person.headers if person else {}), **headers})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def test_a_consumer_hears_what_happens_in_its_workspace_and_nothing_else(api: httpx.AsyncClient, infra: Client):
    ann, bob = await registered(api), await registered(api)
    credential = await made(api, ann, name="dashboard")
    log = EventLog(infra, source="/tests")

    async with consumer(credential) as alone, consumer(credential) as shared:
        await alone.listen(credential["subject"])
        await shared.listen(credential["subject"], queue="workers")
        await api.post("/v2/keys", json={"name": "secret"}, headers=ann.headers)
        await made(api, ann)
        granted = CreditGranted(user_id=ann.id, grant_id="g", amount=1, balance=1)
        await log.append([Write(events=[granted], after=(await newest(log, ann, "credit")))], origin=Origin(tenant=ann.id))
        await log.append([Write(events=[QuotaTaken(user_id=ann.id, job_id="j")], after=0)], origin=Origin(tenant=ann.id))
        await project(api, bob)
        await project(api, ann)
        await eventually(lambda: alone.heard and shared.heard)

        assert alone.facts == shared.facts == ["project.created"]
        assert json.loads(alone.heard[0].data)["tenant"] == ann.id


async def newest(log: EventLog, person: Person, category: str) -> int:
    return max((recorded.seq for recorded in await log.read(f"ev.{person.id}.{category}.*.{person.id}")), default=0)


async def test_a_consumer_can_do_nothing_but_listen(api: httpx.AsyncClient, infra: Client):
    ann, bob = await registered(api), await registered(api)
    credential = await made(api, ann)
    places = [">", "*.>", "feed.>", f"feed.{bob.id}.>", "feed.*.project.>", f"feed.{ann.id}.credit.>", f"ev.{ann.id}.>", "sec.>", "tel.>", "work.>"]
    places += ["ask.>", "proj.>", "sys.>", "$SYS.>", "$SYS.REQ.USER.AUTH", "$JS.>", "$JS.API.>", "_INBOX.>", "_INBOX_gateway.>", "_INBOX_infra.>"]
    writes = [f"ev.{ann.id}.project.created.x", f"sec.{ann.id}.user.key_created.x", f"feed.{ann.id}.project.created.x", "tel.x", "work.x", "ask.predict"]
    writes += ["proj.views", "$JS.API.INFO", "$JS.API.STREAM.DELETE.EV", "$JS.API.DIRECT.GET.EV", "$JS.API.CONSUMER.MSG.NEXT.EV.x", "_INBOX_gateway.x"]
    writes += ["sys.connections", "sys.kick.x", "$SYS.REQ.USER.AUTH", "$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING.CONNZ"]
    before = (await EventLog(infra, source="/tests").position()).last

    async with consumer(credential) as it:
        for place in [*places, f"_INBOX_{credential['id']}.>"]:
            await it.nc.subscribe(place)
        for place in writes:
            await it.nc.publish(place, b"{}", reply=f"ev.{ann.id}.job.created.x")
        await eventually(lambda: it.refused("publish"), of=len(writes))

    assert it.refused("subscription") == {place.lower() for place in places}
    assert it.refused("publish") == {place.lower() for place in writes}
    assert (await EventLog(infra, source="/tests").position()).last == before


async def test_only_the_right_password_lets_in(api: httpx.AsyncClient, yard: Servers, guard: Process):
    ann, bob = await registered(api), await registered(api)
    credential, other = await made(api, ann), await made(api, bob)
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
    logs = guard.log.read_text() + yard["nats"].log.read_text()
    assert credential["password"] not in logs
    assert "drop" not in guard.log.read_text()


async def test_one_sequence_everywhere_and_pages_without_what_the_feed_leaves_out(api: httpx.AsyncClient, infra: Client):
    ann = await registered(api)
    credential = await made(api, ann)
    log = EventLog(infra, source="/tests")

    async with consumer(credential) as it:
        await it.listen(credential["subject"])
        ids = [await project(api, ann) for _ in range(2)]
        after = await newest(log, ann, "credit")
        await log.append([Write(events=[CreditGranted(user_id=ann.id, grant_id="g", amount=1, balance=1)], after=after)], origin=Origin(tenant=ann.id))
        ids.append(await project(api, ann))
        heard = await eventually(lambda: it.heard, of=3)

    page = (await api.get("/v2/events", headers=ann.headers)).json()
    paged = [(found["seq"], found["event"]) for found in page["events"] if found["event"]["type"] == "project.created"]
    streamed: list[tuple[int, Any]] = []
    async with api.stream("GET", "/v2/events", headers={**ann.headers, "Accept": "text/event-stream"}) as answer:
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


async def test_a_revoked_credential_is_cut_off_and_is_listed_no_more(api: httpx.AsyncClient):
    ann, bob = await registered(api), await registered(api)
    kept, revoked = await made(api, ann, name="kept"), await made(api, ann, name="revoked")

    async with consumer(kept) as stays, consumer(revoked, allow_reconnect=True) as goes:
        assert (await api.delete(f"/v2/bus-credentials/{revoked['id']}", headers=bob.headers)).status_code == 404
        assert (await api.delete(f"/v2/bus-credentials/{revoked['id']}", headers=ann.headers)).status_code == 204
        await eventually(lambda: any("Authorization Violation" in error for error in goes.errors))
        listed = (await api.get("/v2/bus-credentials", headers=ann.headers)).json()["credentials"]

        assert stays.cut_off == 0
        assert [found["name"] for found in listed] == ["kept"]
        assert listed[0] == {name: value for name, value in kept.items() if name != "password"}
        assert (await api.delete(f"/v2/bus-credentials/{revoked['id']}", headers=ann.headers)).status_code == 404


async def test_a_credential_is_for_a_workspace_that_its_owner_is_in(api: httpx.AsyncClient):
    ann, bob = await registered(api), await registered(api)
    asked = {"workspace": ann.id}

    assert (await api.post("/v2/bus-credentials", json=asked, headers=bob.headers)).status_code == 404
    await api.post(f"/v2/workspaces/{ann.id}/members", json={"username": bob.username, "role": "viewer"}, headers=ann.headers)
    credential = await eventually(lambda: allowed(api, bob, asked))

    async with consumer(credential) as it:
        await it.listen(credential["subject"])
        await project(api, ann)
        await eventually(lambda: it.facts == ["project.created"])


async def allowed(api: httpx.AsyncClient, person: Person, body: dict[str, str]) -> dict[str, Any] | None:
    answer = await api.post("/v2/bus-credentials", json=body, headers=person.headers)
    return answer.json() if answer.status_code == 201 else None


async def test_without_a_gateway_services_connect_and_consumers_come_back_with_the_next(yard: Servers, guard: Process, api: httpx.AsyncClient):
    """Which ends what should have ended meanwhile, whoever let it in; and takes only so many wrong passwords from an address."""
    ann, bob, carl = [await registered(api) for _ in range(3)]
    await api.post(f"/v2/workspaces/{ann.id}/members", json={"username": bob.username, "role": "viewer"}, headers=ann.headers)
    kept, revoked, left_behind = await made(api, ann), await made(api, ann), await made(api, carl)
    shared = await eventually(lambda: allowed(api, bob, {"workspace": ann.id}))
    async with (
        consumer(kept) as stays,
        consumer(kept, allow_reconnect=True) as returns,
        consumer(revoked) as one,
        consumer(left_behind) as two,
        consumer(shared) as three,
    ):
        ends = [(f"/v2/bus-credentials/{revoked['id']}", ann), (f"/v2/users/{carl.id}", carl), (f"/v2/workspaces/{ann.id}/members/{bob.id}", ann)]
        assert [(await api.delete(path, headers=who.headers)).status_code for path, who in ends] == [204, 204, 204]
        guard.kill()
        try:
            service = await bus.connect(yard.nats_url("export"), name="export")
            await service.close()
            await denied(kept)
            await returns.nc.force_reconnect()
            await eventually(lambda: any("Authorization Violation" in error for error in returns.errors))

            with running(yard, label="next", environ={**JWT, "TRAINYARD_LOGIN_ATTEMPTS": "1"}) as after:
                await eventually(lambda: one.cut_off and two.cut_off and three.cut_off and returns.nc.is_connected)
                assert stays.cut_off == 0
                async with client(after) as next_api:
                    await returns.listen(kept["subject"])
                    await project(next_api, ann)
                    await eventually(lambda: returns.facts == ["project.created"])
                    for _ in range(7):
                        await denied({**kept, "password": "guessed"})
                    await denied(kept)
                    assert 'trainyard_bus_consumers_total{answer="too many"} 2.0' in (await next_api.get("/metrics")).text
        finally:
            guard.start()


async def denied(credential: dict[str, Any]) -> None:
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        async with consumer(credential):
            return


@pytest.fixture(scope="module")
def alone(yard: Servers, guard: Process) -> Iterator[Process]:
    """Local mode, after all others: a consumer's question must not reach a gateway of another mode."""
    guard.stop()
    with running(yard, label="alone") as process:
        yield process


async def test_in_local_mode_its_owner_has_credentials_too(alone: Process):
    async with client(alone) as api:
        credential = await made(api, None)
        async with consumer(credential) as it:
            await it.listen("feed.local.>")
            await project(api, None)
            await eventually(lambda: it.facts == ["project.created"])
            assert (await api.delete(f"/v2/bus-credentials/{credential['id']}")).status_code == 204
            await eventually(lambda: it.cut_off)


def test_a_user_has_so_many_credentials_and_no_more():
    every = [BusCredentialCreated(user_id="u", credential_id=str(n), workspace="u", name="", password_sha256="x") for n in range(MOST)]
    revoked = BusCredentialRevoked(user_id="u", credential_id="7")

    with pytest.raises(TooManyBusCredentials):
        decide(given(evolve, *every), CREATE)
    assert decide(given(evolve, *every, revoked), CREATE) == [BusCredentialCreated(user_id="u", credential_id="c", workspace="u", name="", password_sha256="x")]
    with pytest.raises(NotFound):
        decide(given(evolve, *every, revoked), RevokeCredential(user_id="u", credential_id="7"))


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
