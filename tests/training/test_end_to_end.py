"""The service with its real trainers: tiny models, a few steps, a kill."""

from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from infra.embedded import Process, Servers
from libs import tiny
from libs.events import (
    Ancestor,
    FineTune,
    Fit,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
)
from libs.storage import Storage
from services.training.children import ENTRY, PRELOAD
from tests.kit import fits
from tests.kit.eventually import eventually
from tests.kit.servers import revive
from tests.kit.training import Job, child, kill, service

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

TUNING = FineTune(
    base_model=tiny.BASE, max_steps=120, save_steps=10, per_device_batch_size=1, gradient_accumulation_steps=1, lora_dropout=0.1, learning_rate=1e-3
)


@pytest.fixture(scope="module")
async def training(place: Servers) -> AsyncIterator[Process]:
    with service(place, entry="tests.kit.fits:leisurely", preload=PRELOAD, threads="1") as process:
        await revive(process)
        yield process


async def test_a_killed_run_has_the_losses_and_the_adapter_of_an_undisturbed_one(training: Process, new_job: Callable[[], Job]):
    undisturbed, killed = new_job(), new_job()
    for job in (undisturbed, killed):
        await job.create_with(msgspec.to_builtins(TUNING))
        await job.prepare(_rows(64))
    await undisturbed.completed(patience=60)
    await killed.checkpointed()
    kill(child(training))
    first, second = await undisturbed.completed(), await killed.completed(patience=40)

    assert [event.attempt for event in await killed.of(TrainingStarted)] == [1, 2]
    assert (await killed.of(TrainingStarted))[1].resumed_from >= 10
    assert await undisturbed.curve(first.steps) == await killed.curve(second.steps)
    assert _digests(first) == _digests(second)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(second.artifacts)
    await killed.whole()


async def test_each_method_evaluates_keeps_and_begins_with_a_model_that_was_trained_here(place: Servers, new_job: Callable[[], Job], storage: Storage):
    first, tuned, lost = new_job(), {method: new_job() for method in ("full", "lora", "qlora")}, new_job()
    few = {"max_steps": 6, "save_steps": 3, "eval_steps": 3}
    with service(place, entry=ENTRY, preload=PRELOAD, threads="1") as training:
        await revive(training)
        await first.create_with(msgspec.to_builtins(TUNING) | few | {"learning_rate": 1e-2})
        await first.prepare(_rows(16))
        done = await first.completed(patience=60)
        saving = (await first.of(TrainingProgressed))[-1]
        below = Ancestor(job_id=first.id, project_id="p", method="lora", files=done.artifacts)
        on_it = msgspec.to_builtins(TUNING) | few | {"base_model": f"trainyard/{first.id}", "root": tiny.BASE, "ancestors": [msgspec.to_builtins(below)]}
        for method, job in tuned.items():
            await job.create_with(on_it | {"method": method})
            await job.prepare(_rows(16))
        for job in tuned.values():
            await job.completed(patience=60)
        await storage.delete([done.artifacts["adapter_model.safetensors"].key])
        await lost.create_with(on_it)
        await lost.prepare(_rows(16))
        await eventually(lambda: lost.of(TrainingFailed), patience=30)

    assert (saving.step, saving.doing, saving.made) == (6, "Saving the model", 0)
    assert saving.metrics["train_loss"]

    learned = done.metrics["eval_loss"]
    for method, job in tuned.items():
        evaluated, kept = await job.of(TrainingEvaluated), await job.of(TrainingCheckpointed)
        assert [(event.step, set(event.metrics)) for event in evaluated] == [(step, {"eval_loss", "perplexity"}) for step in (0, 3, 6)], method
        assert [event.step for event in kept] == [3, 6], method
        assert evaluated[0].metrics["eval_loss"] == pytest.approx(learned, rel=0.1 if method == "qlora" else 1e-3), method
    (failed,) = await lost.of(TrainingFailed)
    assert failed.code == "model_gone"
    assert first.id in failed.message


async def test_a_fit_that_is_cancelled_stops_and_says_so(training: Process, new_job: Callable[[], Job]):
    job = new_job()
    await job.create_with(msgspec.to_builtins(Fit(model_type="mlp", epochs=5000, patience=0)), inputs={"dataset_id": "data", "source": "prepared"})
    await job.prepare(fits.parquet(fits.mixed()))
    await job.checkpointed()

    await job.cancel()

    end = await job.ended()
    assert isinstance(end, TrainingCancelled)
    assert end.step > 0


def _rows(count: int) -> bytes:
    return b"".join(
        msgspec.json.encode(
            {
                "id": str(n),
                "split": "train" if n % 8 else "eval",
                "format": "alpaca",
                "data": {"instruction": f"What is {n} plus one?", "input": "", "output": f"It is {n + 1}, as anybody can count."},
            }
        )
        + b"\n"
        for n in range(count)
    )


def _digests(end: TrainingCompleted) -> dict[str, str]:
    return {name: claim.sha256 for name, claim in end.artifacts.items()}
