"""The stream of a run: every step once and in order, every fact behind the steps it knows of, from whatever point, whatever breaks."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.config import Gateway, load
from libs.events import Recorded, TrainingEvaluated
from libs.events.log import EventLog
from libs.runtime import bus
from libs.storage import Storage
from services.gateway import playback
from services.gateway import steps as steps_module
from services.gateway.live import Live, TooSlow
from services.gateway.steps import Step, stored
from tests.kit.eventually import eventually
from tests.kit.gateway import KEPT, client, running
from tests.kit.proxy import wire
from tests.kit.runs import LOCAL, FakeRun, loss, new_run, shown
from tests.kit.servers import revive

Event = tuple[str, str, dict[str, Any]]
"""(id, event, data)."""
NewRun = Callable[..., Awaitable[FakeRun]]


@asynccontextmanager
async def store_of(servers: Servers) -> AsyncIterator[Storage]:
    storage = Storage(load(Gateway, servers.environ("gateway", port=1)))
    yield storage
    storage.close()


@pytest.fixture
async def storage(servers: Servers) -> AsyncIterator[Storage]:
    async with store_of(servers) as storage:
        yield storage


@pytest.fixture
def started(api: httpx.AsyncClient, log: EventLog, infra_nc: Client, storage: Storage) -> NewRun:
    async def start(*, total: int = 40) -> FakeRun:
        run = await new_run(api, log, infra_nc, storage, total=total)
        await run.prepare()
        await run.begin()
        return run

    return start


def address(run: FakeRun) -> str:
    return f"/projects/{run.project}/train/logs/stream"


async def events_of(api: httpx.AsyncClient, run: FakeRun, last_id: str = "", into: list[Event] | None = None) -> list[Event]:
    """Until the stream ends. With `into` they can be looked at meanwhile."""
    events: list[Event] = [] if into is None else into
    async with api.stream("GET", address(run), headers={"Last-Event-ID": last_id}, timeout=30) as stream:
        assert stream.status_code == 200
        fields: dict[str, str] = {}
        async for text in stream.aiter_lines():
            name, _, value = text.partition(": ")
            if text:
                fields[name] = value
            elif "data" in fields:
                events.append((fields["id"], fields["event"], json.loads(fields["data"])))
            if not text:
                fields = {}
    return events


@asynccontextmanager
async def watching(api: httpx.AsyncClient, run: FakeRun, last_id: str = "") -> AsyncIterator[tuple[list[Event], "asyncio.Task[list[Event]]"]]:
    events: list[Event] = []
    task = asyncio.create_task(events_of(api, run, last_id, events))
    yield events, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def steps(events: list[Event]) -> list[int]:
    return [data["step"] for _, event, data in events if event == "log"]


def names(events: list[Event]) -> list[str]:
    """Without the steps and what follows from their number."""
    return [event for _, event, _ in events if event not in ("log", "progress")]


async def lived(run: FakeRun) -> None:
    """A run with a bit of everything."""
    await run.progress(0)
    await run.tell(1, 9)
    await run.evaluate(5)
    await run.progress(9)
    await run.checkpoint(10)
    await run.tell(10, 17)
    await run.lose()
    await run.begin(resumed_from=10)
    await run.tell(11, 30)
    await run.evaluate(20)
    await run.checkpoint(20)
    await run.progress(30)
    await run.complete(40)


async def test_a_runs_stream_says_what_the_document_says(api: httpx.AsyncClient, started: NewRun):
    run = await started(total=4)
    await run.evaluate(2)
    await run.checkpoint(3)
    await run.progress(3)
    await run.complete(4)

    said = await events_of(api, run)

    end = said[-1][2]
    assert [(event, data) for _, event, data in said[:-1]] == [
        ("log", shown(1)),
        ("log", shown(2)),
        ("eval", {"step": 2, "eval_loss": 1.85, "perplexity": 6.36}),
        ("log", shown(3)),
        ("checkpoint", {"step": 3, "path": "checkpoint-3"}),
        ("progress", {"progress_pct": 75, "message": "Step 3/4"}),
        ("progress", {"progress_pct": 100, "message": "Step 4/4"}),
        ("log", shown(4)),
    ]
    assert (said[-1][1], set(end), end["status"], end["final_train_loss"]) == (
        "complete",
        {"status", "duration_seconds", "final_train_loss"},
        "success",
        loss(4),
    )
    assert isinstance(end["duration_seconds"], int)


async def test_a_stream_tells_proxies_and_browsers_to_keep_nothing_back(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await run.fail("CUDA out of memory")

    answer = await api.get(address(run))

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")


async def test_resumed_at_any_point_it_gives_exactly_the_rest(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await lived(run)
    whole = await events_of(api, run)
    ids = [id for id, _, _ in whole]

    for id in dict.fromkeys(ids[:-1]):
        assert await events_of(api, run, id) == whole[ids.index(id) + 1 :]

    assert steps(whole) == list(range(1, 41))
    assert [tuple(map(int, id.split("."))) for id in ids] == sorted(tuple(map(int, id.split("."))) for id in ids)


async def test_what_is_watched_live_is_what_is_replayed_afterwards(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    async with watching(api, run) as (events, task):
        await lived(run)
        live = await asyncio.wait_for(task, 20)

    replayed = await events_of(api, run)
    assert steps(events) == steps(replayed) == list(range(1, 41))
    assert names(live) == names(replayed)
    assert [data for _, event, data in live if event == "progress"][-1] == {"progress_pct": 100, "message": "Step 40/40"}


async def test_a_live_stream_resumed_at_any_point_shows_all_of_the_rest_once(api: httpx.AsyncClient, started: NewRun):
    """Its order may differ from a replay's where facts and steps overtook each other; an id still says exactly what was seen."""
    run = await started()
    async with watching(api, run) as (_, task):
        await lived(run)
        live = await asyncio.wait_for(task, 20)

    for n in range(0, len(live) - 1, 7):
        rest = await events_of(api, run, live[n][0])
        assert steps(live[: n + 1]) + steps(rest) == list(range(1, 41))
        assert names(live[: n + 1]) + names(rest) == names(live)


async def test_steps_are_shown_as_they_are_told_and_before_the_facts_behind_them(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    async with watching(api, run) as (events, _):
        await run.tell(1, 3)
        await eventually(lambda: steps(events), of=3)
        await run.tell(4, 10)
        await run.checkpoint(10)
        await eventually(lambda: "checkpoint" in names(events))
        seen = list(events)

    assert steps(seen) == list(range(1, 11))
    assert [event for _, event, _ in seen][-1] == "checkpoint"


async def test_who_comes_late_gets_the_stored_the_kept_and_the_coming_steps(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await run.tell(1, 20)
    await run.checkpoint(20)
    await run.tell(21, 25)
    await run.tell(26, 27)
    async with watching(api, run) as (events, _):
        await eventually(lambda: steps(events), of=27)
        await run.tell(28, 30)
        await eventually(lambda: steps(events), of=30)

    assert steps(events) == list(range(1, 31))


async def test_a_later_attempt_does_not_repeat_the_curve_and_an_earlier_one_is_not_believed(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await run.tell(1, 20)
    await run.checkpoint(20)
    async with watching(api, run) as (events, _):
        await run.tell(21, 27)
        await eventually(lambda: steps(events), of=27)
        await run.begin(resumed_from=20)
        await run.tell(21, 26)
        await run.tell(28, 35, attempt=1)
        await run.evaluate(26)
        await eventually(lambda: names(events), of=2)
        before = steps(events)
        await run.tell(27, 29)
        await eventually(lambda: steps(events), of=29)

    assert before == list(range(1, 28))
    assert steps(events) == list(range(1, 30))


async def test_steps_that_the_bus_lost_are_shown_with_the_next_checkpoint_in_their_place(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    async with watching(api, run) as (events, _):
        await run.tell(1, 5)
        await eventually(lambda: steps(events), of=5)
        await run.tell(9, 12)
        await run.tell(13, 14)
        await run.checkpoint(12)
        await eventually(lambda: steps(events), of=14)

    assert steps(events) == list(range(1, 15))


@pytest.mark.parametrize("end", ["completed", "cancelled", "failed"])
async def test_steps_that_the_bus_lost_are_shown_before_the_end(api: httpx.AsyncClient, started: NewRun, end: str):
    run = await started()
    async with watching(api, run) as (events, task):
        await run.tell(1, 5)
        await eventually(lambda: steps(events), of=5)
        await run.tell(9, 12)
        await {"completed": run.complete, "cancelled": run.cancel, "failed": lambda step: run.fail("diverged", step)}[end](20)
        await asyncio.wait_for(task, 10)

    assert steps(events) == list(range(1, 21))
    assert events[-1][1] == ("error" if end == "failed" else "complete")


async def test_of_a_run_that_ended_without_a_step_log_all_is_shown_that_the_bus_still_has(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    async with watching(api, run) as (live, task):
        await run.tell(1, 5)
        await eventually(lambda: steps(live), of=5)
        await run.tell(9, 10)
        await run.fail("CUDA out of memory")
        await asyncio.wait_for(task, 10)

    for events in (live, await events_of(api, run)):
        assert steps(events) == [1, 2, 3, 4, 5, 9, 10]
        assert events[-1][1:] == ("error", {"status": "failed", "error": "CUDA out of memory"})


async def test_a_cancelled_run_ends_complete(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await run.cancel(7)

    _, event, data = (await events_of(api, run))[-1]

    assert (event, data["status"], data["final_train_loss"]) == ("complete", "cancelled", loss(7))


async def test_a_run_whose_data_can_not_be_prepared_ends_with_an_error(api: httpx.AsyncClient, log: EventLog, infra_nc: Client, storage: Storage):
    run = await new_run(api, log, infra_nc, storage)
    await run.refuse("No usable row")

    assert [event[1:] for event in await events_of(api, run)] == [("error", {"status": "failed", "error": "No usable row"})]


async def test_who_has_seen_the_end_is_sent_away(api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await run.complete(3)
    last = (await events_of(api, run))[-1][0]

    answer = await api.get(address(run), headers={"Last-Event-ID": last})

    assert (answer.status_code, answer.content) == (204, b"")


async def test_the_stream_is_of_the_latest_run_also_for_who_saw_an_earlier_one(api: httpx.AsyncClient, started: NewRun):
    first = await started()
    await first.complete(9)
    seen = (await events_of(api, first))[-1][0]
    second = FakeRun(first.log, first.nc, first.storage, first.project)
    await second.create()
    await second.begin()
    await second.complete(3)

    for last_id in ("", seen):
        events = await events_of(api, second, last_id)
        assert (steps(events), events[-1][1]) == ([1, 2, 3], "complete")


async def test_without_a_run_there_is_no_stream(api: httpx.AsyncClient, started: NewRun):
    project = (await api.post("/projects", json={"name": "untrained"})).json()["id"]
    run = await started()

    for answer in (
        await api.get(f"/projects/{project}/train/logs/stream"),
        await api.get("/projects/019a0000-0000-7000-8000-000000000003/train/logs/stream"),
    ):
        assert (answer.status_code, set(answer.json()), answer.json()["error_code"]) == (404, KEPT, "NOT_FOUND")
    assert (await api.get(address(run), headers={"Last-Event-ID": "seven"})).status_code == 422


async def test_a_stream_goes_on_at_another_gateway_when_its_own_is_killed(servers: Servers, api: httpx.AsyncClient, started: NewRun):
    run = await started()
    await run.tell(1, 10)
    with running(servers, label="gateway-to-kill") as doomed:
        async with client(doomed) as other, watching(other, run) as (events, task):
            await eventually(lambda: steps(events), of=10)
            doomed.kill()
            with contextlib.suppress(httpx.HTTPError):
                await task
    async with watching(api, run, events[-1][0]) as (rest, task):
        await run.tell(11, 20)
        await run.complete(20)
        await task

    assert steps(events) + steps(rest) == list(range(1, 21))
    assert rest[-1][1] == "complete"


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nats-py leaks a transport when a reconnect fails halfway
async def test_a_stream_outlasts_the_bus_and_the_store(mortal: Servers, its_gateway: Process):
    nc = await bus.connect(mortal.nats_url("infra"), name="infra")
    async with client(its_gateway) as api, store_of(mortal) as storage:
        run = await new_run(api, EventLog(nc, source="/tests"), nc, storage)
        await run.begin()
        async with watching(api, run) as (events, task):
            await run.tell(1, 10)
            await run.checkpoint(5)
            await eventually(lambda: "checkpoint" in names(events))
            mortal["nats"].kill()
            await revive(mortal["nats"])
            await eventually(lambda: nc.is_connected)
            await run.tell(16, 20)
            await run.checkpoint(20)
            await eventually(lambda: steps(events), of=20)
            await run.tell(24, 25)
            await run.checkpoint(24)
            mortal["s3"].kill()
            late = asyncio.create_task(events_of(api, run))
            await revive(mortal["s3"])
            await run.complete(30)
            await asyncio.wait_for(task, 30)
            joined = await asyncio.wait_for(late, 30)
    await nc.close()

    assert steps(events) == steps(joined) == list(range(1, 31))
    assert names(events) == names(joined) == ["checkpoint", "checkpoint", "checkpoint", "complete"]


@asynccontextmanager
async def a_live(url: str) -> AsyncIterator[Live]:
    """As the gateway wires it."""

    async def reconnected() -> None:
        await live.resync()

    nc = await bus.connect(url, name="gateway", reconnected_cb=reconnected)
    live = Live(EventLog(nc, source="/tests"))
    await live.listen(nc)
    yield live
    live.close()
    await nc.close()


async def looked(run: FakeRun) -> playback.Run:
    found = await playback.look(run.log, LOCAL, run.job)
    assert found
    return found


async def test_a_job_is_listened_to_once_while_somebody_watches_it_and_not_afterwards(servers: Servers, started: NewRun, storage: Storage, infra_nc: Client):
    async def consumers() -> int:
        return json.loads((await infra_nc.request("$JS.API.STREAM.INFO.TEL", b"")).data)["state"]["consumer_count"]

    async def watch(live: Live, found: playback.Run) -> int:
        played = playback.play(live, storage, found)
        async for news in played:
            if isinstance(news, list) and news[-1].step == 3:
                break
        during = len(live.telemetry._subscriptions)  # there is no other way to see it
        await played.aclose()
        return during

    run = await started()
    found = await looked(run)
    async with a_live(servers.nats_url("gateway")) as live:
        viewers = [asyncio.create_task(watch(live, found)) for _ in range(5)]
        await eventually(lambda: live.telemetry._subscriptions)
        await run.tell(1, 3)

        assert await asyncio.gather(*viewers) == [1] * 5
        assert not live.telemetry._subscriptions
    assert await consumers() == 0


async def shown_of(played: AsyncIterator[Recorded | list[Step] | None], last: type) -> list[int | str]:
    """Numbers of steps and types of facts, up to the first fact of a type."""
    seen: list[int | str] = []
    async for news in played:
        if isinstance(news, list):
            seen += [step.step for step in news]
        elif news is not None:
            seen.append(news.envelope.type)
            if isinstance(news.event, last):
                break
    return seen


async def test_a_fact_that_overtakes_its_steps_waits_for_them(servers: Servers, started: NewRun, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(playback, "_ON_THE_WAY", 20.0)
    run = await started()
    await run.tell(1, 2)
    async with a_live(servers.nats_url("gateway")) as live, aclosing(playback.play(live, storage, await looked(run))) as played:
        while not isinstance(await anext(played), list):
            pass
        waiting = asyncio.create_task(shown_of(played, TrainingEvaluated))
        fact = await run.evaluate(4)
        await eventually(lambda: any(watcher.seq == fact for watcher in live._all()))  # there is no other way to see it
        await run.tell(3, 4)

        assert await asyncio.wait_for(waiting, 10) == [3, 4, "training.evaluated"]


async def test_steps_told_while_only_the_gateway_lost_the_bus_are_shown_when_it_is_back(servers: Servers, started: NewRun, storage: Storage):
    run = await started()
    await run.tell(1, 2)
    gateway = urlsplit(servers.nats_url("gateway"))
    async with wire("127.0.0.1", gateway.port or 0) as between:
        url = gateway._replace(netloc=f"{gateway.username}:{gateway.password}@127.0.0.1:{between.port}").geturl()
        async with a_live(url) as live, aclosing(playback.play(live, storage, await looked(run))) as played:
            while not isinstance(await anext(played), list):
                pass
            coming = asyncio.ensure_future(anext(played))
            between.cut()
            await run.tell(3, 4)

            while not isinstance(news := await asyncio.wait_for(coming, 10), list):
                coming = asyncio.ensure_future(anext(played))
            assert [step.step for step in news] == [3, 4]


async def test_while_nothing_happens_a_stream_shows_that_it_is_alive(servers: Servers, started: NewRun, storage: Storage):
    run = await started()
    async with a_live(servers.nats_url("gateway")) as live, aclosing(playback.play(live, storage, await looked(run), heartbeat=0.05)) as played:
        assert await asyncio.wait_for(_first_silence(played), 5)


async def _first_silence(played: AsyncIterator[object]) -> bool:
    async for news in played:
        if news is None:
            return True
    return False


async def test_a_viewer_that_does_not_keep_up_with_the_steps_is_closed(servers: Servers, started: NewRun, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps_module, "BUFFER", 5)
    run = await started()
    await run.tell(1, 1)
    async with a_live(servers.nats_url("gateway")) as live:
        played = playback.play(live, storage, await looked(run))
        while not isinstance(await anext(played), list):
            pass
        for step in range(2, 12):
            await run.tell(step, step)
        await eventually(lambda: all(ear.slow for ears in live.telemetry._ears.values() for ear in ears))

        with pytest.raises(TooSlow):
            async for _ in played:
                pass


@pytest.mark.parametrize("after", [0, 1, 7777, 19_999, 20_000])
async def test_a_long_step_log_is_read_from_any_step_on(started: NewRun, storage: Storage, after: int):
    run = await started()
    claim = await run.store(20_000)

    read: list[Step] = [step async for some in stored(storage, claim, after=after) for step in some]

    assert [step.step for step in read] == list(range(after + 1, 20_001))
