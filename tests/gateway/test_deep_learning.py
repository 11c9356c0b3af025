"""A client of the deep-learning-platform document: from its data set to its model; the facts of the services that do the work are the test's."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from infra.embedded import Servers
from libs.events import (
    Address,
    Claim,
    Column,
    Event,
    JobCreated,
    ModelRegistered,
    Origin,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    PreparationStarted,
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
from libs.storage import Storage
from services.gateway.accounts import WrongCredentials
from services.gateway.api.deep_learning.errors import dress
from services.gateway.api.deep_learning.words import stamp
from services.gateway.api.problems import Refused, problem
from services.gateway.domain.errors import NotFound, RoleMissing, TooManyActiveJobs
from services.gateway.tokens import Bad
from services.gateway.views.natural import natural
from tests.kit.eventually import eventually
from tests.kit.gateway import stored
from tests.kit.servers import storage_of

LOCAL = Origin(tenant="local")
CSV = b"a,b,label\n1,2,cat\n3,4,dog\n"
COLUMNS = [
    Column(index=0, name="a", type="integer", role="feature", distinct=2, minimum=1.0, maximum=3.0),
    Column(index=1, name="b", type="integer", role="ignored", reason="it is the same in every row"),
    Column(index=2, name="label", type="category", role="target", distinct=2, categories=[("cat", 1), ("dog", 1)]),
]
DOCUMENT = {"model_type": "resnet50", "hyperparameters": {"learning_rate": 0.001, "batch_size": 32, "epochs": 100}}

Uploading = Callable[..., Awaitable[dict[str, Any]]]


class Work:
    """What the services would tell."""

    def __init__(self, log: EventLog, storage: Storage) -> None:
        self._log, self._storage = log, storage

    async def say(self, *events: Event) -> None:
        for event in events:
            story = await self._log.read(address("local", event))
            await self._log.append([Write(events=[event], after=story[-1].seq if story else 0)], origin=LOCAL)

    async def prepare(self, job: str, *, rows: int = 2, columns: list[Column] = COLUMNS, task: str = "") -> None:

        part = await self._storage.put(f"local/{job}", b"".join(msgspec.json.encode(column) + b"\n" for column in columns))
        snapshot = await self._storage.put(f"local/{job}", b"PAR1")
        await self.say(
            PreparationStarted(job_id=job),
            PreparationProduced(job_id=job, part=1, content=part, rows=len(columns), valid=len(columns)),
            PreparationCompleted(job_id=job, parts=1, rows=rows + 1, valid=rows, refused={"ragged": 1}, snapshot=snapshot, notes=["comma"], task=task),
        )

    async def fitting(self, job: str) -> Claim:
        """What it learns from."""
        return await self._storage.put(f"local/{job}", b"PAR1")

    async def store(self, job: str, content: bytes) -> Claim:
        return await self._storage.put(f"local/{job}/1", content)

    async def checkpointed(self, job: str) -> TrainingCheckpointed:
        """With an object beside it that is never told of."""
        state, steps, _ = [await self.store(job, what) for what in (b"state", b'{"step": 1}\n', b"untold")]
        checkpoint = TrainingCheckpointed(job_id=job, attempt=1, step=1, state=state, steps=steps)
        await self.say(TrainingStarted(job_id=job, attempt=1, device="cpu"), checkpoint)
        return checkpoint

    async def fit(self, job: str, *, epochs: int = 3, untold: Sequence[int] = ()) -> None:
        snapshot = await self.fitting(job)
        weights = await self._storage.put(f"local/{job}/1", b"weights")
        metrics: list[dict[str, float | None]] = [
            {"epoch": float(n), "loss": 1 / n, "accuracy": 0.5, "val_loss": 2 / n, "val_accuracy": 0.25 * n} for n in range(1, epochs + 1)
        ]
        await self.say(
            PreparationCompleted(job_id=job, parts=0, rows=2, valid=2, snapshot=snapshot),
            TrainingStarted(job_id=job, attempt=1, device="cpu"),
            *(TrainingEvaluated(job_id=job, attempt=1, step=10 * n, metrics=told) for n, told in enumerate(metrics, 1) if n not in untold),
            TrainingProgressed(job_id=job, attempt=1, step=10 * epochs, total_steps=1000, epoch=float(epochs), metrics={"train_loss": 0.4}),
        )
        final: dict[str, float | None] = {"train_loss": 0.4, "train_accuracy": 0.5, "val_loss": 2 / epochs, "val_accuracy": 0.75, "val_f1_score": 0.7}
        about = {
            "architecture": {"input_shape": [1], "output_classes": 2, "parameters": 10},
            "report": {"classes": ["cat", "dog"]},
            "rows": 2,
            "epochs": epochs,
            "training_seconds": 0.1,
        }
        all_epochs = {name: [told[name] for told in metrics] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        files = {"model.safetensors": weights, "history.json": await self._storage.put(f"local/{job}/1", msgspec.json.encode(all_epochs))}
        await self.say(TrainingCompleted(job_id=job, attempt=1, step=10 * epochs, artifacts=files, steps=weights, metrics=final, summary=about))


@pytest.fixture
async def work(servers: Servers, log: EventLog) -> AsyncIterator[Work]:
    storage = storage_of(servers)
    yield Work(log, storage)
    storage.close()


@pytest.fixture
def upload(api: httpx.AsyncClient) -> Uploading:
    async def send(data: bytes = CSV, *, filename: str = "data.csv", status: int = 201, **fields: str) -> dict[str, Any]:
        form = {"name": "My Dataset", "dataset_type": "classification", **fields}
        answer = await api.post("/datasets/upload", files={"file": (filename, data)}, data={name: value for name, value in form.items() if value})
        assert answer.status_code == status, answer.text
        return answer.json()

    return send


@pytest.fixture
async def ready(api: httpx.AsyncClient, upload: Uploading, work: Work) -> dict[str, Any]:
    dataset = await upload()
    await work.prepare(dataset["job_id"])
    return await eventually(lambda: shown(api, dataset["id"], "ready"))


async def commanded(log: EventLog, *, after: int) -> list[str]:
    """What people have ordered since; what reactions write may come at any time."""
    return [fact.subject for pattern in ("ev.local.dataset.>", "ev.local.job.>") async for fact in log.scan(pattern, after=after)]


async def shown(api: httpx.AsyncClient, id: str, status: str) -> Any:
    detail = (await api.get(f"/datasets/{id}")).json()
    return detail if detail["status"] == status else None


async def started(api: httpx.AsyncClient, dataset: dict[str, Any], **changed: Any) -> dict[str, Any]:
    answer = await api.post("/training/start", json={"dataset_id": dataset["id"], **DOCUMENT, **changed})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def completed(api: httpx.AsyncClient, job: str) -> Any:
    status = (await api.get(f"/training/status/{job}")).json()
    assert (status["status"] == "completed") == bool(status["model_id"]), "a client goes on to its model as soon as it reads that"
    return status if status["status"] == "completed" else None


async def test_an_uploaded_data_set_is_processing_and_then_ready_with_what_is_in_it(api: httpx.AsyncClient, upload: Uploading, work: Work):
    dataset = await upload(description="two animals")

    assert {"id", "name", "description", "dataset_type", "file_size", "uploaded_at", "status"} <= set(dataset)
    assert (dataset["status"], dataset["file_size"], dataset["description"]) == ("processing", len(CSV), "two animals")
    assert (await api.get(f"/datasets/{dataset['id']}")).json()["metadata"] is None
    await work.prepare(dataset["job_id"])
    detail = await eventually(lambda: shown(api, dataset["id"], "ready"))

    metadata = detail["metadata"]
    assert (metadata["rows"], metadata["columns"], metadata["features"], metadata["target"]) == (2, 3, ["a"], "label")
    assert metadata["refused"] == {"ragged": 1}
    assert metadata["schema"][2]["categories"] == [["cat", 1], ["dog", 1]]


async def test_a_data_set_that_can_not_be_used_says_why_and_nothing_is_fitted_to_it(api: httpx.AsyncClient, upload: Uploading, work: Work):
    dataset = await upload()
    await work.say(PreparationFailed(job_id=dataset["job_id"], code="one_class", message="The column label has one value only."))
    detail = await eventually(lambda: shown(api, dataset["id"], "failed"))
    refused = await api.post("/training/start", json={"dataset_id": dataset["id"], **DOCUMENT})

    assert detail["error"] == "The column label has one value only."
    assert refused.status_code == 400
    assert refused.json()["details"][0]["field"] == "dataset_id"


async def test_data_sets_are_listed_by_page_and_by_what_they_are_sorted(api: httpx.AsyncClient, upload: Uploading):
    mine = [await upload(CSV * n, name=name) for n, name in ((3, "zebra-10"), (1, "ant"), (2, "Zebra-9"))]

    async def order(**query: Any) -> list[str]:
        answer = (await api.get("/datasets", params={"limit": 100, **query})).json()
        assert answer["total"] >= 3
        return [found["name"] for found in answer["datasets"] if found["id"] in {one["id"] for one in mine}]

    assert await order() == ["Zebra-9", "ant", "zebra-10"]
    assert await order(sort_by="name", order="asc") == ["ant", "Zebra-9", "zebra-10"]
    assert await order(sort_by="size", order="desc") == ["zebra-10", "Zebra-9", "ant"]
    one = (await api.get("/datasets", params={"page": 2, "limit": 1})).json()
    assert (one["page"], one["limit"], len(one["datasets"])) == (2, 1, 1)


@pytest.mark.parametrize(
    ("filename", "data", "fields", "field"),
    [
        ("data.csv", b"", {}, "file"),
        ("run.exe", b"MZ\0\0", {}, "file"),
        ("paper.pdf", b"%PDF-1.7\n", {}, "file"),
        ("blob.bin", b"\xff\xfe\x00\x01" * 20, {}, "file"),
        ("data.csv", CSV, {"name": ""}, "name"),
        ("data.csv", CSV, {"name": "x" * 201}, "name"),
        ("data.csv", CSV, {"target": "x" * 201}, "target"),
    ],
)
async def test_what_can_be_no_data_set_is_refused_with_the_field_and_leaves_nothing(
    api: httpx.AsyncClient, upload: Uploading, log: EventLog, servers: Servers, filename: str, data: bytes, fields: dict[str, str], field: str
):
    last, objects = (await log.position()).last, stored(servers, "local")
    refused = await upload(data, filename=filename, status=400, **fields)

    assert refused["error"] == "validation_error"
    assert refused["details"][0]["field"] == field
    assert "unsupported" not in refused["message"] or "CSV, JSON, Parquet" in refused["message"]
    assert await commanded(log, after=last) == []
    assert set(stored(servers, "local")) <= set(objects)


async def test_the_same_upload_under_one_key_is_one_data_set(api: httpx.AsyncClient):
    key = {"Idempotency-Key": str(uuid4())}

    async def send(data: bytes) -> httpx.Response:
        return await api.post("/datasets/upload", files={"file": ("data.csv", data)}, data={"name": "once"}, headers=key)

    first, again, other = await send(CSV), await send(CSV), await send(CSV + CSV)

    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 400)
    assert first.json()["id"] == again.json()["id"]


async def test_a_run_goes_from_its_start_to_its_results_and_its_model(api: httpx.AsyncClient, ready: dict[str, Any], work: Work):
    run = await started(api, ready)

    assert (run["status"], run["estimated_time"] > 0) == ("queued", True)
    assert run["hyperparameters"]["optimizer"] == "adam"
    early = await api.get(f"/training/results/{run['job_id']}")
    assert (early.status_code, early.json()["error"]) == (409, "no_results")
    await work.fit(run["job_id"])
    status = await eventually(lambda: completed(api, run["job_id"]))
    results = (await api.get(f"/training/results/{run['job_id']}")).json()
    model = (await api.get(f"/models/{results['model_id']}")).json()

    assert (status["progress"], status["current_epoch"], status["total_epochs"]) == (100, 3, 100)
    assert status["metrics"]["val_accuracy"] == 0.75
    assert results["training_history"] == {"loss": [1.0, 0.5, 1 / 3], "accuracy": [0.5] * 3, "val_loss": [2.0, 1.0, 2 / 3], "val_accuracy": [0.25, 0.5, 0.75]}
    assert results["final_metrics"]["train_loss"] == 0.4
    assert model["name"].startswith("ResNet50_v")
    assert model["performance"]["f1_score"] == 0.7
    assert model["training_config"]["dataset_id"] == ready["id"]
    assert model["architecture"] == {"input_shape": [1], "output_classes": 2, "parameters": 10}
    assert len(model["lineage"]["snapshot_sha256"]) == 64
    assert (await api.get(f"/models/{model['id']}/download/model.safetensors")).content == b"weights"


async def test_the_history_of_a_run_has_one_entry_an_epoch_also_where_the_facts_have_not_all_of_them(api: httpx.AsyncClient, ready: dict[str, Any], work: Work):
    """It is in a file of the model's, and gone with it."""

    async def losses() -> list[float | None]:
        return (await api.get(f"/training/results/{run['job_id']}")).json()["training_history"]["loss"]

    run = await started(api, ready, model_type="mlp")
    await work.fit(run["job_id"], epochs=4, untold=(2, 3))
    await eventually(lambda: completed(api, run["job_id"]))

    assert await losses() == [1.0, 0.5, 1 / 3, 0.25]
    assert (await api.delete(f"/models/{run['job_id']}")).status_code == 204
    assert await losses() == [1.0, None, None, 0.25]
    assert (await api.get(f"/training/status/{run['job_id']}")).json()["status"] == "completed"


async def test_how_long_a_run_takes_is_told_by_what_those_before_it_took(api: httpx.AsyncClient, upload: Uploading, work: Work):
    """What begins and ends a run is not counted for every epoch: here nearly all of it."""
    dataset = await upload()
    await work.prepare(dataset["job_id"])
    await eventually(lambda: shown(api, dataset["id"], "ready"))
    unknown = await started(api, dataset, model_type="resnet101", hyperparameters={"epochs": 1})
    await work.fit(unknown["job_id"], epochs=1)
    await eventually(lambda: completed(api, unknown["job_id"]))

    known = await started(api, dataset, model_type="resnet101", hyperparameters={"epochs": 100})

    assert unknown["estimated_time"] > 5
    assert 5 <= known["estimated_time"] <= 25  # 0.1 seconds an epoch


async def test_a_small_run_says_little_of_how_long_a_much_larger_one_takes(api: httpx.AsyncClient, upload: Uploading, work: Work):
    small, large = await upload(), await upload()
    await work.prepare(small["job_id"])
    await work.prepare(large["job_id"], rows=1_000_000)
    for dataset in (small, large):
        await eventually(lambda dataset=dataset: shown(api, dataset["id"], "ready"))
    run = await started(api, small, model_type="resnet34", hyperparameters={"epochs": 1})
    await work.fit(run["job_id"], epochs=1)
    await eventually(lambda: completed(api, run["job_id"]))

    told = await started(api, large, model_type="resnet34", hyperparameters={"epochs": 1})

    assert 1_000 <= told["estimated_time"] <= 10_000  # 50,000 at the pace of two rows that took 0.1 seconds


async def test_a_start_that_is_sent_again_is_answered_as_it_was(api: httpx.AsyncClient, ready: dict[str, Any], work: Work):
    key = {"Idempotency-Key": str(uuid4())}
    body = {"dataset_id": ready["id"], **DOCUMENT}
    first = (await api.post("/training/start", json=body, headers=key)).json()
    await eventually(lambda: stamp(datetime.now(UTC)) > first["created_at"])

    again = (await api.post("/training/start", json=body, headers=key)).json()

    assert {**again, "estimated_time": 0} == {**first, "estimated_time": 0}


async def test_before_its_first_epoch_is_over_a_run_tells_its_loss_under_the_same_name(api: httpx.AsyncClient, ready: dict[str, Any], work: Work):
    run = await started(api, ready)
    snapshot = await work.fitting(run["job_id"])
    metrics: dict[str, float | None] = {"train_loss": 0.7, "learning_rate": 1e-3, "memory_gb": 0.5, "tokens_per_second": 10.0}
    await work.say(
        PreparationCompleted(job_id=run["job_id"], parts=0, rows=2, valid=2, snapshot=snapshot),
        TrainingStarted(job_id=run["job_id"], attempt=1, device="cpu"),
        TrainingProgressed(job_id=run["job_id"], attempt=1, step=1, total_steps=1000, epoch=0.1, metrics=metrics),
    )

    async def told() -> Any:
        return (await api.get(f"/training/status/{run['job_id']}")).json()["metrics"]

    assert await eventually(told) == {"loss": 0.7}


async def test_a_run_is_as_far_as_its_last_epoch_says(api: httpx.AsyncClient, ready: dict[str, Any], work: Work):
    run = await started(api, ready)
    snapshot = await work.fitting(run["job_id"])
    await work.say(
        PreparationCompleted(job_id=run["job_id"], parts=0, rows=2, valid=2, snapshot=snapshot),
        TrainingStarted(job_id=run["job_id"], attempt=1, device="cpu"),
        TrainingEvaluated(job_id=run["job_id"], attempt=1, step=45, metrics={"epoch": 45.0, "loss": 0.234, "val_loss": 0.301}),
    )

    async def told() -> Any:
        status = (await api.get(f"/training/status/{run['job_id']}")).json()
        return status if status["current_epoch"] else None

    status = await eventually(told)
    assert (status["progress"], status["current_epoch"], status["total_epochs"]) == (45, 45, 100)
    assert status["metrics"] == {"loss": 0.234, "val_loss": 0.301}


async def test_trees_are_fitted_with_a_step_of_their_own_where_nobody_says_otherwise(api: httpx.AsyncClient, ready: dict[str, Any]):
    usual = await started(api, ready, model_type="gradient_boosting", hyperparameters={})
    chosen = await started(api, ready, model_type="gradient_boosting", hyperparameters={"learning_rate": 0.02})

    assert [run["hyperparameters"]["learning_rate"] for run in (usual, chosen)] == [0.1, 0.02]


async def test_what_other_tools_spell_otherwise_is_understood(api: httpx.AsyncClient, ready: dict[str, Any], log: EventLog):
    run = await started(api, ready, hyperparameters={"lr": 0.01, "optimizer": "AdamW"}, early_stopping={"monitor": "val_f1_score"})

    created = (await log.read(Address(tenant="local", category="job", key=(run["job_id"],)).under("created")))[0].event
    assert isinstance(created, JobCreated)
    assert (created.spec["learning_rate"], created.spec["optimizer"], created.spec["monitor"]) == (0.01, "adamw", "val_f1")
    assert run["hyperparameters"]["lr"] == 0.01


async def test_models_count_up_by_their_kind_and_a_deleted_ones_number_is_not_given_again(api: httpx.AsyncClient, ready: dict[str, Any], work: Work):
    async def model() -> dict[str, Any]:
        run = await started(api, ready, model_type="mlp")
        await work.fit(run["job_id"])
        await eventually(lambda: completed(api, run["job_id"]))
        return (await api.get(f"/models/{run['job_id']}")).json()

    first, second = await model(), await model()
    assert (await api.delete(f"/models/{second['id']}")).status_code == 204
    third = await model()

    numbers = [int(one["name"].removeprefix("MLP_v")) for one in (first, second, third)]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert (await api.get(f"/models/{second['id']}")).status_code == 404
    assert (await api.get(f"/models/{second['id']}/download/model.safetensors")).status_code == 404
    listed = (await api.get("/models", params={"model_type": "mlp", "sort_by": "name", "limit": 100})).json()["models"]
    assert [one["id"] for one in listed if one["id"] in {first["id"], third["id"]}] == [first["id"], third["id"]]


def test_names_stand_in_the_order_that_people_expect():
    names = ["ant", "Ant 2", "ant 02b", "ant 10", "Bee", "bee_v9_1", "bee_v9_12", "bee_v10_1", "x" * 200, "x" * 200 + "1" * 100]

    assert sorted(names, key=natural) == names


async def test_models_stand_by_their_names_in_the_order_of_their_numbers(api: httpx.AsyncClient, work: Work):
    kind = f"hub/{uuid4().hex}"
    for number in (10, 9, 100):
        model = str(uuid4())
        created = JobCreated(job_id=model, kind="train", stages=["training"], inputs={"dataset_id": str(uuid4())})
        await work.say(created, ModelRegistered(model_id=model, name=f"{kind[4:]}_v{number}", model_type=kind))

    async def order(**query: str) -> list[str]:
        listed = (await api.get("/models", params={"model_type": kind, "sort_by": "name", **query})).json()["models"]
        return [model["name"].partition("_v")[2] for model in listed]

    await eventually(order, of=3)
    assert (await order(), await order(order="desc")) == (["9", "10", "100"], ["100", "10", "9"])


async def test_a_stopped_run_is_stopped_and_has_no_results(api: httpx.AsyncClient, upload: Uploading, work: Work):
    """Its data set is still being processed: it waits."""
    run = await started(api, await upload())

    stopped = (await api.post(f"/training/stop/{run['job_id']}")).json()

    assert set(stopped) == {"job_id", "status", "message"}
    assert (await api.get(f"/training/results/{run['job_id']}")).status_code == 409


@pytest.mark.parametrize(
    ("wrong", "field", "why"),
    [
        ({"model_type": "resnet49"}, "model_type", "must be one of gradient_boosting, mlp, ft_transformer, resnet18"),
        ({"model_type": "vit"}, "model_type", "is for images"),
        ({"model_type": "../etc/passwd"}, "model_type", "must be one of"),
        ({"hyperparameters": {"learning_rate": 1}}, "learning_rate", "Must be between 0 and 1"),
        ({"hyperparameters": {"lr": 0}}, "lr", "Must be between 0 and 1"),
        ({"hyperparameters": {"epochs": 0}}, "epochs", "Must be between 1 and 10,000"),
        ({"hyperparameters": {"epochs": "many"}}, "epochs", "Must be a whole number"),
        ({"hyperparameters": {"batch_size": 2.5}}, "batch_size", "Must be a whole number"),
        ({"hyperparameters": {"optimizer": "magic"}}, "optimizer", "adam, adamw, sgd, rmsprop"),
        ({"hyperparameters": {"epoch": 3}}, "epoch", "did you mean epochs"),
        ({"hyperparameters": [1]}, "hyperparameters", "Must be an object"),
        ({"validation_split": 1}, "validation_split", "Must be less than 1"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience", "Must be at least 1"),
        ({"early_stopping": {"monitor": "luck"}}, "early_stopping.monitor", "val_loss, val_accuracy"),
        ({"early_stopping": {"monitor": "val_mae"}}, "early_stopping.monitor", "is not measured"),
        ({"dataset_id": "no id"}, "dataset_id", "Invalid UUID"),
    ],
)
async def test_a_start_that_can_not_be_meant_is_refused_with_its_field(
    api: httpx.AsyncClient, ready: dict[str, Any], log: EventLog, wrong: dict[str, Any], field: str, why: str
):
    last = (await log.position()).last
    refused = await api.post("/training/start", json={"dataset_id": ready["id"], **DOCUMENT, **wrong})

    assert refused.status_code == 400, refused.text
    (detail,) = refused.json()["details"]
    assert (detail["field"], why in detail["message"]) == (field, True), refused.text
    assert await commanded(log, after=last) == []


async def test_a_table_that_is_too_wide_for_a_transformer_is_refused_with_what_could_be_taken(api: httpx.AsyncClient, upload: Uploading, work: Work):
    wide, narrow = await upload(), await upload()
    for dataset, features in ((wide, 2_001), (narrow, 2_000)):
        columns = [Column(index=n, name=f"c{n}", type="numeric", role="feature" if n else "target") for n in range(features + 1)]
        await work.prepare(dataset["job_id"], columns=columns)
        await eventually(lambda dataset=dataset: shown(api, dataset["id"], "ready"))

    refused = await api.post("/training/start", json={"dataset_id": wide["id"], **DOCUMENT, "model_type": "ft_transformer"})
    taken = await api.post("/training/start", json={"dataset_id": narrow["id"], **DOCUMENT, "model_type": "ft_transformer"})

    assert refused.status_code == 400, refused.text
    assert refused.json()["details"][0]["field"] == "model_type"
    assert "2,000 features at most, and this data set has 2,001: take gradient_boosting or mlp" in refused.json()["message"]
    assert (taken.status_code, taken.json()["model_type"]) == (201, "ft_transformer")


async def test_early_stopping_goes_by_what_its_task_measures_as_soon_as_that_is_known(api: httpx.AsyncClient, upload: Uploading, work: Work):
    """Somebody named it when the data set was uploaded, or it was found when that was prepared. A start that was accepted before stays so when it is sent again."""
    named, found = await upload(dataset_type="Regression"), await upload(dataset_type="houses")
    key = {"Idempotency-Key": str(uuid4())}

    async def start(dataset: dict[str, Any], monitor: str, **headers: str) -> httpx.Response:
        body = {"dataset_id": dataset["id"], **DOCUMENT, "early_stopping": {"monitor": monitor}}
        return await api.post("/training/start", json=body, headers=headers)

    refused, taken = await start(named, "val_accuracy"), await start(named, "val_mae")
    nobody_knows = await start(found, "val_f1_score", **key)
    await work.prepare(found["job_id"], task="regression")
    await eventually(lambda: shown(api, found["id"], "ready"))
    known, again = await start(found, "val_f1_score"), await start(found, "val_f1_score", **key)

    assert [answer.status_code for answer in (refused, taken, nobody_knows, known, again)] == [400, 201, 201, 400, 201]
    assert [answer.json()["details"][0]["field"] for answer in (refused, known)] == ["early_stopping.monitor"] * 2
    assert refused.json()["message"] == "val_accuracy is not measured in a regression: early stopping can go by val_loss, val_mae, val_rmse, val_r2"
    assert again.json()["job_id"] == nobody_knows.json()["job_id"]


async def test_a_data_set_in_use_stays_and_one_that_is_deleted_takes_its_objects_along(
    api: httpx.AsyncClient, ready: dict[str, Any], work: Work, servers: Servers
):
    run = await started(api, ready)
    busy = await api.delete(f"/datasets/{ready['id']}")
    await work.fit(run["job_id"])
    model = await eventually(lambda: completed(api, run["job_id"]))
    gone = await eventually(lambda: deleted(api, ready["id"]))

    assert (busy.status_code, busy.json()["error"]) == (409, "dataset_busy")
    assert gone
    await eventually(lambda: not stored(servers, ready["id"]) and not stored(servers, ready["job_id"]))
    assert (await api.get(f"/datasets/{ready['id']}")).status_code == 404
    lineage = (await api.get(f"/models/{model['model_id']}")).json()["lineage"]
    assert lineage["dataset_id"] == ready["id"]


async def test_of_a_run_that_has_ended_only_what_can_still_be_asked_for_takes_room_and_nothing_once_that_is_deleted(
    api: httpx.AsyncClient, upload: Uploading, work: Work, servers: Servers
):
    """Its model, and the newest log of its steps. A run that goes on keeps its checkpoints, as does one of a project, which can be taken up again."""
    dataset = await upload()
    await work.prepare(dataset["job_id"])
    await eventually(lambda: shown(api, dataset["id"], "ready"))
    completes, fails, goes_on = [(await started(api, dataset))["job_id"] for _ in range(3)]
    of_a_project = str(uuid4())
    await work.say(JobCreated(job_id=of_a_project, kind="train", stages=["training"], inputs={"sources": []}, project_id=str(uuid4())))
    jobs = (completes, of_a_project, fails, goes_on)
    kept = {job: await work.checkpointed(job) for job in jobs}
    for job in (of_a_project, fails):
        await work.say(TrainingFailed(job_id=job, code="crashed", message="It ended.", attempt=1, step=2))
    model = await work.store(completes, b"model")
    await work.say(TrainingCompleted(job_id=completes, attempt=1, step=2, artifacts={"model.onnx": model}, steps=kept[completes].steps))

    def there(*owners: str) -> set[str]:
        return {file.name for file in stored(servers, *owners)}

    await eventually(lambda: there(completes) == {model.sha256, kept[completes].steps.sha256})
    await eventually(lambda: there(fails) == {kept[fails].steps.sha256})
    assert all(len(there(job)) == 3 for job in (of_a_project, goes_on))

    await eventually(lambda: completed(api, completes))
    assert (await api.delete(f"/datasets/{dataset['id']}?cancel=true")).status_code == 204
    assert (await api.delete(f"/models/{completes}")).status_code == 204
    await eventually(lambda: not there(dataset["id"], dataset["job_id"], completes, fails))
    assert len(there(goes_on)) == 3
    await work.say(TrainingCancelled(job_id=goes_on, attempt=1, step=2, steps=kept[goes_on].steps))
    await eventually(lambda: not there(goes_on))
    assert len(there(of_a_project)) == 3


async def deleted(api: httpx.AsyncClient, id: str) -> bool:
    return (await api.delete(f"/datasets/{id}")).status_code == 204


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (WrongCredentials(), 401, "unauthorized"),
        (Bad(), 401, "unauthorized"),
        (RoleMissing(role="viewer"), 403, "forbidden"),
        (NotFound(what="Model", id="1"), 404, "not_found"),
        (Refused(422, "page: wrong", field="page"), 400, "validation_error"),
        (RuntimeError(), 500, "internal_error"),
    ],
    ids=["login", "token", "role", "unknown", "field", "fault"],
)
def test_a_refusal_has_the_documents_word_for_its_status(error: Exception, status: int, word: str):
    answered, body = dress(problem(error))

    assert (answered, body["error"]) == (status, word)


def test_a_run_too_many_is_refused_in_the_documents_words_and_says_when_to_try_again():
    status, body = dress(problem(TooManyActiveJobs(most=5, job_ids=["1", "2", "3", "4", "5"])))

    assert status == 429
    assert (body["error"], body["retry_after"]) == ("rate_limit_exceeded", 60)
    assert body["message"].startswith("5 of your jobs are queued or running")


async def test_an_unknown_thing_is_a_404(api: httpx.AsyncClient):
    id = uuid4()
    answers = [
        await api.get(f"/datasets/{id}"),
        await api.delete(f"/datasets/{id}"),
        await api.post("/training/start", json={"dataset_id": str(id), **DOCUMENT}),
        await api.get(f"/training/status/{id}"),
        await api.get(f"/training/results/{id}"),
        await api.post(f"/training/stop/{id}"),
        await api.get(f"/models/{id}"),
        await api.delete(f"/models/{id}"),
        await api.get(f"/models/{id}/download/model.onnx"),
    ]

    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(404, "not_found")] * len(answers)
