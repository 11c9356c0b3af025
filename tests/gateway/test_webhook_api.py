"""The API of webhooks, and two gateways that send: one is killed under load."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.embedded import Process, Servers
from libs.events import Origin, ProjectCreated
from libs.events.log import EventLog, Write
from libs.runtime import bus
from services.gateway.webhooks.addresses import may_connect, networks
from services.gateway.webhooks.bodies import retry_after
from services.gateway.webhooks.signing import Seal, Unsealable
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.given import BEGINNING
from tests.kit.receiver import receiving

PUBLIC = "https://receiver.invalid/hook"

# ---- addresses

BAD = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "192.0.0.170",
    "192.0.2.1",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "::7f00:1",
    "::ffff:0:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "::5efe:7f00:1",
    "2a00::5efe:7f00:1",
    "2a00::200:5efe:10.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "fec0::1",
    "ff02::1",
]
GOOD = ["1.1.1.1", "8.8.8.8", "140.82.121.3", "2606:4700:4700::1111"]


@pytest.mark.parametrize("address", BAD)
def test_addresses_that_are_not_public_are_refused(address: str):
    assert not may_connect(address, [])


@pytest.mark.parametrize("address", GOOD)
def test_public_addresses_are_connected_to(address: str):
    assert may_connect(address, [])


def test_networks_that_the_operator_allows_are_connected_to_and_no_others():
    allowed = networks("127.0.0.0/8, fd00::/8")

    assert [may_connect(address, allowed) for address in ("127.0.0.1", "::ffff:127.0.0.1", "fd00::1", "10.0.0.1", "::1")] == [True, True, True, False, False]


# ---- secrets and waiting


def test_a_sealed_secret_opens_only_with_the_same_key_and_for_the_same_endpoint():
    sealed = Seal("one").close("whsec_abc", about="a")

    assert Seal("one").open(sealed, about="a") == "whsec_abc"
    for seal, about in ((Seal("two"), "a"), (Seal("one"), "b")):
        with pytest.raises(Unsealable):
            seal.open(sealed, about=about)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("", 0),
        ("-5", 0),
        ("soon", 0),
        ("²", 0),
        ("9" * 400, 999_999_999),
    ],
)
def test_retry_after_in_all_its_forms(header: str, seconds: float):
    assert retry_after(header, BEGINNING) == seconds


# ---- the API


async def test_an_endpoint_from_its_registration_to_its_end(api: httpx.AsyncClient):
    made = await api.post("/webhooks", json={"url": PUBLIC, "events": ["training.*"], "description": "mine"})
    here = made.headers["Location"]
    shown = (await api.get(here)).json()
    listed = (await api.get("/webhooks")).json()
    changed = await api.patch(here, json={"active": False, "events": ["training.completed"]})
    rotated = await api.patch(here, json={"rotate_secret": True})
    inactive = await api.post(f"{here}/test")
    enabled = await api.patch(here, json={"active": True})
    gone = await api.delete(here)

    assert made.status_code == 201
    assert made.json()["secret"].startswith("whsec_")
    assert {key: value for key, value in made.json().items() if key != "secret"} | {"delivered_up_to": 0} == shown | {"delivered_up_to": 0}
    assert shown["id"] in [one["id"] for one in listed["webhooks"]]
    assert (changed.json()["active"], changed.json()["disabled_because"], changed.json()["events"]) == (False, "by_owner", ["training.completed"])
    assert rotated.json()["secret"] != made.json()["secret"]
    assert (inactive.status_code, inactive.json()["error"]) == (409, "webhook_inactive")
    assert enabled.json()["active"]
    assert "secret" not in shown.keys() | enabled.json().keys()
    assert gone.status_code == 204
    assert [(await api.get(path)).status_code for path in (here, f"{here}/deliveries")] == [404, 404]
    assert (await api.post(f"{here}/replay", json={"from": 1})).status_code == 404


async def test_a_repeated_registration_gives_the_same_secret_again(api: httpx.AsyncClient):
    once = {"Idempotency-Key": uuid4().hex}

    first, second = [await api.post("/webhooks", json={"url": PUBLIC}, headers=once) for _ in range(2)]
    other = await api.post("/webhooks", json={"url": PUBLIC + "/other"}, headers=once)

    assert (first.json()["id"], first.json()["secret"]) == (second.json()["id"], second.json()["secret"])
    assert other.status_code == 400


URLS = [
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "//example.com/x",
    "example.com",
    "http://",
    "http:///x",
    "https://user:pass@example.com/",
    "http://127.0.0.1/",
    "http://localhost/",
    "http://localhost./",
    "http://a.localhost/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1:8080/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://[::1",
    "http://exa\\mple.com/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://[fe80::1%25eth0]/",
]


@pytest.mark.parametrize("url", [*URLS, "http://example.com/a b", "http://example.com/\n", "http://example.com/\0", "https://example.com/" + "x" * 2048])
async def test_urls_that_can_not_be_meant_are_refused(api: httpx.AsyncClient, url: str):
    refused = await api.post("/webhooks", json={"url": url})

    assert (refused.status_code, refused.json()["error"]) == (400, "validation_error")
    assert refused.json()["details"][0]["field"] == "url"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": PUBLIC, "events": ["comet.seen"]},
        {"url": PUBLIC, "events": ["webhook.*"], "format": "cloudevents"},
        {"url": PUBLIC, "events": ["user.registered"], "format": "cloudevents"},
        {"url": PUBLIC, "events": ["project.created"]},
        {"url": PUBLIC, "events": ["DROP TABLE"]},
        {"url": PUBLIC, "events": ["*"] * 51},
        {"url": PUBLIC, "format": "xml"},
        {"url": 1},
        {"url": PUBLIC, "description": "a\0b"},
    ],
)
async def test_bodies_that_can_not_be_meant_are_refused(api: httpx.AsyncClient, body: object):
    assert (await api.post("/webhooks", json=body)).status_code == 400


@pytest.mark.parametrize("body", [{}, {"from": 0}, {"from": "x"}, {"from": 10**30}])
async def test_replays_need_a_position(api: httpx.AsyncClient, body: object):
    here = (await api.post("/webhooks", json={"url": PUBLIC})).headers["Location"]

    assert (await api.post(f"{here}/replay", json=body)).status_code == 400


# ---- two gateways


@pytest.fixture(scope="module")
def two_gateways(mortal: Servers) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        environ = {"TRAINYARD_EGRESS_ALLOW": "127.0.0.0/8"}
        yield [stack.enter_context(running(mortal, label=label, environ=environ)) for label in ("one", "two")]


async def test_one_of_two_gateways_is_killed_under_load_and_nothing_is_lost_or_out_of_order(mortal: Servers, two_gateways: list[Process]):
    first, second = two_gateways
    nc = await bus.connect(mortal.nats_url("infra"), name="infra")
    log = EventLog(nc, source="/tests")
    async with receiving() as receiver, client(second) as api:
        paths = [f"/{n}" for n in range(20)]
        hooks = [(await api.post("/webhooks", json={"url": receiver.url(path), "format": "cloudevents"})).json() for path in paths]
        written: list[int] = []
        for n in range(150):
            project = ProjectCreated(project_id=uuid4().hex, name="n")
            (fact,) = await log.append([Write(events=[project], after=0)], origin=Origin(tenant="local"))
            written.append(fact.seq)
            if n == 75:
                await eventually(lambda: receiver.got, of=100)
                os.kill(first.pid or 0, signal.SIGKILL)

        await eventually(lambda: all(len({one.seq for one in receiver.at(path)}) == 150 for path in paths), patience=60)
        for path, hook in zip(paths, hooks, strict=True):
            firsts = list(dict.fromkeys(one.seq for one in receiver.at(path)))
            assert firsts == written
            receiver.at(path)[0].verify(hook["secret"])
        assert [one["sequence"] for one in reversed(await eventually(lambda: _delivered(api, hooks[0]["id"]), of=150))] == written
    await nc.close()


async def _delivered(api: httpx.AsyncClient, id: str) -> list[Any]:
    return (await api.get(f"/webhooks/{id}/deliveries?state=delivered&limit=1000")).json()["deliveries"]
