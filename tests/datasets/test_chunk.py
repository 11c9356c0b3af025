"""A chunk job over the real log and store: what it tells, bad documents among good ones, and whatever comes between."""

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from infra.embedded import Servers
from libs.config import Datasets
from libs.events import File, JobCreated, Origin, PreparationCompleted, PreparationFailed, PreparationProduced, ProjectFilesAdded, Recorded, TrainingCompleted
from libs.events.log import EventLog, Write
from libs.runtime.broker import OUTAGES, HandedOver
from libs.storage import Storage, StorageDown
from libs.tiny import BASE
from libs.tiny import tokenizer as tiny
from services.datasets import base_tokenizer, chunk, preparation
from services.datasets.counting import ESTIMATE
from services.datasets.handlers import Preparations
from services.gateway.loader import Chunk
from tests.kit.documents import DOCX, MARKDOWN, PDF, TEXT, encrypted, pdf, scan, word
from tests.kit.eventually import eventually
from tests.kit.preparing import ENDED, cancel, ended, facts, gated, job_id, names, process, settings_of
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

SENTENCES = "".join(f"Sentence {n} says so much and no more. " for n in range(3_300)).encode()
"""Of 10 to 13 tokens each: every chunk of 16 tokens holds one."""

Documents = Mapping[str, tuple[bytes, str]]


async def asked(storage: Storage, log: EventLog, origin: Origin, documents: Documents, *, gone: str = "", **spec: Any) -> Recorded:
    """What the gateway appends when somebody has uploaded documents and asks for chunks."""
    files: list[File] = []
    for name, (data, mime_type) in documents.items():
        claim = await storage.put(f"{origin.tenant}/files", data)
        key = f"{origin.tenant}/files/{'0' * 64}" if name == gone else claim.key
        file_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        files.append(File(file_id=file_id, filename=name, kind="raw_doc", mime_type=mime_type, size=claim.size, sha256=claim.sha256, key=key))
    project = str(uuid.uuid4())
    if files:
        await log.append([Write(events=[ProjectFilesAdded(project_id=project, files=files)], after=0)], origin=origin)
    job = JobCreated(job_id=str(uuid.uuid4()), kind="chunk", stages=["preparation"], project_id=project, inputs={"project_id": project}, spec=spec)
    (created,) = await log.append([Write(events=[job], after=0)], origin=origin)
    return created


async def test_however_many_documents_are_refused_their_reasons_fit_into_a_fact(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    """900 that are not in the store any more, under the longest names there are, and one that is."""
    project, good = str(uuid.uuid4()), await storage.put(f"{origin.tenant}/files", SENTENCES[:500])
    lost = {"filename": "n" * 196 + ".txt", "kind": "raw_doc", "mime_type": "text/plain", "size": 1, "sha256": "0" * 64, "key": f"{origin.tenant}/none/0"}
    files = [File(file_id=str(uuid.uuid4()), **lost) for _ in range(900)]
    files.append(msgspec.structs.replace(files[0], file_id=str(uuid.uuid4()), key=good.key, sha256=good.sha256, size=good.size))
    await log.append([Write(events=[ProjectFilesAdded(project_id=project, files=files[n : n + 90]) for n in range(0, len(files), 90)], after=0)], origin=origin)
    job = JobCreated(job_id=str(uuid.uuid4()), kind="chunk", stages=["preparation"], project_id=project, inputs={"project_id": project})
    (created,) = await log.append([Write(events=[job], after=0)], origin=origin)

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationCompleted)
    assert end.refused == {"source_missing": 900}
    assert len(end.refused_files) == chunk.NAMED
    assert end.notes[-1] == "… and 850 more."


async def uploaded(log: EventLog, created: Recorded) -> list[File]:
    assert isinstance(created.event, JobCreated)
    (added,) = await log.read(f"ev.{created.tenant}.project.files_added.{created.event.project_id}")
    assert isinstance(added.event, ProjectFilesAdded)
    return added.event.files


async def lines(log: EventLog, storage: Storage, created: Recorded) -> list[Chunk]:
    """All chunks of all parts, as the gateway reads them; whatever is claimed of a part holds."""
    produced = [fact.event for fact in await facts(log, created) if isinstance(fact.event, PreparationProduced)]
    assert [event.part for event in produced] == list(range(1, len(produced) + 1))
    every: list[Chunk] = []
    for event in produced:
        content = await storage.get(event.content)
        found = msgspec.json.Decoder(Chunk).decode_lines(content)
        assert (len(found), len(found)) == (event.rows, event.valid)
        assert len(found) <= 1_000
        every += found
    return every


async def completed(log: EventLog, created: Recorded) -> PreparationCompleted:
    told = await facts(log, created)
    end = told[-1].event
    assert isinstance(end, PreparationCompleted), end
    assert sum(fact.envelope.type in ENDED for fact in told) == 1
    assert sum(fact.envelope.type == "preparation.started" for fact in told) == 1
    return end


async def complete(log: EventLog, storage: Storage, created: Recorded, *, chunks: int) -> None:
    """None is missing, none is double, and there is one end."""
    end = await completed(log, created)
    found = await lines(log, storage, created)
    assert [chunk.index for chunk in found] == list(range(chunks))
    assert [chunk.id for chunk in found] == [str(uuid.uuid5(uuid.UUID(job_id(created)), str(n))) for n in range(1, chunks + 1)]
    assert (end.rows, end.valid) == (chunks, chunks)
    assert end.parts == sum(isinstance(fact.event, PreparationProduced) for fact in await facts(log, created))


def file_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


# The work


async def test_documents_become_chunks_with_their_pages_and_headings(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    documents = {
        "guide.md": (b"# Guide\n\nHow it is done.\n\n## Parts\n\n" + b"Here are some words about parts. " * 8, MARKDOWN),
        "book.pdf": (pdf(["Words on the first page.\n" * 3, "Words on the second page.\n" * 3]), PDF),
        "letter.docx": (word(("Letter", 1), "Dear reader."), DOCX),
        "note.txt": ("Une note.".encode("utf-16"), TEXT),
    }
    created = await asked(storage, log, origin, documents, chunk_size_tokens=32, chunk_overlap_tokens=0)

    await service.prepare(created)

    found = await lines(log, storage, created)
    end = await completed(log, created)
    by_file = {name: [chunk for chunk in found if chunk.file_id == file_id(name)] for name in documents}
    assert all([chunk.index for chunk in chunks] == list(range(len(chunks))) for chunks in by_file.values())
    assert [len(chunks) for chunks in by_file.values()] == [4, 2, 1, 1]
    meta = {name: [msgspec.json.decode(chunk.metadata) for chunk in chunks] for name, chunks in by_file.items()}
    assert meta["guide.md"][0] == {"page_start": None, "page_end": None, "headings": ["Guide"]}
    assert meta["guide.md"][-1]["headings"] == ["Guide", "Parts"]
    assert [(told["page_start"], told["page_end"]) for told in meta["book.pdf"]] == [(1, 1), (2, 2)]
    assert by_file["letter.docx"][0].content == "Letter\n\nDear reader."
    assert by_file["note.txt"][0].content == "Une note."
    assert max(chunk.tokens for chunk in found) <= 32
    assert end == PreparationCompleted(job_id=job_id(created), parts=4, rows=8, valid=8, tokenizer=ESTIMATE)


async def test_bad_documents_among_good_ones_are_left_out_and_told(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    documents = {
        "closed.pdf": (encrypted(pdf(["Closed."]), password="secret"), PDF),
        "scan.pdf": (scan(), PDF),
        "scan2.pdf": (scan(), PDF),
        "some.pdf": (pdf(["Text.", ""]), PDF),
        "gone.txt": (b"Gone.", TEXT),
    }
    created = await asked(storage, log, origin, documents, gone="gone.txt")

    await service.prepare(created)

    end = await completed(log, created)
    assert (end.rows, end.refused) == (1, {"encrypted": 1, "image_only": 2, "source_missing": 1})
    assert end.refused_files == {
        file_id("closed.pdf"): "encrypted",
        file_id("scan.pdf"): "image_only",
        file_id("scan2.pdf"): "image_only",
        file_id("gone.txt"): "source_missing",
    }
    assert [note.split(" ")[0].strip(":") for note in end.notes] == ["'closed.pdf'", "'scan.pdf'", "'scan2.pdf'", "'some.pdf'", "'gone.txt'"]
    assert "OCR" in end.notes[1]
    assert end.notes[3] == "'some.pdf': 1 of 2 pages hold no text."


async def test_with_no_document_that_can_be_used_the_job_fails_and_says_why(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {"scan.pdf": (scan(), PDF)})

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "no_usable_documents"
    assert "'scan.pdf'" in end.message
    assert "OCR" in end.message


async def test_without_documents_the_job_fails(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {})

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "no_documents"


async def test_a_document_that_was_changed_is_left_out(service: Preparations, place: Servers, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {"a.txt": (b"Good.", TEXT), "b.txt": (b"Another.", TEXT)})
    assert isinstance(created.event, JobCreated)
    (place.store.root / place.store.bucket / (await uploaded(log, created))[1].key).write_text("Changed.")

    await service.prepare(created)

    assert (await completed(log, created)).refused == {"source_damaged": 1}


async def test_tokens_are_those_of_the_base_model(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {"a.txt": (SENTENCES[:5_000], TEXT)}, base_model=BASE)

    await service.prepare(created)

    counted = tiny.build()
    found = await lines(log, storage, created)
    assert (await completed(log, created)).tokenizer == BASE
    assert all(chunk.tokens == len(counted.encode(chunk.content)) <= 512 for chunk in found)


async def test_progress_moves_while_a_document_is_read(service: Preparations, storage: Storage, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "HEARTBEAT", 0.02)
    created = await asked(storage, log, origin, {"a.pdf": (pdf(["Some words on a page.\n" * 40] * 150), PDF)})

    await service.prepare(created)

    told = [msgspec.to_builtins(fact.event) for fact in await facts(log, created) if fact.envelope.type == "preparation.progress"]
    assert len(told) > 2
    assert all(0 < one["done"] <= one["total"] for one in told)
    assert [one["done"] for one in told] == sorted({one["done"] for one in told})


# Again


async def test_it_goes_on_where_it_was_interrupted_and_makes_the_same(place: Servers, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    undisturbed, created = [await asked(storage, log, origin, {"a.txt": (SENTENCES, TEXT)}, chunk_size_tokens=16, chunk_overlap_tokens=0) for _ in range(2)]

    async with gated(place, own_log, at=3, failing=StorageDown("away")) as (gate, service):
        with pytest.raises(StorageDown):
            await service.prepare(created)
        await service.prepare(created)
        assert gate.puts == 2 + 1 + 2
        await service.prepare(created)
        assert gate.puts == 2 + 1 + 2
        await service.prepare(undisturbed)

    await complete(log, storage, created, chunks=3_300)
    assert [line.content for line in await lines(log, storage, created)] == [line.content for line in await lines(log, storage, undisturbed)]


async def test_two_that_begin_together_write_everything_once(service: Preparations, another: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {"a.txt": (SENTENCES, TEXT)}, chunk_size_tokens=16, chunk_overlap_tokens=0)

    ends = await asyncio.gather(service.prepare(created), another.prepare(created), return_exceptions=True)

    assert all(end is None or isinstance(end, HandedOver) for end in ends)
    await complete(log, storage, created, chunks=3_300)


async def test_a_cancel_ends_it_and_the_process_that_reads(place: Servers, own_nc: Client, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {"a.pdf": (pdf(["Some words on a page.\n" * 50] * 3_000), PDF)})

    async with gated(place, own_log, at=0) as (_, service):
        await service.listen(own_nc)
        work = asyncio.create_task(service.prepare(created))
        await eventually(_readers, patience=10)
        await cancel(log, created)
        await asyncio.wait_for(work, 3)

    assert await names(log, created) == ["started", "cancelled"]
    await eventually(lambda: not _readers())


def _readers() -> list[str]:
    """Our children that read documents."""
    found: list[str] = []
    for place in Path("/proc/self/task").iterdir():
        for pid in (place / "children").read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except FileNotFoundError:
                continue
            if "documents.child" in command:
                found.append(pid)
    return found


async def test_a_cancel_is_heard_while_chunks_are_made(place: Servers, own_nc: Client, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    created = await asked(storage, log, origin, {"a.txt": (SENTENCES, TEXT)}, chunk_size_tokens=16, chunk_overlap_tokens=0)

    async with gated(place, own_log, at=2) as (gate, service):
        await service.listen(own_nc)
        work = asyncio.create_task(service.prepare(created))
        await gate.reached.wait()
        await cancel(log, created)
        await asyncio.wait_for(work, 3)

    assert await names(log, created) == ["started", "produced", "cancelled"]


async def test_after_kill_9_a_new_process_goes_on(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    heard = asyncio.Event()

    async def hear(_: Any) -> None:
        heard.set()

    with process(place) as datasets:
        await revive(datasets)
        subscription = await nc.subscribe(f"feed.{origin.tenant}.preparation.produced.*", cb=hear)
        await nc.flush()
        created = await asked(storage, log, origin, {"a.txt": (SENTENCES * 2, TEXT)}, chunk_size_tokens=16, chunk_overlap_tokens=0)
        await asyncio.wait_for(heard.wait(), 20)
        datasets.kill()
        await subscription.unsubscribe()
        assert "completed" not in await names(log, created)

        await revive(datasets)
        await ended(log, created, patience=30)

    await complete(log, storage, created, chunks=6_600)


# The base model's tokenizer


class Hub(ThreadingHTTPServer):
    """Answers with `status`, and remembers who asked for what."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.asked: list[tuple[str, str]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        body = tiny.build().to_str().encode() if self.server.status == 200 else b"no"
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not in the tests' output."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


@pytest.fixture
def settings(place: Servers, hub: Hub, tmp_path: Path) -> Datasets:
    changed = {
        "hf_endpoint": f"http://127.0.0.1:{hub.server_port}",
        "hf_token": "hf_x",
        "tokenizers_folder": str(tmp_path / "kept"),
        "source_roots": str(tmp_path),
    }
    return msgspec.structs.replace(settings_of(place), **changed)


def test_a_commits_tokenizer_is_downloaded_once(hub: Hub, settings: Datasets):
    first = base_tokenizer.find("some/model", "abc123", settings)
    second = base_tokenizer.find("some/model", "abc123", settings)

    assert hub.asked == [("/some/model/resolve/abc123/tokenizer.json", "Bearer hf_x")]
    assert first.counting.name == second.counting.name == "some/model"
    assert first.counting.count("Hello there") == second.counting.count("Hello there") == len(tiny.build().encode("Hello there"))


def test_the_newest_is_asked_for_each_time(hub: Hub, settings: Datasets):
    base_tokenizer.find("some/model", "", settings)
    base_tokenizer.find("some/model", "", settings)

    assert [path for path, _ in hub.asked] == ["/some/model/resolve/main/tokenizer.json"] * 2


@pytest.mark.parametrize(("status", "said"), [(404, "has no tokenizer.json"), (401, "ask for access"), (403, "ask for access")])
def test_a_model_whose_tokenizer_cant_be_had_is_estimated_and_that_is_said(hub: Hub, settings: Datasets, status: int, said: str):
    hub.status = status

    found = base_tokenizer.find("some/model", "abc123", settings)

    assert found.counting.name == ESTIMATE
    assert said in found.note
    assert "estimated" in found.note


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_hub_that_is_away_is_waited_for(hub: Hub, settings: Datasets, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin, status: int):
    hub.status = status
    created = await asked(storage, log, origin, {"a.txt": (b"Some words.", TEXT)}, base_model="some/model")
    service = Preparations(own_log, storage, workers=1, settings=settings)

    with pytest.raises(OUTAGES):
        await service.prepare(created)
    hub.status = 200
    await service.prepare(created)

    service.close()
    assert (await completed(log, created)).tokenizer == "some/model"


def test_a_hub_that_nobody_answers_at_is_an_outage(settings: Datasets):
    with pytest.raises(OUTAGES):
        base_tokenizer.find("some/model", "", msgspec.structs.replace(settings, hf_endpoint="http://127.0.0.1:9"))


def test_a_folder_is_read_below_the_roots_only(settings: Datasets, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    inside, outside = tmp_path / "model", tmp_path_factory.mktemp("outside")
    inside.mkdir()
    for folder in (inside, outside):
        (folder / "tokenizer.json").write_text(tiny.build().to_str())
    (tmp_path / "link").symlink_to(outside)

    assert base_tokenizer.find(str(inside), "", settings).counting.name == str(inside)
    for path in (outside, tmp_path / "link", tmp_path / "nowhere"):
        assert base_tokenizer.find(str(path), "", settings).counting.name == ESTIMATE


@pytest.mark.parametrize("kept", [True, False])
async def test_of_a_model_that_was_trained_here_the_tokenizer_counts_that_its_run_left(
    service: Preparations, storage: Storage, log: EventLog, origin: Origin, kept: bool
):
    run = str(uuid.uuid4())
    claim = await storage.put(f"{origin.tenant}/{run}/1", tiny.build().to_str().encode())
    if not kept:
        await storage.delete([claim.key])
    done = TrainingCompleted(job_id=run, attempt=1, step=1, artifacts={"tokenizer.json": claim}, steps=claim)
    await log.append([Write(events=[done], after=0)], origin=origin)
    created = await asked(storage, log, origin, {"a.txt": (b"Some words. " * 9, TEXT)}, base_model=f"trainyard/{run}")

    await service.prepare(created)

    end = await completed(log, created)
    assert end.tokenizer == (f"trainyard/{run}" if kept else ESTIMATE)
    assert any("left no tokenizer.json" in note for note in end.notes) == (not kept)


def test_a_file_that_is_no_tokenizer_is_replaced_by_the_estimate(settings: Datasets, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")

    found = base_tokenizer.find(str(tmp_path), "", settings)

    assert found.counting.name == ESTIMATE
    assert "can't be read" in found.note


@pytest.mark.parametrize("patience", [600.0, 0.01])
async def test_a_tokenizer_that_breaks_or_never_ends_fails_the_job(
    own_log: EventLog, storage: Storage, log: EventLog, origin: Origin, settings: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
):
    """A pattern that tries too many ways, in a text that has them."""
    monkeypatch.setattr(chunk, "PATIENCE", patience)
    monkeypatch.setattr(preparation, "HEARTBEAT", 0.05)
    tokenizer = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    created = await asked(storage, log, origin, {"a.txt": (b"a" * 30 + b"b", TEXT)}, base_model=str(tmp_path))
    service = Preparations(own_log, storage, workers=1, settings=settings)

    await service.prepare(created)

    service.close()
    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "tokenizer_broken"
