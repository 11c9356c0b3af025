"""The rows that a training run learns from become one immutable object."""

import asyncio
import hashlib
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Set
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from os import SEEK_END
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import msgspec

from libs.events import (
    Claim,
    ExampleDeleted,
    ExampleEdited,
    ExampleMarked,
    PreparationCompleted,
    PreparationProduced,
    ProjectFileDeleted,
    Recorded,
    TrainInputs,
    decode,
)
from libs.rows import REFUSED_BY_PERSON
from libs.sources import of_project
from libs.storage import Damaged, Missing

from .preparation import Hopeless, Preparation
from .waiting import Awaited, NotYet, Sources

T = TypeVar("T")

log = logging.getLogger(__name__)

AHEAD = 2
"""Parts that are fetched while another is copied."""
PIECE = 1024 * 1024


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line of the snapshot. Whoever trains on it reads these names."""

    id: str
    split: str
    format: str
    data: msgspec.Raw


class Produced(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line of a part, as far as it matters here."""

    id: str
    split: str
    format: str
    data: msgspec.Raw
    valid: bool
    reason: str


class Edit(msgspec.Struct, gc=False):
    """What people made of an example, as of the latest fact."""

    deleted: bool = False
    is_valid: bool | None = None
    """What somebody said; None: nobody did."""
    split: str = ""
    format: str = ""
    place: tuple[int, int] | None = None
    """Where in a file its content begins and how long it is, if it was written anew."""


class Edits:
    """By example. What was written anew lies in a file: of that there may be much."""

    def __init__(self, file: IO[bytes]) -> None:
        self.mended = set[str]()
        """Jobs of whose rows somebody made one usable."""
        self._file = file
        self._of: dict[str, Edit] = {}

    def add(self, recorded: Recorded) -> None:
        event = recorded.event
        if not isinstance(event, ExampleEdited | ExampleMarked | ExampleDeleted):
            return  # of a kind that this version doesn't know
        edit = self._of.setdefault(event.example_id, Edit())
        match event:
            case ExampleEdited(data=data, split=split):
                edit.split = split or edit.split
                if data is not None:
                    self.mended.add(event.job_id)
                    content = msgspec.json.encode(data)
                    edit.format, edit.place = event.format, (self._file.seek(0, SEEK_END), len(content))
                    self._file.write(content)
            case ExampleMarked(is_valid=is_valid):
                edit.is_valid = is_valid
                if is_valid:
                    self.mended.add(event.job_id)
            case ExampleDeleted():
                edit.deleted = True

    def of(self, id: str) -> Edit | None:
        return self._of.get(id)

    def content(self, place: tuple[int, int]) -> msgspec.Raw:
        begin, length = place
        self._file.seek(begin)
        return msgspec.Raw(self._file.read(length))


class Draft:
    """What there is of a snapshot: its bytes in a file, its hash, its counts."""

    def __init__(self, file: IO[bytes], *, edits: Edits, total: int) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.splits = Counter[str]()
        self.refused = Counter[str]()
        self.done = 0
        self.total = total
        self._edits = edits

    @property
    def rows(self) -> int:
        return self.splits.total() + self.refused.total()

    def add(self, part: bytes) -> None:
        """The usable rows of a part. Takes its time: for a thread."""
        rows: list[Row] = []
        for line in _parts.decode_lines(part):
            if reason := self._why_not(line, edit := self._edits.of(line.id)):
                self.refused[reason] += 1
                continue
            row = self._row(line, edit)
            self.splits[row.split] += 1
            rows.append(row)
        content = _encode_lines(rows)
        self.file.write(content)
        self.digest.update(content)
        self.done += len(part)

    def _why_not(self, line: Produced, edit: Edit | None) -> str:
        if edit and edit.deleted:
            return "deleted"
        if edit and edit.is_valid is not None:
            return "" if edit.is_valid else REFUSED_BY_PERSON
        return "" if line.valid or (edit and edit.place) else line.reason

    def _row(self, line: Produced, edit: Edit | None) -> Row:
        if edit is None:
            return Row(id=line.id, split=line.split, format=line.format, data=line.data)
        split = edit.split or line.split
        if edit.place is None:
            return Row(id=line.id, split=split, format=line.format, data=line.data)
        return Row(id=line.id, split=split, format=edit.format, data=self._edits.content(edit.place))


_parts = msgspec.json.Decoder(Produced)
_encode_lines = msgspec.json.Encoder().encode_lines


class Snapshot(Preparation):
    """The first stage of a train job. It follows from the log up to the job's creation and from nothing else: made again it has the same bytes."""

    WHAT = "The rows to train on could not be put together"

    _sources: Sources | None = None
    _deleted_files: Set[str] = frozenset()

    async def prepare(self) -> None:
        sources = await self._open()
        if not await sources.look():
            raise NotYet
        await self.begin()
        with TemporaryFile() as file, TemporaryFile() as edited:  # without names: they are gone with this process, however that ends
            edits = await self._edits(edited)
            parts = [(job, part) for job in sources.awaited if self._wanted(job, edits) for part in job.parts if part.file_id not in self._deleted_files]
            draft = Draft(file, edits=edits, total=sum(part.content.size for _, part in parts))
            await self._attended(self._copy(parts, draft), draft)
            if not draft.splits["train"]:
                raise _nothing_to_learn_from(draft)
            snapshot = await self._attended(self._store(draft), draft)
        completed = PreparationCompleted(
            job_id=self.job_id,
            parts=0,
            rows=draft.rows,
            valid=draft.splits.total(),
            refused=dict(draft.refused),
            snapshot=snapshot,
            position=self.position,
            splits=dict(draft.splits),
        )
        await self.append(completed)
        log.info("snapshot made", extra={"job": self.job_id, "rows": completed.valid, "bytes": snapshot.size})

    async def wait(self) -> None:
        """Until all sources have ended, or this job has. Takes up neither a worker nor a thread."""
        await self.live(self._wait)

    def hear(self, tenant: str, job_id: str) -> None:
        """The bus says that a preparation has ended."""
        if self._sources and tenant == self.tenant:
            self._sources.hear(job_id)

    async def _wait(self) -> None:
        sources = await self._open()
        while not await sources.look():
            await sources.stirred()
            await self.look()

    async def _open(self) -> Sources:
        """Those of the sources whose files were not deleted before the job was created. What was made of several files loses the parts of those that were."""
        inputs = self._inputs
        wanted = inputs.sources or await of_project(self.log, self.tenant, inputs.project_id, position=self.position)
        deleted, files = set[str](), set[str]()
        async for raw in self.log.scan_to(f"ev.{self.tenant}.project.file_deleted.{inputs.project_id}", last=self.position):
            event = decode(raw.data, seq=raw.seq, subject=raw.subject).event
            assert isinstance(event, ProjectFileDeleted)
            deleted.add(event.job_id)
            files.add(event.file_id)
        self._deleted_files = files
        self._sources = Sources([source for source in wanted if source.job_id not in deleted], log=self.log, tenant=self.tenant)
        return self._sources

    @property
    def _inputs(self) -> TrainInputs:
        return msgspec.convert(self.job.inputs, TrainInputs)

    def _wanted(self, job: Awaited, edits: Edits) -> bool:
        """Whoever asked for the training knew already that a file holds nothing: it may have been deleted since."""
        known_barren = 0 < job.barren_since < self.position
        return bool(self._inputs.sources) or not known_barren or job.job_id in edits.mended

    async def _edits(self, file: IO[bytes]) -> Edits:
        """Of the examples that people edited, judged or deleted before the job was created."""
        edits = Edits(file)
        async for raw in self.log.scan_to(f"ev.{self.tenant}.example.*.{self.job.inputs['project_id']}.*", last=self.position):
            edits.add(decode(raw.data, seq=raw.seq, subject=raw.subject))
        return edits

    async def _copy(self, parts: list[tuple[Awaited, PreparationProduced]], draft: Draft) -> None:
        async with aclosing(self._fetched(parts)) as contents:
            async for content in contents:
                await self._in_thread(partial(draft.add, content))

    async def _fetched(self, parts: list[tuple[Awaited, PreparationProduced]]) -> AsyncGenerator[bytes, None]:
        """One after another, a few ahead of time."""
        coming = deque[asyncio.Task[bytes]]()
        rest = iter(parts)
        try:
            while True:
                while len(coming) <= AHEAD and (following := next(rest, None)):
                    coming.append(asyncio.create_task(self._fetch(*following)))
                if not coming:
                    return
                yield await coming[0]
                coming.popleft()
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _fetch(self, job: Awaited, part: PreparationProduced) -> bytes:
        try:
            return await self.storage.get(part.content)
        except Missing:
            raise Hopeless("source_missing", f"{job.rows} are not in the object store any more. {job.remedy}") from None
        except Damaged:
            raise Hopeless("source_damaged", f"{job.rows} are damaged in the object store. {job.remedy}") from None

    async def _store(self, draft: Draft) -> Claim:
        size = draft.file.tell()
        draft.file.seek(0)
        key = f"{self.tenant}/{self.job_id}/{draft.digest.hexdigest()}"
        return await self.storage.put_stream(key, Pieces(draft.file, self.threads), expected=size)

    async def _attended(self, work: Coroutine[Any, Any, T], draft: Draft) -> T:
        task = asyncio.create_task(work)
        try:
            return await self.attend(task, done=lambda: draft.done, total=draft.total)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Not left before the thread is done: nobody closes the file under it."""
        step = asyncio.get_running_loop().run_in_executor(self.threads, work)
        try:
            await asyncio.shield(step)
        finally:
            await asyncio.wait({step})


class Pieces(AsyncIterator[bytes]):
    """A file, read in a thread."""

    def __init__(self, file: IO[bytes], threads: Executor) -> None:
        self._file = file
        self._threads = threads

    async def __anext__(self) -> bytes:
        if piece := await asyncio.get_running_loop().run_in_executor(self._threads, self._file.read, PIECE):
            return piece
        raise StopAsyncIteration


def _nothing_to_learn_from(draft: Draft) -> Hopeless:
    if not draft.rows:
        why = "the project's files hold no rows."
    elif not draft.splits:
        why = f"none of the {draft.rows} rows can be used. Each of them says why."
    else:
        why = f"all {draft.splits.total()} usable rows are held out for evaluation. Add more, or set a smaller share aside."
    return Hopeless("no_examples", f"There is nothing to train on: {why}")
