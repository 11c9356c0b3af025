"""One thing goes wrong at the worst moment; then everything is as if it hadn't."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from libs.config import Gateway, load
from libs.events import Claim
from libs.events.log import EventLog, RawFact
from libs.storage import Storage
from services.gateway.loader import load_next
from services.gateway.views.database import connection, create_views, pool
from tests.chaos.load import rows
from tests.kit.checker import check, summary
from tests.kit.eventually import eventually
from tests.kit.platform import Platform, client, url
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

SCRATCH = "views_scratch"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with client() as http:
        yield http


@pytest.fixture
async def log(whole: Platform) -> AsyncIterator[EventLog]:
    async with whole.log() as log:
        yield log


# The gateway dies


async def test_killed_between_the_fact_and_its_view_a_gateway_leaves_the_command_done(whole: Platform, http: httpx.AsyncClient, log: EventLog):
    """The client sees the connection break; its repeat, on another gateway, gets the answer that the first try would have got."""
    projecting, other = await whole.two_roles()
    command = creation()
    written = asyncio.create_task(next_fact(log))
    await asyncio.sleep(0.1)
    projecting.pause()

    asking = asyncio.create_task(http.post(url(other) + "/projects", **command))
    fact = await written
    other.kill()
    projecting.resume()
    with pytest.raises(httpx.TransportError):
        await asking
    again = await http.post(url(projecting) + "/projects", **command)
    await revive(other)
    later = await http.post(url(other) + "/projects", **command)

    assert again.status_code == later.status_code == 201
    assert again.json() == later.json()
    assert fact.subject.endswith(again.json()["id"])
    assert [found.seq for found in await log.read(f"ev.local.project.*.{again.json()['id']}")] == [fact.seq]


async def test_asleep_while_projecting_a_gateway_finds_out_that_another_took_over(whole: Platform, http: httpx.AsyncClient):
    projecting, other = await whole.two_roles()
    said = len(whole.log_of(projecting))

    projecting.pause()
    asleep = time.monotonic()
    made = [(await http.post(url(other) + "/projects", **creation())).json()["id"] for _ in range(5)]
    await eventually(lambda: shown(whole, made[-1]), patience=6)
    await asyncio.sleep(max(0, asleep + 6 - time.monotonic()))
    projecting.resume()
    await eventually(lambda: '"projector: ' in whole.log_of(projecting)[said:])
    made.append((await http.post(url(projecting) + "/projects", **creation())).json()["id"])
    await eventually(lambda: shown(whole, made[-1]))

    assert await whole.projecting() is other
    assert [(await http.get(f"{url(gateway)}/projects/{id}")).status_code for gateway in whole.gateways for id in made] == [200] * 12


async def test_killed_in_the_middle_of_an_upload_a_gateway_leaves_nothing_behind(whole: Platform, http: httpx.AsyncClient):
    """The first file of the form is stored already, the second is on its way."""
    gateway = whole.gateways[1]
    project = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    stored = await whole.unreferenced()

    dead = asyncio.Event()
    uploading = asyncio.create_task(http.post(f"{url(gateway)}/projects/{project}/files/upload", **slow_form(dead, two_files=True)))
    (orphan,) = await eventually(lambda: fresh(whole, stored))
    gateway.kill()
    dead.set()
    with pytest.raises(httpx.TransportError):
        await uploading
    await revive(gateway)
    assert orphan in await whole.unreferenced()
    await whole.sweep()

    assert orphan not in await whole.unreferenced()
    assert (await http.get(f"{url(gateway)}/projects/{project}/files")).json() == {"files": []}


async def test_uploads_that_break_off_cost_nothing(whole: Platform, http: httpx.AsyncClient):
    """More of them than the store has threads."""
    project = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    address = f"{whole.urls[0]}/projects/{project}/files/upload"

    for _ in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.post(address, **slow_form(asyncio.Event(), two_files=False)), 0.15)
    answer = await asyncio.wait_for(http.post(address, **upload()), 10)

    assert answer.status_code == 201
    assert await eventually(lambda: in_state(http, whole.urls[1], answer.json()["files"][0]["job_id"], "success"))


# Nobody dies, but two do the same


async def test_of_two_deletes_at_once_one_succeeds(whole: Platform, http: httpx.AsyncClient):
    for _ in range(10):
        id = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]

        answers = await asyncio.gather(*(http.delete(f"{base}/projects/{id}") for base in whole.urls))

        assert sorted(answer.status_code for answer in answers) == [204, 404]


async def test_two_creates_with_the_same_key_at_once_are_one(whole: Platform, http: httpx.AsyncClient, log: EventLog):
    for _ in range(10):
        command = creation()

        first, second = await asyncio.gather(*(http.post(base + "/projects", **command) for base in whole.urls))

        assert (first.status_code, first.json()) == (second.status_code, second.json())
        assert len(await log.read(f"ev.local.project.*.{first.json()['id']}")) == 1


async def test_a_file_may_be_deleted_while_its_rows_are_loaded(whole: Platform):
    """The projector and the loader lock what they share in the same order."""
    async with scratch_views(whole) as (projecting, db, storage):
        await wait_to_be_loaded(projecting, storage, 1)

        async with projecting.transaction():
            await projecting.execute("delete from files")
            loading = asyncio.create_task(load_next(db, storage))
            await eventually(lambda: waits_for_a_lock(db))
            await projecting.execute("delete from parts")
            await projecting.execute("delete from examples")

        assert await loading
        assert await db.fetchval("select count(*) from examples") == 0


async def test_a_part_that_is_damaged_holds_nobody_up(whole: Platform):
    async with scratch_views(whole) as (projecting, db, storage):
        damaged, sound = [await wait_to_be_loaded(projecting, storage, seq) for seq in (1, 2)]
        await projecting.execute("update parts set sha256 = 'another' where key = $1", damaged.key)

        while await load_next(db, storage):
            pass

        assert dict(await db.fetch("select key, state from parts")) == {damaged.key: "broken", sound.key: "loaded"}


async def test_delivered_again_a_job_changes_nothing(whole: Platform, http: httpx.AsyncClient, log: EventLog):
    """Without its durable the service hears of every job there ever was."""
    await uploaded(whole, http)
    before = (await log.position()).last

    async with whole.bus() as nc:
        await nc.jetstream().delete_consumer("EV", "datasets-preparation")
        done = await eventually(lambda: consumer(nc, "datasets-preparation"), patience=20)
        await eventually(lambda: idle(nc, "datasets-preparation"), patience=20)

    assert done["created"]
    assert (await log.position()).last == before


# Servers are away


async def test_without_the_bus_reads_go_on_and_writes_say_when_to_come_back(whole: Platform, http: httpx.AsyncClient):
    id = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    await eventually(lambda: shown(whole, id))
    command, nats = creation(), whole.servers["nats"]

    nats.kill()
    gone = time.monotonic()
    refused = await asyncio.gather(*(http.post(base + "/projects", **command) for base in whole.urls))
    refused += [await http.delete(f"{whole.urls[0]}/projects/{id}")]
    reads = [await http.get(base + path) for base in whole.urls for path in (f"/projects/{id}", "/projects", f"/projects/{id}/files", f"/projects/{id}/jobs")]
    await asyncio.sleep(max(0, gone + 5 - time.monotonic()))
    await revive(nats)
    late = await eventually(lambda: succeeds(http, whole.urls[1] + "/projects", **command))
    assert late
    await eventually(lambda: shown(whole, late.json()["id"]))

    assert [answer.status_code for answer in reads] == [200] * 8
    for answer in refused:
        says_when_to_come_back(answer, part="the event log (NATS)")


async def test_what_is_done_after_a_503_is_whole(whole: Platform, http: httpx.AsyncClient, log: EventLog):
    """The bus sleeps while an upload is appended: nobody can say yet whether it is, so its object stays."""
    id = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    await eventually(lambda: shown(whole, id))
    nats = whole.servers["nats"]

    nats.pause()
    doubtful = await http.post(f"{whole.urls[0]}/projects/{id}/files/upload", **upload())
    nats.resume()
    (job,) = await eventually(lambda: jobs(http, f"{whole.urls[1]}/projects/{id}/jobs"))

    says_when_to_come_back(doubtful, part="the event log (NATS)")
    assert await eventually(lambda: in_state(http, whole.urls[1], job, "success"), patience=20)
    assert len(await log.read(f"ev.local.project.*.{id}")) == 2


async def test_without_the_database_reads_say_when_to_come_back_and_new_things_can_be_made(whole: Platform, http: httpx.AsyncClient):
    id = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    postgres = whole.servers["postgres"]

    postgres.kill()
    await asyncio.gather(*(eventually(lambda base=base: is_away(http, base)) for base in whole.urls))  # its children take a moment to notice
    refused = [await http.get(base + path) for base in whole.urls for path in (f"/projects/{id}", "/projects", f"/projects/{id}/files")]
    refused += [await http.patch(f"{base}/projects/{id}", json={"name": "renamed meanwhile"}) for base in whole.urls]
    made = [await http.post(base + "/projects", **creation()) for base in whole.urls]
    alive = [await http.get(base + "/livez") for base in whole.urls]
    await revive(postgres)
    await eventually(lambda: shown(whole, made[-1].json()["id"]))
    renamed = await http.patch(f"{whole.urls[1]}/projects/{id}", json={"name": "renamed afterwards"})

    for answer in refused:
        says_when_to_come_back(answer, part="the database (PostgreSQL)")
    assert [(answer.status_code, "x-event-seq" in answer.headers) for answer in made] == [(201, True)] * 2
    assert [answer.status_code for answer in alive] == [200, 200]
    assert renamed.status_code == 200
    assert [(await http.get(f"{base}/projects/{answer.json()['id']}")).status_code for base in whole.urls for answer in made] == [200] * 4


async def test_without_the_store_only_what_needs_it_waits(whole: Platform, http: httpx.AsyncClient):
    """A job that is created while its file can't be read ends once it can; everything else goes on."""
    id = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    service, store = whole.datasets[0], whole.servers["s3"]
    service.pause()
    job = (await http.post(f"{whole.urls[0]}/projects/{id}/files/upload", **upload())).json()["files"][0]["job_id"]

    store.kill()
    service.resume()
    refused = await http.post(f"{whole.urls[0]}/projects/{id}/files/upload", **upload())
    renamed = await http.patch(f"{whole.urls[1]}/projects/{id}", json={"name": "renamed meanwhile"})
    ready = await http.get(whole.urls[0] + "/readyz")
    waiting = (await http.get(f"{whole.urls[0]}/jobs/{job}")).json()["status"]
    await revive(store)

    says_when_to_come_back(refused, part="the object store (S3)")
    assert (renamed.status_code, ready.status_code) == (200, 200)
    assert waiting in ("queued", "running")
    assert await eventually(lambda: in_state(http, whole.urls[1], job, "success"), patience=40)


async def test_what_a_killed_store_had_half_written_is_gone_with_its_next_start(whole: Platform):
    store = whole.servers["s3"]
    draft = whole.servers.store.root / whole.servers.store.bucket / ".rclone_temp_put_half"
    draft.write_bytes(b"half of")

    store.kill()
    await revive(store)

    assert not draft.exists()


# With the machine to itself: not before the campaign, which runs beside this file, is over


@pytest.mark.alone
async def test_killed_while_projecting_a_gateway_is_followed_by_the_other_within_4_s(whole: Platform, http: httpx.AsyncClient):
    projecting, other = await whole.two_roles()

    projecting.kill()
    killed = time.monotonic()
    made = await http.post(url(other) + "/projects", **creation())
    await eventually(lambda: shown(whole, made.json()["id"]), patience=5)
    took = time.monotonic() - killed
    await revive(projecting)

    assert made.status_code == 201
    assert "x-event-seq" in made.headers
    assert took < 4
    assert await whole.projecting() is other


# After all of it


async def test_after_all_of_this_nothing_is_wrong(whole: Platform):
    assert await whole.rest(40) == ""
    await whole.sweep()

    assert summary(check(await whole.collect())) == ""


# What is sent


def creation() -> dict[str, Any]:
    return {"json": {"name": f"p-{uuid4().hex[:8]}"}, "headers": {"Idempotency-Key": uuid4().hex}}


def upload() -> dict[str, Any]:
    content = rows(random.Random(1), uuid4().hex)
    return {"files": {"files": ("rows.jsonl", content)}, "data": {"kind": "dataset_upload"}}


def slow_form(go_on: asyncio.Event, *, two_files: bool) -> dict[str, Any]:
    """Of the last file the beginning comes, and the rest only when it is told to."""

    async def body() -> AsyncIterator[bytes]:
        if two_files:
            yield part + b'{"a": 1}\n' * 20_000 + b"\r\n"
        yield part + b'{"a": 1}\n' * 20_000
        await go_on.wait()
        yield b'{"a": 1}\n' * 100_000

    part = b'--xx\r\nContent-Disposition: form-data; name="files"; filename="a.jsonl"\r\n\r\n'
    return {"content": body(), "headers": {"Content-Type": "multipart/form-data; boundary=xx"}}


# What is seen


def says_when_to_come_back(answer: httpx.Response, *, part: str) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert set(answer.json()) == {"detail", "error_code", "context"}
    assert (answer.json()["error_code"], answer.json()["context"]) == ("SERVICE_UNAVAILABLE", {"part": part})


async def next_fact(log: EventLog) -> RawFact:
    found: asyncio.Queue[RawFact] = asyncio.Queue()
    following = await log.follow(after=(await log.position()).last, deliver=found.put)
    try:
        return await asyncio.wait_for(found.get(), 10)
    finally:
        await following.close()


async def shown(whole: Platform, id: str) -> bool:
    async with whole.database() as session:
        return await session.fetchval("select true from projects where id = $1", id) or False


async def is_away(http: httpx.AsyncClient, base: str) -> bool:
    return (await http.get(base + "/projects")).status_code == 503


async def succeeds(http: httpx.AsyncClient, address: str, **command: Any) -> httpx.Response | None:
    try:
        answer = await http.post(address, **command)
    except httpx.TransportError:
        return None
    return answer if answer.status_code == 201 else None


async def in_state(http: httpx.AsyncClient, base: str, job: str, status: str) -> bool:
    answer = await http.get(f"{base}/jobs/{job}")
    return answer.status_code == 200 and answer.json()["status"] == status


async def jobs(http: httpx.AsyncClient, address: str) -> list[str]:
    answer = await http.get(address)
    return [job["id"] for job in answer.json()["jobs"]] if answer.status_code == 200 else []


async def uploaded(whole: Platform, http: httpx.AsyncClient) -> None:
    id = (await http.post(whole.urls[0] + "/projects", **creation())).json()["id"]
    answer = await http.post(f"{whole.urls[0]}/projects/{id}/files/upload", **upload())
    await eventually(lambda: in_state(http, whole.urls[0], answer.json()["files"][0]["job_id"], "success"), patience=20)


async def fresh(whole: Platform, known: set[str]) -> set[str]:
    return await whole.unreferenced() - known


@asynccontextmanager
async def scratch_views(whole: Platform) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Pool, Storage]]:
    """Views that no gateway knows of: a session of a projector, the loader's sessions, and the store."""
    settings = load(Gateway, whole.servers.environ("gateway", port=1))
    projecting, db = await connection(settings.database_url, schema=SCRATCH), await pool(settings.database_url, schema=SCRATCH, size=2)
    storage = Storage(settings)
    try:
        await create_views(projecting, SCRATCH)
        yield projecting, db, storage
    finally:
        await projecting.execute(f"drop schema {SCRATCH} cascade; delete from checkpoints where name = '{SCRATCH}'")
        await projecting.execute('delete from versions where "schema" = $1', SCRATCH)
        await storage.delete_folder(SCRATCH)
        projecting.terminate()
        await db.close()
        storage.close()


async def wait_to_be_loaded(session: asyncpg.Connection, storage: Storage, seq: int) -> Claim:
    """A part of one row."""
    job = str(uuid4())
    line = {"id": job, "row": 1, "split": "train", "format": "", "data": {}, "valid": True, "reason": "", "message": "", "tokens": 1}
    content = await storage.put(f"{SCRATCH}/{job}", json.dumps(line).encode())
    await session.execute("insert into files select $1, 'local', 'p', '', '', '', 1, '', '', $1, 1, now()", job)
    job_row = """insert into jobs (id, tenant, project_id, kind, stages, inputs, started_by, stage, phase, cancel_requested, progress, message,
                                   left_over, made, seconds, created_at, version)
                   values ($1, 'local', 'p', 'ingest', '["preparation"]', '{}', '', 'preparation', 'completed', false, 100, '', 0, 0, 0, now(), 1)"""
    await session.execute(job_row, job)
    part = """insert into parts (id, tenant, job_id, file_id, part, key, sha256, size, rows, valid, state, seq, created_at)
                values ($1, 'local', $1, $1, 1, $2, $3, $4, 1, 1, 'pending', $5, now())"""
    await session.execute(part, job, content.key, content.sha256, content.size, seq)
    return content


async def waits_for_a_lock(db: asyncpg.Pool) -> bool:
    return await db.fetchval("select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%files%')") or False


async def consumer(nc: Any, name: str) -> dict[str, Any]:
    answer = json.loads((await nc.request(f"$JS.API.CONSUMER.INFO.EV.{name}", b"", timeout=2)).data)
    return {} if "error" in answer else answer


async def idle(nc: Any, name: str) -> bool:
    seen = await consumer(nc, name)
    return bool(seen) and seen["delivered"]["consumer_seq"] > 0 and seen["num_pending"] == seen["num_ack_pending"] == 0
