"""Gives waiting jobs to idle workers. Every replica does it and nothing elects: WORK takes one message per job, so a refused release is normal."""

import asyncio
import logging

import prometheus_client

from libs import telemetry
from libs.events import Origin, TrainingCancelled, Unreadable, decode, story
from libs.events.log import Conflict, EventLog, Following, Forbidden, Full, RawFact, Unavailable, Write

from .leases import Leases, Unreachable
from .queue import FACTS, Entry, Queue
from .story import Story

log = logging.getLogger(__name__)

QUIET = 0.02
"""Seconds without a fact after which it has caught up: before, it would release what has ended long ago."""
LOOK = 1.0
"""Seconds between looks for workers that have become idle."""
AGAIN = 30.0
"""Seconds between offers of what is in work already: refused as long as its lease is there, and the cure when somebody deleted it."""

_queue_length = prometheus_client.Gauge("trainyard_queue_length", "Jobs that are ready to be trained and that no worker has taken")


class Scheduler:
    def __init__(self, event_log: EventLog, leases: Leases, *, again: float = AGAIN) -> None:
        self._log = event_log
        self._leases = leases
        self._queue = Queue()
        self._news = asyncio.Event()
        self._again = again
        self._offered_again = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        following = await self._follow()
        try:
            while True:
                await self._settled()
                try:
                    await self._cancel()
                    await self._release()
                except (Unreachable, Unavailable, Full, Forbidden) as error:
                    log.warning("the scheduler waits: %s", str(error) or type(error).__name__)
                    await asyncio.sleep(LOOK)
        finally:
            await following.close()

    async def _follow(self) -> Following:
        while True:
            try:
                return await self._log.follow(after=0, deliver=self._hear, pattern=FACTS)
            except Unavailable as error:
                log.warning("the scheduler waits for the log: %s", error)
                await asyncio.sleep(LOOK)

    async def _hear(self, raw: RawFact) -> None:
        try:
            self._queue.tell(decode(raw.data, seq=raw.seq, subject=raw.subject))
        except Unreadable:
            log.exception("a fact is passed over", extra={"fact": raw.seq})
        self._news.set()

    async def _settled(self) -> None:
        """Something has happened, or it is time to look; and nothing more comes in for a moment."""
        try:
            async with asyncio.timeout(LOOK):
                await self._news.wait()
        except TimeoutError:
            return
        while self._news.is_set():
            self._news.clear()
            await asyncio.sleep(QUIET)

    async def _cancel(self) -> None:
        """Before any worker has started, the end of a job is ours to write."""
        for entry in self._queue.to_cancel:
            told = Story()
            try:
                for recorded in await self._log.read(story(entry.tenant, entry.job_id)):
                    told.tell(recorded)
            except Unreadable:
                log.exception("the story of a job can't be read", extra={"job": entry.job_id})
                self._queue.forget(entry)  # what is wrong with one job holds up no other
                continue
            if told.created and told.guard == 0 and not told.ended:
                await self._write_cancelled(entry, told)

    async def _write_cancelled(self, entry: Entry, told: Story) -> None:
        assert told.created
        envelope = told.created.envelope
        origin = Origin(
            tenant=entry.tenant, actor=envelope.actor, correlation=envelope.correlationid, causation=envelope.id, traceparent=telemetry.traceparent()
        )
        try:
            await self._log.append([Write(events=[TrainingCancelled(job_id=entry.job_id)], after=0)], origin=origin)
        except Conflict:
            return  # another replica was faster, or a worker, who will see the cancel himself
        log.info("cancelled before it began", extra={"job": entry.job_id})

    async def _release(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._offered_again >= self._again:
            self._offered_again = now
            for entry in self._queue.in_work:
                await self._leases.offer(entry.tenant, entry.job_id)
        if self._queue.next_to_release():
            room = (await self._leases.demand()).room
            while room > 0 and (entry := self._queue.next_to_release()):
                offered = await self._leases.offer(entry.tenant, entry.job_id)
                entry.released = True
                room = room - 1 if offered else (await self._leases.demand()).room
        _queue_length.set(len(self._queue.waiting))
