"""Predictions over HTTP: the document's own examples, what is refused and where it says so, and what becomes of a question when nobody answers."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.embedded import Process, Servers
from libs import config
from libs.events import Claim, Event, Fit, JobCreated, ModelDeleted, Origin, TrainingCompleted, address
from libs.events.log import EventLog, Write
from libs.prediction import INLINE, SUBJECT, Answer, Prediction, Question, Refusal
from libs.runtime import bus
from libs.storage import Storage
from services.gateway.api.deep_learning.predict import Patience, asked
from services.gateway.api.problems import Refused
from services.gateway.questions import Questions
from services.training.children import Children
from services.training.place import Place
from services.training.predict import Predictions
from tests.kit import predictors as kit
from tests.kit.eventually import eventually
from tests.kit.gateway import bare, stored
from tests.kit.servers import storage_of

HERE = "local"
ROW = [0.5, 9.0, 0.2, 0.1]
GOOD = Answer(predictions=[Prediction(said="cat", confidence=0.5)])

Predict = Callable[..., Awaitable[httpx.Response]]
Make = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
async def storage(servers: Servers) -> AsyncIterator[Storage]:
    storage = storage_of(servers)
    yield storage
    storage.close()


@pytest.fixture(scope="module")
async def training(servers: Servers) -> AsyncIterator[Client]:
    """The training service's place on the bus."""
    nc = await bus.connect(servers.nats_url("training"), name="training")
    yield nc
    await nc.close()


@pytest.fixture
async def answering(servers: Servers, training: Client, storage: Storage) -> AsyncIterator[None]:
    """The part of the training service that answers."""
    settings = config.load(config.Training, servers.environ("training", port=0))
    place = Place(nc=training, log=EventLog(training, source="/training"), storage=storage, children=Children(), runs=Path(), models=Path())
    predictions = Predictions(place, settings)
    await predictions.listen(training)
    await training.flush()
    task = asyncio.create_task(predictions.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def make(api: httpx.AsyncClient, log: EventLog, storage: Storage) -> Make:
    """A model that a run has left, as the gateway knows it."""

    async def make(**what: Any) -> str:
        job = str(uuid4())
        files = await kit.stored(storage, HERE, **what)
        fit, inputs = Fit(model_type="mlp"), {"dataset_id": str(uuid4()), "source": str(uuid4())}
        await say(log, JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs=inputs, spec=msgspec.to_builtins(fit)))
        names = ("model.onnx", "preprocess.json") if what.get("onnx") != b"" else ("model.txt", "card.md")
        artifacts: dict[str, Claim] = dict(zip(names, files, strict=True))
        await say(log, TrainingCompleted(job_id=job, attempt=1, step=1, artifacts=artifacts, steps=files[1], metrics={"val_accuracy": 1.0}))
        await eventually(lambda: _there(api, job))
        return job

    return make


async def say(log: EventLog, event: Event) -> None:
    after = await log.read(address(HERE, event))
    await log.append([Write(events=[event], after=after[-1].seq if after else 0)], origin=Origin(tenant=HERE))


async def _there(api: httpx.AsyncClient, id: str) -> bool:
    return (await api.get(f"/models/{id}")).status_code == 200


@pytest.fixture
def predict(api: httpx.AsyncClient, make: Make) -> Predict:
    """Of a fresh model of four numbers and three animals."""

    async def send(*, model: str = "", **body: Any) -> httpx.Response:
        return await api.post(f"/models/{model or await make()}/predict", json=body)

    return send


def field(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "validation_error"
    return answer.json()["details"][0]["field"]


# ---- what is answered


async def test_the_documents_examples_get_the_documents_answers(answering: None, make: Make, predict: Predict):
    model = await make()

    one = await predict(model=model, input=[0.5, 0.3, 0.2, 0.1])
    two = await predict(model=model, inputs=[[0.5, 0.3, 0.2, 0.1], [0.4, 9, 0.3, 0.1]])

    assert (one.status_code, two.status_code) == (200, 200)
    assert list(one.json()) == ["predictions"]
    assert [set(found) for found in one.json()["predictions"] + two.json()["predictions"]] == [{"class", "confidence"}] * 3
    assert [found["class"] for found in two.json()["predictions"]] == ["cat", "dog"]
    assert 0.99 < two.json()["predictions"][1]["confidence"] <= 1


async def test_a_row_by_name_gets_all_probabilities_on_request(answering: None, predict: Predict):
    answer = await predict(input=dict(zip(kit.NAMES, ROW, strict=True)), probabilities=True)

    (found,) = answer.json()["predictions"]
    assert found["class"] == "dog"
    assert list(found["probabilities"]) == kit.CLASSES
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["probabilities"]["dog"] == found["confidence"]


async def test_a_regression_has_a_value_and_no_class(answering: None, make: Make, predict: Predict):
    model = await make(onnx=kit.linear(outputs=1), prepared=kit.preparation(classes=[]))

    answer = await predict(model=model, input=[2.5, 0, 0, 0])

    assert answer.json() == {"predictions": [{"class": None, "confidence": None, "value": 125.0}]}


async def test_images_are_taken_as_base64_and_as_files_of_a_form(answering: None, make: Make, predict: Predict, api: httpx.AsyncClient, servers: Servers):
    model = await make(onnx=kit.mean_colour(), prepared=kit.of_images())
    before = stored(servers)
    red, blue = kit.png((255, 0, 0)), kit.png((0, 0, 255))

    text = await predict(model=model, inputs=[base64.b64encode(blue).decode(), base64.b64encode(red).decode()])
    form = await api.post(f"/models/{model}/predict", files=[("file", ("a.png", red)), ("file", ("b.png", blue))], data={"probabilities": "true"})
    bad = await api.post(f"/models/{model}/predict", files=[("file", ("a.png", red)), ("file", ("b.png", red[:50]))])

    assert [found["class"] for found in text.json()["predictions"]] == ["blue", "red"]
    assert [found["class"] for found in form.json()["predictions"]] == ["red", "blue"]
    assert list(form.json()["predictions"][0]["probabilities"]) == ["red", "green", "blue"]
    assert field(bad) == "file[1]"
    assert stored(servers) == before


async def test_what_is_too_large_for_the_bus_is_answered_and_leaves_nothing(answering: None, make: Make, predict: Predict, servers: Servers):
    classes = [f"class-{n:03}" for n in range(60)]
    names = [f"a feature with quite a long name, number {n:03}" for n in range(20)]
    model = await make(onnx=kit.linear(width=20, outputs=60, seed=1), prepared=kit.preparation(classes=classes, names=names))
    before = stored(servers)
    rows = [dict.fromkeys(names, n / 1000) for n in range(1000)]

    answer = await predict(model=model, inputs=rows, probabilities=True)
    wrong = await predict(model=model, inputs=[*rows[:-1], {**rows[0], names[3]: "x"}])

    assert len(json.dumps(rows)) > INLINE
    assert len(answer.content) > INLINE
    assert len(answer.json()["predictions"]) == 1000
    assert field(wrong) == f"inputs[999].{names[3]}"
    assert stored(servers) == before


async def test_a_category_that_the_model_has_never_seen_is_noted(training: Client, predict: Predict):
    said = Answer(predictions=[Prediction(said="cat", confidence=0.5)], notes=["colour: 'mauve' counts as unknown"])

    answer, _ = await told(training, predict, [said], input=ROW)

    assert answer.json()["notes"] == ["colour: 'mauve' counts as unknown"]


# ---- what is refused


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"input": [1, 2, 3]}, "input"),
        ({"inputs": [ROW, ROW, ROW, [1]]}, "inputs[3]"),
        ({"input": [1, "two", 3, 4]}, "input[1]"),
        ({"inputs": [ROW, [1, 2, 3, True]]}, "inputs[1][3]"),
        ({"input": {"a": 1, "b": 2, "c": 3}}, "input.d"),
        ({"inputs": [{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}]}, "inputs[0].e"),
        ({"input": "aGVsbG8="}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [ROW] * 1001}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": {"a": 1}}, "inputs"),
        ({"input": ROW, "inputs": [ROW]}, "input"),
        ({}, "input"),
        ({"input": ROW, "probabilities": "yes"}, "probabilities"),
    ],
    ids=map(str, range(16)),
)
async def test_what_does_not_fit_the_model_is_refused_with_its_field(answering: None, predict: Predict, body: dict[str, Any], named: str):
    answer = await predict(**body)

    assert field(answer) == named
    assert named in answer.json()["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"input": [NaN]}', b'{"input": [Infinity, 1, 1, 1]}', b'{"input": [1e999, 1, 1, 1]}', b'{"input": "\xff"}', b"[" * 100_000],
    ids=map(str, range(8)),
)
async def test_what_is_no_json_is_refused(answering: None, make: Make, api: httpx.AsyncClient, body: bytes):
    answer = await api.post(f"/models/{await make()}/predict", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["error"]) == (400, "validation_error")


async def test_a_body_beyond_the_limit_is_refused_as_it_comes(make: Make, gateway: Process):
    path = f"/models/{await make()}/predict"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {17 * 1024**2}\r\nConnection: close\r\n\r\n".encode()

    status, rest = await bare(gateway, head + b'{"input": [' + b"1," * (17 * 1024**2 // 2), patience=20)

    assert status == 413
    assert b"16 MB" in rest


async def test_a_model_that_is_not_there_or_can_not_predict_says_so(predict: Predict, make: Make, log: EventLog, api: httpx.AsyncClient):
    unknown = await predict(model=str(uuid4()), input=ROW)
    without = await predict(model=await make(onnx=b""), input=ROW)
    deleted = await make()
    await say(log, ModelDeleted(model_id=deleted))
    await eventually(lambda: _gone(api, deleted))

    assert (unknown.status_code, unknown.json()["error"]) == (404, "not_found")
    assert (without.status_code, without.json()["error"]) == (409, "model_not_usable")
    assert (await predict(model=deleted, input=ROW)).status_code == 404


async def _gone(api: httpx.AsyncClient, id: str) -> bool:
    return (await api.get(f"/models/{id}")).status_code == 404


# ---- who answers


async def told(training: Client, predict: Predict, said: list[Answer], **body: Any) -> tuple[httpx.Response, list[Question]]:
    """The gateway's answer where the training service gives these, one after another, and what it was asked."""
    asked: list[Question] = []

    async def respond(msg: Msg) -> None:
        asked.append(msgspec.json.decode(msg.data, type=Question))
        await msg.respond(msgspec.json.encode(said[min(len(asked), len(said)) - 1]))

    subscription = await training.subscribe(f"ask.{SUBJECT}", cb=respond)
    await training.flush()
    try:
        return await predict(**body), asked
    finally:
        await subscription.unsubscribe()


def refusal(code: str) -> Answer:
    return Answer(refusal=Refusal(code=code, message="It is so"))


async def test_when_nobody_answers_it_says_when_to_come_again(predict: Predict):
    answer = await predict(input=ROW)

    assert (answer.status_code, answer.json()["error"]) == (503, "service_unavailable")
    assert int(answer.headers["Retry-After"]) == answer.json()["retry_after"] >= 1


async def test_where_one_is_busy_another_is_asked_and_then_the_client_to_come_again(training: Client, predict: Predict):
    answer, asked = await told(training, predict, [refusal("busy"), GOOD], input=ROW)
    refused, twice = await told(training, predict, [refusal("busy")], input=ROW)

    assert (answer.status_code, len(asked)) == (200, 2)
    assert (refused.status_code, refused.headers["Retry-After"], len(twice)) == (503, "1", 2)


@pytest.mark.parametrize("first_speaks", [True, False])
async def test_while_one_is_silent_others_are_asked_too_and_the_first_answer_counts(infra_nc: Client, tenant: str, first_speaks: bool):
    """Who is asked second knows that he is: the first may be himself."""
    asking = kit.question(tenant, (Claim(key="m", sha256="", size=0), Claim(key="p", sha256="", size=0)), ROW)
    came: list[Msg] = []

    async def respond(msg: Msg) -> None:
        came.append(msg)
        if len(came) == 2:
            await came[0 if first_speaks else 1].respond(msgspec.json.encode(GOOD))

    subscription = await infra_nc.subscribe(f"ask.{SUBJECT}", cb=respond)
    answer = await asked(Questions(infra_nc), asking, patience=Patience(again=0.05, seconds=5.0))
    await subscription.unsubscribe()

    assert answer == GOOD
    assert [msgspec.json.decode(msg.data, type=Question).again for msg in came] == [False, True]


async def test_nobody_waits_for_the_silent_any_longer_than_he_wants_to(infra_nc: Client, tenant: str):
    asking = kit.question(tenant, (Claim(key="m", sha256="", size=0), Claim(key="p", sha256="", size=0)), ROW)
    came: list[Question] = []

    async def hear(msg: Msg) -> None:
        came.append(msgspec.json.decode(msg.data, type=Question))

    subscription = await infra_nc.subscribe(f"ask.{SUBJECT}", cb=hear)
    with pytest.raises(Refused) as refused:
        await asked(Questions(infra_nc), asking, patience=Patience(again=0.1, seconds=1.0))
    await subscription.unsubscribe()

    assert refused.value.problem.status == 503
    assert [question.again for question in came] == [False] + [True] * (len(came) - 1)
    assert 1.0 >= came[0].seconds > came[1].seconds > 0


@pytest.mark.parametrize(("code", "again"), [("late", True), ("storage", True), ("service", True), ("model", False), ("too_large", False)])
async def test_each_reason_of_the_service_is_told(training: Client, predict: Predict, code: str, again: bool):
    answer, _ = await told(training, predict, [refusal(code)], input=ROW)

    assert answer.status_code == 503
    assert ("Retry-After" in answer.headers) == again


async def test_a_model_that_is_deleted_while_it_is_asked_is_not_there(training: Client, predict: Predict, make: Make, log: EventLog, api: httpx.AsyncClient):
    model = await make()

    async def respond(msg: Msg) -> None:
        await say(log, ModelDeleted(model_id=model))
        await eventually(lambda: _gone(api, model))
        await msg.respond(msgspec.json.encode(refusal("model")))

    subscription = await training.subscribe(f"ask.{SUBJECT}", cb=respond)
    await training.flush()
    answer = await predict(model=model, input=ROW)
    await subscription.unsubscribe()

    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_an_answer_that_was_stored_and_is_gone_is_an_outage(training: Client, predict: Predict):
    nowhere = Answer(elsewhere=Claim(key="local/nowhere/0", sha256="0" * 64, size=1))

    answer, _ = await told(training, predict, [nowhere], input=ROW)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
