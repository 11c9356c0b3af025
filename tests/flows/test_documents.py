"""From documents to a model, as somebody goes who has read the published document: with no language model at hand, and with one."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pypdf import PdfWriter

from tests.kit.platform import platform
from tests.kit.processes import left_running

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
HANDBOOK = """\
# Handbook of the Marlow yard

The yard was founded in 1887 by Ada Marlow on the eastern bank of the Teal. It builds wooden boats of up to forty feet and repairs older ones.

## The slipway

The slipway is a sloping ramp of oak beams on which boats are hauled out of the water. It is 62 metres long and carries at most 90 tonnes.
Before a boat is hauled out, the foreman checks the cradle, the chains and the tide. Nobody stands below the cradle while the winch is running.
The winch is a steam engine of 1903 that was converted to electricity in 1951. It is greased every Monday before work begins.

## Timber

Oak is used for keels and frames, larch for planking, and teak for decks. Planks are steamed for one hour for each inch of their thickness.
Green oak contains about 60 percent water and must dry for one year for each inch. The timber shed holds the planks for three boats.
A plank that has split is never used for a hull, but it may become a bench or a shelf.

## Work and pay

Work begins at seven and ends at four. An apprentice learns for four years and is paid every Friday.
The foreman of the yard is responsible for the safety of everybody who works there. Accidents are written into the red book on the same day.
"""
LETTERS = "".join(
    f"The {name} was launched in {year} and is {feet} feet long. She was built of larch on oak frames for the {trade} trade, and she carries {sails} sails.\n\n"
    for name, year, feet, trade, sails in (
        ("Kestrel", 1899, 38, "herring", 3),
        ("Plover", 1904, 34, "timber", 2),
        ("Dunlin", 1911, 40, "oyster", 4),
        ("Curlew", 1923, 29, "mail", 2),
        ("Avocet", 1934, 31, "pilot", 3),
    )
)

pytestmark = pytest.mark.timeout(240)


@dataclass
class Ground:
    url: str
    generator: str


@contextmanager
def language_model() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", "tests.kit.llm"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["extractive", "llm"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with language_model() as url:
        environ = {"TRAINYARD_LLM_URL": url, "TRAINYARD_LLM_MODEL": "tiny"} if request.param == "llm" else {}
        with platform(gateways=1, datasets=1, training=1, environ={"TRAINYARD_THREADS": "1", **environ}) as made:
            yield Ground(url=made.urls[0], generator=request.param)
        assert left_running(made.servers.home.path) == []


@pytest.fixture
def http(ground: Ground) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=ground.url, timeout=30) as http:
        yield http


@pytest.fixture
def project(http: httpx.Client) -> str:
    made = http.post("/projects", json={"name": "Yard", "task_type": "qa", "config": {"num_examples_target": 24, "train_eval_split": 0.7}})
    assert http.post(f"/projects/{made.json()['id']}/model/resolve", json={"model_id": "trainyard/tiny-llama"}).status_code == 200
    return made.json()["id"]


def test_documents_become_a_data_set_that_a_model_learns(http: httpx.Client, ground: Ground, project: str):
    here = f"/projects/{project}"
    uploaded = upload(http, project, handbook_md=HANDBOOK.encode(), letters_txt=LETTERS.encode(), empty_pdf=pdf_without_text())
    files = {file["filename"]: file["id"] for file in uploaded}
    assert [file["status"] for file in uploaded] == ["ready"] * 3

    asked = http.post(f"{here}/chunks/generate", json={"chunk_size_tokens": 256, "chunk_overlap_tokens": 20})
    assert (asked.status_code, asked.json()["status"], asked.json()["message"]) == (202, "queued", "Chunking job enqueued")
    cut = ended(http, asked)
    assert (cut["type"], cut["status"], cut["progress_pct"]) == ("chunking", "success", 100), cut
    assert list(cut["result_summary"]["refused_files"]) == [files["empty.pdf"]]
    chunks = http.get(f"{here}/chunks", params={"limit": 1000}).json()
    assert chunks["total"] == len(chunks["items"]) == cut["result_summary"]["chunks"]
    assert all(0 < chunk["token_count"] <= 256 for chunk in chunks["items"])
    of_one = http.get(f"{here}/chunks", params={"source_file_id": files["handbook.md"]}).json()["items"]
    assert [chunk["chunk_index"] for chunk in of_one] == list(range(len(of_one)))
    assert any("slipway" in chunk["content"] for chunk in of_one)

    seen = ended(http, http.post(f"{here}/dataset/preview"))
    assert (seen["type"], seen["status"]) == ("dataset_preview", "success"), seen
    assert 0 < http.get(f"{here}/dataset/examples", params={"split": "preview"}).json()["total"] <= 10

    made = ended(http, http.post(f"{here}/dataset/generate", json={"examples_per_chunk": 6}))
    assert (made["type"], made["status"], made["result_summary"]["generator"]) == ("dataset_generate", "success", ground.generator), made
    examples = http.get(f"{here}/dataset/examples", params={"is_valid": True, "limit": 1000}).json()
    stats = http.get(f"{here}/dataset/stats").json()
    counts = {split: found["count"] for split, found in stats["by_split"].items() if split != "preview"}
    assert counts == made["result_summary"]["splits"]
    assert sum(counts.values()) == made["result_summary"]["valid"] <= 24
    split = {}
    for example in examples["items"]:
        if example["split"] != "preview":
            split.setdefault(example["data"]["meta"]["chunk_id"], set()).add(example["split"])
    assert all(len(splits) == 1 for splits in split.values())
    assert http.get(here).json()["status"] == "ready_to_train"
    assert http.get(here).json()["stats"]["chunk_count"] == chunks["total"]

    started = http.post(f"{here}/train/start", json={"method": "lora", "hyperparams": {"max_steps": 4, "per_device_batch_size": 2, "max_seq_length": 256}})
    assert started.status_code == 202, started.text
    trained = ended(http, started)
    assert trained["status"] == "success", trained
    assert http.get(here).json()["status"] == "completed"


def test_a_document_takes_along_what_was_made_of_it(http: httpx.Client, project: str):
    here = f"/projects/{project}"
    files = {file["filename"]: file["id"] for file in upload(http, project, handbook_md=HANDBOOK.encode(), letters_txt=LETTERS.encode())}
    ended(http, http.post(f"{here}/chunks/generate", json={"chunk_size_tokens": 128, "chunk_overlap_tokens": 0}))
    ended(http, http.post(f"{here}/dataset/generate"))

    deleted = http.delete(f"{here}/files/{files['handbook.md']}")

    assert deleted.status_code == 204, deleted.text
    chunks = http.get(f"{here}/chunks", params={"limit": 1000}).json()["items"]
    examples = http.get(f"{here}/dataset/examples", params={"limit": 1000}).json()["items"]
    assert {chunk["source_file_id"] for chunk in chunks} == {files["letters.txt"]}
    assert {example["file_id"] for example in examples} == {files["letters.txt"]}
    assert http.get(here).json()["stats"] == {**http.get(here).json()["stats"], "file_count": 1, "chunk_count": len(chunks)}


def test_what_is_made_anew_takes_the_place_of_the_old(http: httpx.Client, project: str):
    here = f"/projects/{project}"
    upload(http, project, letters_txt=LETTERS.encode())
    counts = []
    for size in (512, 64):
        ended(http, http.post(f"{here}/chunks/generate", json={"chunk_size_tokens": size, "chunk_overlap_tokens": 0}))
        ended(http, http.post(f"{here}/dataset/generate"))
        chunks = http.get(f"{here}/chunks", params={"limit": 1000}).json()
        examples = http.get(f"{here}/dataset/examples", params={"limit": 1000}).json()["items"]
        assert {example["data"]["meta"]["chunk_id"] for example in examples} <= {chunk["id"] for chunk in chunks["items"]}
        counts.append(chunks["total"])

    assert counts[0] < counts[1]
    assert len(http.get(f"{here}/jobs", params={"type": "chunking"}).json()["jobs"]) == 2


def test_what_can_not_be_done_yet_is_said(http: httpx.Client, project: str):
    here = f"/projects/{project}"

    answers = [http.post(f"{here}/{path}") for path in ("chunks/generate", "dataset/preview", "dataset/generate")]
    answers.append(http.post(f"{here}/train/start", json={"method": "lora"}))
    overlapping = http.post(f"{here}/chunks/generate", json={"chunk_size_tokens": 64, "chunk_overlap_tokens": 60})

    upload(http, project, letters_txt=LETTERS.encode())
    beyond = http.post(f"{here}/chunks/generate", json={"chunk_size_tokens": 5000})

    assert [answer.status_code for answer in answers] == [400] * 4
    assert [answer.json()["error_code"] for answer in answers] == ["NO_DOCUMENTS", "NO_CHUNKS", "NO_CHUNKS", "NO_TRAINING_DATA"]
    assert (beyond.status_code, beyond.json()["error_code"]) == (400, "CHUNKS_TOO_LARGE")
    assert (overlapping.status_code, overlapping.json()["context"]["errors"][0]["field"]) == (422, "chunk_overlap_tokens")


def upload(http: httpx.Client, project: str, **contents: bytes) -> list[dict[str, Any]]:
    parts = [("files", (name.replace("_", "."), content)) for name, content in contents.items()]
    answer = http.post(f"/projects/{project}/files/upload", files=parts, data={"kind": "raw_doc"})
    assert answer.status_code == 201, answer.text
    return answer.json()["files"]


def ended(http: httpx.Client, asked: httpx.Response) -> dict[str, Any]:
    assert asked.status_code == 202, asked.text
    deadline = time.monotonic() + PATIENCE
    while (seen := http.get(f"/jobs/{asked.json()['job_id']}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    return seen


def pdf_without_text() -> bytes:
    file = BytesIO()
    writer = PdfWriter()
    writer.add_blank_page(width=200, height=200)
    writer.write(file)
    return file.getvalue()
