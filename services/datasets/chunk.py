"""A project's documents become chunks."""

import asyncio
import hashlib
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import msgspec
import prometheus_client

from libs.events import (
    ChunkInputs,
    ChunkSpec,
    File,
    PreparationCompleted,
    PreparationProduced,
    ProjectFileDeleted,
    ProjectFilesAdded,
    TrainingCompleted,
    decode,
)
from libs.storage import Missing

from . import base_tokenizer, chunking
from .counting import Counting
from .documents.blocks import Limits, Progress, Refusal, written
from .documents.parsing import parse
from .ingest import Drifted
from .parts import Packing, Part
from .preparation import Hopeless, Preparation

T = TypeVar("T")

log = logging.getLogger(__name__)

DOCUMENT = "raw_doc"
"""The kind of files that are read here."""
NOTES = 50
"""Most that are told."""
NOTE = 400
"""Characters of one, of which some are a stranger's."""
NAMED = 500
"""Most refused files that are told by their ids: with the notes they must fit into a fact."""
READING = 0.5
"""The share of the work on a document after which its text is known."""

PATIENCE = 600.0
"""Seconds for one part, which usually takes one or two: a stranger's tokenizer can be made so that it never ends."""
LEAVING = 10.0
"""Seconds for the thread to leave a part that nobody wants any more."""

_encode = msgspec.json.Encoder().encode
_chunks = prometheus_client.Counter("trainyard_chunks_total", "Chunks made of documents by this process")
_refused = prometheus_client.Counter("trainyard_documents_refused_total", "Documents that no chunks could be made of", ["code"])


class Metadata(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    page_start: int | None
    """From 1; documents without pages have none."""
    page_end: int | None
    headings: tuple[str, ...]
    """That the chunk stands under, from the outermost."""


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One chunk of a part. Who loads parts, and who generates examples, reads these names."""

    id: str
    file_id: str
    index: int
    """From 0 in each file."""
    content: str
    tokens: int
    metadata: Metadata


class Abandoned(Exception):
    """Nobody waits for the rest."""


class Chunk(Preparation):
    """The one stage of a chunk job. A document is read whole before a chunk of it is made: one that can't be read to its end gives none."""

    WHAT = "The documents could not be divided into chunks"

    async def prepare(self) -> None:
        inputs, spec = msgspec.convert(self.job.inputs, ChunkInputs), msgspec.convert(self.job.spec, ChunkSpec)
        files = await self._documents(inputs.project_id)
        self._total, self._before, self._done = sum(file.size for file in files), 0, 0
        self._packing, self._made = Packing(), 0
        self._refused: dict[str, Refusal] = {}
        self._notes: list[str] = []
        await self.begin()
        left = await self._watch(self._left_by(base_tokenizer.run_of(spec.base_model)))
        found = await self._watch(self._in_thread(partial(base_tokenizer.find, spec.base_model, spec.revision, self.settings, left=left)))
        self._note(found.note)
        for file in files:
            await self._divide(file, found.counting, spec)
            self._before += file.size
        if len(self.parts) != self._packing.made:
            raise Drifted(self.job_id)
        if not self._made:
            raise _nothing(files, self._refused)
        await self.append(self._completed(found.counting))
        _chunks.inc(self._made)
        log.info("chunks made", extra={"job": self.job_id, "chunks": self._made, "refused": len(self._refused), "tokenizer": found.counting.name})

    async def _documents(self, project_id: str) -> list[File]:
        """Those that the project had when the job was created, in the order in which they came."""
        found: dict[str, File] = {}
        async for raw in self.log.scan_to(f"ev.{self.tenant}.project.*.{project_id}", last=self.position):
            match decode(raw.data, seq=raw.seq, subject=raw.subject).event:
                case ProjectFilesAdded(files=files):
                    found |= {file.file_id: file for file in files if file.kind == DOCUMENT}
                case ProjectFileDeleted(file_id=gone):
                    found.pop(gone, None)
                case _:
                    continue
        return list(found.values())

    async def _left_by(self, run: str) -> bytes:
        """The tokenizer of a model that was trained here; nothing where there is none."""
        if not run:
            return b""
        async for raw in self.log.scan_to(f"ev.{self.tenant}.training.completed.{run}", last=self.position):
            completed = decode(raw.data, seq=raw.seq, subject=raw.subject).event
            file = completed.artifacts.get(base_tokenizer.FILE) if isinstance(completed, TrainingCompleted) else None
            if file and file.size <= base_tokenizer.LARGEST:
                with suppress(Missing):
                    return await self.storage.get(file)
        return b""

    async def _divide(self, file: File, counting: Counting, spec: ChunkSpec) -> None:
        with TemporaryFile() as raw, TemporaryFile() as spool:  # without names: they are gone with this process, however that ends
            try:
                notes = await self._watch(self._parsed(file, raw, spool))
            except Refusal as why:
                log.info("a document is refused", extra={"job": self.job_id, "file": file.file_id, "code": why.code})
                _refused.labels(why.code).inc()
                self._refused[file.file_id] = why
                self._note(f"{file.filename!r} was left out. {why.message}")
                return
            for note in notes:
                self._note(f"{file.filename!r}: {note}.")
            await self._cut(file, spool, counting, spec)

    async def _parsed(self, file: File, raw: IO[bytes], spool: IO[bytes]) -> tuple[str, ...]:
        """Its text is in `spool` afterwards."""

        def heard(progress: Progress) -> None:
            self._done = self._before + int(file.size * READING * min(1.0, progress.done / max(1, progress.total)))

        digest = hashlib.sha256()
        try:
            async for piece in self.storage.chunks(file.key):
                digest.update(piece)
                raw.write(piece)
        except Missing:
            raise Refusal("source_missing", "The file is not in the object store any more; upload it again.") from None
        if digest.hexdigest() != file.sha256:
            raise Refusal("source_damaged", "The file in the object store is not the one that was uploaded; upload it again.")
        raw.flush()
        return await parse(raw, spool, mime_type=file.mime_type, limits=Limits(pages=self.settings.max_pages), heard=heard)

    async def _cut(self, file: File, spool: IO[bytes], counting: Counting, spec: ChunkSpec) -> None:
        """The thread makes the next part while one is stored."""
        size, left = spool.tell(), asyncio.Event()
        spool.seek(0)

        def lines() -> Iterator[tuple[bytes, str]]:
            chunks = chunking.chunks(written(spool), counting, size=spec.chunk_size_tokens, overlap=spec.chunk_overlap_tokens)
            for index, chunk in enumerate(chunks):
                if left.is_set():
                    raise Abandoned
                self._made += 1
                self._done = self._before + int(file.size * (READING + (1 - READING) * spool.tell() / max(1, size)))
                yield self._line(file, index, chunk), ""

        parts = self._packing.pack(lines())
        upcoming = self._step(partial(_following, parts, counting))
        try:
            while part := await self._patient(upcoming, counting):
                upcoming = self._step(partial(_following, parts, counting))
                await self._produce(part, file)
            for part in self._packing.rest():  # none holds two documents: one of them may be deleted
                await self._produce(part, file)
        finally:
            left.set()
            await asyncio.wait({upcoming}, timeout=LEAVING)  # nobody closes the file under it
            upcoming.add_done_callback(_heard)

    async def _patient(self, step: "asyncio.Future[T]", counting: Counting) -> T:
        patience = asyncio.timeout(PATIENCE)
        try:
            async with patience:
                return await self.attend(step, done=lambda: self._done, total=self._total)
        except TimeoutError:
            if patience.expired() and not step.done():
                raise _broken(counting) from None
            raise  # the log's

    def _line(self, file: File, index: int, chunk: chunking.Chunk) -> bytes:
        line = Line(
            id=str(uuid.uuid5(uuid.UUID(self.job_id), str(self._made))),
            file_id=file.file_id,
            index=index,
            content=chunk.content,
            tokens=chunk.tokens,
            metadata=Metadata(page_start=chunk.page_start, page_end=chunk.page_end, headings=chunk.headings),
        )
        return _encode(line) + b"\n"

    async def _produce(self, part: Part, file: File) -> None:
        """Stored before it is told, once."""
        if part.number not in self.parts:
            content = await self.storage.put(f"{self.tenant}/{self.job_id}", part.content)
            produced = PreparationProduced(job_id=self.job_id, part=part.number, content=content, rows=part.rows, valid=part.rows, file_id=file.file_id)
            await self.append(produced, there=lambda: part.number in self.parts)
        if self.parts[part.number].sha256 != hashlib.sha256(part.content).hexdigest():
            raise Drifted(self.job_id)

    def _completed(self, counting: Counting) -> PreparationCompleted:
        return PreparationCompleted(
            job_id=self.job_id,
            parts=len(self.parts),
            rows=self._made,
            valid=self._made,
            refused=dict(Counter(why.code for why in self._refused.values())),
            tokenizer=counting.name,
            refused_files={file_id: why.code for file_id, why in list(self._refused.items())[:NAMED]},
            notes=self._notes[:NOTES] + ([f"… and {len(self._notes) - NOTES} more."] if len(self._notes) > NOTES else []),
        )

    def _note(self, note: str) -> None:
        if note:
            self._notes.append(note[:NOTE])

    async def _watch(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        try:
            return await self.attend(task, done=lambda: self._done, total=self._total)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def _step(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.ensure_future(self._in_thread(work))


def _following(parts: Iterator[Part], counting: Counting) -> Part | None:
    try:
        return next(parts, None)
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # what the library, which isn't Python, calls an error of its own
            raise _broken(counting) from None
        raise


def _heard(step: "asyncio.Future[Any]") -> None:
    """Also where nobody waits for it any more."""
    if not step.cancelled():
        step.exception()


def _broken(counting: Counting) -> Hopeless:
    return Hopeless("tokenizer_broken", f"The tokenizer of {counting.name} can't count the tokens of these documents.")


def _nothing(files: list[File], refused: dict[str, Refusal]) -> Hopeless:
    if not files:
        return Hopeless("no_documents", "There are no documents to divide into chunks.")
    first = " ".join(f"{file.filename!r}: {refused[file.file_id].message}" for file in files[:3])
    return Hopeless("no_usable_documents", f"None of the documents can be used. {first}" + (f" And {len(files) - 3} more." if len(files) > 3 else ""))
