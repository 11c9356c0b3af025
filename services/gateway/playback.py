"""A training run from any point on, for those who watch: its facts and its steps in one order, first what was, then what comes.

A viewer's place is two numbers: the position of the last fact he saw, and his last step. Facts come in the log's order, steps in theirs without
a gap, and a step before the facts that know of it. A run that goes on behind a checkpoint does some steps again, and they come out the same:
nobody is shown a step twice.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing

import msgspec

from libs.events import (
    Claim,
    Event,
    PreparationCancelled,
    PreparationFailed,
    ProjectRunStarted,
    Recorded,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingSampled,
    TrainingStarted,
    story,
)
from libs.events.catalog import decode
from libs.events.log import EventLog, Unavailable
from libs.runtime.waiting import within
from libs.storage import Damaged, Missing, Storage, StorageDown
from services.gateway.live import Live, TooSlow
from services.gateway.steps import Ear, Step, Told, stored

log = logging.getLogger(__name__)

_AGAIN = 1.0
"""Seconds until a store or a bus that didn't answer is asked again."""
_ON_THE_WAY = 0.5
"""Seconds that a fact waits for the steps before it: they come another way."""
_AT_ONCE = 500

ENDS = (TrainingCompleted, TrainingFailed, TrainingCancelled, PreparationFailed, PreparationCancelled)
_BEHIND_A_STEP = (TrainingProgressed, TrainingEvaluated, TrainingCheckpointed, TrainingSampled)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the log said of a train job when somebody began to look."""

    tenant: str
    job_id: str
    first: int
    last: int
    """Positions of its first and last fact."""
    end: int = 0
    """Of its terminal fact; 0: it has none."""
    steps: Claim | None = None
    """Its newest step log, and the position of the fact that has it."""
    steps_at: int = 0
    attempt: int = 0


async def latest(event_log: EventLog, tenant: str, project_id: str) -> Run | None:
    """The newest run of a project."""
    started = await event_log.read(f"ev.{tenant}.project.run_started.{project_id}")
    if not started or not isinstance(started[-1].event, ProjectRunStarted):
        return None
    return await look(event_log, tenant, started[-1].event.job_id, after=started[-1].seq)


async def look(event_log: EventLog, tenant: str, job_id: str, *, after: int = 0) -> Run | None:
    return told(tenant, job_id, await event_log.read(story(tenant, job_id), after=after))


def told(tenant: str, job_id: str, facts: Iterable[Recorded]) -> Run | None:
    run: Run | None = None
    for recorded in facts:
        event, seq = recorded.event, recorded.seq
        run = msgspec.structs.replace(run, last=seq) if run else Run(tenant=tenant, job_id=job_id, first=seq, last=seq)
        if isinstance(event, TrainingStarted):
            run = msgspec.structs.replace(run, attempt=max(run.attempt, event.attempt))
        if claim := _steps_of(recorded):
            run = msgspec.structs.replace(run, steps=claim, steps_at=seq)
        if _ends(event):
            run = msgspec.structs.replace(run, end=seq)
    return run


def _ends(event: Event | None) -> bool:
    """The end of a merge is not that of its job: the export is."""
    return isinstance(event, ENDS) and not (isinstance(event, TrainingCompleted) and event.merge)


async def play(
    live: Live, storage: Storage, run: Run, *, after: int = 0, after_step: int = 0, in_step: bool = True, heartbeat: float = 15.0
) -> AsyncGenerator[Recorded | list[Step] | None, None]:
    """The facts of a run behind a position and its steps behind one, until the run has ended or the gateway does. None is a heartbeat.

    Not `in_step` what has just happened doesn't wait for the steps before it.
    """
    async with (
        live.telemetry.listen(run.tenant, run.job_id) as ear,
        aclosing(live.watch(run.tenant, after=max(after, run.first - 1), about=run.job_id, heartbeat=heartbeat)) as facts,
    ):
        steps = _Steps(storage, ear, run, after=after_step)
        seen = after
        coming = asyncio.ensure_future(anext(facts))
        news = asyncio.ensure_future(ear.news())
        try:
            while True:
                if seen >= run.last:
                    async for some in steps.until(None):
                        yield some
                        if coming.done():
                            break
                    await asyncio.wait({coming, news}, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.wait({coming})
                if news.done():
                    news = asyncio.ensure_future(ear.news())
                if not coming.done():
                    continue
                try:
                    raw = coming.result()
                except StopAsyncIteration:
                    return
                coming = asyncio.ensure_future(anext(facts))
                if raw is None:
                    yield None
                    continue
                recorded = decode(raw.data, seq=raw.seq, subject=raw.subject)
                async for some in steps.before(recorded, waiting=in_step and seen >= run.last):
                    yield some
                    if live.closing:
                        return
                yield recorded
                seen = raw.seq
                if _ends(recorded.event):
                    return
        finally:
            for task in (coming, news):
                task.cancel()
            await asyncio.gather(coming, news, return_exceptions=True)


class _Steps:
    """The steps behind one, in order, from wherever they can be had: first the newest step log, then what the bus keeps, then what comes."""

    def __init__(self, storage: Storage, ear: Ear, run: Run, *, after: int) -> None:
        self._storage = storage
        self._ear = ear
        self._last = after
        self._attempt = run.attempt
        self._batch: deque[Step] = deque()
        self._log = run.steps
        self._log_at = run.steps_at
        self._lines: AsyncGenerator[list[Step], None] | None = None
        self._kept: AsyncGenerator[list[Told], None] | None = None
        self._stuck = False
        """The bus has lost steps: the next step log will have them."""
        self._ended = False
        self._complete = run.end > 0 and run.end == run.steps_at
        """The step log is the run's last: the bus knows nothing more."""

    async def before(self, recorded: Recorded, *, waiting: bool) -> AsyncIterator[list[Step] | None]:
        """The steps that are to be seen before a fact."""
        event, claim = recorded.event, _steps_of(recorded)
        if isinstance(event, TrainingStarted):
            self._attempt = max(self._attempt, event.attempt)
        if _ends(event):
            self._end(recorded, claim)
            async for some in self.until(None):
                yield some
        if not isinstance(event, _BEHIND_A_STEP) or event.step <= self._last:
            return
        if claim and recorded.seq > self._log_at:
            self._read(claim, at=recorded.seq)
        async for some in self.until(event.step):
            yield some
        deadline = asyncio.get_running_loop().time() + _ON_THE_WAY
        while waiting and not self._stuck and event.step > self._last and (left := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                await within(left, self._ear.news())
            except TimeoutError:
                return
            async for some in self.until(event.step):
                yield some

    async def until(self, step: int | None) -> AsyncIterator[list[Step] | None]:
        """Those up to a step that can be had now. None: the store or the bus doesn't answer, and is asked again."""
        while step is None or self._last < step:
            if some := self._cut(step):
                self._last = some[-1].step
                yield some
            elif self._batch:
                return
            else:
                try:
                    if not await self._more():
                        return
                except (Damaged, Missing):
                    log.exception("a step log can't be read, its steps are not shown")
                    self._log = self._lines = None
                except (StorageDown, Unavailable):
                    self._lines = None
                    if self._kept:
                        self._ear.lose()
                    yield None
                    await asyncio.sleep(_AGAIN)

    def _cut(self, step: int | None) -> list[Step]:
        some: list[Step] = []
        while self._batch and len(some) < _AT_ONCE and (step is None or self._batch[0].step <= step):
            some.append(self._batch.popleft())
        return some

    async def _more(self) -> bool:
        """Fetches some; False when there is nothing to be had."""
        if self._log:
            self._lines = self._lines or stored(self._storage, self._log, after=self._last)
            if (lines := await anext(self._lines, None)) is None:
                self._log = self._lines = None
            else:
                self._batch.extend(lines)
            return True
        if self._complete:
            return False
        if self._ear.slow:
            raise TooSlow
        if self._ear.lost:
            self._kept = await self._ear.open()
        if self._kept:
            if (page := await anext(self._kept, None)) is None:
                self._kept = None
            for told in page or ():
                self._hear(told)
            return True
        if told := self._ear.heard():
            self._hear(told)
            return True
        return False

    def _hear(self, told: Told) -> None:
        if told.attempt < self._attempt or self._stuck:
            return
        for step in told.steps:
            last = self._batch[-1].step if self._batch else self._last
            if step.step <= last:
                continue
            if step.step > last + 1 and not self._ended:
                self._stuck = self._kept is not None
                self._ear.lost = not self._stuck  # what was not heard may be kept
                return
            self._batch.append(step)

    def _read(self, claim: Claim, *, at: int) -> None:
        self._log, self._log_at, self._lines = claim, at, None
        self._batch.clear()
        if self._stuck:
            self._stuck = False
            self._ear.lose()

    def _end(self, recorded: Recorded, claim: Claim | None) -> None:
        """Whatever is known of its steps now is all that ever will be."""
        self._ended, self._stuck = True, False
        if claim is None:
            self._ear.lose()
            return
        self._complete = True
        everything_shown = isinstance(recorded.event, TrainingCompleted) and recorded.event.step <= self._last
        if recorded.seq > self._log_at and not everything_shown:
            self._read(claim, at=recorded.seq)


def _steps_of(recorded: Recorded) -> Claim | None:
    match recorded.event:
        case TrainingCheckpointed(steps=claim) | TrainingCompleted(steps=claim) | TrainingFailed(steps=claim) | TrainingCancelled(steps=claim):
            return claim
        case _:
            return None
