"""Services that are killed, paused or asked to end: another one goes on, once, and no process is left."""

import asyncio
import signal
import time
from contextlib import suppress

import httpx
import msgspec
import psutil
import pytest

from infra.embedded import Process, Servers
from libs.events import TrainingAttemptLost, TrainingCancelled, TrainingCheckpointed, TrainingStarted
from libs.events.log import EventLog
from libs.storage import Storage
from tests.kit.eventually import eventually
from tests.kit.merging import Merge
from tests.kit.servers import revive
from tests.kit.trainer import losses
from tests.kit.training import HASTY, Job, child, descendants, folders, gone, service, settled

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


# The service


@pytest.mark.alone
@pytest.mark.parametrize("state", ["running", "hanging", "stopped"])
async def test_a_killed_service_leaves_no_process_and_the_next_one_goes_on(place: Servers, job: Job, state: str):
    """Also a child that hangs in native code, or that somebody has paused."""
    with service(place) as training:
        await revive(training)
        await job.create(steps=40, save=4, pause=0.1, hang_at=10 if state == "hanging" else 0)
        await job.prepare()
        await job.stepped(step=8)
        await job.checkpointed()
        processes = descendants(training)
        if state == "stopped":
            processes[-1].suspend()
        left = folders(place)

        training.signal(signal.SIGKILL)
        await gone(*processes, patience=2)

        assert len(processes) == 2
        assert len(left) == 1
        training.kill()
        if state == "hanging":
            await job.cancel()  # or it would hang again
        await revive(training)
        if state == "hanging":
            await job.ended()
        else:
            end = await job.completed()
            assert end.attempt == 2
            assert await job.curve(end.steps) == losses(40)
        await eventually(lambda: not folders(place))


@pytest.mark.alone
async def test_a_merge_whose_service_is_killed_begins_again_at_the_next(place: Servers, log: EventLog, storage: Storage, tenant: str):
    merge = Merge(log, storage, tenant)
    with service(place) as first, service(place, label="training-2") as second:
        await revive(first)
        await merge.asked(steps=1, pause=60, pauses=1)
        await merge.started()
        await revive(second)

        first.kill()
        end = await merge.completed()

    assert (end.attempt, end.merge) == (2, True)
    assert await storage.get(end.artifacts["merged/model.safetensors"]) == b"{}weights[]"


@pytest.mark.alone
async def test_a_service_that_is_asked_to_end_gives_its_job_back_at_once(place: Servers, job: Job):
    patient = msgspec.structs.replace(HASTY, ack_wait=60.0)
    with service(place, timing=patient) as first, service(place, label="training-2", timing=patient) as second:
        await revive(first)
        await job.create(steps=200, save=1_000, pause=0.05)
        await job.prepare()
        await job.stepped(step=10)
        processes = descendants(first)
        await revive(second)

        began = time.monotonic()
        first.signal(signal.SIGTERM)
        await asyncio.to_thread(psutil.Process(first.pid).wait, 10)
        took = time.monotonic() - began
        end = await job.completed()

        assert took < 4.5
        await gone(*processes)
        (lost,) = await job.of(TrainingAttemptLost)
        assert lost.cause == "given_back"
        assert [event.resumed_from for event in await job.of(TrainingStarted)][1] >= 10
        assert await job.curve(end.steps) == losses(200)


async def test_restarts_do_not_count_as_attempts_in_vain(place: Servers, job: Job):
    await job.create(loading=1.0, steps=3)
    await job.prepare()
    with service(place) as training:
        for attempt in range(1, 4):
            await revive(training)
            await job.started(attempt=attempt)
            training.stop()
        await revive(training)

        end = await job.completed()

    assert end.attempt == 4


async def test_who_was_taken_for_dead_finds_its_job_in_other_hands_and_lets_go(place: Servers, job: Job):
    with service(place) as first, service(place, label="training-2") as second:
        await revive(first)
        await job.create(steps=150, save=10, pause=0.03, pauses=2)
        await job.prepare()
        await job.checkpointed()
        running = child(first)
        assert running
        first.pause()
        await revive(second)
        await job.started(attempt=2)

        first.resume()
        await gone(running)
        end = await job.completed()

        assert end.attempt == 2
        assert await job.curve(end.steps) == losses(150)
        names = await settled(job)
        assert names[-1] == "completed"
        assert sum(name in ("completed", "failed", "cancelled") for name in names) == 1
        attempts = [event.attempt for event in await job.of(TrainingCheckpointed)]
        assert attempts == sorted(attempts)
        await job.whole()


async def test_a_service_that_can_start_no_children_says_so_and_takes_no_job(place: Servers, job: Job):
    await job.create(steps=1)
    await job.prepare()
    with service(place, preload=("no.such.module",)) as training:
        training.spawn()
        told = await eventually(lambda: _problem(training))
        assert "pip install 'trainyard[training]'" in told
        assert await job.names() == []
        training.kill()

    with service(place) as training:
        await revive(training)
        await job.completed()


async def test_a_cancel_between_two_attempts_ends_the_job_where_the_first_left_it(place: Servers, job: Job):
    await job.create(steps=2_000, save=4, pause=0.02)
    await job.prepare()
    with service(place) as first:
        await revive(first)
        await job.checkpointed()
    last = (await job.of(TrainingCheckpointed))[-1]
    await job.cancel()

    with service(place) as second:
        await revive(second)
        end = await job.ended()

    assert end == TrainingCancelled(job_id=job.id, attempt=1, step=last.step, steps=last.steps)


async def test_a_checkpoint_that_is_damaged_or_gone_is_left_for_the_one_before(place: Servers, job: Job, storage: Storage):
    await job.create(steps=200, save=5, pause=0.03)
    await job.prepare()
    with service(place) as training:
        await revive(training)
        await eventually(lambda: _checkpoints(job, 3))
        training.stop()
        kept, gone, damaged = (await job.of(TrainingCheckpointed))[-3:]
        await storage.delete([gone.state.key])
        (place.store.root / place.store.bucket / damaged.state.key).write_bytes(b"other bytes")

        await revive(training)
        end = await job.completed()

    assert (await job.of(TrainingStarted))[1].resumed_from == kept.step
    assert await job.curve(end.steps) == losses(200)


async def _checkpoints(job: Job, count: int) -> bool:
    return len(await job.of(TrainingCheckpointed)) >= count


async def _problem(process: Process) -> str:
    async with httpx.AsyncClient() as client:
        with suppress(httpx.HTTPError):
            return (await client.get(f"http://{process.part.address}/readyz")).json()["parts"].get("children", "").removeprefix("ok")
    return ""
