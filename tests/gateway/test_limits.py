"""How often people may ask: one account for all gateways, each family's figures in each family's form, and what becomes of it without the bus."""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, TypeVar
from uuid import uuid4
from zlib import crc32

import httpx
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from infra.nats.provision import provision
from libs.events.log import Misconfigured
from libs.runtime import bus
from services.gateway import limits
from services.gateway.api.deep_learning.limits import USERS
from services.gateway.api.families import FAMILIES, bucket
from services.gateway.api.limits import caller
from services.gateway.app import openapi
from services.gateway.limits import Bucket, BusCounters, Limits, Silent
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.people import JWT, Person, bearer, registered
from tests.kit.servers import revive

T = TypeVar("T")

FEW = Bucket(name="few", limit=10, seconds=60, covers="")
MANY = Bucket(name="many", limit=1000, seconds=3600, covers="")
BRIEF = Bucket(name="brief", limit=5, seconds=1, covers="")
LIMITED = {**JWT, "TRAINYARD_RATE_LIMITS": "1"}
NOBODY = "019a0000-0000-7000-8000-000000000003"
PROJECT = f"/projects/{NOBODY}"
FORMS = {
    "/api/v1/jobs": ("error_code", "RATE_LIMIT_EXCEEDED"),
    "/api/v1/datasets/": ("detail", "Too many requests"),
    "/api/train/models": ("code", "RATE_LIMITED"),
    "/projects": ("error_code", "RATE_LIMIT_EXCEEDED"),
    "/webhooks": ("error", "rate_limit_exceeded"),
    "/v2/events": ("type", "urn:trainyard:problem:rate_limit_exceeded"),
}
ALONE = "each gateway counts for itself"
LARGEST_LOT = 100
"""Of a thousand an hour: what a gateway may have taken and not given out when it dies."""
HEADERS = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Shared:
    """Counters as the bus has them, which can go away, fall silent, or be forgotten."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.asked = 0
        self.away = False
        self.silent = False
        self.slow = asyncio.Event()
        self.slow.set()
        self.interruptions = 0

    def lose(self, kept: int) -> None:
        self.values = {subject: min(kept, value) for subject, value in self.values.items()}
        self.interruptions += 1

    async def add(self, subject: str, amount: int) -> int:
        await asyncio.sleep(0)
        if self.away:
            raise Silent("away")
        if self.silent:
            await asyncio.Event().wait()
        await self.slow.wait()
        self.asked += 1
        self.values[subject] = self.values.get(subject, 0) + amount
        return self.values[subject]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_LOOK_AGAIN", 0.01)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counters() -> Shared:
    return Shared()


# ---- the account


async def test_no_more_than_the_limit_pass_until_the_window_ends(counters: Shared, clock: Clock):
    gateway = Limits(counters, now=clock)

    assert await passed(gateway, FEW, tries=25) == 10
    standing = await gateway.count(FEW, "ann")
    clock.now = standing.reset - 0.5
    late = await gateway.count(FEW, "ann")
    clock.now = standing.reset

    assert (standing.allowed, standing.remaining, late.allowed, late.retry_after) == (False, 0, False, 1)
    assert await passed(gateway, FEW, tries=25) == 10


async def test_an_answer_says_what_is_left_and_when_it_is_more(counters: Shared, clock: Clock):
    gateway = Limits(counters, now=clock)

    standings = [await gateway.count(FEW, "ann") for _ in range(11)]

    assert [standing.remaining for standing in standings] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert {standing.limit for standing in standings} == {10}
    assert all(clock.now < standing.reset <= clock.now + 60 and standing.retry_after == standing.reset - clock.now for standing in standings)


async def test_each_caller_and_each_bucket_has_its_own(counters: Shared, clock: Clock):
    gateway = Limits(counters, now=clock)

    await passed(gateway, FEW, tries=25)

    assert await passed(gateway, FEW, tries=25, who="bob") == 10
    assert await passed(gateway, MANY, tries=25) == 25


async def test_a_factor_multiplies_every_limit(counters: Shared, clock: Clock):
    assert await passed(Limits(counters, factor=0.5, now=clock), FEW, tries=25) == 5
    assert await passed(Limits(counters, factor=0.001, now=clock), FEW, tries=25, who="bob") == 1


async def test_gateways_share_one_account_however_their_requests_interleave(counters: Shared, clock: Clock):
    gateways = [Limits(counters, now=clock) for _ in range(3)]

    shares = await asyncio.gather(*(passed(gateways[n % 3], MANY, tries=50) for n in range(60)))

    assert sum(shares) == 1000


async def test_one_gateway_gives_out_all_of_it_and_seldom_asks(counters: Shared, clock: Clock):
    gateway = Limits(counters, now=clock)

    assert await passed(gateway, MANY, tries=1000) == 1000
    assert counters.asked < 70
    await passed(gateway, MANY, tries=500)
    assert counters.asked < 70


async def test_what_a_dead_gateway_held_is_lost_and_never_given_twice(counters: Shared, clock: Clock):
    dead, alive = Limits(counters, now=clock), Limits(counters, now=clock)

    used = await passed(dead, MANY, tries=300)
    rest = await passed(alive, MANY, tries=1500)

    assert 900 < used + rest <= 1000


async def test_a_gateway_asked_only_once_holds_nothing_back(counters: Shared, clock: Clock):
    once, often = Limits(counters, now=clock), Limits(counters, now=clock)

    assert await passed(once, MANY, tries=1) == 1
    assert await passed(often, MANY, tries=1500) == 999


async def test_clocks_apart_make_two_windows_and_neither_is_exceeded(counters: Shared):
    early, late = Clock(), Clock()
    gateways = [Limits(counters, now=early), Limits(counters, now=late)]
    window = (await gateways[0].count(FEW, "ann")).reset
    early.now, late.now = window - 2, window + 1

    shares = [await passed(gateway, FEW, tries=25) for gateway in gateways]
    early.now = window + 2  # now they agree, and find it used up

    assert shares == [9, 10]
    assert await passed(gateways[0], FEW, tries=25) == 0


async def test_a_window_of_a_second_is_each_gateways_own_and_costs_no_round_trip(counters: Shared, clock: Clock):
    gateway = Limits(counters, now=clock)

    assert await passed(gateway, BRIEF, tries=25) == 5
    clock.now += 1
    assert await passed(gateway, BRIEF, tries=25) == 5
    assert counters.asked == 0


async def test_a_flood_of_callers_is_forgotten_but_stays_counted(counters: Shared, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MOST_REMEMBERED", 100)
    gateway = Limits(counters, now=clock)
    await passed(gateway, FEW, tries=25)

    for n in range(1000):
        await gateway.count(FEW, f"flood-{n}")

    assert len(gateway._tallies) <= 100
    assert await passed(gateway, FEW, tries=25) == 0


# ---- without the bus


async def test_while_the_counters_are_away_a_gateway_goes_on_from_what_it_knew(counters: Shared, clock: Clock):
    async with watched(Limits(counters, now=clock)) as gateway:
        await passed(gateway, FEW, tries=4)
        counters.away = True

        assert await passed(gateway, FEW, tries=25) == 6
        assert await passed(gateway, FEW, tries=25, who="bob") == 10
        assert gateway.alone


async def test_counters_that_are_back_are_told_what_passed_meanwhile(counters: Shared, clock: Clock):
    async with watched(Limits(counters, now=clock)) as gateway, watched(Limits(counters, now=clock)) as other:
        counters.away = True
        assert await passed(gateway, FEW, tries=3) == 3
        assert await passed(other, FEW, tries=2) == 2
        counters.away = False
        await eventually(lambda: not gateway.alone and not other.alone)

        assert sum(counters.values.values()) == 5
        assert await passed(gateway, FEW, tries=3) + await passed(other, FEW, tries=25) == 5


async def test_a_silent_bus_holds_nobody_up(counters: Shared, clock: Clock):
    gateway = Limits(counters, now=clock)
    counters.silent = True

    async with asyncio.timeout(30):
        assert await passed(gateway, FEW, tries=25) == 10
    assert gateway.alone


async def test_an_answer_that_comes_late_is_not_counted_twice(counters: Shared, clock: Clock):
    async with watched(Limits(counters, now=clock)) as gateway:
        counters.slow = asyncio.Event()
        assert await passed(gateway, FEW, tries=3) == 3
        counters.slow.set()
        await eventually(lambda: not gateway.alone)

        assert await passed(gateway, FEW, tries=25) == 7
        assert sum(counters.values.values()) == 10


@pytest.mark.parametrize("kept", [0, 100, 300])
@pytest.mark.parametrize("first", [0, 1])
async def test_what_counters_lost_is_restored_by_whoever_heard_it_last(counters: Shared, clock: Clock, kept: int, first: int):
    gateways = [Limits(counters, now=clock) for _ in range(2)]
    used = await passed(gateways[0], MANY, tries=200) + await passed(gateways[1], MANY, tries=300)
    counters.lose(kept)
    for gateway in (gateways[first], gateways[1 - first]):
        async with watched(gateway):
            await eventually(lambda gateway=gateway: gateway._interruptions == 1)

    rest = await asyncio.gather(*(passed(gateway, MANY, tries=1000) for gateway in gateways))
    assert used + sum(rest) == 1000


async def test_gateways_that_restore_at_once_restore_too_much_rather_than_too_little(counters: Shared, clock: Clock):
    gateways = [Limits(counters, now=clock, jitter=lambda: 0.5) for _ in range(2)]
    used = await passed(gateways[0], MANY, tries=200) + await passed(gateways[1], MANY, tries=300)
    counters.lose(0)
    async with watched(gateways[0]), watched(gateways[1]):
        await eventually(lambda: all(gateway._interruptions == 1 for gateway in gateways))

    rest = await asyncio.gather(*(passed(gateway, MANY, tries=1000) for gateway in gateways))
    assert 0 < sum(rest) <= 1000 - used


# ---- which bucket


@pytest.mark.parametrize(
    ("method", "path", "name", "limit"),
    [
        ("POST", f"{PROJECT}/files/upload", "finetuneflow-uploads", 10),
        ("POST", f"{PROJECT}/chunks/generate", "finetuneflow-generations", 5),
        ("POST", f"{PROJECT}/dataset/generate", "finetuneflow-generations", 5),
        ("POST", f"{PROJECT}/dataset/dry-run", "finetuneflow-writes", 30),
        ("POST", f"{PROJECT}/train/start", "finetuneflow-starts", 3),
        ("POST", f"{PROJECT}/train/cancel", "finetuneflow-cancels", 3),
        ("GET", f"{PROJECT}/train/status", "finetuneflow-reads", 60),
        ("GET", "/hardware/check", "finetuneflow-reads", 60),
        ("POST", "/projects", "finetuneflow-writes", 30),
        ("DELETE", PROJECT, "finetuneflow-writes", 30),
        ("POST", f"/jobs/{NOBODY}/cancel", "finetuneflow-writes", 30),
        ("POST", "/api/train/upload", "lora-uploads", 10),
        ("POST", "/api/train/start", "lora-starts", 5),
        ("GET", "/api/train/models", "lora", 60),
        ("GET", "/api/credits", "lora", 60),
        ("GET", "/datasets", "deep-learning", 1000),
        ("POST", "/training/start", "deep-learning", 1000),
        ("GET", "/api/v1/jobs", "autotrainx", 100),
        ("GET", "/ws/progress", "autotrainx", 100),
        ("POST", "/api/v1/datasets/", "datagen", 100),
        ("GET", "/v2/events", "v2", 1200),
        ("POST", f"/{PROJECT}//train///start/", "finetuneflow-starts", 3),
        ("POST", "/api//train/start", "lora-starts", 5),
    ],
)
def test_a_request_counts_in_the_bucket_of_its_familys_document(method: str, path: str, name: str, limit: int):
    found = bucket(method, path, path)

    assert (found.name, found.limit) == (name, limit)


def test_no_two_buckets_share_a_name_and_no_window_outlives_its_counter():
    buckets = [bucket for family in FAMILIES for bucket in family.buckets]

    assert len({bucket.name for bucket in buckets}) == len(buckets)
    assert max(bucket.seconds for bucket in buckets) <= 3600


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("203.0.113.5", "ip-203-0-113-5"),
        ("::ffff:203.0.113.5", "ip-203-0-113-5"),
        ("2001:db8:1:2:3:4:5:6", "net-20010db800010002"),
        ("2001:db8:1:2::1", "net-20010db800010002"),
        ("fe80::1%eth0", "net-fe80000000000000"),
    ],
)
def test_an_address_is_one_caller_and_so_is_the_network_of_an_ipv6_host(address: str, name: str):
    assert caller((address, 1)) == name


# ---- over HTTP


@pytest.fixture(scope="module")
def limited(servers: Servers) -> Iterator[Process]:
    with running(servers, label="gateway-limited", environ=LIMITED) as process:
        yield process


@pytest.fixture(scope="module")
def second(servers: Servers) -> Iterator[Process]:
    with running(servers, label="gateway-limited-2", environ=LIMITED) as process:
        yield process


@pytest.fixture
async def ann(door: httpx.AsyncClient) -> Person:
    return await somebody(door)


@pytest.fixture
async def ask(limited: Process, ann: Person) -> AsyncIterator[httpx.AsyncClient]:
    async with client(limited, headers=ann.headers) as api:
        yield api


async def test_starting_too_often_is_a_429_and_cancelling_still_works(ask: httpx.AsyncClient):
    starts = [await ask.post(f"{PROJECT}/train/start", json={"method": "lora"}) for _ in range(4)]
    cancel = await ask.post(f"{PROJECT}/train/cancel")

    assert [start.status_code for start in starts] == [404, 404, 404, 429]
    assert [start.headers["x-ratelimit-remaining"] for start in starts] == ["2", "1", "0", "0"]
    assert {start.headers["x-ratelimit-limit"] for start in starts} == {"3"}
    refused = starts[3]
    wait = int(refused.headers["retry-after"])
    assert 0 < wait <= 60
    assert refused.json() == {"detail": "Too many requests", "error_code": "RATE_LIMIT_EXCEEDED", "context": {"limit": 3, "retry_after": wait}}
    assert (cancel.status_code, cancel.headers["x-ratelimit-remaining"]) == (404, "2")


async def test_a_large_upload_too_many_is_told_so_and_not_cut_off(ask: httpx.AsyncClient):
    async def upload() -> int:
        return (await ask.post(f"{PROJECT}/files/upload", files={"files": ("a.txt", b"x" * 5_000_000)})).status_code

    for _ in range(10):
        await ask.post(f"{PROJECT}/files/upload", files={"files": ("a.txt", b"x")})

    assert [await upload() for _ in range(3)] == [429, 429, 429]


async def test_loras_starts_are_five_a_minute_in_its_own_words(ask: httpx.AsyncClient):
    answers = [await ask.post("/api/train/start", json={}) for _ in range(6)]

    assert [answer.status_code == 429 for answer in answers] == [False] * 5 + [True]
    assert set(answers[5].json()) == {"code", "message", "timestamp"}
    assert answers[5].json()["code"] == "RATE_LIMITED"
    assert "retry-after" in answers[5].headers


@pytest.mark.parametrize(
    ("path", "limit"), [("/projects", "60"), ("/webhooks", "1000"), ("/api/v1/auth/user/", "100"), ("/v2/keys", "1200"), ("/nothing", "1000")]
)
async def test_every_answer_says_how_the_caller_stands(ask: httpx.AsyncClient, path: str, limit: str):
    answer = await ask.get(path)

    assert answer.headers["x-ratelimit-limit"] == limit
    assert int(answer.headers["x-ratelimit-remaining"]) == int(limit) - 1
    assert int(answer.headers["x-ratelimit-reset"]) > 1_700_000_000


async def test_a_token_and_a_key_of_one_user_are_one_caller(ask: httpx.AsyncClient, limited: Process):
    key = (await ask.post("/v2/keys", json={"name": "script"})).json()["key"]

    await ask.get("/projects")
    async with client(limited, headers=bearer(key)) as script:
        answer = await script.get("/projects")

    assert answer.headers["x-ratelimit-remaining"] == "58"


async def test_a_refused_body_counts_and_says_so_too(ask: httpx.AsyncClient):
    answer = await ask.post("/projects", content=b"x", headers={"Content-Type": "text/plain"})

    assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (415, "29")


@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"])
async def test_probes_and_pages_never_count(ask: httpx.AsyncClient, path: str):
    assert not HEADERS & set((await ask.get(path)).headers)


async def test_a_preflight_does_not_count(ask: httpx.AsyncClient):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    for _ in range(5):
        assert not HEADERS & set((await ask.options("/projects", headers=asked)).headers)

    assert (await ask.get("/projects")).headers["x-ratelimit-remaining"] == "59"


async def test_the_owner_of_the_machine_has_no_limits(api: httpx.AsyncClient):
    assert not HEADERS & set((await api.get("/projects")).headers)


async def test_without_a_token_an_address_has_a_hundred_an_hour_in_any_family_whatever_it_claims_to_be(limited: Process, ann: Person):
    async with from_address(limited) as stranger:
        tries = count()
        ways: list[Callable[[], Any]] = [
            lambda: stranger.get("/projects"),
            lambda: stranger.get("/v2/events", headers=bearer("ty_guessed")),
            lambda: stranger.get("/nothing/at/all", headers={"X-Forwarded-For": f"198.51.100.{next(tries)}"}),
            lambda: stranger.get("/webhooks", headers={"Forwarded": f"for=198.51.100.{next(tries)}", "X-Real-IP": f"198.51.100.{next(tries)}"}),
            lambda: stranger.post("/auth/refresh", json={"refresh_token": "tyr_guessed"}),
        ]
        answers = [await ways[n % len(ways)]() for n in range(100)]
        refused = {path: await stranger.get(path, headers={"X-Forwarded-For": "198.51.100.1"}) for path in FORMS}
        login = await stranger.post("/auth/login", json={"username": ann.username, "password": "no"}, headers={"X-Forwarded-For": "198.51.100.2"})
        known = await stranger.get("/projects", headers=ann.headers)

    assert {answer.status_code for answer in answers} == {401}
    assert [int(answer.headers["x-ratelimit-remaining"]) for answer in answers] == list(reversed(range(100)))
    assert {path: (answer.status_code, answer.json()[field]) for (path, (field, _)), answer in zip(FORMS.items(), refused.values(), strict=True)} == {
        path: (429, code) for path, (_, code) in FORMS.items()
    }
    assert all(0 < int(answer.headers["retry-after"]) <= 3600 for answer in refused.values())
    assert refused["/webhooks"].json() == {
        "error": "rate_limit_exceeded",
        "message": "Too many requests",
        "retry_after": int(refused["/webhooks"].headers["retry-after"]),
    }
    assert login.status_code == 429
    assert known.status_code == 200


async def test_a_good_refresh_token_counts_for_its_user_and_a_bad_one_for_the_address(limited: Process, door: httpx.AsyncClient, infra_nc: Client):
    async def refresh(api: httpx.AsyncClient, token: str) -> tuple[int, str, str]:
        answer = await api.post("/auth/refresh", json={"refresh_token": token})
        return answer.status_code, answer.headers["x-ratelimit-limit"], answer.headers["x-ratelimit-remaining"]

    async def round() -> list[Any]:
        ann, ben = await somebody(door), await somebody(door)
        async with from_address(limited) as shared:
            first = await refresh(shared, ann.refresh)
            bad = [await refresh(shared, token) for token in [ann.refresh[:-4] + "AAAA", "tyr_guessed", ann.access] * 33]
            unread = await shared.post("/auth/refresh", content=b"{", headers={"Content-Type": "application/json"})
            refused = await shared.post("/auth/refresh", json={"refresh_token": "tyr_guessed"})
            unlike = await shared.post("/auth/refresh", content=b"x", headers={"Content-Type": "text/plain"})
            at_full_address = [await refresh(shared, token) for token in (ann.refresh, ben.refresh)]
            await passed(Limits(BusCounters(infra_nc)), USERS, tries=1000, who=ann.id)
            used_up = [await refresh(shared, token) for token in (ann.refresh, ann.refresh, ann.refresh, ben.refresh)]
        return [first, bad, [unread, refused, unlike], at_full_address, used_up[2:]]

    first, bad, [unread, refused, unlike], at_full_address, used_up = await while_the_bus_answers(round, limited)
    assert first == (200, "1000", "999")
    assert bad == [(401, "100", str(99 - n)) for n in range(99)]
    assert (unread.status_code, unread.headers["x-ratelimit-remaining"]) == (400, "0")
    assert (refused.status_code, refused.json()["error"], refused.headers.get("www-authenticate")) == (429, "rate_limit_exceeded", None)
    assert unlike.status_code == 429
    assert at_full_address == [(200, "1000", "998"), (200, "1000", "999")]
    assert used_up == [(429, "1000", "0"), (200, "1000", "998")]


async def test_another_address_is_another_caller(limited: Process):
    async with from_address(limited) as one, from_address(limited) as other:
        await one.get("/projects")

        assert (await other.get("/projects")).headers["x-ratelimit-remaining"] == "99"


async def test_two_gateways_let_exactly_as_many_through_as_one(limited: Process, second: Process, door: httpx.AsyncClient):
    async def round() -> list[int]:
        ann = await somebody(door)
        async with client(limited, headers=ann.headers) as one, client(second, headers=ann.headers) as other:
            answers = await asyncio.gather(*(api.get("/projects") for api in (one, other) for _ in range(60)))
        return sorted(answer.status_code for answer in answers)

    assert await while_the_bus_answers(round, limited, second) == [200] * 60 + [429] * 60


async def test_a_gateway_killed_under_load_lets_nobody_exceed_the_limit_and_the_other_goes_on(limited: Process, second: Process, door: httpx.AsyncClient):
    async def round() -> tuple[int, int]:
        ann, accepted, refused = await somebody(door), Counter[Process](), set[Process]()
        async with client(limited, headers=ann.headers) as one, client(second, headers=ann.headers) as other:

            async def asking(api: httpx.AsyncClient, process: Process, *, until: Callable[[], bool]) -> None:
                while not until():
                    try:
                        answer = await api.get("/webhooks")
                    except httpx.TransportError:  # killed, and nobody knows whether this one was counted
                        return
                    accepted[process] += answer.status_code == 200
                    if answer.status_code == 429:
                        refused.add(process)

            def at_once(*, until: Callable[[Process], bool]) -> "asyncio.Future[list[None]]":
                pairs = [(one, limited), (other, second)]
                return asyncio.gather(*(asking(api, process, until=partial(until, process)) for api, process in pairs for _ in range(4)))

            load = at_once(until=lambda process: process is limited and second.pid is None and accepted.total() > 500)
            await eventually(lambda: accepted[second] >= 100)
            second.kill()
            before = accepted[limited]
            await load
            went_on = accepted[limited] - before
            await revive(second)
            await at_once(until=lambda process: process in refused)
        return went_on, accepted.total()

    went_on, accepted = await while_the_bus_answers(round, limited, second)
    assert went_on > 0
    assert 1000 - LARGEST_LOT - 4 <= accepted <= 1000


async def test_while_the_bus_is_down_each_gateway_counts_and_then_they_count_together_again(mortal: Servers):
    with running(mortal, label="gateway-bereft", environ=LIMITED) as gateway:
        async with client(gateway) as api:
            ann = await somebody(api)
            api.headers.update(ann.headers)
            assert left(await api.get("/webhooks")) == 999

            mortal["nats"].kill()
            assert [left(await api.get("/webhooks")) for _ in range(3)] == [998, 997, 996]
            assert await alone(api)

            await revive(mortal["nats"])
            await eventually(lambda: together(api))
            assert left(await api.get("/webhooks")) == 995
        assert ALONE in gateway.last_words()


async def test_an_older_installation_gets_its_counters_from_provisioning_and_a_gateway_says_so(mortal: Servers):
    infra = await bus.connect(mortal.nats_url("infra"), name="infra")
    gateway = await bus.connect(mortal.nats_url("gateway"), name="gateway")
    datasets = await bus.connect(mortal.nats_url("datasets"), name="datasets")
    await infra.request("$JS.API.STREAM.DELETE.RATE", timeout=2)
    try:
        with pytest.raises(Misconfigured, match=r"stream not found.*infra\.nats\.provision"):
            await BusCounters(gateway).check()
        room = json.loads((await infra.request("$JS.API.STREAM.INFO.EV", timeout=2)).data)["config"]["max_bytes"]
        assert (await provision(mortal.nats_url("infra"), max_bytes=room))["RATE"] == "created"
        assert (await provision(mortal.nats_url("infra"), max_bytes=room))["RATE"] == "unchanged"
        await BusCounters(gateway).check()
        with pytest.raises(Misconfigured, match="permissions violation"):
            await BusCounters(datasets).check()
    finally:
        for nc in (infra, gateway, datasets):
            await nc.close()


async def test_the_bus_counts_exactly_for_several_connections(infra_nc: Client, servers: Servers):
    nc = await bus.connect(servers.nats_url("gateway"), name="gateway")
    try:
        gateways = [Limits(counters) for counters in (BusCounters(nc), BusCounters(infra_nc)) for _ in range(2)]
        while True:
            ann = f"ann-{uuid4().hex}"
            shares = await asyncio.gather(*(passed(gateways[n % 4], MANY, tries=40, who=ann) for n in range(60)))
            if not any(gateway.alone for gateway in gateways):
                break
            gateways = [Limits(gateway._counters) for gateway in gateways]
    finally:
        await nc.close()

    assert sum(shares) == 1000


def test_every_family_documents_its_429():
    document = openapi()

    found = {family.name: document["components"]["responses"][f"TooManyRequests_{family.name}"] for family in FAMILIES}
    assert all("Retry-After" in refusal["headers"] for refusal in found.values())
    assert found["lora-training"]["content"]["application/json"]["example"]["code"] == "RATE_LIMITED"
    assert document["paths"]["/projects"]["get"]["responses"]["429"] == {"$ref": "#/components/responses/TooManyRequests_finetuneflow"}
    assert "429" not in document["paths"]["/health"]["get"]["responses"]


async def while_the_bus_answers(round: Callable[[], Awaitable[T]], *gateways: Process) -> T:
    """Again where the machine was so busy that the bus was taken to be away: what holds without it is told apart from this."""
    for _ in range(5):
        before = [process.log.read_text().count(ALONE) for process in gateways]
        outcome = await round()
        if [process.log.read_text().count(ALONE) for process in gateways] == before:
            return outcome
    raise AssertionError("the bus never answered in time")


async def passed(gateway: Limits, bucket: Bucket, *, tries: int, who: str = "ann") -> int:
    return [(await gateway.count(bucket, who)).allowed for _ in range(tries)].count(True)


@asynccontextmanager
async def watched(gateway: Limits) -> AsyncIterator[Limits]:
    running = asyncio.create_task(gateway.run())
    yield gateway
    running.cancel()


async def somebody(api: httpx.AsyncClient) -> Person:
    """Whose windows have begun not long ago: what follows stays within one."""
    while True:
        person = await registered(api)
        if age(person.id, 60) < 20 and age(person.id, 3600) < 3500:
            return person


@asynccontextmanager
async def from_address(process: Process) -> AsyncIterator[httpx.AsyncClient]:
    """A loopback address of the test's own, whose hour isn't over soon either."""
    if sys.platform != "linux":
        pytest.skip("needs all of 127.0.0.0/8")
    while True:
        number = uuid4().int
        address = f"127.{1 + number % 250}.{(number >> 8) % 250}.{1 + (number >> 16) % 250}"
        if age(caller((address, 0)), 3600) < 3500:
            break
    async with client(process, transport=httpx.AsyncHTTPTransport(local_address=address)) as api:
        yield api


def age(caller: str, seconds: int) -> int:
    """How long the caller's window of so many seconds has been open."""
    return (int(time.time()) + crc32(caller.encode())) % seconds


def left(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-ratelimit-remaining"])


async def alone(api: httpx.AsyncClient) -> bool:
    return "trainyard_rate_limits_alone 1.0" in (await api.get("/metrics")).text


async def together(api: httpx.AsyncClient) -> bool:
    return not await alone(api)
