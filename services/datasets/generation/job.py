"""Examples are made of a project's chunks: one fact for each chunk, so that whoever goes on does what is missing and nothing else."""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Set
from contextlib import aclosing
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, NamedTuple, TypeVar

import msgspec
import prometheus_client

from libs.events import Claim, GenerateInputs, GenerateSpec, PreparationCompleted, PreparationProduced, Recorded, Source
from libs.events.log import Conflict
from libs.pace import Pace
from libs.rows import count_tokens
from libs.storage import Damaged, Missing
from services.datasets.formats.row import MAX_RAW
from services.datasets.parts import Line
from services.datasets.preparation import Hopeless, Preparation
from services.datasets.waiting import NotYet, Sources

from . import answers, extractive
from .checks import Ground, Wrong
from .endpoint import Endpoint, Refused
from .example import FORMATS, Example, of
from .plan import Chunk, Place, Survey, Task, plan
from .prompts import prompt, tokens

T = TypeVar("T")

log = logging.getLogger(__name__)

AHEAD = 8
"""Parts that are fetched at the same time."""
WAITING = 4
"""Answers that may wait to be told, for each request that is under way: the store is slow now and then, and the server goes on meanwhile."""
SPARE = 4
"""Examples of the text itself that are looked at for each that is wanted, where others said the same before."""

_encode_lines = msgspec.json.Encoder().encode_lines
_chunks = msgspec.json.Decoder(Chunk)
_examples_made = prometheus_client.Counter("trainyard_generated_examples_total", "Examples that this process made of chunks", ["generator", "outcome"])


class Drifted(Exception):
    """Parts of another plan are told already: going on would double or lose examples."""


class Overtaken(Conflict):
    """Another replica told what we were about to tell, in other words: all that we know of repetitions is void, and we begin with what is told now."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a chunk: as many as were wanted, or more where the text itself gives them."""

    task: Task
    chunk: Chunk
    ground: Ground
    found: list[Example | Wrong]
    generator: str
    model: str = ""


class Row(Line, frozen=True, kw_only=True):
    """A line of a part of ours."""

    file_id: str
    """Of the document that it was made of."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The same, as far as it matters to whoever goes on."""

    row: int
    split: str
    data: dict[str, Any]
    valid: bool
    reason: str


_told = msgspec.json.Decoder(Told)


class Generate(Preparation):
    """The one stage of a generate job."""

    WHAT = "The examples could not be generated"

    def __init__(self, created: Recorded, *, endpoint: Endpoint | None, turns: asyncio.Semaphore, **rest: Any) -> None:
        """`turns`: of the jobs that are worked on at the same time. Without an endpoint the text itself gives the examples."""
        super().__init__(created, **rest)
        self.endpoint = endpoint
        self._turns = turns
        self.spec = msgspec.convert(self.job.spec, GenerateSpec)
        self._sources: Sources | None = None
        self._claims: list[Claim] = []
        self._tasks: list[Task] = []

    async def prepare(self) -> None:
        """A language model takes hours and may be away for days: none of the workers waits for it."""
        raise NotYet

    async def wait(self) -> None:
        """All of the work. Takes up no worker."""
        await self.live(self._work)

    def hear(self, tenant: str, job_id: str) -> None:
        if self._sources and tenant == self.tenant:
            self._sources.hear(job_id)

    async def _work(self) -> None:
        inputs = msgspec.convert(self.job.inputs, GenerateInputs)
        self._sources = Sources([Source(job_id=inputs.chunks)], log=self.log, tenant=self.tenant)
        while not await self._sources.look():
            await self._sources.stirred()
            await self.look()
        (source,) = self._sources.awaited
        self._claims = [part.content for part in sorted(source.parts, key=lambda part: part.part)]
        async with self._turns:
            await self._generate()

    async def _generate(self) -> None:
        if self.endpoint and not self._model:
            raise Hopeless("llm_model_missing", "No model is named: name one in the request (ollama_model), or let the operator set TRAINYARD_LLM_MODEL.")
        await self.begin()
        places = await self._attended(self._survey())
        if not places:
            raise Hopeless("no_chunks", "The project has no chunks that examples could be made of: add documents, make the chunks, then start anew.")
        self._tasks = plan(places, self.spec)
        ledger = Ledger()
        await self._attended(self._remember(ledger))
        flow = Flow(most=WAITING * self._concurrency)
        self.pace = Pace()  # of the making alone
        making = asyncio.create_task(self._make_all(flow))
        try:
            while batch := await self._attended(flow.batch(), waiting=self.endpoint.waiting if self.endpoint else str):
                await self._tell_all(batch, ledger)
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
        await self._complete(ledger)

    @property
    def _model(self) -> str:
        return self.spec.model or self.endpoint.model if self.endpoint else ""

    @property
    def _concurrency(self) -> int:
        return self.endpoint.concurrency if self.endpoint else 1

    # What there is

    async def _survey(self) -> list[Place]:
        survey = Survey(train_share=self.spec.train_share)
        async with aclosing(self._fetched(self._claims)) as contents:
            async for content in contents:
                survey.add(_chunks.decode_lines(content))
        return survey.places

    async def _remember(self, ledger: "Ledger") -> None:
        """What was told before, in the order of the telling: what is the same is known again."""
        numbers = iter(list(self.parts))
        async with aclosing(self._fetched(list(self.parts.values()))) as contents:
            async for content in contents:
                lines = _told.decode_lines(content)
                if [line.row for line in lines] != self._rows(next(numbers)):
                    raise Drifted(self.job_id)
                ledger.note(lines)

    def _rows(self, number: int) -> list[int]:
        """Of this part, as planned."""
        if number > len(self._tasks):
            return []
        task = self._tasks[number - 1]
        return list(range(task.first_row, task.first_row + task.examples))

    async def _fetched(self, claims: Iterable[Claim]) -> AsyncGenerator[bytes, None]:
        """One after another, a few ahead of time."""
        rest = iter(claims)
        coming = [asyncio.create_task(self._fetch(claim)) for claim in islice(rest, AHEAD)]
        try:
            while coming:
                content = await coming[0]
                coming.pop(0)
                if following := next(rest, None):
                    coming.append(asyncio.create_task(self._fetch(following)))
                yield content
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _fetch(self, claim: Claim) -> bytes:
        try:
            return await self.storage.get(claim)
        except Missing:
            raise Hopeless(
                "source_missing", "Chunks, or examples of them, are not in the object store any more; make the chunks again, then start anew."
            ) from None
        except Damaged:
            raise Hopeless("source_damaged", "Chunks, or examples of them, are damaged in the object store; make the chunks again, then start anew.") from None

    # What is made

    async def _make_all(self, flow: "Flow") -> None:
        """As many at once as the server may be asked. However it ends, the flow hears of it."""
        missing, one_by_one = self._missing(), asyncio.Lock()

        async def make() -> None:
            while True:
                async with one_by_one:
                    following = await anext(missing, None)
                if following is None:
                    return
                await flow.put(await self._made_of(*following))

        try:
            async with aclosing(missing), asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(make())
        except* Exception as errors:  # noqa: BLE001  # it is raised where what is made is awaited
            await flow.close(_first(errors))
        else:
            await flow.close()

    async def _missing(self) -> AsyncGenerator[tuple[Task, Chunk], None]:
        """The chunks that nothing is told of yet. One part of them is in memory."""
        holes = [task for task in self._tasks if task.number not in self.parts]
        for part, tasks in groupby(holes, key=lambda task: task.place.part):
            chunks = _chunks.decode_lines(await self._fetch(self._claims[part]))
            for task in tasks:
                yield task, chunks[task.place.line]

    async def _made_of(self, task: Task, chunk: Chunk) -> Made:
        text = chunk.content[task.place.start : task.place.end].strip()
        ground = Ground(text)
        if self.endpoint is None:
            found = await asyncio.get_running_loop().run_in_executor(self.threads, partial(self._extracted, task, chunk, text))
            return Made(task=task, chunk=chunk, ground=ground, found=found, generator="extractive")
        model = Made(task=task, chunk=chunk, ground=ground, found=[], generator="llm", model=self._model)
        if not text:
            return model
        kind = self.spec.task_type
        try:
            said = await self.endpoint.ask(
                prompt(text, task_type=kind, count=task.examples, language=ground.language),
                model=self._model,
                tokens=tokens(kind, task.examples),
                seed=(self.spec.seed + task.number) % 2**31,
            )
        except Refused as refused:
            return msgspec.structs.replace(model, found=[Wrong(refused.reason, refused.message)] * task.examples)
        return msgspec.structs.replace(model, found=list(answers.read(said, task_type=kind, text=text)))

    def _extracted(self, task: Task, chunk: Chunk, text: str) -> list[Example | Wrong]:
        every = extractive.examples(text, task_type=self.spec.task_type, headings=_headings(chunk), goes_on=chunk.index > 0)
        return list(islice(every, task.examples * SPARE))

    # What is told

    async def _tell_all(self, batch: list[Made], ledger: "Ledger") -> None:
        """Stored at the same time, told one after another in the order in which repetitions were looked for."""
        parts: list[tuple[Made, list[Row]]] = []
        for made in batch:
            parts.append((made, self._lines(made, ledger)))
            ledger.note(parts[-1][1])
        stored = await asyncio.gather(*(self.storage.put(f"{self.tenant}/{self.job_id}", _encode_lines(lines)) for _, lines in parts))
        for (made, lines), content in zip(parts, stored, strict=True):
            number, valid = made.task.number, sum(line.valid for line in lines)
            produced = PreparationProduced(job_id=self.job_id, part=number, content=content, rows=len(lines), valid=valid, file_id=made.chunk.file_id)
            if number not in self.parts:
                await self.append(produced, there=partial(self.parts.__contains__, number))
            if self.parts[number].sha256 != content.sha256:
                raise Overtaken(f"part {number} of job {self.job_id} is told by another replica")
            _examples_made.labels(made.generator, "valid").inc(valid)
            _examples_made.labels(made.generator, "refused").inc(len(lines) - valid)

    def _lines(self, made: Made, ledger: "Ledger") -> list[Row]:
        """As many as were planned: what is refused keeps its reason, and so does what is missing. The text itself is asked until there are enough."""
        fresh: set[bytes] = set()
        lines: list[Row] = []
        for found in chain(made.found, [_TOO_FEW] * made.task.examples):
            if len(lines) == made.task.examples:
                break
            wrong = self._wrong(found, made.ground, ledger.seen, fresh)
            if wrong and made.generator == "extractive" and found is not _TOO_FEW:
                continue
            if isinstance(found, Example) and not wrong:
                fresh.add(found.key)
            lines.append(self._line(made.task.first_row + len(lines), found, wrong, made))
        return lines

    def _wrong(self, found: Example | Wrong, ground: Ground, *seen: Set[bytes]) -> Wrong | None:
        if isinstance(found, Wrong):
            return found
        return ground.why_not(found, self.spec.task_type) or (_REPEATED if any(found.key in before for before in seen) else None)

    def _line(self, row: int, found: Example | Wrong, wrong: Wrong | None, made: Made) -> Row:
        kind, chunk = self.spec.task_type, made.chunk
        meta = {"chunk_id": chunk.id, "file_id": chunk.file_id, "generator": made.generator} | ({"model": made.model} if made.model else {})
        if isinstance(found, Wrong):
            shown, content = False, {"raw": _storable(found.raw)}
        elif wrong and wrong.reason in ("not_storable", "output_too_long"):
            shown, content = False, {"raw": _storable(found.answered)}
        else:
            shown, content = True, found.data(kind)
        return Row(
            file_id=chunk.file_id,
            id=str(uuid.uuid5(uuid.UUID(self.job_id), str(row))),
            row=row,
            split=made.task.split,
            format=FORMATS[kind] if shown else "",
            data={**content, "meta": meta},
            valid=wrong is None,
            reason=wrong.reason if wrong else "",
            message=wrong.message if wrong else "",
            tokens=count_tokens(content) if shown else 0,
        )

    async def _complete(self, ledger: "Ledger") -> None:
        if len(self.parts) != len(self._tasks):
            raise Drifted(self.job_id)
        completed = PreparationCompleted(
            job_id=self.job_id,
            parts=len(self._tasks),
            rows=ledger.rows,
            valid=ledger.splits.total(),
            refused=dict(ledger.refused),
            splits=dict(ledger.splits),
            generator="mixed" if len(ledger.generators) > 1 else "".join(ledger.generators),
            model=", ".join(sorted(ledger.models)),
            notes=self._notes(ledger),
        )
        await self.append(completed)
        log.info("generated", extra={"job": self.job_id, "rows": completed.rows, "valid": completed.valid, "generator": completed.generator})

    def _notes(self, ledger: "Ledger") -> list[str]:
        notes: list[str] = []
        if "extractive" in ledger.generators:
            notes.append("No language model is configured (TRAINYARD_LLM_URL): examples were put together from the documents' own sentences.")
            if self.spec.model:
                notes.append(f"The model {self.spec.model} was asked for, and not used.")
        if ledger.splits and self.spec.train_share < 1 and not self.spec.preview and not ledger.splits["eval"]:
            notes.append(
                "No text was held out for evaluation: with few chunks it may happen that all fall to training. Cut the documents smaller, or add some."
            )
        if self.spec.num_examples > ledger.rows:
            notes.append(
                f"{self.spec.num_examples} examples were wanted; {len(self._tasks)} chunks with at most {self.spec.examples_per_chunk} each give {ledger.rows}."
            )
        return notes

    async def _attended(self, work: Coroutine[Any, Any, T], *, waiting: Callable[[], str] = str) -> T:
        task = asyncio.create_task(work)
        try:
            return await self.attend(task, done=lambda: len(self.parts), total=max(1, len(self._tasks)), waiting=waiting)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


_REPEATED = Wrong("duplicate", "The same is asked by an example before.")
_TOO_FEW = Wrong("too_few", "Fewer examples came of the text than were planned.")


class Ledger:
    """All that the parts hold, told and about to be told: counts, and what was asked."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.splits = Counter[str]()
        self.refused = Counter[str]()
        self.generators: set[str] = set()
        self.models: set[str] = set()

    @property
    def rows(self) -> int:
        return self.splits.total() + self.refused.total()

    def note(self, lines: Iterable[Row] | Iterable[Told]) -> None:
        for line in lines:
            meta = line.data["meta"]
            self.generators.add(meta["generator"])
            self.models |= {meta["model"]} if "model" in meta else set()
            if line.valid:
                self.splits[line.split] += 1
                self.seen.add(of(line.data).key)
            else:
                self.refused[line.reason] += 1


class Flow:
    """What is made, on its way to where it is told: makers wait while too much of it is on the way."""

    def __init__(self, *, most: int) -> None:
        self._queue = asyncio.Queue[Made | End](maxsize=most)
        self._end: End | None = None

    async def put(self, made: Made) -> None:
        await self._queue.put(made)

    async def close(self, error: Exception | None = None) -> None:
        await self._queue.put(End(error))

    async def batch(self) -> list[Made]:
        """All that waits, once something does; nothing at the end. What went wrong is raised behind what went well."""
        batch: list[Made] = []
        while not self._end and (not batch or not self._queue.empty()):
            item = await self._queue.get()
            if isinstance(item, End):
                self._end = item
            else:
                batch.append(item)
        if not batch and self._end and self._end.error:
            raise self._end.error
        return batch


class End(NamedTuple):
    error: Exception | None


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _headings(chunk: Chunk) -> list[str]:
    headings = chunk.metadata.get("headings", [])
    return [heading for heading in headings if isinstance(heading, str)] if isinstance(headings, list) else []


def _storable(text: str) -> str:
    """The beginning of what nobody could use, so that a person sees why."""
    return text[:MAX_RAW].replace("\0", "\u2400").encode("utf-8", "replace").decode()
