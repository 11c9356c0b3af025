"""The stage of an export that merges: leased and fenced as a training is, begun again when it is killed, and with one end."""

import msgspec
import pytest

from infra.embedded import Process, Servers
from libs import tiny
from libs.events import Claim, FineTune, TrainingAttemptLost, TrainingCancelled, TrainingFailed, TrainingProgressed, TrainingStarted
from libs.events.log import EventLog
from libs.storage import Storage
from tests.kit.eventually import eventually
from tests.kit.merging import FILES, Merge
from tests.kit.training import folders

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


@pytest.fixture
def merge(log: EventLog, storage: Storage, tenant: str) -> Merge:
    return Merge(log, storage, tenant)


async def test_the_adapter_is_merged_for_the_export_that_follows(training: Process, place: Servers, storage: Storage, merge: Merge):
    await merge.asked(loading=0.5)

    end = await merge.completed()

    (started,) = await merge.of(TrainingStarted)
    assert (started.merge, started.attempt, end.merge, end.attempt) == (True, 1, True, 1)
    assert end.summary["merged"] == {"given": ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], "texts": ["2 + 2\nfour"], "snapshot": ""}
    assert await storage.get(end.artifacts["merged/model.safetensors"]) == b"{}weights[]"
    assert end.artifacts["merged/model.safetensors"].key.startswith(f"{merge.tenant}/{merge.id}/1/")
    (progress,) = await merge.of(TrainingProgressed)
    assert (progress.step, progress.total_steps, progress.doing) == (50, 200, "merging the adapter into its base")
    await eventually(lambda: not folders(place))


async def test_a_merge_that_is_killed_begins_again_and_ends_once(training: Process, merge: Merge):
    await merge.asked(die_at=1)

    end = await merge.completed()

    assert (end.attempt, [lost.cause for lost in await merge.of(TrainingAttemptLost)]) == (2, ["killed"])
    assert [event.resumed_from for event in await merge.of(TrainingStarted)] == [0, 0]


async def test_a_merge_that_is_killed_again_and_again_fails(training: Process, merge: Merge):
    await merge.asked(die_at=1, deaths=9)

    end = await merge.ended()

    assert isinstance(end, TrainingFailed)
    assert (end.code, len(await merge.of(TrainingStarted))) == ("crashed", 3)
    assert end.message.startswith("The merge ended without a word 3 times")


async def test_a_merge_is_cancelled_while_it_loads(training: Process, merge: Merge):
    await merge.asked(loading=60)
    await merge.started()

    await merge.cancel()

    assert isinstance(await merge.ended(patience=5), TrainingCancelled)


async def test_an_adapter_that_is_gone_is_said(training: Process, storage: Storage, merge: Merge):
    real = storage.put

    async def put(folder: str, content: bytes) -> Claim:
        claim = await real(folder, content)
        if content == FILES["adapter_model.safetensors"]:
            await storage.delete([claim.key])
        return claim

    storage.put = put  # type: ignore[method-assign]
    try:
        await merge.asked()
    finally:
        del storage.put  # type: ignore[attr-defined]

    end = await merge.ended()
    assert isinstance(end, TrainingFailed)
    assert (end.code, end.attempt) == ("artifact_missing", 1)


async def test_a_run_that_left_no_adapter_has_nothing_to_merge(training: Process, merge: Merge):
    await merge.trained(msgspec.to_builtins(FineTune(base_model=tiny.BASE, method="full")), {"model.safetensors": b"", "config.json": b"{}"})

    end = await merge.ended()

    assert isinstance(end, TrainingFailed)
    assert (end.code, end.attempt) == ("incomplete", 0)
