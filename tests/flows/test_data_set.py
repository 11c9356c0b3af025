"""From a table to a model that predicts, by clients that know the published document only: in Python, in JavaScript, and at the other end of a webhook."""

import asyncio
import base64
import json
import random
import shutil
import subprocess
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.kit.eventually import eventually
from tests.kit.hooks import EGRESS
from tests.kit.people import JWT, PASSWORD, name
from tests.kit.platform import Platform, platform
from tests.kit.receiver import Receiver, receiving

JS = Path(__file__).with_name("data_set_client.mjs")
PATIENCE = 150.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def ground() -> Iterator[Platform]:
    with platform(gateways=1, datasets=1, training=1, environ=JWT | EGRESS) as ground:
        yield ground


@pytest.fixture
def client(ground: Platform) -> Iterator["Client"]:
    with httpx.Client(base_url=ground.urls[0], timeout=30) as api:
        client = Client(api)
        client.enter()
        yield client


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


class Client:
    """Nothing but what the document says."""

    def __init__(self, api: httpx.Client) -> None:
        self.api = api
        self.username = name()

    def enter(self) -> None:
        about = {"username": self.username, "email": f"{self.username}@example.com", "password": PASSWORD, "full_name": "Ann Other"}
        assert self.api.post("/auth/register", json=about).status_code == 201
        entered = self.call("POST", "/auth/login", json={"username": self.username, "password": PASSWORD})
        self.api.headers["Authorization"] = f"Bearer {entered['access_token']}"

    def call(self, method: str, path: str, **body: Any) -> Any:
        answer = self.api.request(method, path, **body)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def trained(self, data: bytes, *, dataset_type: str, model_type: str, **hyperparameters: Any) -> dict[str, Any]:
        """Starts at once, also while the data set is still being processed, and waits for the end."""
        dataset = self.call("POST", "/datasets/upload", files={"file": ("data.csv", data)}, data={"name": "My Dataset", "dataset_type": dataset_type})
        wanted = {"dataset_id": dataset["id"], "model_type": model_type, "hyperparameters": hyperparameters}
        job = self.call("POST", "/training/start", json=wanted)["job_id"]
        deadline = time.monotonic() + PATIENCE
        while (status := self.call("GET", f"/training/status/{job}"))["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        assert status["status"] == "completed", status
        return self.call("GET", f"/training/results/{job}")


def animals(rows: int = 240) -> bytes:
    chance = random.Random(7)
    lines = ["whiskers,weight,colour,label"]
    for _ in range(rows):
        cat = chance.random() < 0.5
        whiskers, weight = chance.gauss(12 if cat else 6, 1), chance.gauss(4 if cat else 20, 1)
        lines.append(f"{whiskers:.2f},{weight:.2f},{chance.choice(('red', 'grey'))},{'cat' if cat else 'dog'}")
    return "\n".join(lines).encode()


async def test_a_client_of_the_document_gets_from_its_table_to_a_prediction_and_hears_of_it(client: Client, receiver: Receiver):
    """Its own model_type and hyperparameters, 100 epochs of which early stopping needs only some."""
    hook = client.call("POST", "/webhooks", json={"url": receiver.url(), "events": []})

    results = await asyncio.to_thread(
        client.trained, animals(80), dataset_type="classification", model_type="resnet50", learning_rate=0.001, batch_size=32, epochs=100
    )
    model = client.call("GET", f"/models/{results['model_id']}")
    cat, dog = [12.0, 4.0, "red"], {"whiskers": 6.0, "weight": 20.0, "colour": "grey"}
    one = client.call("POST", f"/models/{model['id']}/predict", json={"input": cat})
    two = client.call("POST", f"/models/{model['id']}/predict", json={"inputs": [cat, dog], "probabilities": True})

    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(results["final_metrics"])
    assert results["final_metrics"]["val_accuracy"] > 0.9
    history = results["training_history"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history)
    assert len({len(epochs) for epochs in history.values()}) == 1
    assert model["name"] == "ResNet50_v1"
    assert set(model["performance"]) >= {"accuracy", "precision", "recall", "f1_score"}
    assert one["predictions"][0]["class"] == "cat"
    assert [predicted["class"] for predicted in two["predictions"]] == ["cat", "dog"]
    assert 0.5 < one["predictions"][0]["confidence"] <= 1
    assert [set(predicted["probabilities"]) for predicted in two["predictions"]] == [{"cat", "dog"}] * 2

    got = await eventually(lambda: [one for one in receiver.got if one.json["event"] == "training.completed"], patience=20)
    for one_of_them in receiver.got:
        one_of_them.verify(hook["secret"])
    told = [one.json["event"] for one in receiver.got]
    assert told.index("dataset.processed") < told.index("training.started") < told.index("training.completed")
    reached = [one.json["data"] for one in receiver.got if one.json["event"] == "training.progress"]
    assert all({"loss", "accuracy", "val_loss", "val_accuracy"} <= set(data["metrics"]) for data in reached)
    assert [data["total_epochs"] for data in reached] == [100] * len(reached)
    assert len(reached) >= 1
    assert got[0].json["data"]["model_id"] == model["id"]
    assert got[0].json["data"]["accuracy"] == results["final_metrics"]["val_accuracy"]


def test_a_number_is_predicted_for_a_regression(client: Client):
    data = "\n".join(["x,z,y", *(f"{n / 10},{n % 3},{n / 5 + 1}" for n in range(300))]).encode()

    results = client.trained(data, dataset_type="regression", model_type="gradient_boosting", epochs=60, learning_rate=0.1)
    predicted = client.call("POST", f"/models/{results['model_id']}/predict", json={"input": {"x": 15.0, "z": 0}})["predictions"][0]

    assert results["final_metrics"]["val_r2"] > 0.9
    assert predicted["value"] == pytest.approx(31.0, abs=3)


def test_what_does_not_fit_the_model_names_its_field(client: Client):
    model = client.trained(animals(60), dataset_type="classification", model_type="ft_transformer", epochs=2)["model_id"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input": [1.0, 2.0]}, "input"),
        ({"inputs": [[1.0, 2.0, "red"], [1.0]]}, "inputs[1]"),
        ({"input": ["much", 2.0, "red"]}, "input[0]"),
        ({"input": {"whiskers": 1.0, "weight": 2.0}}, "colour"),
        ({"input": {"whiskers": 1.0, "weight": 2.0, "colour": "red", "tail": 3}}, "tail"),
        ({}, "input"),
    ]
    for body, field in wrong:
        answer = client.api.post(f"/models/{model}/predict", json=body)
        assert answer.status_code == 400, (body, answer.text)
        assert field in answer.json()["details"][0]["field"], (body, answer.text)


def square(colour: tuple[int, int, int], *, n: int) -> bytes:
    picture = Image.new("RGB", (48, 48), (n * 3, 128, n * 5))
    picture.paste(colour, (4 + n % 8, 6, 36, 40 - n % 8))
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_a_zip_of_images_becomes_a_model_that_tells_them_apart(client: Client):
    """A folder for each class; what is shown to the model later comes as base64 or as files."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for n in range(24):
            archive.writestr(f"squares/red/{n}.png", square((230, 20, 20), n=n))
            archive.writestr(f"squares/blue/{n}.png", square((20, 20, 230), n=n))

    results = client.trained(
        packed.getvalue(), dataset_type="image_classification", model_type="resnet18", epochs=6, image_size=32, learning_rate=0.001, pretrained=False
    )
    path = f"/models/{results['model_id']}/predict"
    red, blue = square((230, 20, 20), n=30), square((20, 20, 230), n=31)
    one = client.call("POST", path, json={"input": base64.b64encode(red).decode()})
    two = client.call("POST", path, files=[("file", ("a.png", red)), ("file", ("b.png", blue))])

    assert results["final_metrics"]["val_accuracy"] > 0.9
    assert [predicted["class"] for predicted in one["predictions"] + two["predictions"]] == ["red", "red", "blue"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the client in JavaScript")
def test_a_client_in_javascript_gets_there_too(ground: Platform, client: Client):

    done = subprocess.run(["node", str(JS), ground.urls[0], client.username, PASSWORD], capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"]["status"] == "completed"
    assert [set(predicted) >= {"class", "confidence"} for predicted in told["predicted"]["predictions"]] == [True, True]
