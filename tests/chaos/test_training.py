"""Everything that a run rests on dies or sleeps, one after the other: the run ends once, and its losses and its adapter are those of a run that nobody disturbed."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from libs.events import (
    ExportCompleted,
    ExportStarted,
    JobCancelRequested,
    PreparationCancelled,
    PreparationCompleted,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
)
from tests.kit.checker import check, summary
from tests.kit.eventually import eventually
from tests.kit.platform import Platform, client, platform
from tests.kit.processes import forkservers, left_running, trainers
from tests.kit.servers import revive
from tests.kit.yard import PATIENCE, Yard, gone, kill

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # nats-py leaves them behind where a reconnect fails halfway
    pytest.mark.timeout(240),
]

STEPS = 320
HYPERPARAMS = {
    "num_epochs": 100,
    "max_steps": STEPS,
    "save_steps": 20,
    "eval_steps": 160,
    "learning_rate": 5e-3,
    "per_device_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 256,
    "lora_dropout": 0.1,
    "seed": 7,
}
"""With dropout a run that goes on needs the very state of its random numbers."""
ENDLESS = {"max_steps": 1_000_000, "num_epochs": 100}
LONG = "LONG_FAULTS" in os.environ
"""`make chaos` has the time; a test for every change has not."""
AWAY, ASLEEP = (60.0, 15.0) if LONG else (15.0, 0.0)
"""Seconds, at least, without the store, and that a service sleeps."""


@pytest.fixture(scope="module")
def grounds() -> Iterator[Platform]:
    """One of everything, but two that train, each a single run at a time."""
    with platform(gateways=1, datasets=1, training=2, export=1, environ={"TRAINYARD_WORKERS": "1", "TRAINYARD_THREADS": "1"}) as made:
        yield made
        home = made.servers.home.path
    assert left_running(home) == []


@pytest.fixture(scope="module")
async def yard(grounds: Platform) -> AsyncIterator[Yard]:
    async with client() as http, grounds.log() as log:
        yard = Yard(grounds, http, log, hyperparams=HYPERPARAMS)
        await yard.open()
        yield yard


@pytest.fixture(scope="module")
async def undisturbed(yard: Yard) -> TrainingCompleted:
    end = await yard.end(await yard.start())
    assert isinstance(end, TrainingCompleted), end
    return end


@pytest.fixture(scope="module")
async def killed_export(yard: Yard, undisturbed: TrainingCompleted) -> str:
    """Twenty seconds pass before somebody takes it up again: the other tests go on meanwhile."""
    (service,) = yard.platform.export
    job = (await yard.http.post(f"{yard.path}/export")).json()["job_id"]
    await yard.until(job, ExportStarted)
    service.kill()
    await revive(service)
    return job


async def test_a_run_that_nobody_disturbs_learns(yard: Yard, undisturbed: TrainingCompleted):
    losses = [step["train_loss"] for step in await steps(yard, undisturbed)]

    assert undisturbed.step == len(losses) == STEPS
    assert sum(losses[-20:]) < sum(losses[:20]) / 2


@pytest.mark.usefixtures("killed_export")
async def test_whoever_trains_may_be_killed_or_sleep(yard: Yard, undisturbed: TrainingCompleted):
    """The child, the forkserver, the service, and a service that sleeps until another one has its run: each when there is a new checkpoint."""
    job = await yard.start()
    await yard.progressed(job, attempt=1)

    kill(*trainers((await yard.at_work()).pid or 0))
    await yard.progressed(job, attempt=2)

    service = await yard.at_work()
    (server,) = forkservers(service.pid or 0)
    orphans = trainers(service.pid or 0)
    kill(server)
    await gone(orphans, patience=2)
    await yard.progressed(job, attempt=3)

    service = await yard.at_work()
    assert service.pid
    orphans = [*forkservers(service.pid), *trainers(service.pid)]
    kill(service.pid)
    await gone(orphans, patience=2)
    await eventually(lambda: service.ended() is not None)
    service.spawn()
    await yard.progressed(job, attempt=4)

    service = await yard.at_work()
    service.pause()
    slept_at = time.monotonic()
    await yard.progressed(job, attempt=5)
    await asyncio.sleep(max(0, slept_at + ASLEEP - time.monotonic()))
    assert await yard.ends(job) == []  # or it would wake up too late to do any harm
    service.resume()

    completed = await yard.end(job)
    assert await like(yard, undisturbed, job) == []
    assert completed.attempt == 5
    slept, took_over = (await yard.said(job, TrainingStarted))[-2:]
    assert slept.worker != took_over.worker
    await eventually(lambda: not any(trainers(service.pid or 0) for service in yard.platform.training), patience=PATIENCE)


async def test_a_run_that_is_killed_three_times_and_comes_no_further_fails(yard: Yard):
    """The last time its service goes along, so that another one has to say it."""
    job = await yard.start(**ENDLESS, save_steps=1_000_000)
    for attempt in (1, 2, 3):
        await yard.until(job, TrainingStarted, attempt=attempt)
        service = await yard.at_work()
        kill(*(trainers(service.pid or 0) if attempt < 3 else [service.pid or 0]))
    await eventually(lambda: service.ended() is not None)
    service.spawn()

    failed = await yard.end(job)

    assert isinstance(failed, TrainingFailed)
    assert (failed.code, failed.attempt) == ("crashed", 3)


async def test_a_run_goes_on_while_servers_are_away(yard: Yard, undisturbed: TrainingCompleted):
    """The gateway, the database and the bus come back soon; the store only when the run has nothing left to do but to wait for it."""
    job = await yard.start()
    await yard.progressed(job, attempt=1)
    servers = yard.platform.servers

    for process in (yard.platform.gateways[0], servers["postgres"], servers["nats"]):
        process.kill()
    for name in ("postgres", "nats"):
        await revive(servers[name])
    await revive(yard.platform.gateways[0])
    told = len(await yard.said(job, TrainingProgressed))
    await yard.until(job, TrainingProgressed, of=told + 1)

    servers["s3"].kill()
    away = time.monotonic()
    last = await yard.until(job, TrainingProgressed, step=STEPS)
    await asyncio.sleep(max(0, away + AWAY - time.monotonic()))
    assert await yard.ends(job) == []
    await revive(servers["s3"])
    await yard.end(job)

    assert last.total_steps == STEPS
    assert await like(yard, undisturbed, job) == []


async def test_an_export_may_be_killed(yard: Yard, undisturbed: TrainingCompleted, killed_export: str):
    completed = await yard.end(killed_export)

    assert isinstance(completed, ExportCompleted)
    weights = {file.name: file.content.sha256 for file in completed.files}["adapter_model.safetensors"]
    assert weights == undisturbed.artifacts["adapter_model.safetensors"].sha256
    assert len(await yard.ends(killed_export)) == 1


@pytest.mark.alone
async def test_a_run_is_cancelled_wherever_it_is(yard: Yard):
    """While it trains, while it waits for a worker, while its model is loaded, while its rows are put together, and not any more."""
    first, second, third = yard, yard.another(), yard.another()
    await second.open()
    await third.open()
    training = [await first.start(**ENDLESS), await second.start(**ENDLESS)]
    for other, job in zip((first, second), training, strict=True):
        await other.progressed(job, attempt=1)

    again = await first.http.post(f"{first.path}/train/start", json={"method": "lora"})
    queued = await third.start(**ENDLESS)
    await third.until(queued, PreparationCompleted)
    answers = [await third.cancel()]
    asked = time.monotonic()
    answers.append(await first.cancel())
    took = time.monotonic() - asked
    loading = await third.start(**ENDLESS)
    await third.until(loading, TrainingStarted)
    answers.append(await third.cancel())
    answers.append(await second.cancel())
    preparing, answer = await _cancelled_while_prepared(third)
    answers.append(answer)

    assert again.status_code == 409
    assert [answer["status"] for answer in answers] == ["cancelled"] * 5
    assert took < 5
    for job in training:
        end, (*_, kept) = await yard.end(job), await yard.said(job, TrainingCheckpointed)
        assert isinstance(end, TrainingCancelled)
        assert (end.attempt, end.step) == (1, kept.step)
    assert [await yard.ends(job) for job in (queued, preparing)] == [[TrainingCancelled(job_id=queued)], [PreparationCancelled(job_id=preparing)]]
    assert [end.attempt for end in await yard.ends(loading)] == [1]
    assert (await third.cancel())["status"] == "no_active_job"
    assert len(await yard.said(preparing, JobCancelRequested)) == 1


async def _cancelled_while_prepared(yard: Yard) -> tuple[str, dict[str, Any]]:
    (datasets,) = yard.platform.datasets
    datasets.pause()
    job = await yard.start(**ENDLESS)
    cancelling = asyncio.create_task(yard.cancel())
    await yard.until(job, JobCancelRequested)
    datasets.resume()
    return job, await cancelling


# After all of it


async def test_after_all_of_this_nothing_is_wrong(yard: Yard):
    assert await yard.platform.rest(PATIENCE) == ""
    await yard.platform.sweep()

    evidence = await yard.platform.collect()

    assert summary(check(evidence)) == ""
    assert {fact.type for fact in evidence.facts} >= {"training.attempt_lost", "training.checkpointed", "training.evaluated", "training.cancelled"}


# What is compared


async def steps(yard: Yard, completed: TrainingCompleted) -> list[dict[str, Any]]:
    """The step log but for what depends on who did it, and when."""
    lines = [json.loads(line) for line in (await yard.read(completed.steps)).splitlines()]
    return [{name: value for name, value in line.items() if name not in ("attempt", "tokens_per_second")} for line in lines]


async def like(yard: Yard, undisturbed: TrainingCompleted, job: str) -> list[str]:
    """What differs: nothing, bit for bit."""
    ends = await yard.ends(job)
    if len(ends) != 1 or not isinstance(ends[0], TrainingCompleted):
        return [f"it ended with {ends}"]
    (prepared,), (before,) = [await yard.said(one, PreparationCompleted) for one in (job, undisturbed.job_id)]
    found, expected = [await steps(yard, one) for one in (ends[0], undisturbed)]
    adapters = [one.artifacts["adapter_model.safetensors"].sha256 for one in (ends[0], undisturbed)]
    odd = [f"step {theirs['step']}: {ours}, undisturbed {theirs}" for ours, theirs in zip(found, expected, strict=False) if ours != theirs]
    odd += [f"{len(found)} steps, undisturbed {len(expected)}"] if len(found) != len(expected) else []
    odd += ["the snapshots differ"] if prepared.snapshot.sha256 != before.snapshot.sha256 else []
    return odd[:5] + (["the adapters differ"] if adapters[0] != adapters[1] else [])
