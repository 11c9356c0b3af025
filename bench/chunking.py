"""What dividing text into chunks costs beside the tokenizer alone, and how much memory a long PDF takes."""

import argparse
import asyncio
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvloop
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from bench.kit import ELSEWHERE, Promises, fresh_servers, in_turns, p50, table
from infra.embedded import Process, Servers, Settings
from libs import config
from libs.events import ChunkInputs, ChunkSpec, File, JobCreated, Origin, PreparationCompleted, ProjectFilesAdded, story
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.storage import Storage
from services.datasets.chunking import PIECE, chunks
from services.datasets.counting import Counting, estimate
from services.datasets.documents.blocks import Block

REPOSITORY = Path(__file__).parents[1]
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3, Qwen and GPT-4 divide text before they look for tokens."""
LINES = 45


def prose(size: int) -> list[str]:
    """Paragraphs of this repository's own pages, again and again."""
    found = [text for file in sorted(REPOSITORY.glob("docs/**/*.md")) for text in file.read_text().split("\n\n") if text.strip()]
    again = size // sum(map(len, found)) + 1
    return (found * again)[: int(len(found) * size / sum(map(len, found)))]


def trained(text: str) -> Counting:
    """A byte-level tokenizer of 16,000 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return Counting(tokenizer, name="a trained one")


async def compare(promises: Promises, *, size: int, rounds: int) -> None:
    """Both count the same text, in pieces of the same size."""
    paragraphs = prose(size)
    blocks = [Block(text=text) for text in paragraphs]
    whole = "\n\n".join(paragraphs)
    pieces = [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]
    spec = ChunkSpec()
    rows: list[Sequence[str]] = []
    for counting in (trained(whole[:1_000_000]), estimate()):

        def alone(counting: Counting = counting) -> None:
            for piece in pieces:
                counting.count(piece)

        def divided(counting: Counting = counting) -> None:
            for _ in chunks(blocks, counting, size=spec.chunk_size_tokens, overlap=spec.chunk_overlap_tokens):
                pass

        async def timed(work: Callable[[], None]) -> Sequence[float]:
            began = time.process_time()
            work()
            return [time.process_time() - began]

        taken = await in_turns({"alone": lambda: timed(alone), "divided": lambda: timed(divided)}, rounds=rounds)
        speed = {name: len(whole) / p50(times) / 1e6 for name, times in taken.items()}
        rows.append([counting.name, f"{speed['alone']:.2f}", f"{speed['divided']:.2f}"])
        promises.at_least(f"chunking with {counting.name}", speed["divided"] / speed["alone"], 0.7, of="of the tokenizer alone")
    table([f"{len(whole) / 1e6:.1f} MB, {spec.chunk_size_tokens} tokens, overlap {spec.chunk_overlap_tokens}", "tokenizer MB/s", "chunks MB/s"], rows)


def pdf(pages: int) -> bytes:
    """Pages of different words, as a book has them."""
    words = " ".join(prose(400_000)).encode("ascii", "ignore").replace(b"(", b"").replace(b")", b"").replace(b"\\", b"").split()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{' '.join(f'{4 + 2 * n} 0 R' for n in range(pages))}] /Count {pages} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n in range(pages):
        lines = [b" ".join(words[(at := (n * 997 + line * 13) % (len(words) - 13)) : at + 13]) for line in range(LINES)]
        content = b"BT /F1 11 Tf 14 TL 50 740 Td " + b" ".join(b"(" + line + b") Tj T*" for line in lines) + b" ET"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>".encode())
        objects.append(f"<< /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream")
    out, places = bytearray(b"%PDF-1.7\n"), list[int]()
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    at = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode() + b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{at}\n%%EOF\n".encode()
    return bytes(out)


class Peak:
    """The most memory that the process and its children had at one time, looked at often."""

    def __init__(self, process: Process) -> None:
        self._pid = process.pid
        self.idle = self._now()
        self.most = self.idle

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                self.most = max(self.most, self._now())

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _now(self) -> float:
        tasks = Path(f"/proc/{self._pid}/task").glob("*/children")
        return sum(map(_resident_mb, {str(self._pid), *(child for file in tasks for child in file.read_text().split())}))


def _resident_mb(pid: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0)


async def measure(promises: Promises, servers: Servers, process: Process, *, pages: int) -> None:
    """The service as people run it, and the process that reads, together."""
    nc = await bus.connect(servers.nats_url("infra"), name="infra")
    storage = Storage(config.load(config.Datasets, servers.environ("datasets", port=0)))
    log = EventLog(nc, source="/bench")
    await chunked(log, storage, b"Warms up.", "text/plain")
    peak, data = Peak(process), pdf(pages)
    began = time.perf_counter()
    with peak.watched():
        made = await chunked(log, storage, data, "application/pdf")
    took = time.perf_counter() - began
    table(
        [f"{pages:,} pages, {len(data) / 1e6:.0f} MB", "pages/s", "chunks", "idle", "at most"],
        [["a chunk job", f"{pages / took:.0f}", f"{made:,}", f"{peak.idle:.0f} MB", f"{peak.most:.0f} MB"]],
    )
    promises.at_most(f"memory for a PDF of {pages:,} pages, service and reader together", peak.most, 300, unit=" MB")
    storage.close()
    await nc.close()


async def chunked(log: EventLog, storage: Storage, data: bytes, mime_type: str) -> int:
    tenant, job_id = f"b-{uuid.uuid4().hex[:8]}", str(uuid.uuid4())
    claim = await storage.put(f"{tenant}/files", data)
    file = File(file_id="f", filename="f", kind="raw_doc", mime_type=mime_type, size=claim.size, sha256=claim.sha256, key=claim.key)
    inputs, spec = msgspec.to_builtins(ChunkInputs(project_id="p")), msgspec.to_builtins(ChunkSpec())
    job = JobCreated(job_id=job_id, kind="chunk", stages=["preparation"], project_id="p", inputs=inputs, spec=spec)
    uploaded = ProjectFilesAdded(project_id="p", files=[file])
    await log.append([Write(events=[uploaded], after=0), Write(events=[job], after=0)], origin=Origin(tenant=tenant, actor="bench"))
    while True:
        last = (await log.read(story(tenant, job_id)))[-1]
        if isinstance(last.event, PreparationCompleted):
            return last.event.rows
        assert last.envelope.type not in ("preparation.failed", "preparation.cancelled"), last
        await asyncio.sleep(0.1)


async def main_of(arguments: argparse.Namespace) -> int:
    promises = Promises()
    await compare(promises, size=arguments.size_kb * 1000, rounds=arguments.rounds)
    with fresh_servers(Settings(database_url=ELSEWHERE)) as servers:
        process = servers.service("datasets")
        process.start()
        try:
            await measure(promises, servers, process, pages=arguments.pages)
        finally:
            process.stop()
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chunking", description=__doc__)
    parser.add_argument("--size-kb", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pages", type=int, default=1_000)
    return uvloop.run(main_of(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
