"""What every request meets before any route: the form of refusals, ids, other origins and hosts, probes, outages, what is logged."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from infra.embedded import Process, Servers
from libs.events.log import EventLog
from services.gateway.domain.user import Principal
from services.gateway.edge import Edge
from services.gateway.tokens import Bad
from tests.kit.eventually import eventually
from tests.kit.gateway import bare, client, footprint, own_port, plain
from tests.kit.servers import revive

FORMS = {
    "autotrainx": {"success", "error_code", "message", "details", "timestamp"},
    "datagen": {"detail"},
    "deep_learning": {"error", "message"},
    "finetuneflow": {"detail", "error_code", "context"},
    "lora": {"code", "message", "timestamp"},
    "v2": {"type", "title", "status", "detail"},
}
UNROUTED = [
    ("/api/v1/nothing", "autotrainx"),
    ("/api/v1/jobs/x/y", "autotrainx"),
    ("/api/v1", "autotrainx"),
    ("/api/v1/nothing/", "datagen"),
    ("/api/v1/datasets/x/images/", "datagen"),
    ("/api/train/nothing/at/all", "lora"),
    ("/api/train", "lora"),
    ("/api/training", "deep_learning"),
    ("/projects/nothing", "finetuneflow"),
    ("/projects/nothing/", "finetuneflow"),
    ("/jobs", "finetuneflow"),
    ("/hardware/nothing", "finetuneflow"),
    ("/health/nothing", "finetuneflow"),
    ("/v2", "v2"),
    ("/v2/nothing", "v2"),
    ("/auth/nothing", "deep_learning"),
    ("/datasets/nothing", "deep_learning"),
    ("/projectsandmore", "deep_learning"),
]
FOREIGN = ["https://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "null", "http://[half", "file://"]
OURS = ["http://localhost:3000", "http://127.0.0.1:8080", "https://localhost", "http://[::1]:5173", "http://app.localhost"]
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "ty_neverwritethisdown"


# ---- the form of refusals


@pytest.mark.parametrize(("path", "family"), UNROUTED)
async def test_an_unknown_path_is_refused_in_the_form_of_its_prefix(api: httpx.AsyncClient, path: str, family: str):
    answer = await api.get(path)

    assert answer.status_code == 404
    assert set(answer.json()) == FORMS[family]


@pytest.mark.parametrize(
    ("method", "path", "family", "allowed"),
    [
        ("PUT", "/projects", "finetuneflow", {"GET", "POST"}),
        ("DELETE", "/health", "finetuneflow", {"GET"}),
        ("POST", "/v2/events", "v2", {"GET"}),
        ("POST", "/", "deep_learning", {"GET"}),
    ],
)
async def test_a_wrong_method_is_refused_in_the_form_of_its_prefix_and_told_the_right_ones(api: httpx.AsyncClient, method, path, family, allowed):
    answer = await api.request(method, path)

    assert answer.status_code == 405
    assert set(answer.json()) == FORMS[family]
    assert {word.strip() for word in answer.headers["allow"].split(",")} >= allowed


async def test_the_form_of_v2_is_problem_json_and_of_others_json(api: httpx.AsyncClient):
    ours, others = await api.get("/v2/nothing"), await api.get("/projects/nothing")

    assert (ours.headers["content-type"], others.headers["content-type"]) == ("application/problem+json", "application/json")


@pytest.mark.parametrize(("path", "family"), UNROUTED)
async def test_a_bad_token_is_refused_in_each_form(api: httpx.AsyncClient, path: str, family: str):
    answer = await api.get(path, headers={"Authorization": "Bearer x"})

    assert answer.status_code == 401
    assert set(answer.json()) - {"code"} == FORMS[family] - {"code"}
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_datagens_clients_are_told_that_the_token_is_what_is_wrong(api: httpx.AsyncClient):
    answer = await api.get("/api/v1/auth/users/", headers={"Authorization": "Bearer x"})

    assert answer.json()["code"] == "token_not_valid"


# ---- ids


@pytest.mark.parametrize("path", ["/projects", "/livez", "/nothing", "/projects/%00"])
async def test_every_answer_has_an_id_of_its_own(api: httpx.AsyncClient, path: str):
    first, second = (await api.get(path)).headers["x-request-id"], (await api.get(path)).headers["x-request-id"]

    assert len(first) == 32
    assert first != second


async def test_a_callers_id_is_kept_unless_it_could_be_anything(api: httpx.AsyncClient):
    ids = ["abc-1.2_3", "x" * 64, "x" * 65, "two words", "<script>", ""]

    answers = [(await api.get("/livez", headers={"X-Request-Id": id})).headers["x-request-id"] for id in ids]

    assert answers[:2] == ids[:2]
    assert all(len(answer) == 32 for answer in answers[2:])


# ---- HEAD


@pytest.mark.parametrize("path", ["/projects", "/livez", "/docs", "/nothing"])
async def test_head_is_get_without_the_body(api: httpx.AsyncClient, gateway: Process, path: str):
    before = complaints(gateway)

    get, head = await api.get(path), await api.head(path)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-length"] == str(len(get.content))
    assert complaints(gateway) == before


async def test_head_of_what_never_ends_ends(gateway: Process):
    status, rest = await bare(gateway, plain("HEAD", "/v2/events", headers=(b"Host: localhost", b"Accept: text/event-stream")))

    assert status == 200
    assert rest.endswith(b"\r\n\r\n")


# ---- who may call from where


@pytest.mark.parametrize("origin", OURS)
async def test_a_page_of_this_machine_may_read_answers_and_refusals(api: httpx.AsyncClient, origin: str):
    for answer in (await api.get("/projects", headers={"Origin": origin}), await api.get("/projects/nothing", headers={"Origin": origin})):
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("path", ["/projects", "/api/v1/datasets/", "/api/train", "/v2/events", "/datasets"])
async def test_a_browser_may_ask_first_in_every_family(api: httpx.AsyncClient, path: str):
    asked = {"Origin": OURS[0], "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "content-type,if-match"}

    answer = await api.options(path, headers=asked)

    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == OURS[0]
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert {"Content-Type", "If-Match", "Idempotency-Key", "Authorization"} <= {
        name.strip() for name in answer.headers["access-control-allow-headers"].split(",")
    }


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_page_from_elsewhere_is_refused_before_anything_is_done(api: httpx.AsyncClient, servers: Servers, log: EventLog, origin: str):
    before = await footprint(log, servers)
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}

    answers = [
        await api.get("/projects", headers={"Origin": origin}),
        await api.post("/projects", headers={"Origin": origin}, json={"name": "theirs"}),
        await api.post("/projects", headers={"Origin": origin, "Content-Type": "text/plain"}, content=b'{"name": "theirs"}'),
        await api.post("/projects", headers={"Origin": origin, "Content-Type": "application/x-www-form-urlencoded"}, content=b"name=theirs"),
        await api.options("/projects", headers=asked),
    ]

    assert [answer.status_code for answer in answers] == [403] * 5
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)
    assert await footprint(log, servers) == before


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[half", ""])
async def test_a_name_that_is_not_ours_is_refused(gateway: Process, host: str):
    """A page can give its own name the address 127.0.0.1: the browser then takes us for its own server."""
    status, _ = await bare(gateway, plain("GET", "/projects", headers=(b"Host: " + host.encode(),)))

    assert status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "127.1.2.3"])
async def test_any_name_of_this_machine_is_ours(gateway: Process, host: str):
    status, _ = await bare(gateway, plain("GET", "/projects", headers=(b"Host: " + host.encode(),)))

    assert status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/json", "application/jsonp", ""])
async def test_a_body_must_say_that_it_is_json(api: httpx.AsyncClient, servers: Servers, log: EventLog, kind: str):
    before = await footprint(log, servers)

    answer = await api.post("/projects", headers={"Content-Type": kind}, content=b'{"name": "x"}')

    assert (answer.status_code, answer.json()["error_code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert await footprint(log, servers) == before


async def test_a_named_origin_takes_the_place_of_all_those_of_this_machine():
    async with within("https://app.example, http://other.example/") as api:
        origins = ["https://app.example", "http://other.example", "http://localhost:3000", "https://app.example.evil.example"]

        answers = [(await api.get("/", headers={"Origin": origin})).status_code for origin in origins]

    assert answers == [200, 200, 403, 403]


async def test_a_route_that_breaks_is_a_500_that_says_nothing_of_why():
    async with within("", breaks=True) as api:
        answer = await api.get("/projects")

    assert (answer.status_code, set(answer.json())) == (500, FORMS["finetuneflow"])
    assert "secret" not in answer.text


async def test_a_websocket_that_nobody_serves_is_refused(gateway: Process):
    upgrade = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    before = complaints(gateway)

    for host, status in ((b"Host: localhost", 404), (b"Host: evil.example", 403)):
        request = plain("GET", "/ws/elsewhere", headers=(host, *upgrade)).replace(b"Connection: close", b"Connection: Upgrade")
        assert (await bare(gateway, request))[0] == status

    assert complaints(gateway) == before


# ---- addresses


@pytest.mark.parametrize(
    "target",
    [
        "/projects/%00",
        "/projects?status=%00",
        "/v2/events?about=%00",
        "/projects/%ff%fe",
        "/projects/%ed%a0%80",
        "/projects?status=%ff%fe",
        "/projects/\xff\xfe",
        "/projects?limit=\xff",
        "/projects/" + "x" * 5000,
        "/projects/..%2f..%2fetc",
        "/projects?limit=9223372036854775808",
        "/projects?limit=-1",
        "/projects?limit=0",
        "/projects?limit=1001",
        "/projects?limit=1.5",
        "/projects?limit=",
        "/projects?offset=-1",
        "/projects?offset=9223372036854775807",
        f"/projects?offset={'9' * 400}",
        "/projects?limit=1&limit=x",
        "/projects?status=training;drop",
        "/v2/events?after=-1",
        "/v2/events?after=9223372036854775808",
        f"/v2/events?after={'9' * 400}",
        "/v2/events?limit=0",
        "/v2/events?about=a.b",
        "/v2/events?about=%3E",
        "/v2/events?about=*",
    ],
)
async def test_an_address_that_makes_no_sense_is_the_callers_mistake(gateway: Process, target: str):
    status, _ = await bare(gateway, plain("GET", target))

    assert 400 <= status < 500


@pytest.mark.parametrize("target", ["/projects?limit=1000&offset=10000000", "/v2/events?after=4611686018427387904", "/projects?unknown=1&_=2", "//projects//"])
async def test_an_address_at_the_edge_of_sense_is_answered(gateway: Process, target: str):
    status, _ = await bare(gateway, plain("GET", target))

    assert status == 200


# ---- probes


async def test_probes_say_what_works(api: httpx.AsyncClient):
    livez, readyz, health, metrics = [await api.get(path) for path in ("/livez", "/readyz", "/health", "/metrics")]

    assert (livez.status_code, livez.text) == (200, "ok")
    assert (readyz.status_code, readyz.json()) == (200, {"ready": True, "parts": {"db": "ok", "bus": "ok", "views": "ok"}})
    assert health.status_code == 200
    assert health.json().items() >= {"status": "ok", "db": "connected", "redis": "connected", "bus": "connected", "storage": "connected"}.items()
    assert health.json()["version"]
    assert 'trainyard_requests_total{method="GET",route="/livez",status="200"}' in metrics.text


async def test_paths_and_ids_never_become_labels_of_figures(api: httpx.AsyncClient):
    await api.get("/projects/019a0000-0000-7000-8000-000000000003")
    await api.get("/somewhere/quite/unknown")

    metrics = (await api.get("/metrics")).text

    assert 'route="/projects/{project_id}"' in metrics
    assert 'route="unrouted"' in metrics
    assert "019a0000" not in metrics
    assert "quite" not in metrics


# ---- outages


@pytest.mark.parametrize(("server", "part", "worded"), [("postgres", "db", "PostgreSQL"), ("nats", "bus", "NATS"), ("s3", "storage", "S3")])
async def test_a_part_that_is_down_is_named_and_comes_back_by_itself(mortal: Servers, its_gateway: Process, server: str, part: str, worded: str):
    async with client(its_gateway) as api:
        project = (await api.post("/projects", json={"name": "before"})).json()["id"]
        form: Any = {"files": {"files": ("a.jsonl", b'{"text": "a"}\n')}, "data": {"kind": "dataset_upload"}}
        needs_it: Any = {
            "postgres": lambda: api.get(f"/projects/{project}"),
            "nats": lambda: api.post("/projects", json={"name": "x"}),
            "s3": lambda: api.post(f"/projects/{project}/files/upload", **form),
        }[server]
        mortal[server].kill()
        try:
            health, refused, alive, ready = await api.get("/health"), await needs_it(), await api.get("/livez"), await api.get("/readyz")
        finally:
            await revive(mortal[server])
        await eventually(lambda: succeeds(needs_it), patience=20)
        after = (await api.post("/projects", json={"name": "after"})).json()["id"]
        listed = await eventually(lambda: visible(api, after), patience=20)

    assert (health.status_code, set(health.json())) == (503, FORMS["finetuneflow"])
    assert part in health.json()["context"]["parts"]
    assert part in health.json()["detail"]
    assert (refused.status_code, set(refused.json())) == (503, FORMS["finetuneflow"])
    assert worded in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 0
    assert alive.status_code == 200
    assert ready.status_code == (200 if server == "s3" else 503)
    assert project in listed


async def test_a_project_can_be_created_while_the_database_is_away(mortal: Servers, its_gateway: Process):
    """What is new stands nowhere yet: no view needs to be asked."""
    async with client(its_gateway) as api:
        mortal["postgres"].kill()
        try:
            made = await api.post("/projects", json={"name": "in spite of it"})
        finally:
            await revive(mortal["postgres"])
        await eventually(lambda: visible(api, made.json()["id"]), patience=20)

    assert made.status_code == 201
    assert int(made.headers["x-event-seq"]) > 0


async def test_reading_goes_on_while_the_log_is_away(mortal: Servers, its_gateway: Process):
    async with client(its_gateway) as api:
        project = (await api.post("/projects", json={"name": "kept"})).json()
        mortal["nats"].kill()
        try:
            one, many = await api.get(f"/projects/{project['id']}"), await api.get("/projects")
        finally:
            await revive(mortal["nats"])

    assert (one.status_code, many.status_code) == (200, 200)
    assert one.json()["name"] == "kept"


@pytest.mark.alone
async def test_a_gateway_that_still_waits_for_its_parts_can_be_stopped(mortal: Servers):
    for server in ("nats", "postgres"):
        mortal[server].kill()
        label = f"waits-for-{server}"
        waiting = mortal.service("gateway", port=own_port(mortal, label), label=label)
        waiting.spawn()
        try:
            await eventually(lambda waiting=waiting: "waiting" in waiting.last_words() or "bus:" in waiting.last_words(), patience=20)
            started = time.monotonic()
            waiting.begin_stop()
            code = await eventually(lambda waiting=waiting: [waiting.ended()] if waiting.pid is None or waiting.ended() is not None else [], patience=5)
            took = time.monotonic() - started
        finally:
            waiting.kill()
            await revive(mortal[server])

        assert took < 2
        assert "Traceback" not in waiting.last_words(), code


# ---- what is logged


async def test_each_request_is_one_line_of_json_with_its_id(api: httpx.AsyncClient, gateway: Process):
    answer = await api.get("/projects/nothing", headers={"X-Request-Id": "find-me-1"})

    (line,) = await eventually(lambda: [line for line in lines(gateway) if line.get("request_id") == "find-me-1"])
    assert answer.headers["x-request-id"] == "find-me-1"
    assert line.items() >= {"level": "info", "service": "gateway", "logger": "access", "message": "GET /projects/nothing 404", "route": "unrouted"}.items()
    assert line["ms"] >= 0


async def test_a_token_in_a_url_or_a_header_never_reaches_the_log(api: httpx.AsyncClient, gateway: Process):
    await api.get(f"/projects?token={SECRET}")
    await api.get(f"/nothing?token={SECRET}")
    await api.get(f"/projects?limit=x&token={SECRET}")
    await api.get(f"/v2/events?token={SECRET}")
    await api.get("/projects", headers={"Authorization": f"Bearer {SECRET}"})
    await api.post(f"/projects?token={SECRET}", content=b"{", headers={"Content-Type": "application/json"})
    await api.get("/livez", headers={"X-Request-Id": "the-last-one"})

    await eventually(lambda: any(line.get("request_id") == "the-last-one" for line in lines(gateway)))
    assert SECRET not in gateway.log.read_text()


async def test_a_trace_goes_on_in_the_fact(api: httpx.AsyncClient, log: EventLog):
    answer = await api.post("/projects", json={"name": "traced"}, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})

    (created,) = await log.read(f"ev.local.project.*.{answer.json()['id']}")
    assert created.envelope.traceparent.split("-")[1] == TRACE
    assert created.envelope.traceparent.split("-")[2] != "b7ad6b7169203331"


@pytest.mark.parametrize("parent", ["", "00", "junk", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-" + "z" * 32 + "-b7ad6b7169203331-01", "-" * 500])
async def test_what_is_no_trace_starts_one(api: httpx.AsyncClient, log: EventLog, parent: str):
    answer = await api.post("/projects", json={"name": "traced"}, headers={"traceparent": parent})

    (created,) = await log.read(f"ev.local.project.*.{answer.json()['id']}")
    version, trace, span, _ = created.envelope.traceparent.split("-")
    assert (version, len(trace), len(span)) == ("00", 32, 16)
    assert trace != TRACE


# ---- helpers


def within(cors_origins: str, *, breaks: bool = False) -> httpx.AsyncClient:
    """The edge around an application that says yes to everything."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if breaks:
            raise KeyError("secret")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

    edge: Any = Edge(app, host="127.0.0.1", cors_origins=cors_origins, who=nobody)
    return httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://localhost")


async def nobody(token: str) -> Principal:
    raise Bad


async def succeeds(request: Callable[[], Awaitable[httpx.Response]]) -> bool:
    return (await request()).status_code < 300


async def visible(api: httpx.AsyncClient, id: str) -> list[str]:
    listed = [project["id"] for project in (await api.get("/projects?limit=1000")).json()["items"]]
    return listed if id in listed else []


def lines(gateway: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]


def complaints(gateway: Process) -> list[dict[str, Any]]:
    return [line for line in lines(gateway) if line["level"] not in ("info", "debug")]
