"""Attempts that are lost, cancelled or held up: a training goes on behind its last checkpoint, and ends once."""

import asyncio
import time

import pytest

from infra.embedded import Process, Servers
from libs.events import TrainingAttemptLost, TrainingCancelled, TrainingCheckpointed, TrainingCompleted, TrainingFailed, TrainingProgressed, TrainingStarted
from libs.events.log import Unavailable
from tests.kit.eventually import eventually
from tests.kit.servers import revive
from tests.kit.trainer import losses
from tests.kit.training import Job, child, forkserver, gone, kill, settled

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


# The child and the forkserver


async def test_a_killed_child_is_started_again_behind_its_last_checkpoint(training: Process, job: Job):
    await job.create(steps=40, save=4, pause=0.1)
    await job.prepare()
    checkpoint = await job.checkpointed()

    kill(await eventually(lambda: child(training)))
    end = await job.completed()

    (lost,) = await job.of(TrainingAttemptLost)
    first, second = await job.of(TrainingStarted)
    assert (lost.attempt, lost.cause) == (1, "killed")
    assert (first.attempt, second.attempt, end.attempt) == (1, 2, 2)
    assert second.resumed_from >= checkpoint.step
    assert await job.curve(end.steps) == losses(40)
    await job.whole()


async def test_steps_behind_the_last_checkpoint_are_done_again_and_counted_once(training: Process, job: Job):
    await job.create(steps=20, save=8, die_at=14)
    await job.prepare()

    end = await job.completed()

    assert [event.resumed_from for event in await job.of(TrainingStarted)] == [0, 8]
    assert await job.curve(end.steps) == losses(20)
    assert [line["attempt"] for line in await job.steps(end.steps)] == [1] * 8 + [2] * 12


async def test_who_goes_on_behind_the_last_step_tells_of_it(training: Process, job: Job):
    """The attempt that did it was killed before it could complete, and may not have come to tell."""
    await job.create(steps=8, save=8, die_at=9)
    await job.prepare()

    end = await job.completed()

    assert [event.resumed_from for event in await job.of(TrainingStarted)] == [0, 8]
    told = [event for event in await job.of(TrainingProgressed) if event.attempt == 2]
    assert [(event.step, event.total_steps, event.metrics["train_loss"]) for event in told] == [(8, 8, losses(8)[-1])]
    assert await job.curve(end.steps) == losses(8)


async def test_three_attempts_that_come_no_further_fail_the_job(training: Process, job: Job):
    await job.create(steps=20, save=8, exit_at=10)
    await job.prepare()

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert (end.code, end.attempt) == ("crashed", 4)
    assert "exit status 7" in end.message
    assert [event.resumed_from for event in await job.of(TrainingStarted)] == [0, 8, 8, 8]
    assert end.steps
    assert await job.curve(end.steps) == losses(8)


async def test_every_new_checkpoint_earns_three_attempts_more(training: Process, job: Job):
    await job.create(steps=10, save=1, die_at=6, deaths=2)
    await job.prepare()

    end = await job.completed()

    assert end.attempt == 3
    assert await job.curve(end.steps) == losses(10)


async def test_a_killed_forkserver_takes_its_child_along_and_another_one_goes_on(training: Process, job: Job):
    await job.create(steps=40, save=4, pause=0.1)
    await job.prepare()
    await job.checkpointed()
    before, running = forkserver(training), await eventually(lambda: child(training))
    assert running

    kill(before)
    await gone(running)
    end = await job.completed()

    assert {event.cause for event in await job.of(TrainingAttemptLost)} == {"forkserver"}
    assert forkserver(training).pid != before.pid
    assert await job.curve(end.steps) == losses(40)


# Cancels


@pytest.mark.alone
async def test_a_cancel_while_the_model_loads_is_answered_at_once(training: Process, job: Job):
    await job.create(loading=30.0)
    await job.prepare()
    await job.started()
    await eventually(lambda: child(training))

    end, took = await _cancelled(job)

    assert end == TrainingCancelled(job_id=job.id, attempt=1, step=0, steps=end.steps)
    assert took < 5


@pytest.mark.alone
async def test_a_cancel_during_the_run_keeps_a_checkpoint_and_all_steps(training: Process, job: Job):
    await job.create(steps=2_000, save=1_000, pause=0.02)
    await job.prepare()
    await job.stepped(step=5)

    end, took = await _cancelled(job)

    (checkpoint,) = await job.of(TrainingCheckpointed)
    assert took < 5
    assert (end.attempt, end.step) == (1, checkpoint.step)
    assert end.step >= 5
    assert end.steps
    assert await job.curve(end.steps) == losses(end.step)
    await eventually(lambda: child(training) is None)


@pytest.mark.parametrize("how", ["deaf", "hanging"])
async def test_a_child_that_does_not_heed_a_cancel_is_ended(training: Process, job: Job, how: str):
    """Deaf ones by SIGTERM; those that hang in native code by SIGKILL."""
    await job.create(steps=5_000, save=5_000, pause=0.01, deaf=how == "deaf", hang_at=10 if how == "hanging" else 0)
    await job.prepare()
    await job.stepped(step=5)

    end, _ = await _cancelled(job)

    assert end.step >= 5
    await eventually(lambda: child(training) is None)


async def test_a_cancel_after_the_end_changes_nothing(training: Process, job: Job):
    await job.create(steps=1)
    await job.prepare()
    await job.completed()

    await job.cancel()

    assert (await settled(job))[-1] == "completed"


# What it stands on


async def test_while_the_object_store_is_away_the_run_goes_on_and_catches_up(place: Servers, training: Process, job: Job):
    await job.create(steps=100, save=10, pause=0.03)
    await job.prepare()
    await job.checkpointed()

    place["s3"].kill()
    before = len(await job.of(TrainingCheckpointed))
    await job.stepped(step=80)
    during = len(await job.of(TrainingCheckpointed))
    await revive(place["s3"])
    end = await job.completed()

    assert during <= before + 1
    assert end.attempt == 1
    assert (await job.of(TrainingCheckpointed))[-1].step == 100
    assert await job.curve(end.steps) == losses(100)
    await job.whole()


@pytest.mark.alone
async def test_a_cancel_ends_a_run_whose_model_waits_for_the_store(place: Servers, training: Process, job: Job):
    """Who sees the cancel before his own completed cancels."""
    await job.create(steps=20, save=10, pause=0.1)
    await job.prepare()
    await job.stepped()
    place["s3"].kill()
    await eventually(lambda: _is_told_of(job, step=20))

    try:
        end, took = await _cancelled(job)
    finally:
        await revive(place["s3"])

    assert end.attempt == 1
    assert took < 5


async def test_while_the_bus_is_away_the_run_goes_on_and_ends_once(place: Servers, training: Process, job: Job):
    await job.create(steps=100, save=10, pause=0.02)
    await job.prepare()
    await job.checkpointed()

    place["nats"].kill()
    await asyncio.sleep(0.5)
    await revive(place["nats"])
    end = await eventually(lambda: _completed(job), patience=20)

    assert end
    assert await job.curve(end.steps) == losses(100)
    await job.whole()


async def _cancelled(job: Job) -> tuple[TrainingCancelled, float]:
    """With the seconds it took."""
    began = time.monotonic()
    await job.cancel()
    end = await job.ended()
    assert isinstance(end, TrainingCancelled), end
    return end, time.monotonic() - began


async def _completed(job: Job) -> TrainingCompleted | None:
    """Also while the bus is on its way back."""
    try:
        return next(iter(await job.of(TrainingCompleted)), None)
    except Unavailable:
        return None


async def _is_told_of(job: Job, *, step: int) -> bool:
    return any(event.step == step for event in await job.of(TrainingProgressed))
