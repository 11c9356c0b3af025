"""Live streams: everything once and in order, whatever breaks, and nothing of it costs the log's server a consumer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.events import Origin, ProjectCreated, ProjectUpdated
from libs.events.log import EventLog, Write
from libs.runtime import bus
from services.gateway import live as live_module
from services.gateway.live import Live, TooSlow
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.proxy import wire
from tests.kit.servers import all_servers, revive

LIVE = {"Accept": "text/event-stream"}


@asynccontextmanager
async def a_live(bus_of: Servers | str, *, late: float = 0.0) -> AsyncIterator[tuple[Live, EventLog]]:
    """As the gateway wires it; `late` are the seconds until it learns that the bus was away."""

    async def reconnected() -> None:
        await asyncio.sleep(late)
        await live.resync()

    url = bus_of if isinstance(bus_of, str) else bus_of.nats_url("gateway")
    nc = await bus.connect(url, name="gateway", reconnected_cb=reconnected)
    log = EventLog(nc, source="/tests")
    live = Live(log)
    await live.listen(nc)
    try:
        yield live, log
    finally:
        live.close()
        await nc.close()


async def publish(log: EventLog, origin: Origin, count: int, *, id: str = "p", after: int = 0, start: int = 0) -> int:
    for n in range(start, start + count):
        event = ProjectCreated(project_id=id, name=str(n)) if after == 0 else ProjectUpdated(project_id=id, name=str(n))
        (fact,) = await log.append([Write(events=[event], after=after)], origin=origin, budget=20)
        after = fact.seq
    return after


async def watch(live: Live, tenant: str, count: int, *, after: int = 0, about: str = "") -> list[tuple[int, str]]:
    seen: list[tuple[int, str]] = []
    async for raw in live.watch(tenant, after=after, about=about):
        if raw is not None:
            seen.append((raw.seq, json.loads(raw.data)["data"]["name"]))
        if len(seen) == count:
            break
    return seen


async def test_twenty_hand_overs_from_replay_to_live_give_every_fact_once(servers: Servers, tenant: str):
    async with a_live(servers) as (live, log):
        for round in range(20):
            origin = Origin(tenant=f"{tenant}-{round}")
            last = await publish(log, origin, 1 + 15 * round)
            publishing = asyncio.create_task(publish(log, origin, 60, after=last, start=1 + 15 * round))
            await asyncio.sleep(0.002 * round)

            seen = await asyncio.wait_for(watch(live, origin.tenant, 61 + 15 * round), 20)

            await publishing
            assert [name for _, name in seen] == [str(n) for n in range(61 + 15 * round)]


async def test_several_workspaces_are_told_in_one_order_while_all_are_written_to(servers: Servers, tenant: str):
    async with a_live(servers) as (live, log):
        tenants = [f"{tenant}-{n}" for n in range(4)]
        for round in range(6):
            ids = [f"{round}-{n}" for n in range(4)]
            before = [await publish(log, Origin(tenant=name), 1 + 10 * round, id=id) for name, id in zip(tenants, ids, strict=True)]
            writing = [
                asyncio.create_task(publish(log, Origin(tenant=name), 15, id=id, after=last, start=1 + 10 * round))
                for name, id, last in zip(tenants, ids, before, strict=True)
            ]
            await asyncio.sleep(0.003 * round)
            start, seen = before[0] if round % 2 else 0, list[int]()
            async with asyncio.timeout(20), aclosing(live.watch(*tenants, after=start)) as watched:
                expected = None
                async for raw in watched:
                    seen += [raw.seq] if raw else []
                    if all(task.done() for task in writing):
                        expected = expected or sorted([fact.seq for name in tenants for fact in await log.read(f"ev.{name}.>", after=start)])
                        if len(seen) >= len(expected):
                            break

            assert seen == expected


async def test_a_stream_resumes_exactly_where_it_was(servers: Servers, tenant: str):
    async with a_live(servers) as (live, log):
        await publish(log, Origin(tenant=tenant), 30)
        first = await watch(live, tenant, 11)

        rest = await watch(live, tenant, 19, after=first[-1][0])

    assert [name for _, name in first + rest] == [str(n) for n in range(30)]


async def test_about_one_thing_only_what_happened_to_it(servers: Servers, tenant: str):
    async with a_live(servers) as (live, log):
        await publish(log, Origin(tenant=tenant), 3, id="mine")
        await publish(log, Origin(tenant=tenant), 3, id="other")
        watching = asyncio.create_task(watch(live, tenant, 5, about="mine"))
        await asyncio.sleep(0.1)
        last = (await log.read(f"ev.{tenant}.project.*.mine"))[-1].seq
        await publish(log, Origin(tenant=tenant), 2, id="mine", after=last, start=3)

        seen = await asyncio.wait_for(watching, 10)

    assert [name for _, name in seen] == ["0", "1", "2", "3", "4"]


async def test_another_workspace_is_never_seen(servers: Servers, tenant: str):
    async with a_live(servers) as (live, log):
        watching = asyncio.create_task(watch(live, tenant, 2))
        await publish(log, Origin(tenant=f"{tenant}-other"), 5)
        await publish(log, Origin(tenant=tenant), 2)

        seen = await asyncio.wait_for(watching, 10)

    assert [name for _, name in seen] == ["0", "1"]


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nats-py leaks a transport when a reconnect fails halfway
async def test_nothing_is_missed_or_doubled_while_the_bus_restarts(tenant: str):
    with all_servers() as mortal:
        async with a_live(mortal) as (live, log):
            origin = Origin(tenant=tenant)
            watching = [asyncio.create_task(watch(live, tenant, 400)) for _ in range(5)]
            publishing = asyncio.create_task(publish(log, origin, 400))
            for _ in range(3):
                await asyncio.sleep(0.15)
                mortal["nats"].kill()
                await revive(mortal["nats"])

            seen = await asyncio.wait_for(asyncio.gather(*watching), 60)
            await publishing

    assert all([name for _, name in one] == [str(n) for n in range(400)] for one in seen)


@pytest.mark.parametrize("late", [0.0, 0.2])
async def test_nothing_is_missed_or_doubled_while_only_the_gateway_loses_the_bus(servers: Servers, log: EventLog, tenant: str, late: float):
    """Others write on meanwhile: what is heard first afterwards is not what came next."""
    gateway = urlsplit(servers.nats_url("gateway"))
    async with wire("127.0.0.1", gateway.port or 0) as between:
        url = gateway._replace(netloc=f"{gateway.username}:{gateway.password}@127.0.0.1:{between.port}").geturl()
        async with a_live(url, late=late) as (live, _):
            watching = [asyncio.create_task(watch(live, tenant, 600)) for _ in range(3)]
            publishing = asyncio.create_task(publish(log, Origin(tenant=tenant), 600))
            while not publishing.done():
                await asyncio.sleep(0.05)
                between.cut()
                await asyncio.sleep(0.3)

            seen = await asyncio.wait_for(asyncio.gather(*watching), 20)

    assert all([name for _, name in one] == [str(n) for n in range(600)] for one in seen)


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nats-py leaks a transport when a reconnect fails halfway
async def test_a_stream_outlasts_an_outage_of_the_bus_that_its_replay_meets(mortal: Servers, tenant: str):
    async with a_live(mortal) as (live, log):
        last = await publish(log, Origin(tenant=tenant), 3)
        mortal["nats"].kill()
        watching = asyncio.create_task(watch(live, tenant, 5))
        await asyncio.sleep(3)  # longer than a single question to the log may take
        await revive(mortal["nats"])
        await publish(log, Origin(tenant=tenant), 2, after=last, start=3)

        seen = await asyncio.wait_for(watching, 20)

    assert [name for _, name in seen] == [str(n) for n in range(5)]


async def test_a_watcher_that_does_not_keep_up_is_closed(servers: Servers, tenant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_module, "BUFFER", 20)
    async with a_live(servers) as (live, log):
        last = await publish(log, Origin(tenant=tenant), 1)
        watching = live.watch(tenant, after=0)
        await anext(watching)
        waiting = asyncio.ensure_future(anext(watching))  # it is live now, and takes one more
        await asyncio.sleep(0.1)
        await publish(log, Origin(tenant=tenant), 50, after=last, start=1)
        await waiting
        await eventually(lambda: any(watcher.slow for watcher in live._all()))  # there is no other way to see it

        with pytest.raises(TooSlow):
            async for _ in watching:
                pass


async def consumers(nc: Client) -> int:
    return json.loads((await nc.request("$JS.API.STREAM.INFO.EV", b"")).data)["state"]["consumer_count"]


async def test_fifty_streams_cost_no_consumer_and_deliver(gateway: Process, api: httpx.AsyncClient, infra_nc: Client):
    before = await consumers(infra_nc)
    project = (await api.post("/projects", json={"name": "watched"})).json()["id"]

    async def first_rename() -> str:
        async with client(gateway) as own, own.stream("GET", "/v2/events", params={"about": project}, headers=LIVE) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and '"project.updated"' in line:
                    return json.loads(line.removeprefix("data: "))["data"]["name"]
        return ""

    streams = [asyncio.create_task(first_rename()) for _ in range(50)]
    await asyncio.sleep(1)
    during = await consumers(infra_nc)
    await api.patch(f"/projects/{project}", json={"name": "renamed"})

    assert await asyncio.wait_for(asyncio.gather(*streams), 20) == ["renamed"] * 50
    assert during <= before


async def test_last_event_id_resumes_over_http(api: httpx.AsyncClient):
    project = (await api.post("/projects", json={"name": "one"})).json()["id"]
    for name in ("two", "three"):
        await api.patch(f"/projects/{project}", json={"name": name})
    listed = (await api.get("/v2/events", params={"about": project})).json()

    async with api.stream("GET", "/v2/events", params={"about": project}, headers=LIVE | {"Last-Event-ID": f"{listed['events'][0]['seq']}.0"}) as stream:
        ids = []
        async for line in stream.aiter_lines():
            if line.startswith("id: "):
                ids.append(int(line.removeprefix("id: ")))
            if len(ids) == 2:
                break

    assert ids == [event["seq"] for event in listed["events"][1:]]
    assert stream.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("id", [b"seven", b"-1", b"9" * 19, "²".encode("latin-1")])
async def test_what_was_never_an_id_of_the_stream_is_refused(api: httpx.AsyncClient, id: bytes):
    given: Any = {**LIVE, "Last-Event-ID": id}

    assert (await api.get("/v2/events", headers=given)).status_code == 422


async def test_pages_of_events_follow_each_other(api: httpx.AsyncClient):
    project = (await api.post("/projects", json={"name": "0"})).json()["id"]
    for n in range(1, 5):
        await api.patch(f"/projects/{project}", json={"name": str(n)})

    names, after = [], 0
    while page := (await api.get("/v2/events", params={"about": project, "after": after, "limit": 2})).json():
        names += [event["event"]["data"]["name"] for event in page["events"]]
        if not page["events"]:
            break
        after = page["next"]

    assert names == ["0", "1", "2", "3", "4"]


@pytest.mark.alone
async def test_a_gateway_with_a_hundred_open_streams_ends_them_and_itself_when_asked(servers: Servers):
    with running(servers, label="gateway-to-end") as gateway:
        async with client(gateway, limits=httpx.Limits(max_connections=None)) as api:
            opened = asyncio.Semaphore(0)

            async def hold() -> None:
                async with api.stream("GET", "/v2/events", headers=LIVE) as stream:
                    async for line in stream.aiter_lines():
                        if line.startswith("retry"):
                            opened.release()

            streams = [asyncio.create_task(hold()) for _ in range(100)]
            for _ in range(100):
                await asyncio.wait_for(opened.acquire(), 10)

            started = time.monotonic()
            await asyncio.to_thread(gateway.stop)
            took = time.monotonic() - started
            await asyncio.wait(streams, timeout=5)

    assert took <= 2.0
    assert all(stream.done() for stream in streams)
