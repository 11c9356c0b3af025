"""Whoever brings a data set, prepares it, fits a model to it and predicts with that dies, and what that rests on too: over HTTP nothing is missing, double or wrong."""

import asyncio
import base64
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from infra.embedded import Process
from libs.config import Datasets
from libs.events import (
    Event,
    JobCreated,
    ModelRegistered,
    PreparationCompleted,
    PreparationStarted,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    kind,
)
from libs.events.log import EventLog
from services.training.children import PRELOAD
from tests.kit import looks
from tests.kit.checker import check, summary
from tests.kit.datasets import zipped
from tests.kit.eventually import eventually
from tests.kit.people import JWT, Person, registered
from tests.kit.place import one_service
from tests.kit.platform import Platform, client, platform
from tests.kit.processes import decoders, still_training, trainers
from tests.kit.servers import revive, storage_of
from tests.kit.training import descendants, gone, service
from tests.kit.yard import kill

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # nats-py leaves them behind where a reconnect fails halfway
    pytest.mark.timeout(300),
]

LONG = "LONG_FAULTS" in os.environ
"""`make chaos` has the time; a test for every change has not."""
AWAY = 30.0 if LONG else 0.5
"""Seconds, at least, without the store, the bus and the database."""
PATIENCE = 60.0
BOUNDARY = "boundary"


@dataclass(frozen=True)
class Sort:
    """Of models: what one is fitted to and how, what is left of it, and what it is asked."""

    file: str
    data: Callable[[], bytes]
    hyperparameters: Mapping[str, Any]
    left: str
    inputs: Callable[[], list[Any]]


@dataclass(frozen=True)
class Model:
    id: str
    inputs: list[Any]


@dataclass
class Ground:
    platform: Platform
    datasets: Process
    http: httpx.AsyncClient
    log: EventLog
    person: Person
    models: dict[str, Model] = field(default_factory=dict)
    """By model_type: of the runs that nobody disturbed."""

    def url(self, path: str, at: int = 0) -> str:
        return self.platform.urls[at] + path

    async def ask(self, method: str, path: str, *, at: int = 0, status: int = 200, **body: Any) -> Any:
        answer = await self.http.request(method, self.url(path, at), headers=self.person.headers, **body)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def upload(self, data: bytes, *, file: str = "animals.csv") -> dict[str, Any]:
        form = {"name": "Animals", "dataset_type": "classification"}
        return await self.ask("POST", "/datasets/upload", status=201, files={"file": (file, data)}, data=form)

    async def start(self, dataset: str, model_type: str, **hyperparameters: Any) -> str:
        body = {"dataset_id": dataset, "model_type": model_type, "hyperparameters": {"learning_rate": 0.05, "seed": 3, **hyperparameters}}
        return (await self.ask("POST", "/training/start", status=201, json=body | {"early_stopping": {"enabled": False}}))["job_id"]

    async def fit(self, model_type: str) -> str:
        """To a data set of its own."""
        sort = SORTS[model_type]
        dataset = await self.upload(sort.data(), file=sort.file)
        return await self.start(dataset["id"], model_type, **sort.hyperparameters)

    async def ready(self, dataset: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            seen = await self.ask("GET", f"/datasets/{dataset}")
            assert seen["status"] != "failed", seen
            return seen if seen["status"] == "ready" else await asyncio.sleep(0.1)

        seen = await eventually(look, patience=PATIENCE)
        assert seen
        return seen

    async def model(self, job: str, model_type: str = "mlp") -> Model:
        async def look() -> str | None:
            seen = await self.ask("GET", f"/training/status/{job}")
            assert seen["status"] not in ("failed", "stopped"), seen
            return seen["model_id"] or await asyncio.sleep(0.1)

        seen = await eventually(look, patience=PATIENCE)
        assert seen
        return Model(seen, SORTS[model_type].inputs())

    async def predicted(self, model: Model, *, at: int = 0) -> httpx.Response:
        body = {"inputs": model.inputs, "probabilities": True}
        return await self.http.post(self.url(f"/models/{model.id}/predict", at), json=body, headers=self.person.headers)

    # What the log says

    async def said(self, job: str, type_: type[Event], **about: Any) -> list[Any]:
        found = [recorded.event for recorded in await self.log.read(f"ev.{self.person.id}.*.*.{job}") if isinstance(recorded.event, type_)]
        return [event for event in found if all(getattr(event, name) == value for name, value in about.items())]

    async def until(self, job: str, type_: type[Event], **about: Any) -> None:
        """Never waits behind the end of a job."""

        async def look() -> bool:
            there = bool(await self.said(job, type_, **about))
            assert there or not await self.ends(job), "the job was over too soon"
            return there or await asyncio.sleep(0.005, False)

        await eventually(look, patience=PATIENCE)

    async def ends(self, job: str) -> list[str]:
        """Its terminal facts."""
        story = [recorded.event for recorded in await self.log.read(f"ev.{self.person.id}.*.*.{job}") if recorded.event]
        last = next(f"{event.stages[-1]}.completed" for event in story if isinstance(event, JobCreated))
        return [kind(event) for event in story if kind(event) == last or kind(event).endswith((".failed", ".cancelled"))]

    # What goes wrong

    async def without_servers(self, *names: str) -> None:
        for name in names:
            self.platform.servers[name].kill()
        await asyncio.sleep(AWAY)
        for name in names:
            await revive(self.platform.servers[name])

    async def without_all_servers(self) -> None:
        await self.without_servers("s3", "postgres", "nats")
        await self.well()

    async def without_a_child(self) -> None:
        kill((await self.at_work())[1])

    async def without_its_service(self) -> None:
        await self.without((await self.at_work())[0])

    async def without(self, process: Process) -> None:
        """Alone, not its group: its children must end by themselves."""
        assert process.pid
        left = descendants(process)
        kill(process.pid)
        await eventually(lambda: process.ended() is not None)
        await gone(*left)
        await revive(process)

    async def at_work(self) -> tuple[Process, int]:
        """The training service that has a child, and that child."""
        busy = await eventually(lambda: [(one, pid) for one in self.platform.training for pid in trainers(one.pid or 0)])
        return busy[0]

    async def well(self) -> None:
        """The gateways take a moment until they have their servers again."""
        for gateway in self.platform.gateways:
            await eventually(lambda gateway=gateway: asyncio.to_thread(gateway.ready), patience=PATIENCE)


@pytest.fixture(scope="module")
async def ground() -> AsyncIterator[Ground]:
    """Two gateways, two training services of which each has room for one run, and a datasets service; work is taken up again two seconds after somebody was killed. Networks for images are tiny."""
    with (
        platform(gateways=2, datasets=0, environ=JWT | {"TRAINYARD_SMOKE": "true"}) as made,
        one_service(made.servers, "datasets", settings=Datasets) as datasets,
        fitting(made, "training") as first,
        fitting(made, "training-2") as second,
    ):
        for process in (datasets, first, second):
            process.spawn()
        await asyncio.gather(*(eventually(lambda one=process: asyncio.to_thread(one.ready), patience=PATIENCE) for process in (datasets, first, second)))
        made.training += [first, second]
        async with client() as http, made.log() as log, httpx.AsyncClient(base_url=made.urls[0], timeout=30) as api:
            yield Ground(made, datasets, http, log, await registered(api))


def fitting(made: Platform, label: str) -> Any:
    return service(made.servers, label=label, entry="tests.kit.fits:leisurely", preload=PRELOAD, threads="1", workers="1", log_level="warning")


@pytest.fixture(scope="module")
async def undisturbed(ground: Ground) -> dict[str, TrainingCompleted]:
    """A run of each sort, by model_type."""
    jobs = {model_type: await ground.fit(model_type) for model_type in SORTS}
    ground.models |= {model_type: await ground.model(job, model_type) for model_type, job in jobs.items()}
    return {model_type: (await ground.said(job, TrainingCompleted))[0] for model_type, job in jobs.items()}


def animals(rows: int, *, seed: int = 7) -> bytes:
    chance = random.Random(seed)
    lines = ["whiskers,weight,colour,label"]
    for _ in range(rows):
        cat = chance.random() < 0.5
        whiskers, weight = chance.gauss(12 if cat else 6, 2), chance.gauss(4 if cat else 20, 5)
        lines.append(f"{whiskers:.2f},{weight:.2f},{chance.choice(('red', 'grey'))},{'cat' if cat else 'dog'}")
    return "\n".join(lines).encode()


def squares(each: int) -> bytes:
    """Images in a folder for each colour."""
    return zipped({f"{colour}/{name}": image for name, (colour, image) in looks.squares(each).items()})


def rows() -> list[Any]:
    return [[12.0, 4.0, "red"], [6.0, 20.0, "grey"], [9.0, 11.0, None]]


def image() -> list[Any]:
    """Alone: nobody could say that another one broke its decoder."""
    return [base64.b64encode(looks.square(looks.RED, np.random.default_rng(9))).decode()]


SORTS = {
    "mlp": Sort("animals.csv", lambda: animals(240), {"epochs": 30}, "model.safetensors", rows),
    "gradient_boosting": Sort("animals.csv", lambda: animals(240), {"epochs": 120}, "model.txt", rows),
    "resnet18": Sort("squares.zip", lambda: squares(16), {"epochs": 10, "learning_rate": 0.005, "image_size": 32, "batch_size": 8}, "model.safetensors", image),
}


# Uploads


async def test_an_upload_whose_gateway_is_killed_is_there_once_and_whole_or_not_at_all(ground: Ground):
    """One is halfway, the other has sent all of it; who sends it again under its key has it once."""
    data = animals(10_000)
    keys = {name: ground.person.headers | {"Idempotency-Key": str(uuid4())} for name in ("halfway", "all sent")}
    gateway = ground.platform.gateways[0]
    killed = asyncio.Event()

    async def body(name: str) -> AsyncIterator[bytes]:
        yield _field("name", name)
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="animals.csv"\r\n\r\n'.encode()
        for start in range(0, len(data), 64 * 1024):
            if name == "halfway" and start > len(data) // 2:
                await killed.wait()
            yield data[start : start + 64 * 1024]
        yield f"\r\n--{BOUNDARY}--\r\n".encode()
        gateway.kill()
        killed.set()

    sent = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    broken = [ground.http.post(ground.url("/datasets/upload"), content=body(name), headers=headers | sent) for name, headers in keys.items()]
    seen = await asyncio.gather(*broken, return_exceptions=True)
    file = {"file": ("animals.csv", data)}
    again = {name: await ground.http.post(ground.url("/datasets/upload", 1), headers=keys[name], files=file, data={"name": name}) for name in keys}
    await revive(gateway)

    assert all(isinstance(one, httpx.TransportError) for one in seen), seen
    listed = {one["name"]: one["id"] for one in (await ground.ask("GET", "/datasets?limit=100"))["datasets"]}
    assert listed == {name: answer.json()["id"] for name, answer in again.items()}
    for dataset in listed.values():
        assert (await ground.ready(dataset))["metadata"]["rows"] == 10_000


def _field(name: str, value: str) -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


# Preparation


@pytest.mark.parametrize("file", ["animals.csv", "squares.zip"])
async def test_a_data_set_is_prepared_once_whoever_dies_meanwhile(ground: Ground, file: str):
    """With it ends the process that reads the file for it."""
    data = animals(60_000) if file == "animals.csv" else squares(600)
    whole = await ground.upload(data, file=file)
    expected = (await ground.ready(whole["id"]))["metadata"]
    (snapshot,) = [fact.snapshot for fact in await ground.said(whole["job_id"], PreparationCompleted)]
    deaths: list[Callable[[], Any]] = [lambda: ground.without(ground.datasets)]
    if LONG or file == "animals.csv":
        deaths.append(ground.without_all_servers)
    if LONG:
        deaths += [lambda name=name: ground.without_servers(name) for name in ("s3", "postgres", "nats")] + [
            lambda: ground.without(ground.platform.gateways[0])
        ]

    for dies in deaths:
        dataset = await ground.upload(data, file=file)
        await ground.until(dataset["job_id"], PreparationStarted)
        await eventually(lambda: descendants(ground.datasets))
        assert not await ground.ends(dataset["job_id"]), "it was done too soon"
        await dies()
        await ground.well()

        assert (await ground.ready(dataset["id"]))["metadata"] == expected
        assert await ground.ends(dataset["job_id"]) == ["preparation.completed"]
        (completed,) = await ground.said(dataset["job_id"], PreparationCompleted)
        assert completed.snapshot.sha256 == snapshot.sha256


# Training


@pytest.mark.parametrize("model_type", list(SORTS))
async def test_a_fit_has_the_losses_and_the_model_of_an_undisturbed_one_whoever_dies_meanwhile(
    ground: Ground, undisturbed: dict[str, TrainingCompleted], model_type: str
):
    """Its child, all that it rests on, and its whole service: each when there is a new checkpoint."""
    job = await ground.fit(model_type)
    deaths = [ground.without_a_child, ground.without_all_servers, ground.without_its_service]
    for attempt, dies in enumerate(deaths if LONG else [deaths[n] for n in SOME[model_type]], 1):
        await ground.until(job, TrainingCheckpointed, attempt=attempt)
        await dies()

    model = await ground.model(job, model_type)
    (completed,) = await ground.said(job, TrainingCompleted)
    assert await ground.ends(job) == ["training.completed"]
    assert completed.attempt > 1
    assert completed.metrics == undisturbed[model_type].metrics
    assert {told.metrics["epoch"] for told in await ground.said(job, TrainingEvaluated)} == set(range(1, SORTS[model_type].hyperparameters["epochs"] + 1))
    assert await _losses(ground, completed) == await _losses(ground, undisturbed[model_type])
    left = SORTS[model_type].left
    assert completed.artifacts[left].sha256 == undisturbed[model_type].artifacts[left].sha256
    assert await _answer(ground, model) == await _answer(ground, ground.models[model_type])
    assert await _registered(ground, job) == 1
    assert await eventually(lambda: not still_training(ground.platform.servers.home.path))


SOME = {"mlp": [0, 1], "gradient_boosting": [0], "resnet18": [0, 2]}
"""Of the deaths, where there isn't the time for all of them."""


async def _registered(ground: Ground, job: str) -> int:
    return sum(isinstance(recorded.event, ModelRegistered) for recorded in await ground.log.read(f"ev.{ground.person.id}.model.*.{job}"))


async def _losses(ground: Ground, completed: TrainingCompleted) -> list[float | None]:
    storage = storage_of(ground.platform.servers)
    try:
        lines = [json.loads(line) for line in (await storage.get(completed.steps)).splitlines()]
    finally:
        storage.close()
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train_loss"] for line in lines]


async def _answer(ground: Ground, model: Model, *, at: int = 0) -> Any:
    async def look() -> Any:
        answer = await ground.predicted(model, at=at)
        return answer.json() if answer.status_code == 200 else await asyncio.sleep(0.1)

    return await eventually(look, patience=PATIENCE)


# Predictions


@pytest.mark.parametrize("model_type", list(SORTS) if LONG else ["gradient_boosting"])
async def test_a_prediction_is_right_or_refused_clearly_whoever_dies_meanwhile(ground: Ground, undisturbed: dict[str, TrainingCompleted], model_type: str):
    """While one training service is away the other one answers, also those who had asked the first; without the servers people hear when to come back."""
    model = ground.models[model_type]
    right = await _answer(ground, model)
    async with _asking(ground, model, right) as seen:
        for process in ground.platform.training:
            assert process.pid
            kill(process.pid)
            await _more(seen)
            await eventually(lambda process=process: process.ended() is not None)
            await revive(process)
        for name in ("nats", "s3", "postgres"):
            await ground.without_servers(name)
        await ground.without(ground.platform.gateways[1])
        for at in (0, 1):
            await _answer(ground, model, at=at)

    sys.stdout.write(f"{dict(seen)}\n")
    assert seen.keys() <= {"200", "503", "no connection"}, seen
    assert seen["200"] > 10


async def _more(seen: Counter[str]) -> None:
    before = seen["200"]
    await eventually(lambda: seen["200"] >= before + 6, patience=PATIENCE)


async def test_an_image_is_told_right_or_refused_clearly_when_its_decoders_die_and_then_a_replica(ground: Ground, undisturbed: dict[str, TrainingCompleted]):
    """Nobody hears that his image was bad because of them."""
    model = ground.models["resnet18"]
    right = await _answer(ground, model)
    first, second = ground.platform.training
    async with _asking(ground, model, right) as seen:
        for process in (first, second, first):
            (decoder,) = await eventually(lambda process=process: decoders(process.pid or 0), patience=PATIENCE)
            kill(decoder)
            await _more(seen)
        assert first.pid
        kill(first.pid)
        await _more(seen)
        await eventually(lambda: first.ended() is not None)
        await revive(first)

    sys.stdout.write(f"{dict(seen)}\n")
    assert seen.keys() <= {"200", "503"}, seen


@asynccontextmanager
async def _asking(ground: Ground, model: Model, right: Any) -> AsyncIterator[Counter[str]]:
    """Through both gateways, all the while."""
    seen = Counter[str]()
    over = asyncio.Event()

    async def ask(at: int) -> None:
        while not over.is_set():
            try:
                answer = await ground.predicted(model, at=at)
            except httpx.TransportError:
                seen["no connection"] += 1
                await asyncio.sleep(0.05)
                continue
            seen[_judged(answer, right)] += 1
            await asyncio.sleep(0.02)

    asking = [asyncio.create_task(ask(at)) for at in (0, 1)]
    try:
        yield seen
    finally:
        over.set()
        await asyncio.gather(*asking)


def _judged(answer: httpx.Response, right: Any) -> str:
    if answer.status_code == 200:
        return "200" if answer.json() == right else f"wrong: {answer.text}"
    clear = answer.status_code == 503 and answer.headers.get("retry-after") and {"error", "message", "retry_after"} <= answer.json().keys()
    return "503" if clear else f"{answer.status_code} {answer.text}"


async def test_a_stampede_on_a_cold_model_through_two_gateways_is_answered(ground: Ground, undisturbed: dict[str, TrainingCompleted]):
    """While nobody is there who could answer, people hear when to come back."""
    for process in ground.platform.training:
        assert process.pid
        kill(process.pid)
        await eventually(lambda process=process: process.ended() is not None)
    alone = await ground.predicted(ground.models["mlp"])
    await asyncio.gather(*map(revive, ground.platform.training))

    answers = await asyncio.gather(*(ground.predicted(ground.models["mlp"], at=n % 2) for n in range(20)))

    assert _judged(alone, None) == "503"
    assert [answer.status_code for answer in answers] == [200] * 20
    assert len({answer.text for answer in answers}) == 1


# Two gateways


async def test_of_six_starts_at_once_through_two_gateways_five_are_taken(ground: Ground):
    dataset = (await ground.upload(animals(240)))["id"]
    body = {"dataset_id": dataset, "model_type": "mlp", "hyperparameters": {"epochs": 10_000}, "early_stopping": {"enabled": False}}

    async def start(at: int) -> httpx.Response:
        return await ground.http.post(ground.url("/training/start", at % 2), json=body, headers=ground.person.headers)

    answers = await asyncio.gather(*(start(n) for n in range(6)))
    (refused,) = [answer for answer in answers if answer.status_code != 201]
    jobs = [answer.json()["job_id"] for answer in answers if answer.status_code == 201]
    full = await start(1)
    stopped = await ground.ask("POST", f"/training/stop/{jobs.pop()}", at=1, status=200)
    after = await start(0)
    jobs.append(after.json()["job_id"])
    for job in jobs:
        await ground.ask("POST", f"/training/stop/{job}", status=200)

    assert (refused.status_code, full.status_code, after.status_code) == (429, 429, 201)
    assert refused.json()["error"] == full.json()["error"] == "rate_limit_exceeded"
    assert set(refused.json()) == {"error", "message", "retry_after"}
    assert stopped["status"] in ("stopped", "running")


async def test_of_a_delete_and_a_start_at_once_through_two_gateways_one_wins(ground: Ground):
    """A run never reads what is gone: it was refused, or it ends; or else the data set is still there."""
    won = Counter[str]()
    for n in range(3):
        dataset = (await ground.upload(animals(40, seed=n)))["id"]
        await ground.ready(dataset)
        body = {"dataset_id": dataset, "model_type": "gradient_boosting", "hyperparameters": {"epochs": 1}}
        deletes = ground.http.delete(ground.url(f"/datasets/{dataset}", n % 2), headers=ground.person.headers)
        starts = ground.http.post(ground.url("/training/start", (n + 1) % 2), json=body, headers=ground.person.headers)
        deleted, started = await asyncio.gather(deletes, starts)
        seen = await ground.http.get(ground.url(f"/datasets/{dataset}", n % 2), headers=ground.person.headers)
        won[f"{deleted.status_code} {started.status_code} {seen.status_code}"] += 1
        if started.status_code == 201:
            await ground.model(started.json()["job_id"])

    assert won.keys() <= {"204 404 404", "409 201 200"}, won


async def test_a_data_set_that_is_deleted_with_its_run_leaves_no_run_without_an_end(ground: Ground):
    dataset = (await ground.upload(animals(20_000)))["id"]
    job = await ground.start(dataset, "mlp", epochs=10_000)

    await ground.ask("DELETE", f"/datasets/{dataset}?cancel=true", at=1, status=204)

    assert await eventually(lambda: ground.ends(job), patience=PATIENCE) in (["preparation.cancelled"], ["training.cancelled"], ["preparation.failed"])


# After all of it


async def test_after_all_of_this_nothing_is_wrong(ground: Ground):
    assert await ground.platform.rest(PATIENCE) == ""
    await ground.platform.sweep()

    evidence = await ground.platform.collect()

    assert summary(check(evidence)) == ""
    assert {fact.type for fact in evidence.facts} >= {"dataset.deleted", "model.registered", "quota.taken", "training.attempt_lost"}
