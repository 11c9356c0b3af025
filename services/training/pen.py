"""Writes one training's facts, each right behind the last, and reads what others wrote: the one place where a worker learns that a job isn't his any more."""

import asyncio
import logging

import nats.errors

from libs import telemetry
from libs.events import Event, Origin, TrainingStarted, story
from libs.events.log import Conflict, EventLog, Full, Unavailable, Write

from .ending import Moved, Over, Signals
from .story import Story, of_training

log = logging.getLogger(__name__)

OUTAGES = (Unavailable, Full, nats.errors.Error, OSError)
_DELAY = 0.5


class Pen:
    def __init__(self, event_log: EventLog, *, tenant: str, job_id: str, signals: Signals) -> None:
        self.story = Story()
        self.attempt = 0
        """Ours; 0 before one was started."""
        self._starting = 0
        """The one whose start is on its way: read before the answer came, it is no other worker's."""
        self._log = event_log
        self._where = story(tenant, job_id)
        self.tenant = tenant
        self._signals = signals
        self._read = 0
        self._turn = asyncio.Lock()
        self._found: list[Event] = []
        """Facts of training that no append of ours is known to have written. One whose answer was lost is among them."""

    async def look(self) -> None:
        """Raises Over, or an outage."""
        for recorded in await self._log.read(self._where, after=self._read):
            self._read = max(self._read, recorded.seq)
            if of_training(recorded) and recorded.seq > self.story.guard and recorded.event:
                self._found.append(recorded.event)
            self.story.tell(recorded)
        self._check()
        if self.story.cancel_requested:
            self._signals.ask_cancel()

    async def read(self) -> None:
        """As look, but it waits for a log that is away."""
        while True:
            try:
                return await self.look()
            except OUTAGES as error:
                await _wait(error)

    async def begin(self, started: TrainingStarted) -> None:
        """Raises Moved, or Over, instead of writing behind what had not been read."""
        self._starting = started.attempt
        try:
            await self._append(started, as_read=True)
            self.attempt = started.attempt
        except Moved:
            self._starting = 0  # it was somebody else's
            await self.read()
            raise
        finally:
            self._starting = 0

    async def append(self, event: Event) -> None:
        """Waits for a log that is away."""
        await self._append(event)

    def _check(self) -> None:
        if self.story.ended or 0 < self.attempt < self.story.attempt != self._starting:
            raise Over

    async def _append(self, event: Event, *, as_read: bool = False) -> None:
        async with self._turn:
            self._found.clear()
            while True:
                self._check()  # a look of somebody else here may have moved the guard past the fact that says so
                guard = self.story.guard
                try:
                    (recorded,) = await self._log.append([Write(events=[event], after=guard)], origin=self._origin())
                except Conflict:
                    await self.read()
                except OUTAGES as error:
                    await _wait(error)
                else:
                    self.story.tell(recorded)
                    return
                if event in self._found:
                    return
                if self.story.guard == guard:
                    await asyncio.sleep(0.05)  # the replica that was read lags behind the one that refused
                elif as_read:
                    raise Moved

    def _origin(self) -> Origin:
        assert self.story.created
        envelope = self.story.created.envelope
        return Origin(tenant=self.tenant, actor=envelope.actor, correlation=envelope.correlationid, causation=envelope.id, traceparent=telemetry.traceparent())


async def _wait(error: Exception) -> None:
    log.warning("the log is away: %s", str(error) or type(error).__name__)
    await asyncio.sleep(_DELAY)
