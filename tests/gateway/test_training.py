"""A client of the finetuneflow document trains: started once, told as its story goes, cancelled with an answer; the training service's facts are the test's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import msgspec
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.events import (
    Claim,
    Event,
    ExportCompleted,
    ExportedFile,
    ExportProgressed,
    ExportStarted,
    FineTune,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationFailed,
    PreparationStarted,
    TrainingAttemptLost,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
    address,
)
from libs.events.log import EventLog, Write
from libs.runtime import bus
from services.gateway.api.finetuneflow.training import HYPERPARAMS, NAMES, understood
from services.gateway.domain.jobs import run_id
from services.gateway.presets import presets
from services.gateway.views.database import connection
from tests.kit.eventually import eventually
from tests.kit.gateway import KEPT, client, footprint, running

DOCUMENT = {
    "method": "qlora",
    "hyperparams": {
        "num_epochs": 3,
        "learning_rate": 2e-4,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_seq_length": 2048,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "warmup_ratio": 0.03,
        "weight_decay": 0.01,
    },
}
STATUS = {"run_id", "job_id", "status", "method", "progress_pct", "current_metrics", "started_at", "elapsed_seconds"}
METRICS = {"step", "total_steps", "train_loss", "eval_loss", "learning_rate", "epoch"}
CLAIM = Claim(key="local/none/0", sha256="0" * 64, size=1)
ROW = b'{"instruction": "Add 1 and 1.", "output": "2"}\n'
LOCAL = Origin(tenant="local")


class Stages:
    """The services that do the work, each as its own user of the bus."""

    def __init__(self, logs: dict[str, EventLog]) -> None:
        self._logs = logs

    async def say(self, *events: Event) -> None:
        for event in events:
            where = address("local", event)
            log = self._logs[where.category]
            story = await log.read(where)
            await log.append([Write(events=[event], after=story[-1].seq if story else 0)], origin=LOCAL)

    async def prepared(self, job: str) -> None:
        await self.say(PreparationStarted(job_id=job), PreparationCompleted(job_id=job, parts=0, rows=9, valid=9, snapshot=CLAIM, splits={"train": 9}))

    async def trained(self, job: str, **more: Any) -> None:
        await self.prepared(job)
        await self.say(
            TrainingStarted(job_id=job, attempt=1, device="cpu"), TrainingCompleted(job_id=job, attempt=1, step=10, artifacts={}, steps=CLAIM, **more)
        )


@pytest.fixture(scope="module")
async def stages(servers: Servers) -> AsyncIterator[Stages]:
    users = {"preparation": "datasets", "training": "training", "export": "export"}
    connections: dict[str, Client] = {category: await bus.connect(servers.nats_url(user), name=user) for category, user in users.items()}
    yield Stages({category: EventLog(nc, source=f"/{users[category]}") for category, nc in connections.items()})
    for nc in connections.values():
        await nc.close()


@pytest.fixture
async def views(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    session = await connection(servers.database_url)
    yield session
    await session.close()


@pytest.fixture(scope="module")
def another_gateway(servers: Servers) -> Iterator[Process]:
    with running(servers, label="smoking", environ={"TRAINYARD_SMOKE": "true"}) as process:
        yield process


@pytest.fixture(scope="module")
async def another(another_gateway: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(another_gateway) as api:
        yield api


@pytest.fixture
async def project(api: httpx.AsyncClient) -> str:
    """With a file that is still being read, and a model."""
    return await ready(api)


# ---- starting


async def test_a_start_is_answered_as_the_document_says_and_the_job_carries_all_that_the_services_need(api: httpx.AsyncClient, log: EventLog, project: str):
    answer = await api.post(f"/projects/{project}/train/start", json=DOCUMENT)

    queued = answer.json()
    assert answer.status_code == 202
    assert (queued["status"], queued["message"], queued["run_id"]) == ("queued", "Training job enqueued on gpu_queue", run_id(queued["job_id"]))
    created = await job_created(log, queued["job_id"])
    assert (created.kind, created.stages, created.project_id) == ("train", ["preparation", "training"], project)
    assert created.inputs == {"project_id": project, "sources": []}
    tuning = msgspec.convert(created.spec, FineTune)
    assert {name: getattr(tuning, name) for name in DOCUMENT["hyperparams"]} == DOCUMENT["hyperparams"]
    assert (tuning.base_model, tuning.method, tuning.smoke) == ("trainyard/tiny-llama", "qlora", False)
    assert queued["hyperparams"].items() >= DOCUMENT["hyperparams"].items()
    assert (await api.get(f"/projects/{project}")).json()["status"] == "training"


async def test_a_start_needs_nothing_but_a_body(api: httpx.AsyncClient, log: EventLog, project: str):
    await api.patch(f"/projects/{project}", json={"config": {"max_seq_length": 512}})

    queued = (await api.post(f"/projects/{project}/train/start", json={})).json()

    assert (queued["method"], queued["hyperparams"]["num_epochs"], queued["hyperparams"]["max_seq_length"]) == ("qlora", 3.0, 512)


async def test_while_its_first_file_is_read_there_is_nothing_to_look_at_and_a_dry_run_says_so(api: httpx.AsyncClient, project: str):
    answer = await api.post(f"/projects/{project}/dataset/dry-run", json={})

    assert (answer.status_code, answer.json()["error_code"]) == (409, "EXAMPLES_STILL_READ")


async def test_other_tools_names_are_understood_and_echoed(api: httpx.AsyncClient, log: EventLog, project: str):
    theirs = {"rank": 8, "network_alpha": 16, "train_batch_size": 2, "epochs": 1.5, "unet_lr": 1e-3, "lr_scheduler_type": "linear"}

    queued = (await api.post(f"/projects/{project}/train/start", json={"method": "lora", "hyperparams": theirs})).json()

    tuning = msgspec.convert((await job_created(log, queued["job_id"])).spec, FineTune)
    assert queued["hyperparams"].items() >= theirs.items()
    assert not {"lora_r", "lora_alpha", "num_epochs"} & set(queued["hyperparams"])
    assert (tuning.lora_r, tuning.lora_alpha, tuning.per_device_batch_size, tuning.num_epochs) == (8, 16, 2, 1.5)
    assert (tuning.learning_rate, tuning.lr_scheduler) == (1e-3, "linear")


def test_every_synonym_names_a_hyperparameter():
    documented = {
        "rank",
        "network_dim",
        "network_alpha",
        "batch_size",
        "train_batch_size",
        "epochs",
        "max_train_epochs",
        "unet_lr",
        "lr_scheduler_type",
        "optim",
    }

    assert documented <= set(HYPERPARAMS.synonyms)
    assert set(HYPERPARAMS.synonyms.values()) <= set(NAMES)
    assert not HYPERPARAMS.synonyms.keys() & set(NAMES)


async def test_other_tools_choices_are_understood_too(api: httpx.AsyncClient, log: EventLog, project: str):
    theirs = {"optim": "adamw_torch_fused", "lr_scheduler_type": "constant_with_warmup"}

    queued = (await api.post(f"/projects/{project}/train/start", json={"method": "lora", "hyperparams": theirs})).json()

    tuning = msgspec.convert((await job_created(log, queued["job_id"])).spec, FineTune)
    assert (tuning.optimizer, tuning.lr_scheduler) == ("adamw", "constant")
    assert queued["hyperparams"].items() >= {"optim": "adamw", "lr_scheduler_type": "constant"}.items()


@pytest.mark.parametrize("name", ["lora-sft", "qlora-default", "qlora-tight"])
def test_a_preset_is_checked_like_the_body_of_a_start(name: str):
    preset = presets()[name]

    assert understood(preset.hyperparams, preset.method) == preset.hyperparams


async def test_presets_can_be_looked_at(api: httpx.AsyncClient):
    listed = (await api.get("/v2/presets")).json()["presets"]

    assert [preset["name"] for preset in listed] == ["lora-sft", "qlora-default", "qlora-tight"]
    assert (await api.get("/v2/presets/qlora-tight")).json() == listed[2]
    missing = await api.get("/v2/presets/dpo")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


async def test_what_is_sent_beside_a_preset_counts_more(api: httpx.AsyncClient, log: EventLog, project: str):
    body = {"preset": "qlora-tight", "hyperparams": {"rank": 8, "max_length": 512}}

    queued = (await api.post(f"/projects/{project}/train/start", json=body)).json()

    tuning = msgspec.convert((await job_created(log, queued["job_id"])).spec, FineTune)
    assert (tuning.preset, tuning.method, queued["preset"], queued["method"]) == ("qlora-tight", "qlora", "qlora-tight", "qlora")
    assert (tuning.lora_r, tuning.max_seq_length, tuning.gradient_checkpointing, tuning.optimizer) == (8, 512, True, "paged_adamw_8bit")
    assert (queued["hyperparams"]["rank"], queued["hyperparams"]["max_length"], queued["hyperparams"]["lora_dropout"]) == (8, 512, 0.05)


async def test_a_method_that_is_sent_counts_more_than_the_presets(api: httpx.AsyncClient, project: str):
    queued = (await api.post(f"/projects/{project}/train/start", json={"preset": "lora-sft", "method": "full"})).json()

    assert (queued["method"], queued["hyperparams"]["learning_rate"]) == ("full", 1e-4)


async def test_where_everything_is_only_tried_the_job_says_so(api: httpx.AsyncClient, another: httpx.AsyncClient, log: EventLog, project: str):
    queued = (await another.post(f"/projects/{project}/train/start", json={})).json()

    assert queued["smoke"] is True
    assert (await job_created(log, queued["job_id"])).spec["smoke"] is True
    assert (await api.get(f"/projects/{project}/train/status")).json()["smoke"] is True


async def test_a_second_start_is_a_409_in_the_documents_words(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    first = (await api.post(f"/projects/{project}/train/start", json={})).json()
    before = await footprint(log, servers)

    second = await api.post(f"/projects/{project}/train/start", json={})

    assert second.status_code == 409
    assert second.json() == {
        "detail": "A training job is already running for this project",
        "error_code": "TRAINING_ALREADY_RUNNING",
        "context": {"job_id": first["job_id"]},
    }
    assert await footprint(log, servers) == before


async def test_of_two_starts_at_once_one_wins_on_whichever_gateway(api: httpx.AsyncClient, another: httpx.AsyncClient, log: EventLog):
    for _ in range(20):
        project = await ready(api)

        answers = await asyncio.gather(*(gateway.post(f"/projects/{project}/train/start", json={}) for gateway in (api, another)))

        assert sorted(answer.status_code for answer in answers) == [202, 409]
        (winner,) = [answer.json()["job_id"] for answer in answers if answer.status_code == 202]
        assert [fact.event.job_id for fact in await log.read(f"ev.local.project.run_started.{project}")] == [winner]  # type: ignore[union-attr]


async def test_a_repeated_start_gives_the_first_answer(api: httpx.AsyncClient, stages: Stages, log: EventLog, project: str):
    key = {"Idempotency-Key": str(uuid4())}
    first = await api.post(f"/projects/{project}/train/start", json={"hyperparams": {"rank": 4}}, headers=key)

    again = await api.post(f"/projects/{project}/train/start", json={"hyperparams": {"rank": 4}}, headers=key)
    other = await api.post(f"/projects/{project}/train/start", json={"hyperparams": {"rank": 5}}, headers=key)
    await stages.trained(first.json()["job_id"])
    await seen(api, project, "success")
    afterwards = await api.post(f"/projects/{project}/train/start", json={"hyperparams": {"rank": 4}}, headers=key)

    assert [(answer.status_code, answer.json()) for answer in (again, afterwards)] == [(202, first.json())] * 2
    assert (other.status_code, other.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_ten_repeats_at_once_start_one_training(api: httpx.AsyncClient, log: EventLog, project: str):
    key = {"Idempotency-Key": str(uuid4())}

    answers = await asyncio.gather(*(api.post(f"/projects/{project}/train/start", json={}, headers=key) for _ in range(10)))

    assert {(answer.status_code, answer.json()["job_id"]) for answer in answers} == {(202, answers[0].json()["job_id"])}
    assert len(await log.read(f"ev.local.project.run_started.{project}")) == 1


async def test_without_a_model_nothing_is_started(api: httpx.AsyncClient, servers: Servers, log: EventLog):
    project = await new_project(api)
    await upload(api, project)

    await refused(api, servers, log, project, {}, status=400, code="MODEL_NOT_RESOLVED")


async def test_without_data_nothing_is_started(api: httpx.AsyncClient, stages: Stages, servers: Servers, log: EventLog):
    project = await new_project(api)
    await api.post(f"/projects/{project}/model/resolve", json={"model_id": "trainyard/tiny-llama"})
    await refused(api, servers, log, project, {}, status=400, code="NO_TRAINING_DATA")

    broken, empty = [await upload(api, project) for _ in range(2)]
    await stages.say(PreparationFailed(job_id=broken, code="x", message="damaged"))
    await stages.say(PreparationCompleted(job_id=empty, parts=0, rows=5, valid=0, refused={"json_invalid": 5}))
    await eventually(lambda: all_ended(api, project))
    await refused(api, servers, log, project, {}, status=400, code="NO_TRAINING_DATA")

    await upload(api, project)
    assert (await api.post(f"/projects/{project}/train/start", json={})).status_code == 202


HOSTILE: dict[str, tuple[Any, str]] = {
    "nothing": (b"", ""),
    "null": (None, ""),
    "a list": ([], ""),
    "half": (b'{"method": "qlora"', ""),
    "another method": ({"method": "dora"}, "method"),
    "a method that is a number": ({"method": 1}, "method"),
    "hyperparams that are a list": ({"hyperparams": []}, "hyperparams"),
    "hyperparams that are null": ({"hyperparams": None}, "hyperparams"),
    "no such hyperparameter": ({"hyperparams": {"lora_rr": 1}}, "hyperparams.lora_rr"),
    "an empty name": ({"hyperparams": {"": 1}}, "hyperparams."),
    "a very long name": ({"hyperparams": {"x" * 5000: 1}}, "hyperparams." + "x" * 50),
    "a preset that is not there": ({"preset": "dpo"}, "preset"),
    "a preset that is a list": ({"preset": []}, "preset"),
    "an optimizer that is not there": ({"hyperparams": {"optim": "lion"}}, "hyperparams.optim"),
    "the base model": ({"hyperparams": {"base_model": "other/model"}}, "hyperparams.base_model"),
    "smoke": ({"hyperparams": {"smoke": True}}, "hyperparams.smoke"),
    "two names for the same": ({"hyperparams": {"rank": 8, "lora_r": 8}}, "hyperparams.lora_r"),
    "a rank of 0": ({"hyperparams": {"lora_r": 0}}, "hyperparams.lora_r"),
    "a rank under another name": ({"hyperparams": {"network_dim": 10**6}}, "hyperparams.network_dim"),
    "a rank that is text": ({"hyperparams": {"lora_r": "16"}}, "hyperparams.lora_r"),
    "a rank that is true": ({"hyperparams": {"lora_r": True}}, "hyperparams.lora_r"),
    "a rank that is null": ({"hyperparams": {"lora_r": None}}, "hyperparams.lora_r"),
    "half a rank": ({"hyperparams": {"lora_r": 1.5}}, "hyperparams.lora_r"),
    "a learning rate below 0": ({"hyperparams": {"learning_rate": -1e-4}}, "hyperparams.learning_rate"),
    "a learning rate of 1e400": (b'{"hyperparams": {"learning_rate": 1e400}}', ""),
    "a learning rate of NaN": (b'{"hyperparams": {"learning_rate": NaN}}', ""),
    "no epoch at all": ({"hyperparams": {"num_epochs": 0}}, "hyperparams.num_epochs"),
    "a thousand epochs": ({"hyperparams": {"num_epochs": 1000}}, "hyperparams.num_epochs"),
    "a row without an end": ({"hyperparams": {"max_seq_length": 2**63}}, "hyperparams.max_seq_length"),
    "a seed beyond all": (b'{"hyperparams": {"seed": 1' + b"0" * 400 + b"}}", ""),
    "NUL": ({"hyperparams": {"lr_scheduler": "cos\0ine"}}, "hyperparams.lr_scheduler"),
    "100,000 deep": (b'{"hyperparams": {"lora_r": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", ""),
    "100 deep": ({"hyperparams": {"lora_r": msgspec.json.decode(b"[" * 100 + b"]" * 100)}}, "hyperparams.lora_r"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_what_makes_no_sense_is_refused_by_field_and_starts_nothing(api: httpx.AsyncClient, servers: Servers, log: EventLog, shared: str, case: str):
    body, field = HOSTILE[case]

    answer = await refused(api, servers, log, shared, body, status=422, code="VALIDATION_ERROR")

    if field:
        (error,) = answer["context"]["errors"]
        assert (error["field"], answer["detail"]) == (field, f"{field}: {error['message']}")
    assert len(str(answer)) < 2000


@pytest.fixture(scope="module")
async def shared(api: httpx.AsyncClient) -> str:
    """For what is refused and so changes nothing."""
    return await ready(api)


async def test_an_unknown_hyperparameter_is_refused_with_what_was_perhaps_meant(api: httpx.AsyncClient, servers: Servers, log: EventLog, shared: str):
    answer = await refused(api, servers, log, shared, {"hyperparams": {"warmup_ration": 0.1}}, status=422, code="VALIDATION_ERROR")

    assert "did you mean warmup_ratio?" in answer["detail"]


# ---- how it goes


async def test_before_any_run_there_is_none(api: httpx.AsyncClient, project: str):
    answer = await api.get(f"/projects/{project}/train/status")

    assert (answer.status_code, answer.json()) == (200, {"status": "no_runs"})


async def test_a_run_is_told_as_its_story_goes(api: httpx.AsyncClient, stages: Stages, project: str):
    await all_read(api, stages, project)
    job = (await api.post(f"/projects/{project}/train/start", json=DOCUMENT)).json()["job_id"]
    queued = await seen(api, project, "queued")
    await stages.prepared(job)
    await stages.say(TrainingStarted(job_id=job, attempt=1, device="NVIDIA H200"))
    begun = await seen(api, project, "running")
    await stages.say(
        TrainingEvaluated(job_id=job, attempt=1, step=0, metrics={"eval_loss": 2.5, "perplexity": 12.2}),
        TrainingProgressed(
            job_id=job,
            attempt=1,
            step=450,
            total_steps=1000,
            epoch=1.35,
            metrics={"train_loss": 0.52, "learning_rate": 1.8e-4, "tokens_per_second": 21_400.0},
        ),
        TrainingEvaluated(job_id=job, attempt=1, step=450, metrics={"eval_loss": 0.48, "perplexity": 1.6}),
        TrainingCheckpointed(job_id=job, attempt=1, step=450, state=CLAIM, steps=CLAIM),
    )
    under_way = await eventually(lambda: at_checkpoint(api, project, 450))
    in_jobs = (await api.get(f"/jobs/{job}")).json()
    await stages.say(TrainingAttemptLost(job_id=job, attempt=1, cause="killed"), TrainingStarted(job_id=job, attempt=2, device="cpu", resumed_from=450))
    resumed = await eventually(lambda: attempt(api, project, 2))
    summary = {"hardware": "cpu"}
    await stages.say(
        TrainingCompleted(
            job_id=job, attempt=2, step=1000, artifacts={"a": CLAIM}, steps=CLAIM, metrics={"train_loss": 0.3, "eval_loss": 0.31}, summary=summary
        )
    )
    done = await seen(api, project, "success")
    job_done = (await api.get(f"/jobs/{job}")).json()

    assert set(queued) >= STATUS
    assert set(queued["current_metrics"]) == METRICS | {"tokens_per_second"}
    assert (queued["job_id"], queued["run_id"], queued["method"]) == (job, run_id(job), "qlora")
    assert (queued["progress_pct"], queued["started_at"], queued["elapsed_seconds"]) == (0, None, 0)
    assert begun["progress_pct"] == 0
    assert begun["started_at"]
    assert under_way
    assert under_way["progress_pct"] == 45
    assert under_way["current_metrics"] == {
        "step": 450,
        "total_steps": 1000,
        "train_loss": 0.52,
        "eval_loss": 0.48,
        "learning_rate": 1.8e-4,
        "tokens_per_second": 21_400.0,
        "epoch": 1.35,
    }
    assert (in_jobs["type"], in_jobs["status"], in_jobs["progress_pct"], in_jobs["message"]) == ("train", "running", 45, "Step 450/1000")
    assert resumed
    assert (resumed["status"], resumed["progress_pct"], resumed["started_at"]) == ("running", 45, begun["started_at"])
    assert (done["progress_pct"], done["current_metrics"]["train_loss"], done["current_metrics"]["eval_loss"]) == (100, 0.3, 0.31)
    assert done["finished_at"] > done["started_at"]
    assert job_done["result_summary"] == {"steps": 1000, "train_loss": 0.3, "eval_loss": 0.31}
    assert (job_done["result"]["artifacts"], job_done["result"]["summary"]) == ({"a": 1}, summary)
    assert (await api.get(f"/projects/{project}")).json()["status"] == "completed"


async def test_when_a_run_will_be_done_is_told_as_long_as_that_can_be_known(api: httpx.AsyncClient, stages: Stages, project: str):
    await all_read(api, stages, project)
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    queued = await seen(api, project, "queued")
    await stages.prepared(job)
    await stages.say(TrainingStarted(job_id=job, attempt=1), TrainingProgressed(job_id=job, attempt=1, step=1, total_steps=1000))
    first = await eventually(lambda: at_step(api, project, 1))
    await stages.say(TrainingProgressed(job_id=job, attempt=1, step=101, total_steps=1000, made=100, seconds=200.0))
    steady = await eventually(lambda: at_step(api, project, 101))
    listed = (await api.get(f"/projects/{project}/jobs", params={"type": "train"})).json()["jobs"]
    one = (await api.get(f"/jobs/{job}")).json()
    await stages.say(TrainingAttemptLost(job_id=job, attempt=1, cause="killed"))
    lost = await eventually(lambda: job_says(api, job, "Attempt 1 was lost (killed): it will go on from its last checkpoint, or begin again"))
    await stages.say(TrainingStarted(job_id=job, attempt=2, resumed_from=100))
    resumed = await eventually(lambda: attempt(api, project, 2))
    await stages.say(TrainingProgressed(job_id=job, attempt=2, step=110, total_steps=1000, made=9, seconds=9.0))
    faster = await eventually(lambda: at_step(api, project, 110))
    await stages.say(TrainingCompleted(job_id=job, attempt=2, step=1000, artifacts={}, steps=CLAIM))
    done = await seen(api, project, "success")

    assert first
    assert steady
    assert lost
    assert resumed
    assert faster
    assert [told["eta_seconds"] for told in (queued, first, lost, resumed, done)] == [None] * 5
    assert all(1780 < told["eta_seconds"] <= 1798 for told in (steady, *listed, one))
    assert 875 < faster["eta_seconds"] <= 890


async def test_a_failed_run_says_why_and_another_may_be_started(api: httpx.AsyncClient, stages: Stages, project: str):
    await all_read(api, stages, project)
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await stages.prepared(job)
    await stages.say(
        TrainingStarted(job_id=job, attempt=1),
        TrainingProgressed(job_id=job, attempt=1, step=3, total_steps=9, metrics={"train_loss": None}, nonfinite={"train_loss": "nan"}),
        TrainingFailed(job_id=job, code="diverged", message="The loss became NaN at step 3", attempt=1, step=3, steps=CLAIM),
    )

    failed = await seen(api, project, "failed")
    status = (await api.get(f"/projects/{project}")).json()["status"]
    again = await api.post(f"/projects/{project}/train/start", json={})

    assert (failed["error_message"], failed["current_metrics"]["train_loss"], failed["progress_pct"]) == ("The loss became NaN at step 3", None, 33)
    assert status == "failed"
    assert again.status_code == 202
    assert (await api.get(f"/projects/{project}/train/status")).json()["job_id"] == again.json()["job_id"]


async def test_data_that_came_after_a_run_waits_to_be_trained_on(api: httpx.AsyncClient, stages: Stages, project: str):
    await all_read(api, stages, project)
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await stages.trained(job)
    await seen(api, project, "success")

    before = (await api.get(f"/projects/{project}")).json()["status"]
    await upload(api, project)
    after = (await api.get(f"/projects/{project}")).json()["status"]
    listed = {status: (await api.get("/projects", params={"status": status, "limit": 1000})).json() for status in ("completed", "uploading")}

    assert (before, after) == ("completed", "uploading")
    assert {status: project in [item["id"] for item in page["items"]] for status, page in listed.items()} == {"completed": False, "uploading": True}


async def test_a_filter_by_status_finds_what_says_to_be_in_it_and_together_they_find_all(api: httpx.AsyncClient, project: str):
    everything = (await api.get("/projects")).json()
    words = ("draft", "uploading", "chunking", "generating", "ready_to_train", "training", "evaluating", "completed", "failed")

    pages = {status: (await api.get("/projects", params={"status": status, "limit": 1000})).json() for status in words}

    assert {status: {item["status"] for item in page["items"]} - {status} for status, page in pages.items()} == {status: set() for status in words}
    assert sum(page["total"] for page in pages.values()) == everything["total"]


async def test_trainings_and_exports_are_jobs_like_others(api: httpx.AsyncClient, stages: Stages, project: str):
    train = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await stages.trained(train, metrics={"train_loss": 0.5})
    await seen(api, project, "success")
    export = (await api.post(f"/projects/{project}/export")).json()["job_id"]
    await stages.say(ExportStarted(job_id=export), ExportProgressed(job_id=export, done=1, total=4, doing="checking every key"))
    going = await eventually(lambda: job_at(api, export, 25))
    await stages.say(ExportCompleted(job_id=export, files=[ExportedFile(name="report.md", content=CLAIM, crc32=1)]))
    done = await eventually(lambda: job_at(api, export, 100))
    listed = {kind: (await api.get(f"/projects/{project}/jobs", params={"type": kind})).json()["jobs"] for kind in ("train", "export", "ingest")}

    assert going
    assert (going["type"], going["status"], going["message"]) == ("export", "running", "checking every key")
    assert done
    assert (done["status"], done["result_summary"], done["result"]) == ("success", {"files": 1, "size_bytes": 1}, {"files": {"report.md": 1}})
    assert {kind: [job["id"] for job in found] for kind, found in listed.items() if kind != "ingest"} == {"train": [train], "export": [export]}
    assert (await api.get(f"/projects/{project}")).json()["stats"]["last_job_status"] == "success"


# ---- cancelling


async def test_a_cancel_is_answered_when_the_run_has_ended(api: httpx.AsyncClient, stages: Stages, log: EventLog, project: str):
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await stages.prepared(job)
    await stages.say(TrainingStarted(job_id=job, attempt=1))

    asked = asyncio.create_task(api.post(f"/projects/{project}/train/cancel"))
    await eventually(lambda: log.read(f"ev.local.job.cancel_requested.{job}"))
    assert not asked.done()
    await stages.say(TrainingCancelled(job_id=job, attempt=1, step=0))
    answer = await asked

    assert (answer.status_code, answer.json()["status"], answer.json()["message"]) == (200, "cancelled", "Training job cancelled")
    assert (await seen(api, project, "cancelled"))["job_id"] == job
    assert (await api.post(f"/projects/{project}/train/cancel")).json()["status"] == "no_active_job"
    assert len(await log.read(f"ev.local.job.cancel_requested.{job}")) == 1


async def test_who_reads_that_his_run_is_cancelled_may_start_another_at_once(
    api: httpx.AsyncClient, stages: Stages, views: asyncpg.Connection, log: EventLog, project: str
):
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await stages.prepared(job)
    async with views.transaction():
        await views.execute("lock table runs in exclusive mode")  # for a moment the views can't follow
        asked = asyncio.create_task(api.post(f"/projects/{project}/train/cancel"))
        await eventually(lambda: log.read(f"ev.local.job.cancel_requested.{job}"))
        await stages.say(TrainingCancelled(job_id=job, attempt=1, step=0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asked), 0.4)
    answer = await asked
    again = await api.post(f"/projects/{project}/train/start", json={})

    assert (answer.json()["status"], again.status_code) == ("cancelled", 202)


async def test_a_cancel_that_nobody_hears_in_time_says_that_it_goes_on(api: httpx.AsyncClient, log: EventLog, project: str):
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]

    answer, again = await asyncio.gather(*(api.post(f"/projects/{project}/train/cancel") for _ in range(2)))

    assert [(each.status_code, each.json()["status"]) for each in (answer, again)] == [(200, "cancelling")] * 2
    assert (await api.get(f"/projects/{project}/train/status")).json()["cancel_requested"] is True
    assert len(await log.read(f"ev.local.job.cancel_requested.{job}")) == 1


async def test_a_run_that_ends_by_itself_meanwhile_is_not_said_to_be_cancelled(api: httpx.AsyncClient, stages: Stages, log: EventLog, project: str):
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await stages.prepared(job)
    await stages.say(TrainingStarted(job_id=job, attempt=1))

    asked = asyncio.create_task(api.post(f"/projects/{project}/train/cancel"))
    await eventually(lambda: log.read(f"ev.local.job.cancel_requested.{job}"))
    await stages.say(TrainingCompleted(job_id=job, attempt=1, step=10, artifacts={}, steps=CLAIM))

    assert (await asked).json()["status"] == "success"


@pytest.mark.parametrize("runs", [0, 1])
async def test_without_an_active_run_a_cancel_changes_nothing(api: httpx.AsyncClient, stages: Stages, servers: Servers, log: EventLog, project: str, runs: int):
    for _ in range(runs):
        await stages.trained((await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"])
        await seen(api, project, "success")
    before = await footprint(log, servers)

    answer = await api.post(f"/projects/{project}/train/cancel")

    assert (answer.status_code, answer.json()["status"]) == (200, "no_active_job")
    assert await footprint(log, servers) == before


async def test_a_project_that_trains_is_deleted_only_with_its_run_cancelled(api: httpx.AsyncClient, stages: Stages, log: EventLog, project: str):
    ingest = (await api.get(f"/projects/{project}/files")).json()["files"][0]["job_id"]
    await all_read(api, stages, project)
    job = (await api.post(f"/projects/{project}/train/start", json={})).json()["job_id"]
    await eventually(lambda: ended(api, ingest))

    busy = await api.delete(f"/projects/{project}")
    gone = await api.delete(f"/projects/{project}", params={"cancel": "true"})

    assert (busy.status_code, busy.json()["error_code"], busy.json()["context"]) == (409, "PROJECT_BUSY", {"job_ids": [job]})
    assert gone.status_code == 204
    assert len(await log.read(f"ev.local.project.deleted.{project}")) == 1
    assert len(await log.read(f"ev.local.job.cancel_requested.{job}")) == 1
    for method, path in (("GET", "train/status"), ("POST", "train/cancel"), ("POST", "train/start"), ("POST", "export")):
        answer = await api.request(method, f"/projects/{project}/{path}", json={} if path == "train/start" else None)
        assert (answer.status_code, set(answer.json())) == (404, KEPT)


# ---- hardware


async def test_while_nobody_trains_the_hardware_is_not_known(api: httpx.AsyncClient):
    answer = await api.get("/hardware/check")

    assert (answer.status_code, set(answer.json()), answer.json()["context"]) == (503, KEPT, {"part": "the training service"})


WITHOUT_GPU = {
    "has_nvidia_smi": False,
    "gpu_name": None,
    "cuda_available": False,
    "bnb_available": False,
    "recommended_method": None,
    "recommendation_reason": "No CUDA GPU detected. GPU fine-tuning not possible on this machine.",
    "notes": [],
    "warnings": ["No NVIDIA GPU found. Consider using a cloud GPU instance."],
}


@pytest.mark.parametrize(("said", "status"), [(WITHOUT_GPU, 200), ({"has_nvidia_smi": "maybe"}, 503), (None, 503)])
async def test_the_training_service_is_asked_for_its_hardware(api: httpx.AsyncClient, servers: Servers, said: Any, status: int):
    nc = await bus.connect(servers.nats_url("training"), name="training")
    question = await nc.subscribe("ask.hardware")
    await nc.flush()
    asked = asyncio.create_task(api.get("/hardware/check"))
    await (await question.next_msg(timeout=5)).respond(msgspec.json.encode(said))
    answer = await asked
    await nc.close()

    assert answer.status_code == status
    if status == 200:
        assert answer.json().items() >= WITHOUT_GPU.items()


# ---- helpers


async def new_project(api: httpx.AsyncClient) -> str:
    answer = await api.post("/projects", json={"name": "test"})
    assert answer.status_code == 201
    return answer.json()["id"]


async def upload(api: httpx.AsyncClient, project: str) -> str:
    """The job that reads it."""
    answer = await api.post(f"/projects/{project}/files/upload", files={"files": ("a.jsonl", ROW)}, data={"kind": "dataset_upload"})
    assert answer.status_code == 201
    return answer.json()["files"][0]["job_id"]


async def ready(api: httpx.AsyncClient) -> str:
    project = await new_project(api)
    await upload(api, project)
    answer = await api.post(f"/projects/{project}/model/resolve", json={"model_id": "trainyard/tiny-llama"})
    assert answer.status_code == 200
    return project


async def all_read(api: httpx.AsyncClient, stages: Stages, project: str) -> None:
    """Its file, which a training waits for."""
    (file,) = (await api.get(f"/projects/{project}/files")).json()["files"]
    await stages.say(PreparationCompleted(job_id=file["job_id"], parts=0, rows=9, valid=9))


async def job_created(log: EventLog, job: str) -> JobCreated:
    (fact,) = await log.read(f"ev.local.job.created.{job}")
    assert isinstance(fact.event, JobCreated)
    return fact.event


async def refused(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, body: Any, *, status: int, code: str) -> dict[str, Any]:
    before = await footprint(log, servers)
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)

    answer = await api.post(f"/projects/{project}/train/start", content=content, headers={"Content-Type": "application/json"})

    assert (answer.status_code, set(answer.json())) == (status, KEPT), answer.text
    assert answer.json()["error_code"] == code
    assert await footprint(log, servers) == before
    return answer.json()


async def train_status(api: httpx.AsyncClient, project: str) -> dict[str, Any]:
    answer = await api.get(f"/projects/{project}/train/status")
    assert answer.status_code == 200
    return answer.json()


async def seen(api: httpx.AsyncClient, project: str, status: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await train_status(api, project)
        return found if found["status"] == status else None

    found = await eventually(look)
    assert found
    return found


async def at_checkpoint(api: httpx.AsyncClient, project: str, step: int) -> dict[str, Any] | None:
    found = await train_status(api, project)
    return found if found["checkpoint_step"] == step else None


async def attempt(api: httpx.AsyncClient, project: str, number: int) -> dict[str, Any] | None:
    found = await train_status(api, project)
    return found if found["attempt"] == number else None


async def at_step(api: httpx.AsyncClient, project: str, step: int) -> dict[str, Any] | None:
    found = await train_status(api, project)
    return found if found["current_metrics"]["step"] == step else None


async def job_says(api: httpx.AsyncClient, job: str, message: str) -> dict[str, Any] | None:
    found = (await api.get(f"/jobs/{job}")).json()
    return found if found["message"] == message else None


async def job_at(api: httpx.AsyncClient, job: str, percent: int) -> dict[str, Any] | None:
    found = (await api.get(f"/jobs/{job}")).json()
    return found if found["progress_pct"] == percent else None


async def ended(api: httpx.AsyncClient, job: str) -> bool:
    return bool((await api.get(f"/jobs/{job}")).json()["finished_at"])


async def all_ended(api: httpx.AsyncClient, project: str) -> bool:
    return all(job["finished_at"] for job in (await api.get(f"/projects/{project}/jobs")).json()["jobs"])
