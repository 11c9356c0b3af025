"""The one stage of an ingest job: an uploaded file becomes parts of rows."""

import asyncio
import logging
from collections import Counter
from concurrent.futures import Executor
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
import prometheus_client

from libs import telemetry
from libs.events import (
    Event,
    File,
    JobCreated,
    Origin,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    PreparationProgressed,
    PreparationStarted,
    Recorded,
    story,
)
from libs.events.log import Conflict, EventLog, Write
from libs.runtime.broker import HandedOver
from libs.runtime.waiting import Stopped, unless
from libs.storage import Missing, Storage

from .formats import rows
from .parts import Part, cut
from .source import Source, reading
from .story import Story, of_preparation

log = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between looks at the log while nothing else happens, and at least between two facts about progress."""

_rows = prometheus_client.Counter("trainyard_prepared_rows_total", "Rows read from uploaded files by this process")


class Preparation:
    """Done by whoever holds the job's delivery. What it wrote itself it goes on from, what others wrote meanwhile makes it stop."""

    def __init__(self, created: Recorded, *, event_log: EventLog, storage: Storage, threads: Executor) -> None:
        assert isinstance(created.event, JobCreated)
        self.job_id = created.event.job_id
        self.tenant = created.tenant
        self.cancel_asked = asyncio.Event()
        self._job = created.event
        self._log = event_log
        self._storage = storage
        self._threads = threads
        self._origin = Origin(
            tenant=created.tenant,
            actor=created.envelope.actor,
            correlation=created.envelope.correlationid,
            causation=created.id,
            traceparent=telemetry.traceparent(),
        )
        self._story = Story()
        self._read = 0
        self._wrote = False
        self._told = (0.0, 0)

    async def run(self) -> None:
        try:
            await self._look()
            await unless(self.cancel_asked, self._prepare())
        except _Ended:
            return
        except Stopped:
            await self._end(PreparationCancelled(job_id=self.job_id))
        except Missing:
            await self.fail("source_missing", "The uploaded file is not in the object store any more; upload it again.")
        except _Damaged:
            await self.fail("source_damaged", "The file in the object store is not the one that was uploaded; upload it again.")

    async def fail(self, code: str, message: str) -> None:
        log.warning("preparation failed", extra={"job": self.job_id, "code": code})
        await self._end(PreparationFailed(job_id=self.job_id, code=code, message=message))

    async def _prepare(self) -> None:
        file = msgspec.convert(self._job.inputs["file"], File)
        if not self._story.started:
            await self._append(PreparationStarted(job_id=self.job_id))
        self._told = (asyncio.get_running_loop().time(), 0)
        async with reading(self._storage.chunks(file.key), threads=self._threads) as source:
            completed, fits = await self._produce_all(source, file)
        if source.digest.hexdigest() != file.sha256:
            raise _Damaged
        if not fits or completed.parts != len(self._story.parts):
            raise Drifted(self.job_id)
        await self._append(completed)
        _rows.inc(completed.rows)
        log.info("prepared", extra={"job": self.job_id, "rows": completed.rows, "valid": completed.valid})

    async def _produce_all(self, source: Source, file: File) -> tuple[PreparationCompleted, bool]:
        """The thread cuts the next part while one is stored, and reads the file to its end even where no more rows are."""
        eval_share = round(1 - float(self._job.spec.get("train_share", 0.9)), 9)
        parts = cut(rows(source, mime_type=file.mime_type, eval_share=eval_share), job_id=self.job_id)
        number, count, refused, fits = 0, 0, Counter[str](), True
        upcoming = source.step(partial(next, parts, None))
        while part := await self._wait(upcoming, source, file.size):
            upcoming = source.step(partial(next, parts, None))
            number, count = part.number, count + part.rows
            refused.update(part.refused)
            fits = fits and await self._produce(part)
        await self._wait(source.step(partial(_exhaust, source)), source, file.size)
        return PreparationCompleted(job_id=self.job_id, parts=number, rows=count, valid=count - sum(refused.values()), refused=dict(refused)), fits

    async def _produce(self, part: Part) -> bool:
        """Stored before it is told, once. False when another cut of the file was told before."""
        known = self._story.parts.get(part.number)
        if known is None:
            content = await self._storage.put(f"{self.tenant}/{self.job_id}", part.content)
            await self._append(PreparationProduced(job_id=self.job_id, part=part.number, content=content, rows=part.rows, valid=part.valid))
            known = self._story.parts[part.number]
        return known.sha256 == sha256(part.content).hexdigest()

    async def _wait(self, step: "asyncio.Future[Any]", source: Source, total: int) -> Any:
        while True:
            await asyncio.wait({step}, timeout=HEARTBEAT)
            await self._look()
            await self._tell(source.done, total)
            if step.done():
                return step.result()

    async def _tell(self, done: int, total: int) -> None:
        at, told = self._told
        now = asyncio.get_running_loop().time()
        if now - at >= HEARTBEAT and done > told:
            self._told = (now, done)
            await self._append(PreparationProgressed(job_id=self.job_id, done=done, total=total))

    async def _look(self) -> None:
        """Reads what is new. A fact of preparation behind one of ours shows that another replica got the job after us:
        what an earlier life of ours had under way can't land there, the guard has moved."""
        foreign = False
        for recorded in await self._log.read(story(self.tenant, self.job_id), after=self._read):
            self._read = recorded.seq
            foreign = foreign or (of_preparation(recorded) and recorded.seq > self._story.guard)
            self._story.tell(recorded)
        if self._story.ended:
            raise _Ended
        if foreign and self._wrote:
            raise HandedOver(f"job {self.job_id} is prepared by another replica")
        if self._story.cancel_requested:
            self.cancel_asked.set()

    async def _append(self, event: Event) -> None:
        """Guarded by the last fact of preparation. Whoever wrote another one meanwhile may have written this one too."""
        while True:
            guard = self._story.guard
            try:
                (recorded,) = await self._log.append([Write(events=[event], after=guard)], origin=self._origin)
            except Conflict:
                await self._look()
                if self._has(event):
                    return
                if self._story.guard == guard:
                    await asyncio.sleep(0.05)  # the replica that was read lags behind the one that refused
            else:
                self._wrote = True
                self._story.tell(recorded)
                return

    def _has(self, event: Event) -> bool:
        match event:
            case PreparationStarted():
                return self._story.started
            case PreparationProduced(part=part):
                return part in self._story.parts
            case _:
                return False

    async def _end(self, event: Event) -> None:
        """Behind whatever was written meanwhile, by an interrupted append of our own for one. Who was asked to cancel has no failures any more."""
        self._wrote = False
        try:
            await self._look()
            await self._append(PreparationCancelled(job_id=self.job_id) if self.cancel_asked.is_set() else event)
        except _Ended:
            return


class _Ended(Exception):
    """The job needs nothing more."""


class _Damaged(Exception):
    """What was stored isn't what was uploaded."""


class Drifted(Exception):
    """Parts that another version of this service cut don't fit ours: going on would double or lose rows."""


def _exhaust(source: Source) -> None:
    for _ in source:
        pass
