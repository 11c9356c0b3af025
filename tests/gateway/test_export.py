"""What a run left behind, downloaded by a client: all of it, any part of it, or nothing, but never something else."""

import asyncio
import hashlib
import io
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.config import Gateway, load
from libs.events import (
    Event,
    ExportCompleted,
    ExportedFile,
    ExportProgressed,
    ExportStarted,
    Origin,
    TrainingCompleted,
    TrainingProgressed,
    TrainingStarted,
)
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.storage import Storage
from services.gateway.api.finetuneflow.export import ZIP
from services.gateway.api.problems import Refused
from services.gateway.api.ranges import Span, known_already, wanted
from tests.kit.eventually import eventually
from tests.kit.gateway import KEPT, bare, client, plain
from tests.kit.runs import LOCAL, FakeRun, new_run
from tests.kit.servers import revive

MB = 1024 * 1024
FILES = {
    "report.md": b"# What came of it\n" * 50,
    "tokenizer.json": b'{"version": "1.0"}' * 20_000,
    "adapter_model.safetensors": bytes(range(256)) * 12_000,
    "adapter_config.json": b'{"r": 16}',
    "metrics.json": b'{"eval_loss": 1.85}',
    "training_config.json": b"{}",
}
LISTED = ["adapter_model.safetensors", "adapter_config.json", "training_config.json", "metrics.json", "report.md", "tokenizer.json", ZIP]
BIG = "adapter_model.safetensors"
TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}


@pytest.fixture
async def storage(servers: Servers) -> AsyncIterator[Storage]:
    storage = Storage(load(Gateway, servers.environ("gateway", port=1)))
    yield storage
    storage.close()


@pytest.fixture
async def trained(api: httpx.AsyncClient, log: EventLog, infra_nc: Client, storage: Storage) -> FakeRun:
    run = await new_run(api, log, infra_nc, storage)
    return await succeeded(api, run)


async def succeeded(api: httpx.AsyncClient, run: FakeRun) -> FakeRun:
    await run.begin()
    await run.complete(3)
    await eventually(lambda: _succeeded(api, run))
    return run


async def _succeeded(api: httpx.AsyncClient, run: FakeRun) -> bool:
    """In the views: a job that they lack is answered from the log, which an export is not decided on."""
    return (await api.get(f"/projects/{run.project}/train/status")).json()["status"] == "success"


async def add(log: EventLog, event: Event, after: int) -> int:
    (fact,) = await log.append([Write(events=[event], after=after)], origin=Origin(tenant=LOCAL))
    return fact.seq


async def export(api: httpx.AsyncClient, run: FakeRun, files: dict[str, bytes]) -> list[ExportedFile]:
    """Asked for by a client, done as the export service does it."""
    job = (await api.post(f"/projects/{run.project}/export")).json()["job_id"]
    made = [ExportedFile(name=name, content=await run.storage.put(f"{LOCAL}/{job}", data), crc32=zlib.crc32(data)) for name, data in files.items()]
    await add(run.log, ExportCompleted(job_id=job, files=made), await add(run.log, ExportStarted(job_id=job), 0))
    await eventually(lambda: _shows(api, run, {file.content.size for file in made}))
    return made


async def _shows(api: httpx.AsyncClient, run: FakeRun, sizes: set[int]) -> bool:
    listed = (await api.get(f"/projects/{run.project}/export/files")).json()["files"]
    return sizes <= {file["size_bytes"] for file in listed}


def address(run: FakeRun, name: str = "") -> str:
    return f"/projects/{run.project}/export/download" + (f"/{name}" if name else "")


@pytest.fixture
async def exported(api: httpx.AsyncClient, trained: FakeRun) -> FakeRun:
    await export(api, trained, FILES)
    return trained


async def test_an_export_is_queued(api: httpx.AsyncClient, trained: FakeRun):
    answer = await api.post(f"/projects/{trained.project}/export")

    queued = answer.json()
    assert (answer.status_code, set(queued), queued["status"], queued["message"]) == (202, {"job_id", "status", "message"}, "queued", "Export job enqueued")
    assert (await api.get(f"/jobs/{queued['job_id']}")).json()["type"] == "export"


async def test_who_hears_of_a_runs_end_can_export_it_at_once(api: httpx.AsyncClient, log: EventLog, infra_nc: Client, storage: Storage):
    run = await new_run(api, log, infra_nc, storage)
    await run.begin()
    heard = asyncio.create_task(api.get(f"/projects/{run.project}/train/logs/stream"))
    await run.complete(3)
    await heard

    assert (await api.post(f"/projects/{run.project}/export")).status_code == 202


async def test_an_export_that_is_asked_for_twice_is_done_once(api: httpx.AsyncClient, trained: FakeRun):
    first, second = [(await api.post(f"/projects/{trained.project}/export")).json() for _ in range(2)]

    assert second["job_id"] == first["job_id"]


async def test_a_merged_model_is_asked_for_and_its_job_is_no_run(api: httpx.AsyncClient, log: EventLog, trained: FakeRun):
    plain_one = (await api.post(f"/projects/{trained.project}/export")).json()["job_id"]
    merged, again, plain_again = [
        (await api.post(f"/projects/{trained.project}/export", json=body)).json()["job_id"] for body in ({"merged": True}, {"merged": True}, {"merged": False})
    ]
    wrong = await api.post(f"/projects/{trained.project}/export", json={"merged": "perhaps"})

    assert merged == again == plain_again != plain_one
    assert (wrong.status_code, set(wrong.json())) == (422, KEPT)
    job: Any = {"job_id": merged, "attempt": 1}
    steps = await trained.storage.put(f"{LOCAL}/{merged}/1", b"")
    last = 0
    for event, percent in (
        (TrainingStarted(**job, merge=True), 0),
        (TrainingProgressed(**job, step=40, total_steps=200, doing="writing"), 20),
        (TrainingCompleted(**job, step=0, artifacts={}, steps=steps, merge=True), 50),
        (ExportStarted(job_id=merged, merged=True), 50),
        (ExportProgressed(job_id=merged, done=150, total=200, doing="copying files"), 75),
    ):
        last = await add(log, event, 0 if isinstance(event, ExportStarted) else last)
        await eventually(lambda percent=percent: _shows_progress(api, merged, percent))
    shown = (await api.get(f"/jobs/{merged}")).json()
    assert (shown["type"], shown["message"], shown["finished_at"], shown["started_at"] is None) == ("export", "copying files", None, False)
    status = (await api.get(f"/projects/{trained.project}/train/status")).json()
    assert (status["job_id"], status["status"]) == (trained.job, "success")


async def test_a_key_stands_for_one_request(api: httpx.AsyncClient, trained: FakeRun):
    key = {"Idempotency-Key": "once"}
    first, again, other = [
        await api.post(f"/projects/{trained.project}/export", json=body, headers=key) for body in ({"merged": True}, {"merged": True}, {"merged": False})
    ]

    assert (first.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])
    assert (other.status_code, other.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def _shows_progress(api: httpx.AsyncClient, job: str, percent: int) -> bool:
    found = (await api.get(f"/jobs/{job}")).json()
    return (found["status"], found["progress_pct"]) == ("running", percent)


async def test_a_merged_models_files_are_found_by_the_names_that_are_listed(api: httpx.AsyncClient, trained: FakeRun):
    await export(api, trained, FILES | {"merged/config.json": b"{}", "merged/model.safetensors": bytes(300)})

    listed = [file["filename"] for file in (await api.get(f"/projects/{trained.project}/export/files")).json()["files"]]
    config, part, none, outside = [
        await api.get(address(trained, name), headers=headers)
        for name, headers in (
            ("merged/config.json", {}),
            ("merged/model.safetensors", {"Range": "bytes=290-"}),
            ("merged/report.md", {}),
            ("merged/..%2Freport.md", {}),
        )
    ]

    assert {"merged/config.json", "merged/model.safetensors"} < set(listed)
    assert (config.status_code, config.content, config.headers["content-disposition"]) == (200, b"{}", 'attachment; filename="config.json"')
    assert (part.status_code, len(part.content)) == (206, 10)
    assert (none.status_code, outside.status_code) == (404, 404)
    with zipfile.ZipFile(io.BytesIO((await api.get(address(trained))).content)) as archive:
        assert archive.read("merged/config.json") == b"{}"


async def test_before_a_run_has_succeeded_there_is_nothing_to_export(api: httpx.AsyncClient, log: EventLog, infra_nc: Client, storage: Storage):
    run = await new_run(api, log, infra_nc, storage)
    await run.begin()

    answers = [await api.post(f"/projects/{run.project}/export"), await api.get(address(run)), await api.get(address(run, "report.md"))]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert all(set(answer.json()) == KEPT for answer in answers)
    assert (await api.get(f"/projects/{run.project}/export/files")).json() == {"files": []}


async def test_files_are_listed_as_in_the_document_and_the_zip_last(api: httpx.AsyncClient, exported: FakeRun):
    files = (await api.get(f"/projects/{exported.project}/export/files")).json()["files"]

    sizes = {file["filename"]: file["size_bytes"] for file in files}
    assert list(sizes) == LISTED
    assert {name: sizes[name] for name in FILES} == {name: len(data) for name, data in FILES.items()}
    assert sizes[ZIP] == len((await api.get(address(exported))).content)


@pytest.mark.parametrize("name", FILES)
async def test_a_file_comes_as_it_was_exported(api: httpx.AsyncClient, exported: FakeRun, name: str):
    answer = await api.get(address(exported, name))

    assert (answer.status_code, answer.content) == (200, FILES[name])
    assert answer.headers["content-length"] == str(len(FILES[name]))
    assert answer.headers["etag"] == f'"{hashlib.sha256(FILES[name]).hexdigest()}"'
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert answer.headers["content-type"] == TYPES.get(Path(name).suffix, "application/octet-stream")


async def test_the_zip_holds_all_files_and_is_always_the_same(api: httpx.AsyncClient, exported: FakeRun):
    whole, again, by_name = [await api.get(address(exported, name)) for name in ("", "", ZIP)]

    with zipfile.ZipFile(io.BytesIO(whole.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
    assert whole.content == again.content == by_name.content
    assert whole.headers["etag"] == again.headers["etag"] == by_name.headers["etag"]
    assert (whole.headers["content-type"], whole.headers["content-disposition"]) == ("application/zip", f'attachment; filename="{ZIP}"')


@pytest.mark.parametrize("name", [BIG, ZIP])
async def test_any_range_is_that_range(api: httpx.AsyncClient, exported: FakeRun, name: str):
    whole = (await api.get(address(exported, name))).content
    size = len(whole)
    spans = [(0, 0), (0, size - 1), (1, 70), (size - 1, size - 1), (256 * 1024 - 1, 256 * 1024), (0, 600_000), (size // 2, size - 2)]

    for first, last in spans:
        answer = await api.get(address(exported, name), headers={"Range": f"bytes={first}-{last}"})
        assert (answer.status_code, answer.content) == (206, whole[first : last + 1])
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert (await api.get(address(exported, name), headers={"Range": "bytes=-5"})).content == whole[-5:]
    assert (await api.get(address(exported, name), headers={"Range": "bytes=100-"})).content == whole[100:]


async def test_a_range_of_nothing_is_refused_with_the_size(api: httpx.AsyncClient, exported: FakeRun):
    answer = await api.get(address(exported, "report.md"), headers={"Range": f"bytes={len(FILES['report.md'])}-"})

    assert (answer.status_code, answer.headers["content-range"], set(answer.json())) == (416, f"bytes */{len(FILES['report.md'])}", KEPT)


async def test_an_interrupted_download_goes_on_only_with_the_same_content(api: httpx.AsyncClient, exported: FakeRun):
    etag = (await api.head(address(exported))).headers["etag"]

    same = await api.get(address(exported), headers={"Range": "bytes=10-", "If-Range": etag})
    other = await api.get(address(exported), headers={"Range": "bytes=10-", "If-Range": '"another"'})

    assert (same.status_code, other.status_code) == (206, 200)
    assert other.content[10:] == same.content


async def test_who_has_it_already_is_not_sent_it_again(api: httpx.AsyncClient, exported: FakeRun):
    for name in ("", "report.md"):
        etag = (await api.get(address(exported, name))).headers["etag"]
        answer = await api.get(address(exported, name), headers={"If-None-Match": f'"other", W/{etag}'})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)


async def test_head_tells_the_size_and_sends_nothing(api: httpx.AsyncClient, exported: FakeRun):
    for name in ("", BIG):
        head, got = await api.head(address(exported, name)), await api.get(address(exported, name))
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(got.content)))


async def test_no_name_leads_out_of_the_export(gateway: Process, exported: FakeRun):
    for name in ("nothing.md", "..%2f..%2fetc%2fpasswd", "../../../jobs", "%2e%2e", "..", "report.md%00", "REPORT.md", "%c0%ae"):
        status, _ = await bare(gateway, plain("GET", address(exported, name)))
        assert status in (400, 404), name
    assert (await bare(gateway, plain("GET", address(exported, "report.md"))))[0] == 200


async def test_the_newest_finished_export_counts(api: httpx.AsyncClient, exported: FakeRun):
    before = (await api.get(address(exported, "report.md"))).headers["etag"]
    await api.post(f"/projects/{exported.project}/export")
    during = (await api.get(address(exported, "report.md"))).headers["etag"]
    newer = {"report.md": b"another report, of a length of its own"}
    await export(api, exported, newer)

    answer = await api.get(address(exported, "report.md"))

    assert (before, answer.content) == (during, newer["report.md"])
    assert (await api.get(address(exported, BIG))).status_code == 404


async def test_what_is_missing_or_damaged_from_the_start_is_a_503(api: httpx.AsyncClient, trained: FakeRun, servers: Servers):
    made = await export(api, trained, FILES)
    keys = {file.name: file.content.key for file in made}
    await trained.storage.delete([keys["report.md"]])
    (servers.store.root / "trainyard" / keys["metrics.json"]).write_bytes(b'{"eval_loss": 0.00}')

    for name in ("report.md", "metrics.json"):
        answer = await api.get(address(trained, name))
        assert (answer.status_code, set(answer.json())) == (503, KEPT)


@pytest.mark.parametrize("damage", ["shorter", "altered", "missing"])
async def test_a_download_of_something_damaged_breaks_instead_of_ending_well(
    gateway: Process, api: httpx.AsyncClient, trained: FakeRun, servers: Servers, damage: str
):
    made = await export(api, trained, FILES)
    key = next(file.content.key for file in made if file.name == BIG)
    path = servers.store.root / "trainyard" / key
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "shorter" else data[: 2 * MB] + b"!" + data[2 * MB + 1 :])

    for name in ("", BIG):
        status, rest = await bare(gateway, plain("GET", address(trained, name)))
        length = int(rest.split(b"content-length: ")[1].split(b"\r\n")[0])
        assert (status, len(rest.partition(b"\r\n\r\n")[2]) == length) in ((200, False), (503, True))


async def test_a_download_whose_store_goes_away_breaks_and_can_be_resumed(mortal: Servers, its_gateway: Process):
    nc = await bus.connect(mortal.nats_url("infra"), name="infra")
    storage = Storage(load(Gateway, mortal.environ("gateway", port=1)))
    data = bytes(range(256)) * 4 * 64 * 1024
    async with client(its_gateway) as api:
        run = await succeeded(api, await new_run(api, EventLog(nc, source="/tests"), nc, storage))
        await export(api, run, {BIG: data})

        got = bytearray()
        with pytest.raises(httpx.HTTPError):
            await _interrupted(api, run, mortal["s3"], got)
        during = await api.get(address(run, BIG))
        await revive(mortal["s3"])
        rest = await api.get(address(run, BIG), headers={"Range": f"bytes={len(got)}-"})
    storage.close()
    await nc.close()

    assert during.status_code == 503
    assert len(got) < len(data)
    assert got + rest.content == data


async def _interrupted(api: httpx.AsyncClient, run: FakeRun, store: Process, got: bytearray) -> None:
    async with api.stream("GET", address(run, BIG)) as stream:
        async for chunk in stream.aiter_raw():
            if not got:
                store.kill()
            got += chunk


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 10)),
        ("bytes=9-", (9, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes= 2-4 ", (2, 5)),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("", None),
    ],
)
def test_a_range_that_is_none_is_everything(asked: str, span: tuple[int, int] | None):
    assert wanted({"range": asked}, size=10, etag='"x"') == (Span(*span) if span else None)


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(asked: str):
    with pytest.raises(Refused):
        wanted({"range": asked}, size=10, etag='"x"')


@pytest.mark.parametrize(("given", "known"), [("*", True), ('"x"', True), ('W/"x"', True), ('"y", "x"', True), ('"y"', False), ("", False)])
def test_what_a_client_has_is_told_by_its_tag(given: str, known: bool):
    assert known_already({"if-none-match": given}, '"x"') is known
