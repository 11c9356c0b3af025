"""Everything that /openapi.json says can be asked, asked with what nobody would send: no 5xx, and no answer that isn't documented."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from infra.embedded import Process
from tests.kit.people import PASSWORD, name

EXAMPLES = 3
CHECKS: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]
LEAVING = {("POST", "/auth/logout"), ("POST", "/auth/password"), ("DELETE", "/v2/users/{user_id}")}
"""After these the token is worth nothing, which is another test's matter (test_isolation)."""
AWAY = {("POST", "/projects/{project_id}/model/resolve"), ("GET", "/hardware/check"), ("POST", "/projects/{project_id}/dataset/dry-run")}
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


def test_what_no_generator_sends_is_refused_too(guarded: Process, person: dict[str, str]):
    """Text that JSON can say and PostgreSQL can't hold, numbers beyond any column, and worse."""
    with httpx.Client(base_url=f"http://{guarded.part.address}", headers=person, timeout=10) as api:
        document = api.get("/openapi.json").json()
        asked = [
            (f"{method.upper()} {path}", operation, request, api.send(request))
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if (method.upper(), path) not in LEAVING
            for request in hostile(api, document, method.upper(), path, operation)
        ]

    assert len(asked) > 20 * len(document["paths"])
    assert not [
        f"{answer.status_code} {name} {request.url} {request.headers} {request.content[:200]!r}: {answer.text[:200]}"
        for name, operation, request, answer in asked
        if not documented(answer.status_code, operation) or (answer.status_code >= 500 and tuple(name.split()) not in AWAY)
    ]


def wrong(address: str, headers: dict[str, str]) -> Iterator[str]:
    with httpx.Client(base_url=address, headers=headers) as api, without_traces(api):
        schema = schemathesis.openapi.from_dict(api.get("/openapi.json").json())
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result.err()
            operation = result.ok()
            if (operation.method.upper(), operation.path) in LEAVING:
                continue
            try:
                tried(operation, address, headers, known(api, operation.path))
            except BaseExceptionGroup as failures:
                yield from (f"{operation.method.upper()} {operation.path}: {failure}" for failure in failures.exceptions)


@contextmanager
def without_traces(api: httpx.Client) -> Iterator[None]:
    """Webhooks would be told of every other test in this workspace."""

    def held() -> set[str]:
        return {webhook["id"] for webhook in api.get("/webhooks?limit=1000").raise_for_status().json()["webhooks"]}

    before = held()
    yield
    for id in held() - before:
        api.delete(f"/webhooks/{id}").raise_for_status()


def tried(operation: Any, address: str, headers: dict[str, str], path: dict[str, str]) -> None:
    cases = [operation.as_strategy(generation_mode=mode, path_parameters=fixed) for mode in GenerationMode for fixed in (path, None)]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=some.one_of(cases))
    def ask(case: Any) -> None:
        answer = case.call(base_url=address, headers=headers, timeout=10)
        case.validate_response(answer, checks=CHECKS if (case.method.upper(), operation.path) in AWAY else [not_a_server_error, *CHECKS])

    ask()


def known(api: httpx.Client, path: str) -> dict[str, str]:
    """Of what is there, where a path asks for it; what an operation deletes is made anew for each."""
    found = {part: str(uuid4()) for part in re.findall(r"{(\w+)}", path)}
    if "{project_id}" in path:
        found["project_id"] = api.post("/projects", json={"name": "asked"}).raise_for_status().json()["id"]
    if "{webhook_id}" in path:
        found["webhook_id"] = api.post("/webhooks", json={"url": "https://nowhere.invalid/"}).raise_for_status().json()["id"]
    return found


TEXTS = ["", "\0", "%", "\x7f", "\u202e", "𝄞", "x" * 3000, "-1", "9" * 30, "1e400", "null", "[]", "' or 1=1 --", "../..", "true"]
VALUES = [
    *(json.dumps(text) for text in ("", "\0", "𝄞", "x" * 20_000, "../..")),
    '"\\ud800"',
    *(str(number) for number in (-1, 0, 2**31, 2**63, 10**400, -0.5)),
    *("1e400", "NaN", "null", "true", "[]", "{}", "[null]", '{"": {"\\u0000": 1}}'),
    "[" * 3000 + "]" * 3000,
    '{"a":' * 300 + "1" + "}" * 300,
]
HEADERS = {
    "Idempotency-Key": ["", "x" * 256, "\xff", "a\tb"],
    "If-Match": ["", '"', "9" * 40, '"-1"', "\xff"],
    "If-None-Match": ['"', "\xff"],
    "Last-Event-ID": ["", "9" * 40, "1.9" * 9, "-1", "\xff"],
    "Range": ["bytes=9-1", "bytes=", "bytes=-0", "bytes=" + "9" * 40 + "-", "\xff"],
    "X-Workspace": ["", "*", ">", "x" * 300, "\xff"],
    "traceparent": ["00-" + "g" * 32 + "-" + "0" * 16 + "-zz", "\xff"],
    "Accept": ["", "\xff", "*/*;q=9"],
    "Content-Type": ["application/json; charset=x", "multipart/form-data", "multipart/form-data; boundary=", "\xff", ""],
}


def hostile(api: httpx.Client, document: Any, method: str, path: str, operation: Any) -> Iterator[httpx.Request]:
    """One thing wrong at a time, and all else as it should be."""
    held = known(api, path)
    address = path.format(**held)
    for part in held:
        yield from (api.build_request(method, path.format(**{**held, part: quote(text, safe="")})) for text in TEXTS[1:6])
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "query":
            yield from (api.build_request(method, f"{address}?{parameter['name']}={quote(text, safe='')}") for text in TEXTS)
    for header, values in HEADERS.items():
        if header not in ("Accept", "Last-Event-ID") or method == "GET":
            value = values[len(path) % len(values)]  # another one at each operation: they are read in one place
            yield api.build_request(method, address, headers=[(header.encode(), value.encode("latin-1"))])
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        fields = right(document, body)
        bodies = [body_of({**fields, field: value}) for field in properties(document, body) for value in VALUES]
        for content in [*bodies, *VALUES, "", "{", '{"a": 1, "a": 2}', "\xff\xfe"]:
            yield api.build_request(method, address, content=content.encode(), headers={"Content-Type": "application/json"})


def documented(status: int, operation: Any) -> bool:
    return bool({str(status), f"{status // 100}XX"} & set(operation["responses"]))


def right(document: Any, schema: Any) -> dict[str, str]:
    """A body that has only what it must have, each field as JSON."""
    required = resolved(document, schema).get("required", [])
    return {name: example(resolved(document, field)) for name, field in properties(document, schema).items() if name in required}


def properties(document: Any, schema: Any) -> dict[str, Any]:
    return resolved(document, schema).get("properties", {})


def resolved(document: Any, schema: Any) -> Any:
    if "$ref" in schema:
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return next((resolved(document, some) for some in schema.get("oneOf", []) if some.get("type") != "null"), schema)


def example(field: Any) -> str:
    if "enum" in field:
        return json.dumps(field["enum"][0])
    examples = {"string": '"x"', "integer": "1", "number": "1", "boolean": "true", "array": "[]"}
    return examples.get(field.get("type"), "{}")


def body_of(fields: dict[str, str]) -> str:
    return f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in fields.items())}}}"
