"""A client of the finetuneflow document against a running gateway: what it says is so, and what is wrong is refused without a trace."""

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import combinations, product
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.embedded import Process, Servers
from libs.events import Event, Origin, PreparationCancelled, PreparationCompleted, PreparationFailed, PreparationProgressed, PreparationStarted
from libs.events.log import EventLog, Write
from services.gateway.api.finetuneflow.words import stamp, stamp_of_text
from tests.kit.eventually import eventually
from tests.kit.gateway import KEPT, bare, client, footprint, running, stored

ASKED = {
    "name": "Mon projet Q&A",
    "description": "Fine-tuning sur mes docs internes",
    "task_type": "qa",
    "config": {"num_examples_target": 2000, "max_seq_length": 2048, "train_eval_split": 0.9},
}
PROJECT = {"id", "name", "description", "task_type", "base_model_id", "model_info", "status", "config", "created_at", "updated_at"}
STATS = {"file_count", "chunk_count", "example_count", "last_job_status"}
FILE = {"id", "filename", "kind", "status", "mime_type", "size_bytes", "created_at"}
JOB = {"id", "type", "status", "progress_pct", "result_summary", "created_at", "started_at", "finished_at", "error_message"}
EXAMPLE = {"id", "split", "data", "is_valid", "token_count", "created_at"}
NOBODY = "019a0000-0000-7000-8000-000000000003"
ROW = b'{"instruction": "Add 1 and 1.", "output": "2"}\n'
DATASET = {"kind": "dataset_upload"}
MB = 1024 * 1024


@pytest.fixture
async def project(api: httpx.AsyncClient) -> str:
    return await new_project(api)


# ---- projects


async def test_health_has_the_documents_keys(api: httpx.AsyncClient):
    health = await api.get("/health")

    assert health.json().items() >= {"status": "ok", "db": "connected", "redis": "connected"}.items()
    assert isinstance(health.json()["version"], str)


async def test_a_project_is_created_as_asked(api: httpx.AsyncClient):
    answer = await api.post("/projects", json=ASKED)

    made = answer.json()
    assert answer.status_code == 201
    assert set(made) >= PROJECT
    assert {field: made[field] for field in ASKED} == ASKED
    assert (made["status"], made["base_model_id"], made["model_info"]) == ("draft", None, None)
    assert made["created_at"] == made["updated_at"]
    assert made["created_at"].endswith("Z")
    assert answer.headers["location"] == f"/projects/{made['id']}"


@pytest.mark.parametrize("fraction", ["", ".5", ".12", ".123", ".000001", ".999999"])
def test_a_time_is_told_alike_whether_it_comes_from_a_fact_or_from_a_row(fraction: str):
    text = f"2026-01-05 09:30:00{fraction}+00"

    assert stamp_of_text(text) == stamp(datetime.fromisoformat(text))


async def test_a_project_needs_only_a_name(api: httpx.AsyncClient):
    made = (await api.post("/projects", json={"name": "é 𝄞 \u202e <b>"})).json()

    assert (made["name"], made["description"], made["status"]) == ("é 𝄞 \u202e <b>", "", "draft")
    assert made["config"] == ASKED["config"]


async def test_a_project_is_there_at_once_with_what_it_holds(api: httpx.AsyncClient):
    made = await api.post("/projects", json=ASKED)

    seen = await api.get(made.headers["location"])

    assert (seen.status_code, seen.headers["etag"]) == (200, made.headers["etag"])
    assert {field: seen.json()[field] for field in PROJECT} == {field: made.json()[field] for field in PROJECT}
    assert seen.json()["stats"] == {"file_count": 0, "chunk_count": 0, "example_count": 0, "last_job_status": None}


async def test_projects_are_listed_newest_first_and_in_pages(api: httpx.AsyncClient):
    made = [await new_project(api) for _ in range(5)]

    first, second, all_of_them = [(await api.get("/projects", params=page)).json() for page in ({"limit": 2}, {"limit": 2, "offset": 2}, {})]

    assert [project["id"] for project in first["items"] + second["items"]] == made[:0:-1]
    assert (first["limit"], first["offset"], second["offset"], all_of_them["limit"]) == (2, 0, 2, 50)
    assert first["total"] == second["total"] == all_of_them["total"] >= 5
    assert all(set(project) >= {"id", "name", "task_type", "status", "base_model_id", "created_at", "updated_at", "stats"} for project in first["items"])
    assert set(first["items"][0]["stats"]) == STATS


async def test_a_page_beyond_the_end_is_empty(api: httpx.AsyncClient, project: str):
    page = (await api.get("/projects", params={"offset": 1_000_000})).json()

    assert page["items"] == []
    assert page["total"] >= 1


@pytest.mark.parametrize("change", [{"name": "Nouveau nom"}, {"task_type": "instruction"}, {"description": ""}, {"config": {"num_examples_target": 3000}}])
async def test_what_a_change_leaves_out_stays(api: httpx.AsyncClient, change: dict[str, Any]):
    before = (await api.post("/projects", json=ASKED)).json()

    answer = await api.patch(f"/projects/{before['id']}", json=change)

    after = answer.json()
    merged = {**ASKED, **change, "config": {**ASKED["config"], **change.get("config", {})}}
    assert answer.status_code == 200
    assert {field: after[field] for field in ASKED} == merged
    assert after["created_at"] == before["created_at"]
    assert after["updated_at"] > before["updated_at"]
    assert (await api.get(f"/projects/{before['id']}")).json() == after


async def test_a_config_keeps_keys_that_nobody_knows(api: httpx.AsyncClient, project: str):
    await api.patch(f"/projects/{project}", json={"config": {"theirs": {"deep": [1, None, "é"]}, "max_seq_length": 512}})

    config = (await api.patch(f"/projects/{project}", json={"config": {"more": True}})).json()["config"]

    assert config == {**ASKED["config"], "theirs": {"deep": [1, None, "é"]}, "max_seq_length": 512, "more": True}


@pytest.mark.parametrize(("before", "after"), [(1, True), (False, 0), (1, "1"), ([1], [True]), (None, 0), ({"a": 1}, {"a": True})])
async def test_what_only_python_takes_for_the_same_is_a_change(api: httpx.AsyncClient, before: Any, after: Any):
    made = await api.post("/projects", json={"name": "x", "config": {"a": before}})

    changed = await api.patch(made.headers["location"], json={"config": {"a": after}})

    assert json.dumps(changed.json()["config"]["a"]) == json.dumps(after)


@pytest.mark.parametrize("body", [{}, {"name": "Mon projet Q&A"}, {"config": {}}])
async def test_a_change_to_what_is_so_already_changes_nothing(api: httpx.AsyncClient, log: EventLog, body: dict[str, Any]):
    made = await api.post("/projects", json=ASKED)
    before = (await log.position()).last

    answer = await api.patch(made.headers["location"], json=body)

    assert (answer.status_code, answer.headers["etag"]) == (200, made.headers["etag"])
    assert (await log.position()).last == before


async def test_a_project_is_deleted_with_all_it_holds(api: httpx.AsyncClient, servers: Servers, project: str):
    await upload(api, project, ("a.jsonl", ROW))
    assert stored(servers, project)

    answer = await api.delete(f"/projects/{project}", params={"cancel": True})

    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/files", "/jobs", "/dataset/examples", "/dataset/stats"):
        gone = await api.get(f"/projects/{project}{path}")
        assert (gone.status_code, gone.json()["detail"]) == (404, "Project not found")
    assert (await api.delete(f"/projects/{project}")).status_code == 404
    assert project not in [other["id"] for other in (await api.get("/projects", params={"limit": 1000})).json()["items"]]
    await eventually(lambda: not stored(servers, project))


async def test_nothing_can_be_done_to_a_project_that_is_gone(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    await api.delete(f"/projects/{project}")
    before = await footprint(log, servers)

    answers = [
        await api.patch(f"/projects/{project}", json={"name": "x"}),
        await api.delete(f"/projects/{project}/files/{NOBODY}"),
        await api.delete(f"/projects/{project}/dataset/examples/{NOBODY}"),
        await upload(api, project, ("a.jsonl", ROW)),
    ]

    assert [(answer.status_code, set(answer.json())) for answer in answers] == [(404, KEPT)] * 4
    assert await footprint(log, servers) == before


# ---- versions and repeats


async def test_if_match_lets_only_the_first_of_two_editors_through(api: httpx.AsyncClient):
    made = await api.post("/projects", json=ASKED)
    path, seen = made.headers["location"], {"If-Match": made.headers["etag"]}

    first = await api.patch(path, json={"name": "first"}, headers=seen)
    second = await api.patch(path, json={"name": "second"}, headers=seen)
    third = await api.patch(path, json={"name": "third"}, headers={"If-Match": first.headers["etag"]})
    stale = await api.delete(path, headers=seen)
    anyway = await api.delete(path, headers={"If-Match": "*"})

    assert [answer.status_code for answer in (first, second, third, stale, anyway)] == [200, 412, 200, 412, 204]
    assert (second.json()["error_code"], set(second.json())) == ("STALE_VERSION", KEPT)


async def test_if_match_with_what_was_never_an_etag_is_refused(api: httpx.AsyncClient, project: str):
    for etag in ("abc", '"1", "2"', "-1", '"' + "9" * 19 + '"', "é".encode()):
        seen: Any = {"If-Match": etag}
        answer = await api.patch(f"/projects/{project}", json={"name": "x"}, headers=seen)
        assert answer.status_code == 400


async def test_a_repeated_creation_gives_the_first_answer_whatever_happened_since(api: httpx.AsyncClient):
    key = {"Idempotency-Key": str(uuid4())}
    first = await api.post("/projects", json=ASKED, headers=key)

    again = await api.post("/projects", json=ASKED, headers=key)
    await api.patch(first.headers["location"], json={"name": "changed"})
    after_change = await api.post("/projects", json=ASKED, headers=key)
    await api.delete(first.headers["location"])
    after_deletion = await api.post("/projects", json=ASKED, headers=key)

    for repeat in (again, after_change, after_deletion):
        assert (repeat.status_code, repeat.json(), repeat.headers["etag"]) == (201, first.json(), first.headers["etag"])


async def test_another_body_under_a_used_key_is_refused(api: httpx.AsyncClient):
    key = {"Idempotency-Key": str(uuid4())}
    await api.post("/projects", json=ASKED, headers=key)

    other = await api.post("/projects", json={**ASKED, "name": "other"}, headers=key)

    assert (other.status_code, other.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    ("path", "body"),
    [("chunks/generate", {"chunk_size_tokens": 64}), ("dataset/generate", {"num_examples_target": 5}), ("dataset/preview", {"num_examples": 5})],
)
async def test_a_repeated_start_of_work_gives_its_job_and_another_body_is_refused(api: httpx.AsyncClient, project: str, path: str, body: dict[str, int]):
    await send_form(api, project, text_part("kind", b"raw_doc"), file_part("notes.md", b"# Notes\n\nSome words, and more.\n"))
    if path != "chunks/generate":
        await api.post(f"/projects/{project}/chunks/generate")
    key = {"Idempotency-Key": str(uuid4())}

    first, again, other = [await api.post(f"/projects/{project}/{path}", json=sent, headers=key) for sent in ({}, {}, body)]
    meanwhile = await api.post(f"/projects/{project}/{path}", json={})

    assert (again.status_code, again.json()) == (202, first.json())
    assert (other.status_code, other.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert (meanwhile.status_code, meanwhile.json()["context"]) == (409, {"job_id": first.json()["job_id"]})


async def test_twenty_repeats_at_once_make_one_project(api: httpx.AsyncClient):
    key = {"Idempotency-Key": str(uuid4())}

    answers = await asyncio.gather(*(api.post("/projects", json=ASKED, headers=key) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_repeated_upload_gives_the_first_answer_and_stores_nothing(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    key = {"Idempotency-Key": str(uuid4())}
    first = await upload(api, project, ("a.jsonl", ROW), ("b.jsonl", ROW), headers=key)
    before = await footprint(log, servers)

    again = await upload(api, project, ("a.jsonl", ROW), ("b.jsonl", ROW), headers=key)

    assert (again.status_code, again.json()) == (201, first.json())
    assert await footprint(log, servers) == before


async def test_a_repeated_upload_gives_the_first_answer_also_when_a_file_is_deleted(api: httpx.AsyncClient, servers: Servers, project: str):
    key = {"Idempotency-Key": str(uuid4())}
    first = await upload(api, project, ("a.jsonl", ROW), ("b.jsonl", ROW), headers=key)
    await api.delete(f"/projects/{project}/files/{first.json()['files'][0]['id']}", params={"cancel": True})

    again = await upload(api, project, ("a.jsonl", ROW), ("b.jsonl", ROW), headers=key)

    assert (again.status_code, again.json()) == (201, first.json())
    assert len((await api.get(f"/projects/{project}/files")).json()["files"]) == 1


@pytest.mark.parametrize("others", [[("a.jsonl", ROW * 2)], [("renamed.jsonl", ROW)], [("a.jsonl", ROW), ("b.jsonl", ROW)]])
async def test_other_files_under_a_used_key_are_refused(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, others: list[Any]):
    key = {"Idempotency-Key": str(uuid4())}
    await upload(api, project, ("a.jsonl", ROW), headers=key)
    before = await footprint(log, servers)

    answer = await upload(api, project, *others, headers=key)

    assert (answer.status_code, answer.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert await footprint(log, servers) == before


# ---- files


@pytest.mark.parametrize(
    ("name", "content", "mime_type"),
    [
        ("a.jsonl", ROW * 3, "application/jsonl"),
        ("a.json", b'[{"instruction": "a", "output": "b"}]', "application/json"),
        ("a.csv", b"instruction,output\na,b\n", "text/csv"),
        ("a.txt", b"plain words\n", "text/plain"),
        ("no-ending", ROW * 2, "application/jsonl"),
        ("lies.pdf", b'[{"text": "json all the same"}]', "application/json"),
        ("bom.csv", b"\xef\xbb\xbfinstruction,output\na,b\n", "text/csv"),
    ],
)
async def test_an_upload_is_stored_and_its_type_told_by_what_it_holds(api: httpx.AsyncClient, servers: Servers, project: str, name, content, mime_type):
    before = stored(servers)

    answer = await upload(api, project, (name, content))

    (file,) = answer.json()["files"]
    assert answer.status_code == 201
    assert set(file) >= FILE
    assert {**file, "id": "", "created_at": "", "job_id": ""} == {
        "id": "",
        "filename": name,
        "kind": "dataset_upload",
        "status": "ready",
        "mime_type": mime_type,
        "size_bytes": len(content),
        "created_at": "",
        "job_id": "",
    }
    assert [new.read_bytes() for new in stored(servers) if new not in before] == [content]
    assert (await api.get(f"/projects/{project}/files")).json() == answer.json()


async def test_many_files_come_in_one_form_and_each_gets_a_job(api: httpx.AsyncClient, project: str):
    answer = await upload(api, project, *((f"part-{n}.jsonl", ROW * (n + 1)) for n in range(50)))

    files = answer.json()["files"]
    assert answer.status_code == 201
    assert [file["filename"] for file in files] == [f"part-{n}.jsonl" for n in range(50)]
    jobs = (await api.get(f"/projects/{project}/jobs", params={"limit": 100})).json()
    assert {job["id"] for job in jobs["jobs"]} == {file["job_id"] for file in files}
    assert jobs["total"] == 50
    seen = (await api.get(f"/projects/{project}")).json()
    assert (seen["status"], seen["stats"]["file_count"], seen["stats"]["last_job_status"]) == ("uploading", 50, "queued")


async def test_the_kind_may_come_after_the_files(api: httpx.AsyncClient, project: str):
    answer = await send_form(api, project, file_part("a.jsonl", ROW), KIND)

    assert answer.status_code == 201


async def test_files_are_listed_by_kind(api: httpx.AsyncClient, project: str):
    await upload(api, project, ("a.jsonl", ROW))

    datasets, documents, others = [await api.get(f"/projects/{project}/files", params={"kind": kind}) for kind in ("dataset_upload", "raw_doc", "other")]

    assert [len(answer.json()["files"]) for answer in (datasets, documents)] == [1, 0]
    assert (others.status_code, others.json()["context"]["errors"][0]["field"]) == (422, "kind")


async def test_a_file_that_a_job_still_reads_is_not_deleted_unless_the_job_is_cancelled(api: httpx.AsyncClient, servers: Servers, project: str):
    file = (await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]
    path = f"/projects/{project}/files/{file['id']}"

    busy, cancelled, gone = await api.delete(path), await api.delete(path, params={"cancel": "true"}), await api.delete(path)

    assert [answer.status_code for answer in (busy, cancelled, gone)] == [409, 204, 404]
    assert (busy.json()["error_code"], busy.json()["context"]) == ("FILE_BUSY", {"job_ids": [file["job_id"]]})
    assert (await api.get(f"/projects/{project}/files")).json() == {"files": []}
    assert (await api.get(f"/jobs/{file['job_id']}")).json()["cancel_requested"] is True
    await eventually(lambda: not stored(servers, project))


async def test_a_project_whose_job_runs_is_not_deleted_unless_the_job_is_cancelled(api: httpx.AsyncClient, project: str):
    file = (await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]

    busy, cancelled = await api.delete(f"/projects/{project}"), await api.delete(f"/projects/{project}", params={"cancel": "true"})

    assert (busy.status_code, busy.json()["error_code"], busy.json()["context"]) == (409, "PROJECT_BUSY", {"job_ids": [file["job_id"]]})
    assert cancelled.status_code == 204


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".", "a\\b.json", "/etc/passwd", "a/../b.json", "..\\..\\a.json"])
async def test_a_name_that_is_a_path_is_refused(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, name: str):
    await refused_without_a_trace(api, servers, log, project, file_part(name, ROW), KIND, status=400, field="files")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("x" * 300 + ".json", "x" * 196 + ".json"),
        ("x" * 300, "x" * 200),
        ("données été.jsonl", "donn_es_t_.jsonl"),
        ("my file (1).json", "my_file_1_.json"),
        ("C:\\data\\a.json", "a.json"),
        ("a;rm -rf $HOME.json", "a_rm_-rf_HOME.json"),
    ],
)
async def test_a_name_keeps_only_letters_digits_dot_underscore_and_dash(api: httpx.AsyncClient, project: str, name: str, kept: str):
    (file,) = (await send_form(api, project, file_part(name, ROW), KIND)).json()["files"]

    assert set(file["filename"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert file["filename"][:8] == kept[:8]
    assert file["filename"].rpartition(".")[2] == kept.rpartition(".")[2]
    assert len(file["filename"]) <= 201


@pytest.mark.parametrize(
    ("content", "mime_type"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(100), "application/x-executable"),
        (b"MZ\x90\x00" + bytes(100), "application/x-executable"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"PK\x03\x04" + bytes(20), "application/zip"),
        (b"\x1f\x8b\x08", "application/gzip"),
        (bytes(1000), "application/octet-stream"),
        (b'{"text": "a"}\n\xff\xfe', "application/octet-stream"),
    ],
)
async def test_what_is_no_text_is_refused_whatever_it_is_called(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, content, mime_type):
    for after in (b"", bytes(200_000)):
        answer = await refused_without_a_trace(api, servers, log, project, file_part("data.json", content + after), KIND, status=400, field="files")

        assert answer["detail"] == f"File 'data.json' has unsupported MIME type '{mime_type}'"


async def test_a_file_beyond_50_mb_is_refused_in_the_documents_words(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    rows = ROW * (51 * MB // len(ROW))

    answer = await refused_without_a_trace(api, servers, log, project, file_part("a.jsonl", rows), KIND, status=413, field="files")

    assert answer["detail"] == "File exceeds maximum size of 50 MB"


async def test_a_form_that_announces_more_than_a_project_may_hold_is_not_even_read(gateway: Process, servers: Servers, log: EventLog, project: str):
    before = await footprint(log, servers)
    head = form_head(project, length=10**12)

    status, rest = await bare(gateway, head + file_part("a.jsonl", ROW))

    assert status == 413
    assert b"File exceeds maximum size of 50 MB" in rest
    assert await footprint(log, servers) == before


async def test_one_bad_file_refuses_the_whole_form(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    good, bad = file_part("a.jsonl", ROW * 300_000), file_part("b.json", b"%PDF-1.4")

    answer = await refused_without_a_trace(api, servers, log, project, good, bad, KIND, status=400, field="files")

    assert answer["detail"] == "File 'b.json' has unsupported MIME type 'application/pdf'"


async def test_a_document_is_stored_without_a_job(api: httpx.AsyncClient, project: str):
    answer = await send_form(
        api, project, text_part("kind", b"raw_doc"), file_part("notes.md", b"# Notes\n\nSome words, and more.\n"), file_part("a.pdf", b"%PDF-1.4")
    )

    files = answer.json()["files"]
    assert [(file["mime_type"], file["kind"], file["job_id"]) for file in files] == [("text/markdown", "raw_doc", ""), ("application/pdf", "raw_doc", "")]
    assert (await api.get(f"/projects/{project}/jobs")).json()["jobs"] == []


async def test_prose_that_looks_like_a_table_is_a_document_by_its_name(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    table = b"name,age\nAnn,4\nBob,5\n"

    taken = await send_form(api, project, text_part("kind", b"raw_doc"), file_part("letter.txt", table))
    refused = await refused_without_a_trace(api, servers, log, project, text_part("kind", b"raw_doc"), file_part("a.csv", table), status=400, field="files")

    assert taken.json()["files"][0]["mime_type"] == "text/plain"
    assert refused["detail"] == "File 'a.csv' has unsupported MIME type 'text/csv'"


FORMS = {
    "no file": ([b"KIND"], 422, "files"),
    "an empty file": ([b"FILE a.jsonl ", b"KIND"], 400, "files"),
    "a file without a name": ([b"FILE  " + ROW, b"KIND"], 422, "files"),
    "text where a file is expected": ([b"TEXT files words", b"KIND"], 422, "files"),
    "a file under another field": ([b"FIELD file", b"KIND"], 422, "file"),
    "a file where the kind is expected": ([b"FILE a.jsonl " + ROW, b"FIELD kind"], 422, "kind"),
    "no kind": ([b"FILE a.jsonl " + ROW], 422, "kind"),
    "another kind": ([b"FILE a.jsonl " + ROW, b"TEXT kind model"], 422, "kind"),
    "a kind that is no text": ([b"FILE a.jsonl " + ROW, b"TEXT kind \xff\xfe"], 422, "kind"),
    "a kind without an end": ([b"FILE a.jsonl " + ROW, b"TEXT kind " + b"d" * 70_000], 413, "kind"),
}


@pytest.mark.parametrize("case", FORMS)
async def test_a_form_that_is_not_what_the_document_asks_for_is_refused_by_field(
    api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, case: str
):
    parts, status, field = FORMS[case]

    await refused_without_a_trace(api, servers, log, project, *map(part, parts), status=status, field=field)


BODIES = {
    "an empty body": b"",
    "no end": b"PARTS",
    "cut in a file": b"CUT",
    "cut in a large file": b"CUTLARGE",
    "no part at all": b"--X",
    "noise": os.urandom(200_000),
    "a part without a header": b"--X\r\n\r\nwords\r\n--X--\r\n",
    "a header without an end": b'--X\r\nContent-Disposition: form-data; name="files"; filename="' + b"a" * 20_000,
    "a name that is no text": b'--X\r\nContent-Disposition: form-data; name="files"; filename="a\xff\xfe.json"\r\n\r\n{}\r\n--X--\r\n',
    "a name with NUL": b'--X\r\nContent-Disposition: form-data; name="files"; filename="a\0.json"\r\n\r\n{}\r\n--X--\r\n',
    "a thousand headers": b"--X\r\n" + b"A: b\r\n" * 1000 + b"\r\n\r\n--X--\r\n",
    "10,000 parts": b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.jsonl"\r\n\r\n{}\r\n' * 10_000 + b"--X--\r\n",
    "10,000 fields": b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 10_000 + b"--X--\r\n",
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_damaged_form_is_refused(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, case: str):
    body = {
        b"PARTS": file_part("a.jsonl", ROW) + KIND,
        b"CUT": (file_part("a.jsonl", ROW * 10))[:-50],
        b"CUTLARGE": file_part("a.jsonl", ROW * 300_000)[:-50],
    }.get(BODIES[case], BODIES[case])
    before = await footprint(log, servers)

    answer = await api.post(f"/projects/{project}/files/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=X"})

    assert 400 <= answer.status_code < 500
    assert set(answer.json()) == KEPT
    assert await footprint(log, servers) == before


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=Y", 400),
        ("multipart/mixed; boundary=X", 415),
        ("application/json", 415),
        ("text/plain", 415),
        ("", 415),
    ],
)
async def test_an_upload_that_does_not_say_how_it_is_divided_is_refused(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, kind, status):
    before = await footprint(log, servers)

    answer = await api.post(f"/projects/{project}/files/upload", content=file_part("a.jsonl", ROW) + KIND + END, headers={"Content-Type": kind})

    assert (answer.status_code, set(answer.json())) == (status, KEPT)
    assert await footprint(log, servers) == before


async def test_clients_that_vanish_leave_nothing_behind_and_hold_nothing_up(
    api: httpx.AsyncClient, gateway: Process, servers: Servers, log: EventLog, project: str
):
    """More of them than there are threads for the object store."""
    before = await footprint(log, servers)
    head, body = form_head(project, length=20 * MB), file_part("a.jsonl", ROW * 20_000)

    await asyncio.gather(*(vanish(gateway, head + body[: len(body) * n // 40]) for n in range(20, 40)))
    answer = await upload(api, project, ("a.jsonl", ROW))

    assert answer.status_code == 201
    await eventually(lambda: len(stored(servers)) == len(before[1]) + 1)
    assert (await log.position()).last == before[0] + 2


async def test_what_a_project_may_hold_is_limited_in_all(servers: Servers, log: EventLog):
    with running(servers, label="small", environ={"TRAINYARD_MAX_PROJECT_MB": "1", "TRAINYARD_MAX_FILE_MB": "1"}) as small:
        async with client(small) as api:
            project = await new_project(api)
            first = await upload(api, project, ("a.jsonl", ROW * (700_000 // len(ROW))))

            answer = await refused_without_a_trace(
                api, servers, log, project, file_part("b.jsonl", ROW * (700_000 // len(ROW))), KIND, status=413, code="PROJECT_FULL"
            )
            single = await refused_without_a_trace(api, servers, log, project, file_part("c.jsonl", ROW * 30_000), KIND, status=413, field="files")

    assert first.status_code == 201
    assert answer["detail"] == "The project's files would exceed 1 MB in all"
    assert single["detail"] == "File exceeds maximum size of 1 MB"


async def test_twenty_uploads_at_once_never_exceed_what_a_project_may_hold(servers: Servers, log: EventLog):
    """Through two gateways, whose locks know nothing of each other."""
    small = {"TRAINYARD_MAX_PROJECT_MB": "1", "TRAINYARD_MAX_FILE_MB": "1"}
    with running(servers, label="small-1", environ=small) as one, running(servers, label="small-2", environ=small) as two:
        async with client(one) as first, client(two) as second:
            project = await new_project(first)
            content = ROW * (150_000 // len(ROW))
            uploads = (upload((first, second)[n % 2], project, (f"{n}.jsonl", content)) for n in range(20))
            answers = await asyncio.gather(*uploads)
            files = (await first.get(f"/projects/{project}/files")).json()["files"]

    taken = [answer for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(taken) == MB // len(content)
    assert {(answer.status_code, answer.json()["error_code"]) for answer in refused} <= {(413, "PROJECT_FULL"), (409, "CONFLICT")}
    assert all(set(answer.json()) == KEPT for answer in refused)
    assert sorted(file["id"] for file in files) == sorted(answer.json()["files"][0]["id"] for answer in taken)
    assert sum(file["size_bytes"] for file in files) <= MB
    assert len(stored(servers, project)) == len(taken)


# ---- jobs


async def test_a_job_is_told_as_its_story_goes(api: httpx.AsyncClient, log: EventLog, project: str):
    job = (await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]["job_id"]

    queued = await seen_job(api, job, "queued")
    await happens(log, PreparationStarted(job_id=job))
    started = await seen_job(api, job, "running")
    await happens(log, PreparationCompleted(job_id=job, parts=0, rows=3, valid=2, refused={"json_invalid": 1}))
    ended = await seen_job(api, job, "success")

    assert set(queued) >= JOB | {"project_id", "result"}
    assert (queued["type"], queued["project_id"], queued["progress_pct"], queued["started_at"]) == ("ingest", project, 0, None)
    assert started["started_at"] > queued["created_at"]
    assert (ended["progress_pct"], ended["result_summary"], ended["error_message"]) == (100, {"total": 3, "valid": 2, "invalid": 1}, None)
    assert ended["finished_at"] > ended["started_at"]
    assert (await api.get(f"/projects/{project}")).json()["stats"]["last_job_status"] == "success"
    assert (await api.delete(f"/projects/{project}")).status_code == 204


async def test_a_job_tells_when_it_will_be_done_or_what_it_waits_for(api: httpx.AsyncClient, log: EventLog, project: str):
    job = (await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]["job_id"]
    waiting = "Waiting for the language model at http://llm since 2026-11-21 10:00:00 UTC: it is away"

    async def told(percent: int, message: str) -> dict[str, Any] | None:
        seen = (await api.get(f"/jobs/{job}")).json()
        return seen if (seen["progress_pct"], seen["message"]) == (percent, message) else None

    queued = await seen_job(api, job, "queued")
    await happens(log, PreparationStarted(job_id=job))
    started = await seen_job(api, job, "running")
    await happens(log, PreparationProgressed(job_id=job, done=200, total=1_000, made=200, seconds=100.0))
    working = await eventually(lambda: told(20, ""))
    await happens(log, PreparationProgressed(job_id=job, done=200, total=1_000, message=waiting))
    stuck = await eventually(lambda: told(20, waiting))
    await happens(log, PreparationProgressed(job_id=job, done=300, total=1_000, made=100, seconds=100.0))
    again = await eventually(lambda: told(30, ""))
    cancelled = await api.post(f"/jobs/{job}/cancel")
    cancelling = (await api.get(f"/jobs/{job}")).json()

    assert working
    assert stuck
    assert again
    assert cancelled.status_code == 200
    assert [seen["eta_seconds"] for seen in (queued, started, stuck, cancelling)] == [None] * 4
    assert 380 < working["eta_seconds"] <= 400
    assert 680 < again["eta_seconds"] <= 700


@pytest.mark.parametrize(("asked", "field"), [({"type": "x" * 51}, "type"), ({"status": "bogus"}, "status"), ({"limit": "0"}, "limit")])
async def test_a_wrong_filter_of_jobs_is_refused_under_the_name_that_was_sent(api: httpx.AsyncClient, asked: dict[str, str], field: str):
    project = (await api.post("/projects", json={"name": "p"})).json()["id"]

    answer = await api.get(f"/projects/{project}/jobs", params=asked)

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["context"]["errors"]] == [field]


async def test_jobs_are_listed_newest_first_and_by_every_familys_word_for_a_status(api: httpx.AsyncClient, log: EventLog, project: str):
    ids = [(await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]["job_id"] for _ in range(5)]
    queued, running_, failed, cancelled, done = ids
    await happens(log, PreparationStarted(job_id=running_))
    await happens(log, PreparationFailed(job_id=failed, code="x", message="The file is damaged"))
    await happens(log, PreparationCancelled(job_id=cancelled))
    await happens(log, PreparationCompleted(job_id=done, parts=0, rows=0, valid=0))
    await seen_job(api, done, "success")
    words = {
        queued: ["queued", "pending", "in_queue"],
        running_: ["running", "training", "processing"],
        failed: ["failed"],
        cancelled: ["cancelled", "canceled", "stopped"],
        done: ["success", "succeeded", "completed"],
    }

    for job, synonyms in words.items():
        for word in synonyms:
            found = (await api.get(f"/projects/{project}/jobs", params={"status": word})).json()
            assert ([each["id"] for each in found["jobs"]], found["total"]) == ([job], 1), word
    everything = (await api.get(f"/projects/{project}/jobs")).json()["jobs"]
    pages = [(await api.get(f"/projects/{project}/jobs", params={"limit": 2, "offset": offset})).json() for offset in (0, 2, 4)]
    by_type = [(await api.get(f"/projects/{project}/jobs", params={"type": kind})).json()["total"] for kind in ("ingest", "train")]

    assert [job["id"] for job in everything] == ids[::-1]
    assert all(set(job) >= JOB for job in everything)
    assert [job["id"] for page in pages for job in page["jobs"]] == ids[::-1]
    assert {page["total"] for page in pages} == {5}
    assert by_type == [5, 0]
    assert (await api.get(f"/jobs/{failed}")).json()["error_message"] == "The file is damaged"


async def test_a_status_that_no_family_knows_is_refused_by_name(api: httpx.AsyncClient, project: str):
    answer = await api.get(f"/projects/{project}/jobs", params={"status": "sleeping"})

    assert (answer.status_code, answer.json()["context"]["errors"][0]["field"]) == (422, "status")


async def test_a_job_is_cancelled_once_however_often_it_is_asked(api: httpx.AsyncClient, log: EventLog, project: str):
    job = (await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]["job_id"]

    first, second = await api.post(f"/jobs/{job}/cancel"), await api.post(f"/jobs/{job}/cancel")

    assert [(answer.status_code, answer.json()) for answer in (first, second)] == [(200, {"status": "cancelled"})] * 2
    assert [fact.envelope.type for fact in await log.read(f"ev.local.job.*.{job}")] == ["job.created", "job.cancel_requested"]


async def test_a_job_that_has_ended_is_not_cancelled(api: httpx.AsyncClient, log: EventLog, project: str):
    job = (await upload(api, project, ("a.jsonl", ROW))).json()["files"][0]["job_id"]
    await happens(log, PreparationCompleted(job_id=job, parts=0, rows=0, valid=0))
    await seen_job(api, job, "success")

    answer = await api.post(f"/jobs/{job}/cancel")

    assert (answer.status_code, answer.json()["error_code"], set(answer.json())) == (409, "JOB_ENDED", KEPT)


# ---- bodies that nobody should send


HOSTILE_JSON = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "an array": b"[]",
    "half": b'{"name": "x"',
    "a comma too many": b'{"name": "x",}',
    "two documents": b'{"name": "x"} {"name": "y"}',
    "a name that is a number": b'{"name": 1}',
    "a name that is null": b'{"name": null}',
    "a name that is true": b'{"name": true}',
    "a name that is empty": b'{"name": ""}',
    "a name too long": b'{"name": "' + b"x" * 201 + b'"}',
    "a description too long": b'{"name": "x", "description": "' + b"x" * 10_001 + b'"}',
    "NUL in the name": b'{"name": "a\\u0000b"}',
    "NUL in a key": b'{"name": "x", "config": {"a\\u0000": 1}}',
    "NUL deep inside": b'{"name": "x", "config": {"a": [{"b": "\\u0000"}]}}',
    "a raw NUL": b'{"name": "a\0b"}',
    "half a character": b'{"name": "\\ud800"}',
    "half a character inside": b'{"name": "x", "config": {"a": "\\udfff\\ud800 "}}',
    "half a character in a key": b'{"name": "x", "config": {"\\ud800": 1}}',
    "half a character, raw": b'{"name": "\xed\xa0\x80"}',
    "no UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "NaN": b'{"name": "x", "config": {"a": NaN}}',
    "Infinity": b'{"name": "x", "config": {"a": -Infinity}}',
    "1e400": b'{"name": "x", "config": {"a": 1e400}}',
    "10^400": b'{"name": "x", "config": {"a": 1' + b"0" * 400 + b"}}",
    "2^63": b'{"name": "x", "config": {"a": 9223372036854775808}}',
    "2^64": b'{"name": "x", "config": {"a": 18446744073709551616}}',
    "100,000 deep": b'{"name": "x", "config": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "100,000 deep and no end": b'{"name": "x", "config": ' + b"[" * 100_000,
    "1,000 deep": b'{"name": "x", "config": {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}}",
    "65 deep": b'{"name": "x", "config": ' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}",
    "2 MB": b'{"name": "x", "config": {"a": "' + b"x" * (2 * MB) + b'"}}',
    "more than a fact may carry": b'{"name": "x", "config": {"a": "' + b"x" * 70_000 + b'"}}',
    "a config that is a list": b'{"name": "x", "config": []}',
    "a target of 0": b'{"name": "x", "config": {"num_examples_target": 0}}',
    "a split beyond 1": b'{"name": "x", "config": {"train_eval_split": 1.5}}',
    "a length that is a string": b'{"name": "x", "config": {"max_seq_length": "2048"}}',
    "a task that nobody knows": b'{"name": "x", "task_type": "steal"}',
}
"""Of these only what names a field of `config` could mean something to a PATCH too: all are refused by both."""


@pytest.mark.parametrize("case", HOSTILE_JSON)
async def test_a_body_that_makes_no_sense_is_refused_and_changes_nothing(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, case: str):
    before = await footprint(log, servers)

    for method, path in (("POST", "/projects"), ("PATCH", f"/projects/{project}")):
        answer = await api.request(method, path, content=HOSTILE_JSON[case], headers={"Content-Type": "application/json"})

        assert answer.status_code in (413, 422), method
        assert set(answer.json()) == KEPT
        assert answer.json()["detail"]
        assert len(answer.text) < 5000
    assert await footprint(log, servers) == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": "x", "config": {"max_seq_length": 1}}, "config.max_seq_length"),
        ({"name": "x", "config": {"deep": {"er": "\0"}}}, "config.deep.er"),
        ({"name": "x", "task_type": "steal"}, "task_type"),
    ],
)
async def test_a_refusal_names_the_field(api: httpx.AsyncClient, body: dict[str, Any], field: str):
    answer = await api.post("/projects", json=body)

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["context"]["errors"]] == [field]
    assert answer.json()["error_code"] == "VALIDATION_ERROR"


async def test_of_a_key_given_twice_the_last_counts_and_unknown_ones_do_not(api: httpx.AsyncClient):
    body = b'{"name": "first", "name": "second", "unknown": {"a": 1}, "__proto__": 1}'

    answer = await api.post("/projects", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["name"]) == (201, "second")


OPERATIONS = [
    ("GET", "/projects"),
    ("POST", "/projects"),
    ("GET", "/projects/{}"),
    ("PATCH", "/projects/{}"),
    ("DELETE", "/projects/{}"),
    ("POST", "/projects/{}/files/upload"),
    ("GET", "/projects/{}/files"),
    ("DELETE", "/projects/{}/files/{}"),
    ("GET", "/projects/{}/jobs"),
    ("GET", "/jobs/{}"),
    ("POST", "/jobs/{}/cancel"),
    ("GET", "/projects/{}/dataset/examples"),
    ("GET", "/projects/{}/dataset/examples/{}"),
    ("PATCH", "/projects/{}/dataset/examples/{}"),
    ("DELETE", "/projects/{}/dataset/examples/{}"),
    ("GET", "/projects/{}/dataset/download"),
    ("GET", "/projects/{}/dataset/stats"),
    ("GET", "/projects/{}/train/status"),
    ("GET", "/projects/{}/train/logs/stream"),
    ("GET", "/projects/{}/export/files"),
    ("GET", "/projects/{}/export/download"),
    ("GET", "/projects/{}/export/download/{}"),
    ("GET", "/v2/events"),
    ("GET", "/health"),
]
IDS = [
    "x",
    "%00",
    "..",
    "%2e%2e",
    "%ff",
    "'%20or%201=1--",
    NOBODY,
    NOBODY.upper(),
    NOBODY.replace("-", ""),
    "{" + NOBODY + "}",
    "9" * 3000,
    "null",
    "*",
    "%3E",
    "\u0660" * 3,
]
QUERIES = [
    "",
    "?limit=-1&offset=-1&status=x&kind=x&type=x&split=x&is_valid=x&cancel=x&after=x&about=.",
    "?" + "a=b&" * 3000,
    "?%00",
    "?limit=%ff",
    "?cancel=true&limit=1",
]
HEADERS: list[dict[str, str]] = [
    {},
    {"If-Match": '"99999999999999999999"', "Idempotency-Key": "", "Last-Event-ID": "x"},
    {"If-Match": "\x80\xff", "Idempotency-Key": "\x80\xff", "traceparent": "\xff", "X-Request-Id": "\xff"},
    {"Content-Type": "application/json; charset=utf-16", "Accept": "application/json;q=x, */*;q=-1", "Accept-Encoding": "gzip;q=x"},
    {"Content-Type": "multipart/form-data; boundary=" + "-" * 5000, "Range": "bytes=-1"},
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: str(value).replace("/", "_"))
async def test_no_operation_breaks_hangs_or_writes_whatever_it_is_given(api: httpx.AsyncClient, servers: Servers, log: EventLog, method: str, path: str):
    ids = IDS if "{}" in path else [""]
    bodies = [None] if method in ("GET", "DELETE") else [None, b"{}", b"\0" * 1000, b"[" * 5000]
    before = await footprint(log, servers)

    for id, query, headers, body in each_with_each(ids, QUERIES, HEADERS, bodies):
        given: Any = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = await asyncio.wait_for(api.request(method, path.format(id, id) + query, headers=given, content=body), timeout=5)

        assert answer.status_code < 500, (id, query, headers, body)
        assert answer.headers["x-request-id"]
    assert await footprint(log, servers) == before


def each_with_each(*kinds: Sequence[Any]) -> Iterator[list[Any]]:
    """Rows in which every value meets every value of the other kinds; all rows there could be are ten times as many."""
    met: set[tuple[int, int, int, int]] = set()
    for one, other in combinations(range(len(kinds)), 2):
        for turn, (first, second) in enumerate(product(range(len(kinds[one])), range(len(kinds[other])))):
            if (one, first, other, second) not in met:
                row = [turn % len(kind) for kind in kinds]
                row[one], row[other] = first, second
                met |= {(a, row[a], b, row[b]) for a, b in combinations(range(len(kinds)), 2)}
                yield [kind[place] for kind, place in zip(kinds, row, strict=True)]


# ---- all the way through: the datasets service reads what is uploaded


@pytest.fixture(scope="module")
def datasets(servers: Servers) -> Iterator[Process]:
    process = servers.service("datasets")
    process.start()
    yield process
    process.stop()


LINES = [{"instruction": f"What is {n} + {n}?", "input": "", "output": f"{2 * n}. " + "Because it is so. " * 5} for n in range(40)]


async def test_what_is_uploaded_can_be_read_row_by_row(api: httpx.AsyncClient, datasets: Process, project: str):
    bad = [b"{broken\n", b'{"unknown": "keys"}\n', b'{"instruction": "a", "output": ""}\n']
    content = b"".join(json.dumps(line).encode() + b"\n" for line in LINES) + b"".join(bad)

    (file,) = (await upload(api, project, ("faq.jsonl", content))).json()["files"]
    job = await seen_job(api, file["job_id"], "success")
    page = (await api.get(f"/projects/{project}/dataset/examples", params={"limit": 1000})).json()
    stats = (await api.get(f"/projects/{project}/dataset/stats")).json()
    seen = (await api.get(f"/projects/{project}")).json()

    assert job["result_summary"] == {"total": 43, "valid": 40, "invalid": 3}
    assert page["total"] == len(page["items"]) == 43
    assert all(set(example) >= EXAMPLE for example in page["items"])
    assert [example["data"] for example in page["items"] if example["is_valid"]] == LINES
    assert set(page["stats"]) == {"total", "valid", "invalid", "train", "eval", "avg_token_count"}
    assert (page["stats"]["total"], page["stats"]["valid"], page["stats"]["invalid"]) == (43, 40, 3)
    assert page["stats"]["train"] + page["stats"]["eval"] == 40
    assert page["stats"]["avg_token_count"] > 5
    assert (stats["total"], stats["valid"], stats["invalid"]) == (43, 40, 3)
    assert {split: counts["count"] for split, counts in stats["by_split"].items()} == {
        split: page["stats"][split] for split in ("train", "eval") if page["stats"][split]
    }
    assert all(set(counts) == {"count", "avg_tokens", "min_tokens", "max_tokens"} for counts in stats["by_split"].values())
    assert all(counts["min_tokens"] <= counts["avg_tokens"] <= counts["max_tokens"] for counts in stats["by_split"].values())
    assert sum(stats["validation_errors"].values()) == 3
    assert [refused["row"] for refused in stats["refused"]] == [example["row"] for example in page["items"] if not example["is_valid"]]
    assert (seen["status"], seen["stats"]["example_count"], seen["stats"]["last_job_status"]) == ("ready_to_train", 40, "success")
    ready = (await api.get("/projects", params={"status": "ready_to_train", "limit": 1000})).json()
    assert project in [item["id"] for item in ready["items"]]


async def test_examples_are_filtered_paged_and_deleted_one_by_one(api: httpx.AsyncClient, datasets: Process, log: EventLog, project: str):
    content = b"".join(json.dumps(line).encode() + b"\n" for line in LINES) + b"{broken\n"
    (file,) = (await upload(api, project, ("faq.jsonl", content))).json()["files"]
    await seen_job(api, file["job_id"], "success")
    path = f"/projects/{project}/dataset/examples"

    async def read(**query: Any) -> dict[str, Any]:
        return (await api.get(path, params=query)).json()

    train, evaluation, refused = await read(split="train", limit=100, is_valid="true"), await read(split="eval", is_valid="true"), await read(is_valid="false")
    pages = [await read(limit=15, offset=offset) for offset in (0, 15, 30, 45)]
    gone = train["items"][3]["id"]
    deleted = await api.delete(f"{path}/{gone}")
    after = await read(limit=100)
    again, elsewhere = await api.delete(f"{path}/{gone}"), await api.delete(f"/projects/{await new_project(api)}/dataset/examples/{after['items'][0]['id']}")

    assert train["total"] + evaluation["total"] == 40
    assert {example["split"] for example in train["items"]} == {"train"}
    assert (refused["total"], [example["is_valid"] for example in refused["items"]]) == (1, [False])
    assert [len(page["items"]) for page in pages] == [15, 15, 11, 0]
    assert len({example["id"] for page in pages for example in page["items"]}) == 41
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert after["total"] == 40
    assert gone not in [example["id"] for example in after["items"]]
    assert (await api.get(f"/projects/{project}")).json()["stats"]["example_count"] == 39
    assert [(answer.status_code, answer.json()["detail"]) for answer in (again, elsewhere)] == [(404, "Example not found")] * 2
    assert len(await log.read(f"ev.local.example.*.{project}.>")) == 1


async def test_a_deleted_file_takes_its_examples_along(api: httpx.AsyncClient, datasets: Process, servers: Servers, project: str):
    files = (await upload(api, project, ("a.jsonl", ROW * 2), ("b.json", b'[{"instruction": "b", "output": "c"}]'))).json()["files"]
    for file in files:
        await seen_job(api, file["job_id"], "success")

    answer = await api.delete(f"/projects/{project}/files/{files[0]['id']}")

    rest = (await api.get(f"/projects/{project}/dataset/examples")).json()
    assert answer.status_code == 204
    assert [example["file_id"] for example in rest["items"]] == [files[1]["id"]]
    assert (await api.delete(f"/projects/{project}")).status_code == 204
    await eventually(lambda: not stored(servers, project, *(file["job_id"] for file in files)))


async def test_a_file_without_a_single_usable_row_says_why(api: httpx.AsyncClient, datasets: Process, project: str):
    (file,) = (await upload(api, project, ("bad.json", b'{"rows": 1'))).json()["files"]

    job = await eventually(lambda: ended(api, file["job_id"]), patience=20)
    assert job

    stats = (await api.get(f"/projects/{project}/dataset/stats")).json()
    assert job["status"] in ("success", "failed")
    assert job["error_message"] or stats["refused"]
    assert (await api.get(f"/projects/{project}")).json()["status"] in ("draft", "failed")


# ---- helpers


async def new_project(api: httpx.AsyncClient) -> str:
    answer = await api.post("/projects", json={"name": "test"})
    assert answer.status_code == 201
    return answer.json()["id"]


async def upload(api: httpx.AsyncClient, project: str, *files: tuple[str, bytes], headers: dict[str, str] | None = None) -> httpx.Response:
    return await api.post(f"/projects/{project}/files/upload", files=[("files", file) for file in files], data=DATASET, headers=headers)


def file_part(name: str, content: bytes, field: str = "files") -> bytes:
    return f'--X\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"


def text_part(name: str, content: bytes) -> bytes:
    return f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"


KIND, END = text_part("kind", b"dataset_upload"), b"--X--\r\n"


def part(written: bytes) -> bytes:
    """`FILE name content`, `TEXT field content`, `FIELD field` (a file under another field) or KIND."""
    word, _, rest = written.partition(b" ")
    first, _, content = rest.partition(b" ")
    match word:
        case b"FILE":
            return file_part(first.decode(), content)
        case b"TEXT":
            return text_part(first.decode(), content)
        case b"FIELD":
            return file_part("a.jsonl", ROW, field=first.decode())
        case _:
            return KIND


def form_head(project: str, *, length: int) -> bytes:
    head = f"POST /projects/{project}/files/upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary=X\r\nContent-Length: {length}\r\n\r\n".encode()


async def send_form(api: httpx.AsyncClient, project: str, *parts: bytes) -> httpx.Response:
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    return await api.post(f"/projects/{project}/files/upload", content=b"".join(parts) + END, headers=headers)


async def refused_without_a_trace(
    api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str, *parts: bytes, status: int, field: str = "", code: str = ""
) -> dict[str, Any]:
    before = await footprint(log, servers)

    answer = await send_form(api, project, *parts)

    body = answer.json()
    assert (answer.status_code, set(body)) == (status, KEPT), body
    assert [error["field"] for error in body["context"].get("errors", [])] == ([field] if field else [])
    assert code in ("", body["error_code"])
    assert await footprint(log, servers) == before
    return body


async def vanish(gateway: Process, request: bytes) -> None:
    host, port = gateway.part.address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await writer.drain()
    writer.transport.abort()


async def happens(log: EventLog, event: Event) -> None:
    """As the datasets service would say it."""
    job = getattr(event, "job_id", "")
    before = await log.read(f"ev.local.preparation.*.{job}")
    await log.append([Write(events=[event], after=before[-1].seq if before else 0)], origin=Origin(tenant="local"))


async def seen_job(api: httpx.AsyncClient, job: str, status: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        seen = (await api.get(f"/jobs/{job}")).json()
        return seen if seen["status"] == status else None

    seen = await eventually(look, patience=20)
    assert seen
    return seen


async def ended(api: httpx.AsyncClient, job: str) -> dict[str, Any] | None:
    seen = (await api.get(f"/jobs/{job}")).json()
    return seen if seen["finished_at"] else None
