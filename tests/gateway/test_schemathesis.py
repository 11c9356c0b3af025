"""Everything that /openapi.json says can be asked, asked with what nobody would send: no 5xx, and no answer that isn't documented."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from infra.embedded import Process
from tests.kit.people import PASSWORD, name

EXAMPLES = 6
CHECKS: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]
LEAVING = {("POST", "/auth/logout"), ("POST", "/auth/password"), ("DELETE", "/v2/users/{user_id}")}
"""After these the token is worth nothing, which is another test's matter (test_isolation)."""
AWAY = {("POST", "/projects/{project_id}/model/resolve"), ("GET", "/hardware/check")}
"""503 is right there: the hub can't be reached from a test, and nobody trains."""


@pytest.fixture(scope="module")
def person(guarded: Process) -> dict[str, str]:
    username = name()
    with httpx.Client(base_url=f"http://{guarded.part.address}") as api:
        body = {"username": username, "password": PASSWORD}
        api.post("/auth/register", json={**body, "email": f"{username}@example.com"}).raise_for_status()
        return {"Authorization": f"Bearer {api.post('/auth/login', json=body).raise_for_status().json()['access_token']}"}


def test_an_owner_with_a_token_meets_only_documented_answers(guarded: Process, person: dict[str, str]):
    assert not list(wrong(f"http://{guarded.part.address}", person))


def test_nor_does_the_owner_of_local_mode(gateway: Process):
    assert not list(wrong(f"http://{gateway.part.address}", {}))


def wrong(address: str, headers: dict[str, str]) -> Iterator[str]:
    with httpx.Client(base_url=address, headers=headers) as api:
        schema = schemathesis.openapi.from_dict(api.get("/openapi.json").json())
        for result in schema.get_all_operations():
            operation = result.ok()
            if (operation.method.upper(), operation.path) in LEAVING:
                continue
            try:
                tried(operation, address, headers, known(api, operation.path))
            except BaseExceptionGroup as failures:
                yield from (f"{operation.method.upper()} {operation.path}: {failure}" for failure in failures.exceptions)


def tried(operation: Any, address: str, headers: dict[str, str], path: dict[str, str]) -> None:
    cases = [operation.as_strategy(generation_mode=mode, path_parameters=fixed) for mode in GenerationMode for fixed in (path, None)]

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=some.one_of(cases))
    def ask(case: Any) -> None:
        answer = case.call(base_url=address, headers=headers, timeout=10)
        case.validate_response(answer, checks=CHECKS if (case.method.upper(), operation.path) in AWAY else [not_a_server_error, *CHECKS])

    ask()


def known(api: httpx.Client, path: str) -> dict[str, str]:
    """Of what is there, where a path asks for it; what an operation deletes is made anew for each."""
    found = {name: str(uuid4()) for name in ("job_id", "file_id", "example_id", "user_id", "key_id", "credential_id", "workspace_id")}
    if "{project_id}" in path:
        found["project_id"] = api.post("/projects", json={"name": "asked"}).raise_for_status().json()["id"]
    if "{webhook_id}" in path:
        found["webhook_id"] = api.post("/webhooks", json={"url": "https://example.com/"}).raise_for_status().json()["id"]
    return {name: value for name, value in found.items() if f"{{{name}}}" in path}
