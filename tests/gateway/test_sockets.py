"""Progress over WebSockets: what the document's client reads, from whatever point, whatever breaks."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from nats.aio.client import Client
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from infra.embedded import Process, Servers
from libs.config import Gateway, load
from libs.events import (
    ExportCompleted,
    ExportProgressed,
    ExportStarted,
    JobCreated,
    Origin,
    TrainingCompleted,
    TrainingProgressed,
    TrainingStarted,
)
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.storage import Storage
from services.gateway import live as live_module
from services.gateway.api.autotrainx import progress
from services.gateway.api.autotrainx.progress import Sockets
from services.gateway.audience import Audience
from services.gateway.commands import Commands
from services.gateway.domain.user import LOCAL, Principal
from services.gateway.live import Live
from services.gateway.places import Places
from services.gateway.views.progress import Progress
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running
from tests.kit.people import Person, registered
from tests.kit.runs import FakeRun, loss, new_run
from tests.kit.servers import revive

FIELDS = {
    "job_id",
    "status",
    "progress_percentage",
    "current_step",
    "completed_steps",
    "total_steps",
    "message",
    "timestamp",
    "epoch",
    "loss",
    "learning_rate",
}
Frame = dict[str, Any]
NewRun = Callable[..., Awaitable[FakeRun]]


def address(gateway: Process, job: str = "", *, after: str = "") -> str:
    return f"ws://{gateway.part.address}/ws/progress" + (f"/{job}" if job else "") + (f"?after={after}" if after else "")


def opened(url: str, **options: Any) -> connect:
    return connect(url, proxy=None, open_timeout=20, **options)


async def told(url: str) -> tuple[list[Frame], int | None]:
    """All frames until the server closes, and its code."""
    async with opened(url) as socket:
        frames = [json.loads(text) async for text in socket]
    return frames, socket.close_code


class Watcher:
    """Takes what comes, so that it can be looked at meanwhile."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.frames: list[Frame] = []
        self.code: int | None = None

    async def read(self) -> None:
        try:
            async for text in self._socket:
                self.frames.append(json.loads(text))
        except ConnectionClosed:
            pass
        self.code = self._socket.close_code

    def of(self, job: str) -> list[Frame]:
        return [frame for frame in self.frames if frame["job_id"] == job]


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[tuple[Watcher, "asyncio.Task[None]"]]:
    async with opened(url) as socket:
        watcher = Watcher(socket)
        task = asyncio.create_task(watcher.read())
        yield watcher, task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
def created(api: httpx.AsyncClient, log: EventLog, infra_nc: Client, storage: Storage) -> NewRun:
    async def create(*, total: int = 40) -> FakeRun:
        return await new_run(api, log, infra_nc, storage, total=total)

    return create


async def begun(run: FakeRun) -> FakeRun:
    await run.prepare()
    await run.begin()
    return run


def statuses(frames: list[Frame]) -> list[str]:
    return list(dict.fromkeys(frame["status"] for frame in frames))


async def test_the_documents_client_follows_a_job_from_the_queue_to_its_end(gateway: Process, created: NewRun):
    run = await created(total=4)
    async with watching(address(gateway, run.job)) as (watcher, task):
        await eventually(lambda: statuses(watcher.frames) == ["in_queue"])
        await run.prepare()
        await eventually(lambda: statuses(watcher.frames)[-1] == "preparing_dataset")
        await run.begin()
        await run.progress(0)
        await run.tell(1, 2)
        await eventually(lambda: watcher.frames[-1]["completed_steps"] == 2)
        await run.tell(3, 4)
        await run.progress(4)
        await run.complete(4)
        await asyncio.wait_for(task, 10)

    percents = [frame["progress_percentage"] for frame in watcher.frames]
    last = watcher.frames[-1]
    assert statuses(watcher.frames) == ["in_queue", "preparing_dataset", "training", "completed"]
    assert (percents, percents[-1], watcher.code) == (sorted(percents), 100, 1000)
    assert (last["completed_steps"], last["total_steps"], last["loss"], last["epoch"]) == (4, 4, loss(4), 0.04)
    for frame in watcher.frames:
        data = frame.pop("data")
        assert (frame.pop("type"), bool(frame.pop("position"))) == ("progress_update", True)
        assert (set(frame), frame) == (FIELDS, data)


async def test_the_first_frame_is_the_state_now(gateway: Process, created: NewRun):
    run = await begun(await created())
    await run.progress(10)

    async with opened(address(gateway, run.job)) as socket:
        first = json.loads(await asyncio.wait_for(socket.recv(), 10))

    assert (first["status"], first["progress_percentage"], first["completed_steps"], first["total_steps"]) == ("training", 25, 10, 40)


async def test_after_a_job_has_ended_its_end_is_all_there_is(gateway: Process, created: NewRun):
    succeeded, failed, cancelled, refused = [await begun(await created()) for _ in range(3)] + [await created()]
    await succeeded.complete(9)
    await failed.fail("No memory is left on the device")
    await cancelled.cancel()
    await refused.refuse("Not one row can be trained on")

    for run, status, message in (
        (succeeded, "completed", "Completed"),
        (failed, "failed", "No memory is left on the device"),
        (cancelled, "cancelled", "Cancelled"),
        (refused, "failed", "Not one row can be trained on"),
    ):
        frames, code = await told(address(gateway, run.job))
        assert [(frame["status"], frame["message"]) for frame in frames] == [(status, message)]
        assert code == 1000


async def test_what_a_later_attempt_does_again_does_not_count_backwards(gateway: Process, created: NewRun):
    run = await begun(await created(total=20))
    async with watching(address(gateway, run.job)) as (watcher, task):
        await run.progress(0)
        await run.checkpoint(5)
        await run.tell(6, 10)
        await run.lose()
        await run.begin(resumed_from=5)
        await run.tell(6, 12)
        await run.complete(20)
        await asyncio.wait_for(task, 10)

    steps = [frame["completed_steps"] for frame in watcher.frames]
    assert (steps, steps[-1]) == (sorted(steps), 20)


async def test_a_run_that_saves_its_model_says_so_at_its_last_step(gateway: Process, created: NewRun):
    run = await begun(await created(total=20))
    async with watching(address(gateway, run.job)) as (watcher, task):
        await run.add(TrainingProgressed(job_id=run.job, attempt=1, step=12, total_steps=20, metrics={"train_loss": 0.5}, doing="Saving the model"))
        await eventually(lambda: watcher.frames and watcher.frames[-1]["message"] == "Saving the model")
        saving = watcher.frames[-1]
        await run.complete(12)
        await asyncio.wait_for(task, 10)

    assert (saving["completed_steps"], saving["loss"]) == (12, 0.5)


async def test_a_merge_is_half_of_an_exports_way_and_not_its_end(gateway: Process, created: NewRun):
    run = await created()
    merge = FakeRun(run.log, run.nc, run.storage, run.project)
    job: Any = {"job_id": merge.job}
    await merge.add(
        JobCreated(**job, kind="export", stages=["training", "export"], project_id=run.project, inputs={"training_job_id": run.job, "merged": True})
    )
    async with watching(address(gateway, merge.job)) as (watcher, task):
        await merge.add(TrainingStarted(**job, attempt=1, merge=True))
        await merge.add(TrainingProgressed(**job, attempt=1, step=60, total_steps=200, doing="writing the merged model"))
        await eventually(lambda: watcher.frames and watcher.frames[-1]["message"] == "writing the merged model")
        steps = await run.storage.put(f"local/{merge.job}/1", b"")
        await merge.add(TrainingCompleted(**job, attempt=1, step=0, artifacts={}, steps=steps, merge=True))
        await merge.add(ExportStarted(**job, merged=True))
        await merge.add(ExportProgressed(**job, done=150, total=200, doing="copying files"))
        await eventually(lambda: watcher.frames[-1]["message"] == "copying files")
        await merge.add(ExportCompleted(**job, files=[]))
        await asyncio.wait_for(task, 10)

    percents = [frame["progress_percentage"] for frame in watcher.frames]
    assert (percents, {30, 50, 75} <= set(percents), percents[-1]) == (sorted(percents), True, 100)
    assert statuses(watcher.frames) == ["in_queue", "training", "completed"]
    assert watcher.code == 1000


async def refusal(url: str, **options: Any) -> tuple[int, Frame]:
    with pytest.raises(InvalidStatus) as refused:
        async with opened(url, **options):
            pass
    return refused.value.response.status_code, json.loads(refused.value.response.body)


async def test_an_unknown_job_refuses_the_handshake(gateway: Process, log: EventLog, tenant: str):
    others = "019a0000-0000-7000-8000-000000000009"
    await log.append(
        [Write(events=[JobCreated(job_id=others, kind="train", stages=["preparation", "training"], inputs={})], after=0)], origin=Origin(tenant=tenant)
    )

    for job in ("019a0000-0000-7000-8000-000000000003", others, "seven", "a.b", "*"):
        status, body = await refusal(address(gateway, job))
        assert (status, body["success"], body["error_code"]) == (404, False, "JOB_NOT_FOUND")
    assert (await refusal(address(gateway) + "ion"))[0] == 404
    assert (await refusal(address(gateway, after="seven")))[0] == 422
    async with client(gateway) as api:
        assert (await api.get("/ws/progress")).status_code == 404


async def test_pages_names_and_tokens_that_may_not_call_may_not_listen(gateway: Process):
    for headers, status, code in (
        ({"Origin": "https://elsewhere.example"}, 403, "FOREIGN_ORIGIN"),
        ({"Host": "elsewhere.example"}, 403, "FOREIGN_HOST"),
        ({"Authorization": "Bearer nonsense"}, 401, "UNAUTHORIZED"),
    ):
        answered, body = await refusal(address(gateway), additional_headers=headers)
        assert (answered, body["error_code"]) == (status, code)
    async with opened(address(gateway), additional_headers={"Origin": "http://localhost:3000"}):
        pass


async def test_with_tokens_a_socket_shows_its_own_workspace_and_the_token_in_its_address_is_told_to_nobody(
    guarded: Process, door: httpx.AsyncClient, log: EventLog
):
    ann, bob = await registered(door), await registered(door)
    job = str(uuid4())
    created = JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={})
    await log.append([Write(events=[created], after=0)], origin=Origin(tenant=await _workspace(door, ann, log)))
    secret = f"?token={ann.access}"

    async with opened(address(guarded, job) + secret) as one, opened(address(guarded) + secret) as everything:
        frames = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for socket in (one, everything)]

    assert [frame["job_id"] for frame in frames] == [job, job]
    assert (await refusal(address(guarded, job)))[0] == 401
    assert (await refusal(address(guarded, job) + "?token=nonsense"))[0] == 401
    assert (await refusal(address(guarded, job) + f"?token={bob.access}"))[0] == 404
    assert ann.access not in guarded.log.read_text()


async def _workspace(door: httpx.AsyncClient, person: Person, log: EventLog) -> str:
    project = (await door.post("/projects", json={"name": "where"}, headers=person.headers)).json()["id"]
    (fact,) = await log.read(f"ev.*.project.created.{project}")
    return fact.tenant


async def test_everything_begins_with_the_active_jobs_and_goes_on_with_those_that_come(gateway: Process, created: NewRun):
    over, active = await begun(await created()), await begun(await created())
    await over.complete(3)
    await active.progress(10)
    async with client(gateway) as api:
        await eventually(lambda: _has(api, over, "success"))
        await eventually(lambda: _has(api, active, "running"))
    async with watching(address(gateway)) as (watcher, task):
        await eventually(lambda: watcher.of(active.job))
        late = await begun(await created())
        await late.tell(1, 3)
        await eventually(lambda: [frame for frame in watcher.of(late.job) if frame["completed_steps"] == 3])
        await late.complete(3)
        await active.cancel()
        await eventually(lambda: watcher.of(active.job)[-1]["status"] == "cancelled")
        await eventually(lambda: watcher.of(late.job)[-1]["status"] == "completed")
        assert not task.done()

    assert watcher.of(active.job)[0]["completed_steps"] == 10
    assert watcher.of(over.job) == []


async def _has(api: httpx.AsyncClient, run: FakeRun, status: str) -> bool:
    return (await api.get(f"/jobs/{run.job}")).json().get("status") == status


async def test_who_comes_back_gets_what_came_since_once_and_in_order(gateway: Process, created: NewRun):
    run = await begun(await created())
    await run.progress(10)
    async with opened(address(gateway, run.job)) as socket:
        first = json.loads(await asyncio.wait_for(socket.recv(), 10))
    await run.progress(20)
    await run.progress(30)

    async with watching(address(gateway, run.job, after=first["position"])) as (watcher, task):
        await eventually(lambda: watcher.frames and watcher.frames[-1]["completed_steps"] == 30)
        await run.complete(40)
        await asyncio.wait_for(task, 10)
    again, code = await told(address(gateway, run.job, after=watcher.frames[-1]["position"]))

    assert [frame["completed_steps"] for frame in watcher.frames if frame["status"] == "training"][:2] == [20, 30]
    assert (watcher.frames[-1]["status"], watcher.code) == ("completed", 1000)
    assert (statuses(again), code) == (["completed"], 1000)


async def test_everything_that_ended_while_the_client_was_away_is_told_when_it_is_back(gateway: Process, created: NewRun):
    run = await begun(await created())
    async with watching(address(gateway)) as (watcher, _):
        await eventually(lambda: watcher.of(run.job))
    await run.complete(5)

    async with watching(address(gateway, after=watcher.of(run.job)[-1]["position"])) as (watcher, _):
        await eventually(lambda: "completed" in statuses(watcher.of(run.job)))


async def test_views_that_lag_hold_back_neither_a_new_job_nor_its_end(servers: Servers, gateway: Process, created: NewRun):
    run = await begun(await created())
    database = await asyncpg.connect(servers.environ("gateway", port=1)["TRAINYARD_DATABASE_URL"])
    stopped = database.transaction()
    await stopped.start()
    await database.execute("select from core.checkpoints for update")  # the projector waits for it
    try:
        late = await begun(await created())
        async with watching(address(gateway)) as (everything, _), watching(address(gateway, late.job)) as (one, task):
            await eventually(lambda: everything.of(late.job) and one.frames)
            await late.complete(5)
            await run.cancel()
            await asyncio.wait_for(task, 10)
            await eventually(lambda: everything.of(late.job)[-1]["status"] == "completed" and everything.of(run.job)[-1]["status"] == "cancelled")
    finally:
        await stopped.rollback()
        await database.close()

    assert (one.frames[-1]["status"], one.code) == ("completed", 1000)


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nats-py leaks a transport when a reconnect fails halfway
async def test_the_end_is_told_also_when_the_bus_was_away_meanwhile(mortal: Servers, its_gateway: Process):
    nc = await bus.connect(mortal.nats_url("infra"), name="infra")
    async with client(its_gateway) as api, store_of(mortal) as storage:
        run = await begun(await new_run(api, EventLog(nc, source="/tests"), nc, storage))
        async with watching(address(its_gateway)) as (everything, _), watching(address(its_gateway, run.job)) as (one, task):
            await run.tell(1, 3)
            await eventually(lambda: everything.of(run.job) and one.frames and one.frames[-1]["completed_steps"] == 3)
            mortal["nats"].kill()
            await revive(mortal["nats"])
            await eventually(lambda: nc.is_connected)
            await run.complete(9)
            await asyncio.wait_for(task, 30)
            await eventually(lambda: everything.of(run.job)[-1]["status"] == "completed", patience=20)
    await nc.close()

    assert (one.frames[-1]["status"], one.frames[-1]["completed_steps"], one.code) == ("completed", 9, 1000)


@pytest.mark.alone
async def test_a_gateway_with_a_hundred_open_sockets_says_that_it_goes_and_ends_within_two_seconds(servers: Servers, created: NewRun):
    run = await begun(await created())
    with running(servers, label="gateway-to-end") as gateway:
        sockets = [await opened(address(gateway, run.job if n % 2 else "")) for n in range(100)]
        watchers = [Watcher(socket) for socket in sockets]
        reading = [asyncio.create_task(watcher.read()) for watcher in watchers]
        await eventually(lambda: all(watcher.of(run.job) for watcher in watchers))

        started = time.monotonic()
        await asyncio.to_thread(gateway.stop)
        took = time.monotonic() - started
        await asyncio.wait(reading, timeout=5)

    assert took <= 2.0
    assert {watcher.code for watcher in watchers} == {1001}


class Deaf:
    """A client as ASGI sees it, that takes so many frames and then none for a while."""

    def __init__(self, *, takes: int) -> None:
        self._left = takes
        self.began = asyncio.Event()
        self.again = asyncio.Event()
        self.stuck = asyncio.Event()
        self.code = 0

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            self.code = message["code"]
        elif message["type"] == "websocket.send":
            if self._left == 0 and not self.again.is_set():
                self.stuck.set()
                await self.again.wait()
            self._left -= 1
            self.began.set()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}


@asynccontextmanager
async def in_process(servers: Servers, storage: Storage) -> AsyncIterator[tuple[Live, Sockets]]:
    nc = await bus.connect(servers.nats_url("gateway"), name="gateway")
    log = EventLog(nc, source="/tests")
    live = Live(log)
    await live.listen(nc)
    pool = await asyncpg.create_pool(servers.environ("gateway", port=1)["TRAINYARD_DATABASE_URL"], min_size=0)
    commands = Commands(log, Progress(), [], fill=lambda: 0.0)

    async def who(_: str) -> Principal:
        return LOCAL

    audience = Audience(who, most=100, every=30)
    yield live, Sockets(db=pool, log=log, live=live, places=Places(pool, log), audience=audience, storage=storage, commands=commands)
    live.close()
    await pool.close()
    await nc.close()


def scope_of(run: FakeRun) -> dict[str, Any]:
    return {"type": "websocket", "path": f"/ws/progress/{run.job}", "query_string": b"", "principal": LOCAL}


async def test_a_client_that_does_not_keep_up_is_closed_as_too_slow(servers: Servers, created: NewRun, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_module, "BUFFER", 5)
    run = await begun(await created())
    async with in_process(servers, storage) as (live, sockets):
        deaf = Deaf(takes=1)
        serving = asyncio.create_task(sockets(scope_of(run), deaf.receive, deaf.send))
        await asyncio.wait_for(deaf.began.wait(), 10)
        await eventually(lambda: any(watcher.live for watcher in live._all()))  # who still reads the past only reads it again
        await run.progress(1)
        await asyncio.wait_for(deaf.stuck.wait(), 10)
        await eventually(lambda: any(watcher.live for watcher in live._all()))  # the first that is heard makes it look for what was before
        for step in range(2, 20):
            await run.progress(step)
        await eventually(lambda: any(watcher.slow for watcher in live._all()))  # there is no other way to see it
        deaf.again.set()
        await asyncio.wait_for(serving, 10)

    assert deaf.code == 1013


async def test_a_client_that_takes_nothing_at_all_is_not_waited_for(servers: Servers, created: NewRun, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.1)
    run = await begun(await created())
    async with in_process(servers, storage) as (live, sockets):
        deaf = Deaf(takes=0)
        await asyncio.wait_for(sockets(scope_of(run), deaf.receive, deaf.send), 10)

        assert deaf.code == 1013
        assert not live._all()
