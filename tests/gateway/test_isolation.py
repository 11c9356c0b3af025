"""Every operation there is, as its owner, members of each role, a removed one, a stranger, and people without a good token.

Nobody learns or touches what is another's, and nobody in a workspace does more there than the role allows. A new operation is walked by itself. One with a
new kind of id, or that needs a body, is to be named below.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from nats.aio.client import Client

from infra.embedded import Process
from libs.events import ModelRegistered, Origin
from libs.events.log import EventLog, Write
from libs.tiny import BASE
from services.gateway.app import openapi
from services.gateway.domain.workspace import may
from services.gateway.edge import DOORS, OPEN
from tests.kit.gateway import bare, plain
from tests.kit.people import PASSWORD, Person, bearer, expired, registered

Answer = tuple[int, str]
Operation = tuple[str, str]

FILE = {"files": {"files": ("mine.jsonl", b'{"text": "secret-of-the-owner"}\n')}, "data": {"kind": "dataset_upload"}}
BODIES: dict[Operation, dict[str, Any]] = {
    ("PATCH", "/projects/{project_id}"): {"json": {"name": "taken over"}},
    ("POST", "/projects/{project_id}/files/upload"): FILE,
    ("POST", "/projects/{project_id}/model/resolve"): {"json": {"model_id": BASE}},
    ("POST", "/projects/{project_id}/train/start"): {"json": {"method": "lora"}},
    ("POST", "/projects/{project_id}/dataset/dry-run"): {"json": {"method": "lora"}},
    ("PATCH", "/projects/{project_id}/dataset/examples/{example_id}"): {"json": {"split": "train"}},
    ("PATCH", "/webhooks/{webhook_id}"): {"json": {"description": "taken over"}},
    ("POST", "/webhooks/{webhook_id}/replay"): {"json": {"from": 1}},
    ("PATCH", "/v2/users/{user_id}"): {"json": {"role": "user"}},
    ("POST", "/projects"): {"json": {"name": "a stranger's own"}},
    ("POST", "/v2/keys"): {"json": {"name": "a stranger's own"}},
    ("POST", "/v2/workspaces/{workspace_id}/members"): {"json": {"username": "nobody-has-this-name", "role": "viewer"}},
    ("PATCH", "/v2/workspaces/{workspace_id}/members/{user_id}"): {"json": {"role": "viewer"}},
    ("POST", "/v2/bus-credentials"): {"json": {"name": "a stranger's own"}},
    ("POST", "/v2/users/{user_id}/credits"): {"json": {"amount": 1}},
    ("POST", "/datasets/upload"): {"files": {"file": ("mine.csv", b"a,b\n1,2\n")}, "data": {"name": "a stranger's own"}},
    ("POST", "/training/start"): {"json": {"dataset_id": str(uuid4()), "model_type": "mlp"}},
    ("POST", "/models/{model_id}/predict"): {"json": {"input": [1.0]}},
    ("POST", "/webhooks"): {"json": {"url": "https://receiver.invalid/a-strangers-own", "events": ["training.completed"]}},
}
FOR_ADMINS = {("PATCH", "/v2/users/{user_id}"), ("POST", "/v2/users/{user_id}/credits")}
OF_A_WORKSPACE = {"workspace_id", "project_id", "job_id", "dataset_id", "model_id", "webhook_id"}
OF_A_PERSON = {"user_id", "key_id", "credential_id"}
"""What the first id of a path is of: that of a person is nobody else's, whatever workspaces they share."""
OF_EVERYBODY = {"preset_name"}
FOR_OWNERS = ("/webhooks/", "/v2/workspaces/{workspace_id}/members")
"""Of all that is in a workspace what needs to be its owner: to read these webhooks, and to change either."""
LEAVING = {("POST", "/auth/logout"), ("POST", "/auth/password")}
"""Last of all: they end the session."""


@dataclass
class Owned:
    """A person with one of each kind of thing."""

    person: Person
    ids: dict[str, str]

    def at(self, path: str) -> str:
        unknown = [name for name in re.findall(r"\{([^}]*)\}", path) if name not in self.ids]
        assert not unknown, f"{path}: give the owner a {unknown} in `owned`, so that strangers can try to get at it"
        return path.format(**self.ids)


@pytest.fixture(scope="module")
def operations() -> list[Operation]:
    every = [(method.upper(), path) for path, item in openapi()["paths"].items() for method in item]
    return sorted(every, key=lambda operation: (operation in LEAVING, operation[0] == "DELETE", -len(operation[1])))


@pytest.fixture(scope="module")
async def owned(door: httpx.AsyncClient, infra_nc: Client) -> Owned:
    return await owner_of_everything(door, EventLog(infra_nc, source="/tests"))


async def owner_of_everything(door: httpx.AsyncClient, log: EventLog) -> Owned:
    person = await registered(door)

    async def made(path: str, **body: Any) -> Any:
        answer = await door.post(path, headers=person.headers, **body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    project = (await made("/projects", json={"name": "secret-of-the-owner"}))["id"]
    await made(f"/projects/{project}/model/resolve", json={"model_id": BASE})
    file = (await made(f"/projects/{project}/files/upload", **FILE))["files"][0]
    dataset = await made("/datasets/upload", files={"file": ("mine.csv", b"secret-of-the-owner,b\n1,2\n")}, data={"name": "secret-of-the-owner"})
    run = (await made("/training/start", json={"dataset_id": dataset["id"], "model_type": "mlp"}))["job_id"]
    model = ModelRegistered(model_id=run, name="MLP_v1", model_type="mlp", dataset_id=dataset["id"])
    await log.append([Write(events=[model], after=0)], origin=Origin(tenant=person.id))
    ids = {
        "project_id": project,
        "file_id": file["id"],
        "job_id": run,
        "dataset_id": dataset["id"],
        "model_id": run,
        "example_id": str(uuid4()),
        "filename": "adapter_config.json",
        "preset_name": "lora-sft",
        "user_id": person.id,
        "workspace_id": person.id,
        "webhook_id": (await made("/webhooks", json={"url": "https://receiver.invalid/secret-of-the-owner", "events": ["training.completed"]}))["id"],
        "credential_id": (await made("/v2/bus-credentials", json={"name": "secret-of-the-owner"}))["id"],
        "key_id": (await made("/v2/keys", json={"name": "secret-of-the-owner"}))["id"],
    }
    return Owned(person, ids)


def first_id(operation: Operation) -> str:
    found = re.search(r"\{([^}]*)\}", operation[1])
    assert found is None or found[1] in OF_A_WORKSPACE | OF_A_PERSON | OF_EVERYBODY, (
        f"{operation}: say above whether a {found[1]} is of a workspace or of a person"
    )
    return found[1] if found else ""


def needed(operation: Operation) -> str:
    method, path = operation
    if path.startswith("/webhooks/") or (path.startswith(FOR_OWNERS) and method != "GET"):
        return "manage"
    return "read" if method == "GET" or path.endswith(("/predict", "/dry-run")) else "change"


def is_open(operation: Operation) -> bool:
    method, path = operation
    return (method == "GET" and path in OPEN) or (method == "POST" and path.rstrip("/") in DOORS)


def asking(door: httpx.AsyncClient, owned: Owned, headers: dict[str, str]) -> Callable[[Operation], Awaitable[Answer]]:
    async def ask(operation: Operation) -> Answer:
        method, path = operation
        async with door.stream(method, owned.at(path), headers=headers, **BODIES.get(operation, {})) as answer:
            return answer.status_code, (await answer.aread()).decode()

    return ask


async def test_without_a_good_token_no_operation_answers(door: httpx.AsyncClient, owned: Owned, operations: list[Operation]):
    ann = owned.person
    callers = {
        "anonymous": {},
        "expired": bearer(expired(ann)),
        "refresh token": bearer(ann.refresh),
        "another scheme": {"Authorization": f"Token {ann.access}"},
    }
    through = []
    for who, headers in callers.items():
        ask = asking(door, owned, headers)
        answers = [(who, operation, await ask(operation)) for operation in operations if not is_open(operation)]
        through += [answer for answer in answers if answer[2][0] != 401]

    assert through == []
    assert len([operation for operation in operations if not is_open(operation)]) > 30


async def test_what_is_anothers_is_not_there(door: httpx.AsyncClient, owned: Owned, operations: list[Operation]):
    """For the owner the same request is answered otherwise, or it would prove nothing."""
    ann, stranger = owned.person, await registered(door)
    as_stranger, as_owner = asking(door, owned, stranger.headers), asking(door, owned, ann.headers)
    before = await whats_hers(door, owned)
    known = [ann.username, "secret-of-the-owner", *(id for name, id in owned.ids.items() if name not in OF_EVERYBODY)]
    leaks, vain = [], []

    for operation in operations:
        status, text = await as_stranger(operation)
        theirs = first_id(operation) not in OF_EVERYBODY | {""}
        if status not in (404, 403) if theirs else any(word in text for word in known):
            leaks.append((operation, status, text))
    assert leaks == []
    assert await whats_hers(door, owned) == before

    for operation in operations:
        if first_id(operation) not in OF_EVERYBODY | {""} and operation not in FOR_ADMINS:
            stranger_again = await asking(door, owned, bearer(await entered(door, stranger)))(operation)
            if (answer := await as_owner(operation)) == stranger_again:
                vain.append((operation, answer))
    assert vain == []


@pytest.mark.parametrize("role", ["viewer", "annotator", "editor"])
async def test_a_member_gets_as_far_as_the_role_goes_and_a_removed_one_nowhere(door: httpx.AsyncClient, operations: list[Operation], log: EventLog, role: str):
    owned, member, stranger = await owner_of_everything(door, log), await registered(door), await registered(door)
    ann = owned.person
    as_owner, as_member, as_stranger = (asking(door, owned, person.headers) for person in (ann, member, stranger))
    there = [operation for operation in operations if first_id(operation) in OF_A_WORKSPACE]
    elsewhere = [operation for operation in operations if first_id(operation) in OF_A_PERSON and operation not in FOR_ADMINS]
    unlike_stranger = {operation: await as_stranger(operation) for operation in there + elsewhere}
    members = f"/v2/workspaces/{ann.id}/members"

    assert (await door.post(members, json={"username": member.username, "role": role}, headers=ann.headers)).status_code == 201
    wrong = []
    for operation in there:
        owners = await as_owner(operation) if operation[0] == "GET" else None
        answer = await as_member(operation)
        if not may(role, needed(operation)):
            right = answer[0] == 403
        elif owners and not operation[1].startswith("/v2/workspaces"):  # there each reads the own role
            right = answer == owners
        else:
            right = answer[0] not in (401, 403) and answer != unlike_stranger[operation]
        wrong += [] if right else [(operation, answer, owners)]
    wrong += [(operation, answer, "of a person") for operation in elsewhere if (answer := await as_member(operation)) != unlike_stranger[operation]]
    assert wrong == []

    assert (await door.delete(f"{members}/{member.id}", headers=ann.headers)).status_code == 204
    wrong += [(operation, answer, "removed") for operation in there if (answer := await as_member(operation)) != unlike_stranger[operation]]
    assert wrong == []


async def test_nothing_is_fitted_to_anothers_data_set(door: httpx.AsyncClient, owned: Owned, log: EventLog):
    """It is named in the body, not in the path."""
    stranger, before = await registered(door), await whats_hers(door, owned)
    asked = {"dataset_id": owned.ids["dataset_id"], "model_type": "mlp"}
    for elsewhere in ({}, {"X-Workspace": owned.person.id}):
        answer = await door.post("/training/start", json=asked, headers={**stranger.headers, **elsewhere})
        assert answer.status_code == 404, answer.text

    assert await whats_hers(door, owned) == before


async def test_naming_anothers_workspace_helps_nobody(door: httpx.AsyncClient, owned: Owned, operations: list[Operation]):
    removed, stranger = await registered(door), await registered(door)
    members, ann = f"/v2/workspaces/{owned.person.id}/members", owned.person
    await door.post(members, json={"username": removed.username, "role": "editor"}, headers=ann.headers)
    await door.delete(f"{members}/{removed.id}", headers=ann.headers)
    before, leaks, heeded = await whats_hers(door, owned), [], dict[Operation, bool]()

    for person in (removed, stranger):
        ask = asking(door, owned, {**person.headers, "X-Workspace": ann.id})
        for operation in operations:
            if "{" not in operation[1] and operation not in LEAVING and not is_open(operation):
                status, text = await ask(operation)
                leaks += [(operation, status, text)] if any(word in text for word in (ann.username, "secret-of-the-owner")) else []
                if status < 300 or "Workspace not found" in text:
                    heeded[operation] = status == 404

    assert leaks == []
    assert len(heeded) > 15
    assert {operation for operation, here in heeded.items() if here} == {operation for operation in heeded if operation in with_header()}
    assert await whats_hers(door, owned) == before


async def test_a_socket_about_a_job_is_refused_to_who_may_not_see_it(guarded: Process, door: httpx.AsyncClient, owned: Owned):
    stranger, member = await registered(door), await registered(door)
    await door.post(f"/v2/workspaces/{owned.person.id}/members", json={"username": member.username, "role": "viewer"}, headers=owned.person.headers)
    upgrade = (b"Host: localhost", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    statuses = []
    for token in ("", owned.person.refresh, expired(owned.person), stranger.access, member.access):
        if token == member.access:
            await door.delete(f"/v2/workspaces/{owned.person.id}/members/{member.id}", headers=owned.person.headers)
        request = plain("GET", f"/ws/progress/{owned.ids['job_id']}?token={token}", headers=upgrade).replace(b"Connection: close", b"Connection: Upgrade")
        statuses.append((await bare(guarded, request))[0])

    assert statuses == [401, 401, 401, 404, 404]


def with_header() -> set[Operation]:
    """Of which the document says that they heed X-Workspace."""
    every = [(method.upper(), path, operation) for path, item in openapi()["paths"].items() for method, operation in item.items()]
    return {(method, path) for method, path, operation in every if any(given["name"] == "X-Workspace" for given in operation.get("parameters", []))}


async def entered(door: httpx.AsyncClient, person: Person) -> str:
    return (await door.post("/auth/login", json={"username": person.username, "password": PASSWORD})).json()["access_token"]


async def whats_hers(door: httpx.AsyncClient, owned: Owned) -> list[str]:
    paths = [
        "/projects",
        "/v2/keys",
        *(owned.at(path) for path in ("/projects/{project_id}", "/projects/{project_id}/files", "/jobs/{job_id}", "/datasets/{dataset_id}")),
    ]
    return [(await door.get(path, headers=owned.person.headers)).text for path in paths]
