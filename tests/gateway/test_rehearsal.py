"""A dry run over HTTP: what is asked of the training service, and how each of its answers is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.events.log import EventLog
from libs.rehearsal import SUBJECT, Answer, Estimate, Question, Refusal, Seen, Segment, Shown, Spread
from libs.runtime import bus
from libs.tiny import BASE
from tests.kit.eventually import eventually
from tests.kit.gateway import KEPT, stored

SPREAD = Spread(min=1, p5=1, p50=2, p95=3, p99=3, max=4)
SEEN = Seen(
    sampled=2,
    of=9,
    max_seq_length=512,
    tokens=SPREAD,
    trainable_tokens=SPREAD,
    trainable_share=0.5,
    rows_cut=1,
    rows_left_out=0,
    estimate=Estimate(exact=False, rows=9, tokens_per_epoch=20, rows_per_step=16, steps_per_epoch=1, total_steps=3),
    examples=[Shown(id="1", split="train", segments=[Segment(text="Q", trained=False), Segment(text="A", trained=True)], tokens=2, trainable_tokens=1)],
    warnings=["1 rows are longer than 512 tokens; what is beyond is left out."],
)
ROWS = [{"instruction": f"What is {n} + {n}?", "input": "", "output": f"{2 * n}, since it is so."} for n in range(500)]

Ask = Callable[..., Awaitable[tuple[httpx.Response, Question]]]


class Project:
    def __init__(self, api: httpx.AsyncClient, id: str) -> None:
        self.id = id
        self._api = api

    async def add(self, rows: list[dict[str, Any]]) -> None:
        """Until they are read."""
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        answer = await self._api.post(f"/projects/{self.id}/files/upload", files={"files": ("rows.jsonl", content)}, data={"kind": "dataset_upload"})
        assert answer.status_code == 201, answer.text
        await eventually(self._read, patience=30)

    async def _read(self) -> bool:
        jobs = (await self._api.get(f"/projects/{self.id}/jobs")).json()["jobs"]
        return bool(jobs) and all(job["status"] == "success" for job in jobs)

    async def has(self, **wanted: int) -> bool:
        """So many that are valid in each split."""
        stats = (await self._api.get(f"/projects/{self.id}/dataset/stats")).json()
        return {split: found["count"] for split, found in stats["by_split"].items()} == wanted

    async def examples(self) -> list[dict[str, Any]]:
        return (await self._api.get(f"/projects/{self.id}/dataset/examples", params={"limit": 1000})).json()["items"]


@pytest.fixture(scope="module")
def datasets(servers: Servers) -> Iterator[Process]:
    process = servers.service("datasets")
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def project(api: httpx.AsyncClient) -> Project:
    """With a model; all rows will be trained on."""
    made = await api.post("/projects", json={"name": "test", "config": {"train_eval_split": 1.0, "max_seq_length": 512}})
    assert (await api.post(f"/projects/{made.json()['id']}/model/resolve", json={"model_id": BASE})).status_code == 200
    return Project(api, made.json()["id"])


@pytest.fixture(scope="module")
async def training(servers: Servers) -> AsyncIterator[Client]:
    """The training service's place on the bus."""
    nc = await bus.connect(servers.nats_url("training"), name="training")
    yield nc
    await nc.close()


@pytest.fixture
async def ask(api: httpx.AsyncClient, training: Client, project: Project) -> Ask:
    async def ask(said: Answer | None = None, **body: Any) -> tuple[httpx.Response, Question]:
        """The gateway's answer where the training service gives this one, and what it was asked."""
        question = await training.subscribe(f"ask.{SUBJECT}")
        await training.flush()
        try:
            answering = asyncio.create_task(api.post(f"/projects/{project.id}/dataset/dry-run", json=body))
            asked = await question.next_msg(timeout=10)
            await asked.respond(msgspec.json.encode(said or Answer(seen=SEEN)))
            return await answering, msgspec.json.decode(asked.data, type=Question)
        finally:
            await question.unsubscribe()

    return ask


# ---- what is asked


async def test_the_answer_is_what_was_seen_with_all_that_a_run_would_use_and_nothing_is_changed(
    datasets: Process, ask: Ask, project: Project, log: EventLog, servers: Servers
):
    await project.add(ROWS[:3])
    before = (await log.position()).last, stored(servers, project.id)

    answer, question = await ask(method="lora", hyperparams={"rank": 4, "epochs": 2})

    told = answer.json()
    assert answer.status_code == 200, answer.text
    assert told.items() >= msgspec.to_builtins(SEEN).items()
    assert (told["base_model_id"], told["method"], told["smoke"]) == (BASE, "lora", False)
    assert told["hyperparams"].items() >= {"rank": 4, "epochs": 2, "max_seq_length": 512}.items()
    assert (question.tuning.lora_r, question.tuning.num_epochs, question.tuning.max_seq_length) == (4, 2, 512)
    assert (question.of, question.shown, question.workspace) == (3, None, "local")
    commanded = [fact.subject for pattern in ("ev.*.project.>", "ev.*.job.>", "ev.*.example.>") async for fact in log.scan(pattern, after=before[0])]
    assert (commanded, stored(servers, project.id)) == ([], before[1])  # other tests' jobs may still be under way


async def test_of_many_examples_every_so_manieth_is_looked_at(datasets: Process, ask: Ask, project: Project):
    await project.add(ROWS)

    _, question = await ask()

    asked = [msgspec.json.decode(line.data)["instruction"] for line in question.rows]
    places = [int(text.split()[2]) for text in asked]
    assert (len(places), question.of) == (200, 500)
    assert {later - earlier for earlier, later in pairwise(places)} == {2, 3}
    assert (places[0], places[-1]) == (0, 498)


async def test_long_examples_are_fewer_and_too_long_ones_are_not_looked_at(datasets: Process, ask: Ask, project: Project):
    long = [{"text": f"{n:03} " + "word " * 4000} for n in range(60)]
    await project.add([*long[:30], {"text": "huge " * 40_000}, *long[30:]])

    _, question = await ask()

    places = [int(msgspec.json.decode(line.data)["text"][:3]) for line in question.rows]
    assert sum(len(line.data) for line in question.rows) <= 512 * 1024
    assert (places, question.of) == ([*range(0, 60, 3)], 61)


async def test_an_edited_example_is_asked_about_as_it_is_now_and_one_that_is_refused_or_deleted_is_not(
    datasets: Process, ask: Ask, project: Project, api: httpx.AsyncClient
):
    await project.add(ROWS[:4])
    first, second, third, fourth = await project.examples()
    of = f"/projects/{project.id}/dataset/examples"
    await api.patch(f"{of}/{first['id']}", json={"data": {"question": "Who?", "answer": "Nobody."}})
    await api.patch(f"{of}/{second['id']}", json={"is_valid": False})
    await api.delete(f"{of}/{third['id']}")
    await api.patch(f"{of}/{fourth['id']}", json={"split": "eval"})
    await eventually(lambda: project.has(train=1, eval=1))

    _, question = await ask(example_id=fourth["id"])

    assert [(line.id, msgspec.json.decode(line.data)) for line in question.rows] == [(first["id"], {"instruction": "Who?", "input": "", "output": "Nobody."})]
    assert question.shown
    assert (question.shown.id, question.shown.split, msgspec.json.decode(question.shown.data)) == (fourth["id"], "eval", fourth["data"])


# ---- what is refused


@pytest.mark.parametrize(
    ("code", "status", "error", "part"),
    [
        ("data", 422, "NOTHING_TO_LEARN", None),
        ("model", 400, "MODEL_NOT_USABLE", None),
        ("hub", 503, "SERVICE_UNAVAILABLE", "the model hub"),
        ("service", 503, "SERVICE_UNAVAILABLE", "the training service"),
    ],
)
async def test_why_there_is_no_dry_run_is_told_in_the_familys_form(
    datasets: Process, ask: Ask, project: Project, code: str, status: int, error: str, part: str | None
):
    await project.add(ROWS[:1])

    answer, _ = await ask(Answer(refusal=Refusal(code=code, message="It is so.")))

    said = answer.json()
    assert (answer.status_code, said["error_code"], said["context"].get("part")) == (status, error, part)
    assert set(said) == KEPT
    assert "It is so" in said["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_while_nobody_trains_the_part_that_is_missing_is_named(datasets: Process, api: httpx.AsyncClient, project: Project):
    await project.add(ROWS[:1])

    answer = await api.post(f"/projects/{project.id}/dataset/dry-run", json={})

    assert (answer.status_code, answer.json()["context"]) == (503, {"part": "the training service"})
    assert answer.headers["retry-after"] == "2"


async def test_without_a_model_or_an_example_it_is_refused_as_a_start_is(datasets: Process, api: httpx.AsyncClient, project: Project):
    other = (await api.post("/projects", json={"name": "without a model"})).json()["id"]

    for id, code in ((project.id, "NO_TRAINING_DATA"), (other, "MODEL_NOT_RESOLVED")):
        started = await api.post(f"/projects/{id}/train/start", json={})
        tried = await api.post(f"/projects/{id}/dataset/dry-run", json={})
        assert (tried.status_code, tried.json()) == (started.status_code, started.json())
        assert (tried.status_code, tried.json()["error_code"]) == (400, code)


async def test_a_data_set_with_nothing_but_refused_rows_is_no_data(datasets: Process, api: httpx.AsyncClient, project: Project):
    await project.add([{"colour": "red"}])

    answer = await api.post(f"/projects/{project.id}/dataset/dry-run", json={})

    assert (answer.status_code, answer.json()["error_code"]) == (400, "NO_TRAINING_DATA")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"hyperparams": {"epochs": 0}}, "hyperparams.epochs"),
        ({"method": "magic"}, "method"),
        ({"example_id": "one"}, "example_id"),
        ({"exmaple_id": "x"}, "exmaple_id"),
    ],
    ids=["epochs", "method", "id", "unknown"],
)
async def test_what_a_start_would_not_take_is_refused_with_its_field(api: httpx.AsyncClient, project: Project, body: dict[str, Any], field: str):
    answer = await api.post(f"/projects/{project.id}/dataset/dry-run", json=body)

    assert answer.status_code == 422
    assert field in answer.text


async def test_an_example_that_is_not_the_projects_is_not_there_and_a_refused_one_is_told_why(datasets: Process, api: httpx.AsyncClient, project: Project):
    await project.add([{"colour": "red"}, *ROWS[:1]])
    refused = next(example for example in await project.examples() if not example["is_valid"])

    elsewhere = (await api.post("/projects", json={"name": "another"})).json()["id"]
    await Project(api, elsewhere).add(ROWS[:1])
    (others,) = await Project(api, elsewhere).examples()

    missing = await api.post(f"/projects/{project.id}/dataset/dry-run", json={"example_id": others["id"]})
    broken = await api.post(f"/projects/{project.id}/dataset/dry-run", json={"example_id": refused["id"]})

    assert missing.status_code == 404
    assert (broken.status_code, "unknown_format" in broken.json()["detail"]) == (422, True)
