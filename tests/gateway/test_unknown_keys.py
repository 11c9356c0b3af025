"""What a body has and we don't know: refused where it looks like a slip, in each family's form."""

import time
from uuid import uuid4

import httpx
import pytest

from tests.kit.people import PASSWORD, name, registered


async def test_a_misspelt_key_is_refused_and_the_known_one_named(api: httpx.AsyncClient):
    answer = await api.post(f"/projects/{uuid4()}/train/start", json={"hyperparameters": {"num_epochs": 1}})

    message = "there is no such field, did you mean hyperparams?"
    assert answer.status_code == 422
    assert answer.json()["error_code"] == "VALIDATION_ERROR"
    assert answer.json()["context"]["errors"] == [{"field": "hyperparameters", "message": message}]
    assert answer.json()["detail"] == f"hyperparameters: {message}"


@pytest.mark.parametrize("slip", ["taskType", "task-type", "Task_Type", "task_typ"])
async def test_another_way_of_writing_it_is_a_slip_too(api: httpx.AsyncClient, slip: str):
    answer = await api.post("/projects", json={"name": "docs", slip: "qa"})

    assert answer.status_code == 422
    assert "did you mean task_type?" in answer.json()["detail"]


async def test_a_stranger_beside_the_known_key_is_ignored_as_forms_send_it(door: httpx.AsyncClient):
    username = name()
    body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD, "password2": PASSWORD, "newsletter": False}

    assert (await door.post("/auth/register", json=body)).status_code == 201
    assert (await door.post("/api/v1/auth/token/", json={"username": username, "password": PASSWORD, "remember_me": True})).status_code == 200


async def test_deep_learning_platform_and_datagen_refuse_a_slip_in_their_forms(door: httpx.AsyncClient):
    body = {"usernme": "ann", "password": PASSWORD}
    message = "there is no such field, did you mean username?"

    platform, datagen = [await door.post(path, json=body) for path in ("/auth/login", "/api/v1/auth/token/")]

    assert (platform.status_code, datagen.status_code) == (400, 400)
    assert platform.json() == {"error": "validation_error", "message": f"usernme: {message}", "details": [{"field": "usernme", "message": message}]}
    assert datagen.json() == {"usernme": [message]}


async def test_our_own_surface_refuses_every_unknown_key(door: httpx.AsyncClient):
    ann = await registered(door)

    answer = await door.post("/v2/keys", json={"name": "laptop", "colour": "blue"}, headers=ann.headers)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"] == [{"field": "colour", "message": "there is no such field, only name"}]
    assert (await door.get("/v2/keys", headers=ann.headers)).json() == {"keys": []}


async def test_a_body_of_strangers_keeps_nobody_waiting(api: httpx.AsyncClient):
    strangers = {f"noitpircsed{n}": 0 for n in range(45_000)}  # the letters of a known key: the slowest to compare

    started = time.perf_counter()
    answer = await api.post("/projects", json={"name": "docs", **strangers})

    assert answer.status_code == 201
    assert time.perf_counter() - started < 2


async def test_free_keys_of_a_project_stay_free(api: httpx.AsyncClient):
    answer = await api.post("/projects", json={"name": "docs", "config": {"num_example_target": 3, "mine": [1]}})

    assert answer.status_code == 201
    assert answer.json()["config"].items() >= {"num_example_target": 3, "mine": [1]}.items()


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"null", b"{", b"\xff", b"[" * 5000, b""])
async def test_what_is_no_object_is_answered_by_the_route(api: httpx.AsyncClient, body: bytes):
    answer = await api.post("/projects", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert "there is no such field" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"),
    [
        ("POST", "/projects", {"name": "docs", "task_type": "poetry"}, "qa, instruction, summarization, summarisation, chat"),
        ("GET", "/projects?status=lost", None, "draft, uploading, chunking, generating, ready_to_train, training, evaluating, completed, failed"),
        ("POST", "/projects/019a0000-0000-7000-8000-000000000003/train/start", {"method": "lorra"}, "lora, qlora, full"),
        ("POST", "/projects/019a0000-0000-7000-8000-000000000003/train/start", {"hyperparams": {"lr_scheduler": "square"}}, "cosine, linear, constant"),
    ],
)
async def test_a_value_that_is_none_of_the_allowed_ones_is_answered_with_those(
    api: httpx.AsyncClient, method: str, path: str, body: dict[str, object] | None, allowed: str
):
    answer = await api.request(method, path, json=body)

    assert answer.status_code == 422
    assert answer.json()["detail"].endswith(f"': it must be one of {allowed}")
