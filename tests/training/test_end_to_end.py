"""The service with its real trainer: a tiny model, a few steps, a kill."""

from collections.abc import Callable

import msgspec
import pytest

from infra.embedded import Servers
from libs import tiny
from libs.events import FineTune, TrainingCompleted, TrainingStarted
from services.training.children import ENTRY, PRELOAD
from tests.kit.servers import revive
from tests.kit.training import Job, child, kill, service

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

TUNING = FineTune(
    base_model=tiny.BASE, max_steps=120, save_steps=10, per_device_batch_size=1, gradient_accumulation_steps=1, lora_dropout=0.1, learning_rate=1e-3
)


async def test_a_killed_run_has_the_losses_and_the_adapter_of_an_undisturbed_one(place: Servers, new_job: Callable[[], Job]):
    undisturbed, killed = new_job(), new_job()
    with service(place, entry=ENTRY, preload=PRELOAD, threads="1") as training:
        await revive(training)
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
