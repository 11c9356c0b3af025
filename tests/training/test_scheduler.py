"""Whose turn it is, and that nobody's turn comes twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.embedded import Process, Servers
from libs.events import (
    Event,
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    TrainingCancelled,
    TrainingFailed,
    TrainingStarted,
)
from libs.events.log import EventLog
from services.training.leases import Demand, Leases
from services.training.queue import Queue
from services.training.scheduler import Scheduler
from tests.kit.eventually import eventually
from tests.kit.given import recorded
from tests.kit.servers import revive
from tests.kit.training import HASTY, Job, service

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

STAGES = ["preparation", "training"]


def created(job: str, *, kind: str = "train", stages: list[str] = STAGES, priority: object = None) -> JobCreated:
    return JobCreated(job_id=job, kind=kind, stages=stages, inputs={}, spec={} if priority is None else {"priority": priority})


def ready(job: str, *, priority: object = None) -> list[Event]:
    return [created(job, priority=priority), PreparationCompleted(job_id=job, parts=0, rows=1, valid=1)]


def started(job: str) -> TrainingStarted:
    return TrainingStarted(job_id=job, attempt=1)


def told(*events: Event, queue: Queue | None = None, tenant: str = "local", after: int = 0) -> Queue:
    queue = queue or Queue()
    for fact in recorded(events, after=after, tenant=tenant):
        queue.tell(fact)
    return queue


def order(queue: Queue) -> list[str]:
    """In which jobs are released, with nobody starting or ending meanwhile."""
    jobs: list[str] = []
    while entry := queue.next_to_release():
        entry.released = True
        jobs.append(entry.job_id)
    return jobs


@pytest.mark.parametrize(
    ("events", "waits"),
    [
        ([created("a")], False),
        (ready("a"), True),
        ([created("a", stages=["training"])], True),
        ([created("a", stages=["preparation"])], False),
        ([created("a", kind="unheard_of"), *ready("b")[1:]], False),
        ([PreparationCompleted(job_id="a", parts=0, rows=0, valid=0)], False),
        ([*ready("a"), started("a")], False),
        ([*ready("a"), JobCancelRequested(job_id="a")], False),
        ([created("a"), PreparationFailed(job_id="a", code="no_examples", message="")], False),
        ([created("a"), PreparationCancelled(job_id="a")], False),
        ([*ready("a"), started("a"), TrainingFailed(job_id="a", code="oom", message="")], False),
        ([*ready("a"), TrainingCancelled(job_id="a")], False),
    ],
)
def test_a_job_waits_from_the_end_of_its_preparation_until_somebody_starts_it(events: list[Event], waits: bool):
    assert bool(told(*events).next_to_release()) == waits


@pytest.mark.parametrize(
    ("events", "ours"),
    [
        ([created("a"), JobCancelRequested(job_id="a")], False),  # its preparation has the baton
        ([created("a"), JobCancelRequested(job_id="a"), *ready("a")[1:]], True),
        ([*ready("a"), JobCancelRequested(job_id="a")], True),
        ([*ready("a"), started("a"), JobCancelRequested(job_id="a")], False),
        ([*ready("a"), JobCancelRequested(job_id="a"), TrainingCancelled(job_id="a")], False),
    ],
)
def test_a_cancel_is_the_schedulers_to_write_while_nobody_has_started(events: list[Event], ours: bool):
    assert bool(told(*events).to_cancel) == ours


def test_the_oldest_goes_first():
    assert order(told(*ready("a"), *ready("b"), *ready("c"))) == ["a", "b", "c"]


def test_a_job_is_as_old_as_its_creation_not_as_its_preparation():
    assert order(told(created("a"), created("b"), ready("b")[1], ready("a")[1])) == ["a", "b"]


def test_higher_priority_goes_before_age():
    assert order(told(*ready("a"), *ready("b", priority=1), *ready("c", priority=-1), *ready("d", priority="soon"))) == ["b", "a", "d", "c"]


def test_who_has_the_fewest_in_work_goes_first():
    queue = told(*ready("a1"), *ready("a2"), *ready("a3"), tenant="a")
    told(*ready("b1"), *ready("b2"), tenant="b", queue=queue, after=10)

    assert order(queue) == ["a1", "b1", "a2", "b2", "a3"]


def test_what_others_started_counts_as_in_work():
    queue = told(*ready("a1"), started("a1"), *ready("a2"), tenant="a")
    told(*ready("b1"), tenant="b", queue=queue, after=10)

    assert order(queue) == ["b1", "a2"]


def test_an_end_makes_room_for_the_next_of_its_tenant():
    queue = told(*ready("a1"), started("a1"), *ready("a2"), TrainingFailed(job_id="a1", code="oom", message=""), tenant="a")
    told(*ready("b1"), tenant="b", queue=queue, after=10)

    assert order(queue) == ["a2", "b1"]


def test_a_job_that_has_ended_is_forgotten():
    end = TrainingCancelled(job_id="a")

    assert told(*ready("a"), started("a"), end).entries == {}


def test_one_more_than_there_are_idle_workers_lies_ready():
    assert [Demand(idle=idle, on_offer=offer).room for idle, offer in [(0, 0), (0, 1), (3, 0), (3, 1)]] == [1, 0, 4, 3]


async def test_a_job_is_offered_once_however_often_it_is_tried(nc: Client, tenant: str, training: Process):
    leases = Leases(nc, ack_wait=HASTY.ack_wait)
    job = f"unknown-{tenant}"

    assert sum(await asyncio.gather(*(leases.offer(tenant, job) for _ in range(5)))) == 1

    async def again() -> bool:
        return await leases.offer(tenant, job)

    await eventually(again)  # a worker took it, found no such job in the log, and was done with it


async def test_before_anybody_starts_a_cancel_is_answered_by_the_scheduler(training: Process, job: Job):
    await job.create()
    await job.cancel()
    await job.prepare()

    end = await job.ended()

    assert end == TrainingCancelled(job_id=job.id)
    assert await job.names() == ["cancelled"]


async def test_a_job_whose_story_can_not_be_read_holds_up_no_other(training: Process, nc: Client, new_job: Callable[[], Job]):
    odd, sound, next_one = new_job(), new_job(), new_job()
    before = training.pid
    await odd.create()
    await nc.request(f"ev.{odd.tenant}.oddity.said.{odd.id}", b"no fact")
    await sound.create()
    for job in (odd, sound):
        await job.cancel()
        await job.prepare()

    assert isinstance(await sound.ended(), TrainingCancelled)
    await next_one.create(steps=1)
    await next_one.prepare()
    await next_one.completed()
    assert training.pid == before


async def test_jobs_beyond_the_number_of_workers_wait_and_can_be_cancelled(training: Process, new_job: Callable[[], Job]):
    running, waiting = [new_job(), new_job()], [new_job(), new_job()]
    for job in (*running, *waiting):
        await job.create(steps=2_000, pause=0.02)
        await job.prepare()
        if job in running:
            await job.started()

    for job in waiting:
        await job.cancel()
    ends = [await job.ended() for job in waiting]
    for job in running:
        await job.cancel()

    assert [end.attempt for end in ends] == [0, 0]
    assert [(await job.ended()).attempt for job in running] == [1, 1]


async def test_two_replicas_give_every_job_to_one_worker_only(place: Servers, training: Process, new_job: Callable[[], Job]):
    with service(place, label="training-2", workers="2") as another:
        await revive(another)
        jobs = [new_job() for _ in range(8)]
        for job in jobs:
            await job.create(steps=3)
            await job.prepare()

        ends = [await job.completed() for job in jobs]

        assert {end.attempt for end in ends} == {1}
        assert [(await job.names()).count("started") for job in jobs] == [1] * 8


async def test_a_replica_that_comes_late_releases_nothing_of_what_has_ended(
    place: Servers, nc: Client, training: Process, log: EventLog, new_job: Callable[[], Job]
):
    ended, waiting = new_job(), new_job()
    await ended.create(steps=1)
    await ended.prepare()
    await ended.completed()
    offered: list[str] = []
    subscription = await nc.subscribe("work.gpu.>", cb=partial(_note, offered))

    async with scheduling(nc, log):
        await waiting.create(steps=1)
        await waiting.prepare()
        await waiting.completed()
    await subscription.unsubscribe()

    assert set(offered) == {f"work.gpu.{waiting.tenant}.{waiting.id}"}


async def test_a_lease_that_somebody_deleted_is_offered_again(training: Process, nc: Client, log: EventLog, new_job: Callable[[], Job]):
    running, waiting = [new_job(), new_job()], new_job()
    for job in (*running, waiting):
        await job.create(steps=2_000 if job in running else 1, pause=0.02)
        await job.prepare()
        if job in running:
            await job.started()
    subject = f"work.gpu.{waiting.tenant}.{waiting.id}"
    await eventually(lambda: _purged(nc, subject))

    async with scheduling(nc, log, again=0.1):
        for job in running:
            await job.cancel()
        await waiting.completed()


@asynccontextmanager
async def scheduling(nc: Client, log: EventLog, **settings: float) -> AsyncIterator[None]:
    """One more scheduler."""
    running = asyncio.create_task(Scheduler(log, Leases(nc), **settings).run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def _note(offered: list[str], msg: Msg) -> None:
    offered.append(msg.subject)


async def _purged(nc: Client, subject: str) -> int:
    return json.loads((await nc.request("$JS.API.STREAM.PURGE.WORK", json.dumps({"filter": subject}).encode())).data)["purged"]
