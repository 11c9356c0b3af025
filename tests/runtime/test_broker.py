"""Reacting to facts: each at least once, later each time it fails, given up by count of failures, given back at the end."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import JobCreated, Origin, Recorded, encode
from libs.events.catalog import envelope
from libs.events.log import STREAM, EventLog, Write
from libs.runtime import broker as runtime
from libs.runtime.broker import Broker, HandedOver, Later, broker, react
from libs.storage import StorageDown
from tests.kit.eventually import eventually

Work = Callable[[Recorded], Awaitable[None]]


class Replicas:
    """Services that react to one durable; each hears of this test's tenant only."""

    def __init__(self, servers: Servers, tenant: str) -> None:
        self.durable = f"test-{tenant}"
        self.given_up: list[str] = []
        self.started: list[Broker] = []
        self._url = servers.nats_url("datasets")
        self._tenant = tenant

    async def start(self, to: Work, *, workers: int = 1, ack_wait: float = 20.0) -> Broker:
        async def mine(recorded: Recorded) -> None:
            if recorded.tenant == self._tenant:
                await to(recorded)

        async def give_up(recorded: Recorded, error: Exception) -> None:
            self.given_up.append(job(recorded))

        replica = broker(self._url, name="datasets")
        react(replica, JobCreated, durable=self.durable, to=mine, give_up=give_up, workers=workers, ack_wait=ack_wait)
        await replica.start()
        self.started.append(replica)
        return replica


@pytest.fixture
async def replicas(servers: Servers, infra_nc: Client, tenant: str) -> AsyncIterator[Replicas]:
    replicas = Replicas(servers, tenant)
    yield replicas
    for replica in replicas.started:
        await replica.stop()
    await infra_nc.jetstream().delete_consumer(STREAM, replicas.durable)


def job(recorded: Recorded) -> str:
    assert isinstance(recorded.event, JobCreated)
    return recorded.event.job_id


async def happens(log: EventLog, origin: Origin, job_id: str) -> None:
    await log.append([Write(events=[JobCreated(job_id=job_id, kind="none", stages=[], inputs={})], after=0)], origin=origin)


async def unanswered(nc: Client, replicas: Replicas) -> int:
    info = await nc.jetstream().consumer_info(STREAM, replicas.durable)
    return (info.num_ack_pending or 0) + (info.num_pending or 0)


async def test_what_is_done_is_not_delivered_again(replicas: Replicas, infra_nc: Client, log: EventLog, origin: Origin):
    done: list[str] = []

    async def work(recorded: Recorded) -> None:
        done.append(job(recorded))

    await replicas.start(work, workers=2)
    for n in range(10):
        await happens(log, origin, f"j{n}")

    await eventually(lambda: done, of=10)
    await eventually(lambda: _none_left(infra_nc, replicas))
    assert sorted(done) == sorted(f"j{n}" for n in range(10))


async def test_only_failures_of_the_work_are_counted(replicas: Replicas, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "TRIES", 2)
    outcomes: list[Exception] = [StorageDown("away"), StorageDown("away"), ValueError("no"), ValueError("no"), ValueError("never seen")]
    tries: list[float] = []

    async def work(recorded: Recorded) -> None:
        tries.append(time.monotonic())
        raise outcomes[len(tries) - 1]

    await replicas.start(work)
    await happens(log, origin, "j")

    await eventually(lambda: replicas.given_up)
    assert len(tries) == 4
    assert replicas.given_up == ["j"]
    waits = [after - before for before, after in pairwise(tries)]
    assert waits == sorted(waits)
    assert waits[0] >= 0.2


async def test_long_work_is_not_given_to_another(replicas: Replicas, infra_nc: Client, log: EventLog, origin: Origin):
    begun: list[str] = []

    async def work(recorded: Recorded) -> None:
        begun.append(job(recorded))
        await asyncio.sleep(2.5)

    await replicas.start(work, workers=2, ack_wait=1.0)
    await happens(log, origin, "j")

    await eventually(lambda: begun)
    await eventually(lambda: _none_left(infra_nc, replicas))
    assert begun == ["j"]


@pytest.mark.alone
async def test_work_in_hand_is_given_back_at_the_end(replicas: Replicas, log: EventLog, origin: Origin):
    """It would come again after 20 s only, and an idle worker of the same process must not get it."""
    begun: list[str] = []

    async def endless(recorded: Recorded) -> None:
        begun.append("one")
        await asyncio.Event().wait()

    async def work(recorded: Recorded) -> None:
        begun.append("two")

    one = await replicas.start(endless, workers=4)
    await happens(log, origin, "j")
    await eventually(lambda: begun)

    asked = time.monotonic()
    await one.stop()
    await replicas.start(work)

    await eventually(lambda: begun, of=2, patience=5)
    assert begun == ["one", "two"]
    assert time.monotonic() - asked < 5


async def test_what_waits_occupies_no_worker_and_comes_again_at_its_time(replicas: Replicas, infra_nc: Client, log: EventLog, origin: Origin):
    done: list[str] = []
    ready = asyncio.Event()

    async def until() -> None:
        await ready.wait()

    async def work(recorded: Recorded) -> None:
        if job(recorded) == "waits" and not ready.is_set():
            raise Later(until)
        done.append(job(recorded))

    await replicas.start(work, ack_wait=0.5)
    for n in range(3):
        await happens(log, origin, "waits" if n == 0 else f"j{n}")
    await eventually(lambda: done, of=2)
    await asyncio.sleep(1)
    assert done == ["j1", "j2"]
    ready.set()

    await eventually(lambda: done, of=3)
    await eventually(lambda: _none_left(infra_nc, replicas))
    assert done == ["j1", "j2", "waits"]


async def test_what_waits_is_given_back_at_the_end(replicas: Replicas, log: EventLog, origin: Origin):
    """It would come again after 20 s only."""
    begun: list[str] = []

    async def endless() -> None:
        begun.append("waiting")
        await asyncio.Event().wait()

    async def waits(recorded: Recorded) -> None:
        raise Later(endless)

    async def work(recorded: Recorded) -> None:
        begun.append("working")

    one = await replicas.start(waits)
    await happens(log, origin, "j")
    await eventually(lambda: begun)
    await one.stop()
    await replicas.start(work)

    await eventually(lambda: begun, of=2, patience=5)
    assert begun == ["waiting", "working"]


async def test_failures_while_waiting_count(replicas: Replicas, infra_nc: Client, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "TRIES", 2)

    async def broken() -> None:
        raise ValueError("no")

    async def waits(recorded: Recorded) -> None:
        if not replicas.given_up:
            raise Later(broken)

    await replicas.start(waits)
    await happens(log, origin, "j")

    await eventually(lambda: replicas.given_up)
    await eventually(lambda: _none_left(infra_nc, replicas))
    assert replicas.given_up == ["j"]


async def test_what_is_handed_over_is_neither_acknowledged_nor_given_back(replicas: Replicas, infra_nc: Client, log: EventLog, origin: Origin):
    begun: list[float] = []

    async def work(recorded: Recorded) -> None:
        begun.append(time.monotonic())
        if len(begun) == 1:
            raise HandedOver("somebody else has it")

    await replicas.start(work, ack_wait=1.0)
    await happens(log, origin, "j")

    await eventually(lambda: begun, of=2)
    assert begun[1] - begun[0] > 0.9


async def test_a_fact_of_a_newer_version_waits_for_it(replicas: Replicas, infra_nc: Client, tenant: str, log: EventLog, origin: Origin):
    heard: list[str] = []

    async def work(recorded: Recorded) -> None:
        heard.append(job(recorded))

    newer = envelope(JobCreated(job_id="new", kind="none", stages=[], inputs={}), origin=origin, source="/tests", id=str(uuid4()), at=datetime.now(UTC))
    newer = msgspec.structs.replace(newer, dataschema="urn:trainyard:job.created:99")
    await infra_nc.request(f"ev.{tenant}.job.created.new", encode(newer))
    await happens(log, origin, "known")

    await replicas.start(work)

    await eventually(lambda: heard)
    assert heard == ["known"]
    assert replicas.given_up == []
    assert await unanswered(infra_nc, replicas) == 1


async def test_a_durable_that_was_deleted_is_made_anew(replicas: Replicas, infra_nc: Client, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "MEND", 0.2)
    heard: list[str] = []

    async def work(recorded: Recorded) -> None:
        heard.append(job(recorded))

    await replicas.start(work)
    await infra_nc.jetstream().delete_consumer(STREAM, replicas.durable)
    await happens(log, origin, "j")

    await eventually(lambda: "j" in heard)


async def test_a_worker_that_died_is_told_and_mended(replicas: Replicas, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "MEND", 0.5)
    heard: list[str] = []

    async def work(recorded: Recorded) -> None:
        heard.append(job(recorded))

    replica = await replicas.start(work)
    assert await replica.check() == ""
    subscriber: Any = replica.subscribers[0]
    for task in subscriber.tasks:
        task.cancel()

    assert await eventually(replica.check) == "1 of 1 workers don't listen"
    await eventually(lambda: _well(replica))
    await happens(log, origin, "j")
    await eventually(lambda: "j" in heard)


async def test_a_new_version_changes_a_durable_that_is_there(replicas: Replicas, infra_nc: Client):
    async def work(recorded: Recorded) -> None: ...

    await replicas.start(work, ack_wait=3.0)
    await replicas.start(work, ack_wait=7.0)

    assert (await infra_nc.jetstream().consumer_info(STREAM, replicas.durable)).config.ack_wait == 7.0


async def _none_left(nc: Client, replicas: Replicas) -> bool:
    return await unanswered(nc, replicas) == 0


async def _well(replica: Broker) -> bool:
    return await replica.check() == ""
