"""A training from its lease to its one end: what it tells, stores and leaves behind."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.embedded import Process, Servers
from libs import tiny
from libs.events import (
    FineTune,
    Recorded,
    TrainingAttemptLost,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingSampled,
    TrainingStarted,
)
from libs.events.log import EventLog
from libs.storage import Storage
from services.training import models
from services.training.children import _bare
from services.training.ending import Moved, Over, Signals
from services.training.folders import workplace
from services.training.frames import Step
from services.training.pen import Pen
from services.training.steps import StepLog, cut
from services.training.telling import clean, fitting, summary, told
from services.training.transfer import Kept, Uploads, store
from tests.kit.eventually import eventually
from tests.kit.trainer import losses
from tests.kit.training import Job, child, folders

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


async def test_a_prepared_job_is_trained_to_its_end(training: Process, job: Job, storage: Storage):
    await job.create(steps=10, save=5)
    await job.prepare()

    end = await job.completed()

    names = await job.names()
    assert (names[0], names[-1]) == ("started", "completed")
    assert [event.step for event in await job.of(TrainingCheckpointed)] in ([5, 10], [10])  # an older one that still waits is let go
    assert await job.curve(end.steps) == losses(10)
    assert len(await storage.get(end.artifacts["adapter"])) == 32
    assert end.artifacts["adapter"].key.startswith(f"{job.tenant}/{job.id}/1/")
    assert (end.step, end.summary["rows"], end.summary["odd"], end.summary["device"]) == (10, 1, None, "cpu")
    await job.whole()


async def test_nothing_is_left_of_it(training: Process, place: Servers, nc: Client, job: Job):
    await job.create(steps=2)
    await job.prepare()

    await job.completed()

    await eventually(lambda: not folders(place))
    await eventually(lambda: child(training) is None)

    async def leases() -> int:
        return json.loads((await nc.request("$JS.API.STREAM.INFO.WORK", b"")).data)["state"]["messages"]

    await eventually(_none_of(leases))


async def test_its_facts_say_on_whose_behalf_and_why(training: Process, job: Job):
    await job.create(steps=1)
    await job.prepare()

    await job.completed()

    assert {(fact.envelope.actor, fact.envelope.source) for fact in await job.facts()} == {("user-1", "/training")}
    assert len({fact.envelope.causationid for fact in await job.facts()}) == 1


async def test_who_looks_on_gets_every_step(training: Process, nc: Client, job: Job):
    seen: list[dict[str, Any]] = []

    async def hear(msg: Msg) -> None:
        batch = json.loads(msg.data)
        seen.extend(step | {"of": batch["attempt"]} for step in batch["steps"])

    subscription = await nc.subscribe(f"tel.{job.tenant}.{job.id}", cb=hear)
    await job.create(steps=40, pause=0.005)
    await job.prepare()

    end = await job.completed()

    await eventually(lambda: len(seen) == 40)
    await subscription.unsubscribe()
    assert [{name: value for name, value in step.items() if name != "of"} for step in seen] == await job.steps(end.steps)
    assert {step["of"] for step in seen} == {1}


async def test_progress_is_told_now_and_then_and_at_the_end(training: Process, job: Job):
    await job.create(steps=200, save=1000, pause=0.004)
    await job.prepare()

    await job.completed()

    told = await job.of(TrainingProgressed)
    assert 2 <= len(told) <= 15
    assert (told[-1].step, told[-1].total_steps, told[-1].epoch) == (200, 200, 1.0)
    assert told[-1].metrics["train_loss"] == losses(200)[-1]
    assert told[-1].metrics["tokens_per_second"] == 10_000


async def test_a_number_that_is_none_is_named(training: Process, job: Job):
    await job.create(steps=5, save=5, nan_at=5)
    await job.prepare()

    end = await job.completed()

    last = (await job.of(TrainingProgressed))[-1]
    (evaluated,) = await job.of(TrainingEvaluated)
    assert (last.metrics["train_loss"], last.nonfinite) == (None, {"train_loss": "nan"})
    assert (evaluated.metrics, evaluated.nonfinite) == ({"eval_loss": None, "perplexity": None}, {"eval_loss": "nan", "perplexity": "inf"})
    assert (await job.curve(end.steps))[-1] is None


async def test_what_a_model_says_is_cut_to_what_a_fact_can_carry(training: Process, job: Job):
    await job.create(steps=1)
    await job.prepare()

    await job.completed()

    (sampled,) = await job.of(TrainingSampled)
    (sample,) = sampled.samples
    assert sample["text"].startswith("four\u2400!!!!")
    assert 1_000 < len(sample["text"]) < 50_000


async def test_a_failure_is_told_in_its_own_words(training: Process, job: Job):
    await job.create(fail="data")
    await job.prepare()

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert (end.code, end.message, end.attempt) == ("data", "as asked\u2400: data", 1)


async def test_without_its_snapshot_a_job_fails(training: Process, job: Job, storage: Storage):
    await job.create()
    snapshot = await storage.put(f"{job.tenant}/{job.id}", b"rows")
    await storage.delete([snapshot.key])
    await job.prepare_with(snapshot)

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert end.code == "snapshot_missing"


async def test_another_snapshot_than_the_one_that_was_made_fails_the_job(training: Process, job: Job, storage: Storage):
    await job.create()
    snapshot = await storage.put(f"{job.tenant}/{job.id}", b"rows")
    await job.prepare_with(msgspec.structs.replace(snapshot, sha256="0" * 64))

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert end.code == "snapshot_damaged"


async def test_settings_that_nobody_understands_fail_the_job(training: Process, job: Job):
    await job.create_with({"base_model": tiny.BASE, "learning_rate": "fast"})
    await job.prepare()

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert end.code == "spec_invalid"
    assert "learning_rate" in end.message


async def test_a_child_can_not_pass_off_a_file_of_others_as_its_own(training: Process, job: Job):
    await job.create(steps=1, save=10, steal="/etc/hostname")
    await job.prepare()

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert (end.code, end.attempt) == ("crashed", 3)
    assert {event.cause for event in await job.of(TrainingAttemptLost)} == {"protocol"}


async def test_as_many_artifacts_as_there_may_be_have_room_beside_a_summary(training: Process, job: Job):
    await job.create(steps=1, save=10, artifacts=100, told=40_000)
    await job.prepare()

    end = await job.ended()

    assert isinstance(end, TrainingCompleted)
    assert (len(end.artifacts), "much" in end.summary) == (100, False)


async def test_a_child_that_says_what_nobody_understands_is_ended(training: Process, job: Job):
    await job.create(steps=5, save=10, babble_at=3)
    await job.prepare()

    end = await job.ended()

    assert isinstance(end, TrainingFailed)
    assert "a frame of 2147483648 bytes" in end.message


async def test_a_child_has_no_keys_and_no_network(training: Process, job: Job):
    await job.create(steps=20, pause=0.05, calls_home=True)
    await job.prepare()
    await job.stepped()
    process = child(training)
    assert process
    environ, score, group = process.environ(), _score(process.pid), _group(process.pid)

    end = await job.completed()

    assert not [name for name in environ if name.startswith("TRAINYARD_")]
    assert (score, group) == (1000, process.pid)
    assert end.summary["threads"] == environ["OMP_NUM_THREADS"]
    if kernel_takes_networks_away():
        assert end.summary["connected"] is False


# Its parts


async def test_who_reads_of_its_own_new_attempt_before_the_answer_comes_goes_on(log: EventLog, job: Job):
    await job.create(steps=1)
    pen = await pen_of(log, job)
    await pen.begin(TrainingStarted(job_id=job.id, attempt=1))
    append = log.append

    async def slow(*args: Any, **more: Any) -> list[Recorded]:
        written = await append(*args, **more)
        await pen.look()
        return written

    log.append = slow
    await pen.begin(TrainingStarted(job_id=job.id, attempt=2))

    assert pen.attempt == 2


async def test_of_two_who_begin_the_same_attempt_the_second_lets_go(log: EventLog, job: Job):
    await job.create(steps=1)
    ours = await pen_of(log, job)
    await ours.begin(TrainingStarted(job_id=job.id, attempt=1, worker="ours"))
    other = await pen_of(log, job)

    await other.begin(TrainingStarted(job_id=job.id, attempt=2, worker="other"))

    with pytest.raises(Over):
        await ours.begin(TrainingStarted(job_id=job.id, attempt=2, worker="ours"))


async def test_who_was_overtaken_writes_nothing_although_another_of_his_tasks_has_read_it(log: EventLog, job: Job):
    """He slept; his heartbeat reads of the other's attempt first, and a checkpoint of his is just then on its way into the log."""
    await job.create(steps=1)
    ours = await pen_of(log, job)
    await ours.begin(TrainingStarted(job_id=job.id, attempt=1, worker="ours"))
    other = await pen_of(log, job)
    await other.begin(TrainingStarted(job_id=job.id, attempt=2, worker="other"))
    with pytest.raises(Over):
        await ours.look()

    with pytest.raises(Over):
        await ours.append(TrainingProgressed(job_id=job.id, attempt=1, step=1, total_steps=1, epoch=1.0, metrics={}))

    assert await job.of(TrainingProgressed) == []


async def test_who_has_a_lease_but_an_old_story_reads_on_and_begins_anew(log: EventLog, job: Job):
    await job.create(steps=1)
    ours, other = await pen_of(log, job), await pen_of(log, job)
    for attempt in (1, 2):
        await other.begin(TrainingStarted(job_id=job.id, attempt=attempt, worker="other"))

    with pytest.raises(Moved):
        await ours.begin(TrainingStarted(job_id=job.id, attempt=1, worker="ours"))

    await ours.begin(TrainingStarted(job_id=job.id, attempt=ours.story.attempt + 1, worker="ours"))
    assert ours.attempt == 3


async def pen_of(log: EventLog, job: Job) -> Pen:
    pen = Pen(log, tenant=job.tenant, job_id=job.id, signals=Signals())
    await pen.read()
    return pen


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
async def test_what_is_no_plain_file_is_never_stored(storage: Storage, tmp_path: Path, what: str):
    place = tmp_path / "kept-1"
    match what:
        case "link":
            place.symlink_to("/etc/hostname")
        case "pipe":
            os.mkfifo(place)
        case _:
            place.mkdir()

    with pytest.raises(OSError, match="kept-1"):
        await store(storage, "t/job/1", place)


@pytest.mark.parametrize(("expected", "parts"), [(0, 1), (1 << 30, 1 << 7), (200 << 30, 10_000)])
async def test_no_object_has_more_parts_than_the_store_takes(storage: Storage, monkeypatch: pytest.MonkeyPatch, expected: int, parts: int):
    sizes: list[int] = []
    put = storage._client.put_object

    def seen(*args: Any, part_size: int, **more: Any) -> Any:
        sizes.append(part_size)
        return put(*args, part_size=part_size, **more)

    monkeypatch.setattr(storage._client, "put_object", seen)

    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    claim = await storage.put_stream("t/job/1", content(), expected=expected)

    assert claim.size == 1
    assert -(-expected // sizes[0]) <= parts


def test_no_secret_of_the_operators_shell_goes_to_a_child(monkeypatch: pytest.MonkeyPatch):
    secrets = ("AWS_SECRET_ACCESS_KEY", "TRAINYARD_S3_SECRET_KEY", "PGPASSWORD", "OPENAI_API_KEY", "GITHUB_TOKEN", "DATABASE_URL")
    for name in (*secrets, "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "x")

    passed_on = _bare()

    assert not passed_on.keys() & set(secrets)
    assert passed_on.keys() >= {"PATH", "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY"}


def test_a_child_may_not_name_ever_more_metrics():
    finite, _ = told({f"{n}" * 50: float(n) for n in range(10_000)})

    assert len(finite) == 100
    assert max(map(len, finite)) == 100


def test_a_model_of_the_hub_is_at_hand_once_a_run_has_loaded_its_commit(tmp_path: Path):
    tuning = FineTune(base_model="someone/model", revision="abc")
    newest = FineTune(base_model="someone/model")

    assert not models.at_hand(tuning, tmp_path)
    models.loaded(tuning, tmp_path)
    models.loaded(newest, tmp_path)

    assert models.at_hand(tuning, tmp_path)
    assert not models.at_hand(newest, tmp_path)  # tomorrow's may be another one
    assert models.at_hand(FineTune(base_model=tiny.BASE), tmp_path)
    assert models.at_hand(FineTune(base_model=str(tmp_path)), tmp_path)
    models.forget(tuning, tmp_path)
    assert not models.at_hand(tuning, tmp_path)


def test_the_folders_of_a_dead_service_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path):
    dead = tmp_path / "dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "checkpoint").touch()

    with workplace(tmp_path) as ours, workplace(tmp_path) as another:
        assert not dead.exists()
        assert ours.exists()
        assert another.exists()

    assert not ours.exists()


def test_a_resumed_log_of_steps_ends_where_the_checkpoint_was_made(tmp_path: Path):
    path = tmp_path / "steps"
    steps = StepLog(path, attempt=1)
    for n in range(1, 8):
        steps.add(_step(n))
    steps.close()
    with path.open("ab") as torn:
        torn.write(b'{"step": 3, "half')

    cut(path, step=5)
    steps = StepLog(path, attempt=2)
    steps.add(_step(6))
    steps.close()

    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2)]


async def test_of_checkpoints_that_wait_for_the_store_the_newest_goes_first_and_the_others_are_let_go(tmp_path: Path):
    stored: list[int] = []
    opened = asyncio.Event()

    async def put(kept: Kept) -> None:
        await opened.wait()
        stored.append(kept.step)

    uploads = Uploads(put)
    running = asyncio.create_task(uploads.run())
    for n, step in enumerate([1, 2, 3, 4, 5, 5]):
        path = tmp_path / str(n)
        path.touch()
        uploads.offer(Kept(step=step, path=path, log_size=0))
        await asyncio.sleep(0)
    left = sorted(os.listdir(tmp_path))
    opened.set()
    await uploads.drained()
    running.cancel()

    assert (stored, left) == ([1, 5], ["0", "5"])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("a\0b", "a\u2400b"),
        ("half \ud800", "half ?"),
        (math.inf, None),
        (2**70, str(2**70)),
        ({"a": [float("nan"), {"b": (1, True)}]}, {"a": [None, {"b": [1, True]}]}),
        ({1: b"bytes"}, {"1": "b'bytes'"}),
    ],
)
def test_whatever_a_child_says_can_be_stored(said: Any, stored: Any):
    assert clean(said) == stored


def test_a_summary_that_is_too_large_loses_what_is_too_large():
    assert summary({"a": 1, "b": "x" * 100_000}, {"a": 2, "c": 3}) == {"a": 2, "c": 3}


def test_many_long_samples_fit_all_the_same():
    samples = [{"prompt": f"{n}", "text": "x" * 5_000} for n in range(30)]

    fitted = fitting(samples)

    assert len(fitted) == 30
    assert len(msgspec.json.encode(fitted)) < 50_000


def _step(n: int) -> Step:
    return Step(step=n, loss=1.0, lr=0.1, epoch=0.0, tokens=1, grad_norm=1.0, seconds=1.0)


def _none_of(count: Callable[[], Any]) -> Callable[[], Any]:
    async def look() -> bool:
        return await count() == 0

    return look


def _score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def _group(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[2])


def kernel_takes_networks_away() -> bool:
    code = "from libs.runtime import network; raise SystemExit(not network.leave())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
