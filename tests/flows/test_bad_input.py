"""Bad documents over HTTP: each gives what docs/bad-input.md says."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.tiny import BASE
from tests.kit.documents import encrypted, overlapping, part, pdf, pdf_bomb, put_together, repacked, scan, word
from tests.kit.platform import platform

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
LONG = pdf(["Words on a page. " * 20] * 10)
LETTER = word(("Head", 1), "Good words.")
MAIN = "word/document.xml"
ENTITY = b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><w:document'

UPLOADS = {
    "a program called tool.pdf": ("tool.pdf", b"\x7fELF\x02\x01\x01" + bytes(500)),
    "a picture": ("scan.png", b"\x89PNG\r\n\x1a\n" + bytes(200)),
    "a ZIP that is no Word document": ("a.docx", b"PK\x03\x04" + b"no archive" * 50),
    "a Word document with a password, or a .doc": ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)),
    "binary data called notes.txt": ("notes.txt", bytes(range(256)) * 50),
    "text with NUL": ("notes.txt", b"one\0two words"),
    "text that is neither UTF-8 nor UTF-16 with its mark": ("notes.txt", "Déjà vu".encode("latin-1")),
    "an empty file": ("notes.txt", b""),
}
DOCUMENTS = {
    "a PDF with a password": ("a.pdf", encrypted(pdf(["Closed."]), password="secret")),
    "a PDF that breaks off": ("a.pdf", LONG[: len(LONG) // 2]),
    "a PDF of pictures": ("a.pdf", scan()),
    "a PDF of 10,000 pages": ("a.pdf", pdf(["x"] * 10_000)),
    "a PDF that unpacks to gigabytes": ("a.pdf", pdf_bomb()),
    "a PDF without pages": ("a.pdf", put_together([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"])),
    "a PDF with NUL in its text": ("a.pdf", pdf(["one\0two words"])),
    "a Word document that breaks off": ("a.docx", LETTER[:-100]),
    "a Word document that unpacks to far more": ("a.docx", repacked(LETTER, {"word/media/zeros.bin": b"\0" * 30_000_000})),
    "a Word document whose parts overlap": ("a.docx", overlapping(LETTER)),
    "a Word document with entities of its own": ("a.docx", repacked(LETTER, {MAIN: part(LETTER, MAIN).replace(b"<w:document", ENTITY, 1)})),
    "a Word document with macros": ("a.docx", repacked(LETTER, {"word/vbaProject.bin": b"program"})),
    "a Word document whose XML is broken": ("a.docx", repacked(LETTER, {MAIN: part(LETTER, MAIN).replace(b"</w:body>", b"</w:bodi>", 1)})),
    "blanks alone": ("notes.txt", b" \n\t\n"),
    "text in UTF-16": ("notes.txt", "Premier café.".encode("utf-16")),
    "text called report.pdf": ("report.pdf", b"only text"),
    "a PDF called notes.txt": ("notes.txt", pdf(["Words."])),
}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with platform(gateways=1, datasets=1) as made, httpx.Client(base_url=made.urls[0], timeout=30) as http:
        yield http


@pytest.fixture
def project(http: httpx.Client) -> str:
    return f"/projects/{http.post('/projects', json={'name': 'p'}).json()['id']}"


def test_what_is_no_document_is_refused_when_it_is_uploaded(http: httpx.Client, project: str):
    answers = {name: upload(http, project, file) for name, file in UPLOADS.items()}

    assert {name: f"{answer.status_code} `{answer.json()['error_code']}`" for name, answer in answers.items()} == {name: told()[name] for name in UPLOADS}
    assert http.get(f"{project}/files").json() == {"files": []}


def test_a_bad_document_is_left_out_of_the_chunks_and_named(http: httpx.Client, project: str):
    ids = {name: upload(http, project, file).json()["files"][0]["id"] for name, file in DOCUMENTS.items()}
    http.post(f"{project}/model/resolve", json={"model_id": BASE})

    beyond = http.post(f"{project}/chunks/generate", json={"chunk_size_tokens": 8_000})
    job = ended(http, http.post(f"{project}/chunks/generate").json()["job_id"])
    chunks = http.get(f"{project}/chunks").json()["items"]

    refused = job["result"]["refused_files"]
    contents = {chunk["source_file_id"]: chunk["content"] for chunk in chunks}
    assert job["status"] == "success", job
    assert {name: f"`{refused[id]}`" if id in refused else "read" for name, id in ids.items()} == {name: told()[name].split(",")[0] for name in DOCUMENTS}
    assert contents.keys() == set(ids.values()) - refused.keys()
    assert (contents[ids["a PDF with NUL in its text"]], contents[ids["text in UTF-16"]]) == ("one\ufffdtwo words", "Premier café.")
    assert len(job["result"]["notes"]) >= len(refused)
    assert (beyond.status_code, beyond.json()["error_code"]) == (400, "CHUNKS_TOO_LARGE")
    assert "chunk_size_tokens" in str(beyond.json()["context"])


def test_the_page_tells_of_nothing_else():
    others = {"a file beyond 50 MB, or one too many for the project's 500 MB", "chunks larger than the model's context"}

    assert told().keys() == UPLOADS.keys() | DOCUMENTS.keys() | others


def told() -> dict[str, str]:
    """The rows of the page's first two tables."""
    tables = PAGE.read_text().partition("## Rows of a data set")[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in tables.splitlines() if line.startswith("| ")]
    return {name: answer for name, answer in rows if name not in ("a file", "a document")}


def upload(http: httpx.Client, project: str, file: tuple[str, bytes]) -> httpx.Response:
    return http.post(f"{project}/files/upload", files=[("files", file)], data={"kind": "raw_doc"})


def ended(http: httpx.Client, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (seen := http.get(f"/jobs/{job}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    return seen
