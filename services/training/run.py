"""A job in the hands of a worker: attempt after attempt, until it has ended or somebody else has it."""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import prometheus_client

from libs.events import Claim, Event, TrainingAttemptLost, TrainingCancelled, TrainingFailed
from libs.runtime.waiting import Stopped as Interrupted
from libs.runtime.waiting import unless

from . import telling
from .attempt import Attempt
from .disk import DISK_FULL, is_disk_full
from .ending import GivenBack, Hopeless, Lost, Moved, Over, Signals
from .leases import Lease
from .orders import EXPORT, Order, order, takes
from .pen import OUTAGES, Pen
from .place import Place, Slot
from .story import GIVEN_BACK

log = logging.getLogger(__name__)

TRIES = 3
"""Attempts without a new checkpoint, after which the job fails."""
AGAIN = 0.5
"""Seconds until a log that is away is asked again."""

_lost = prometheus_client.Counter("trainyard_attempts_lost_total", "Attempts of this service that ended without a word")


class Run:
    def __init__(self, lease: Lease, *, place: Place, slot: Slot) -> None:
        self.tenant = lease.tenant
        self.job_id = lease.job_id
        self.signals = Signals()
        self._lease = lease
        self._place = place
        self._slot = slot
        self._pen = Pen(place.log, tenant=lease.tenant, job_id=lease.job_id, signals=self.signals)
        self._story = self._pen.story
        self._told_lost = 0
        """The last attempt of ours whose end is in the log."""
        self._stumbles = 0
        """Attempts that broke down before it was told that they began."""
        self._disk_full = False

    async def work(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            while not await self._round():
                continue
            await self._lease.done()
        except Over:
            if self._story.ended:
                await self._lease.done()
            else:
                log.warning("another worker has the job", extra={"job": self.job_id, "attempt": self._pen.attempt})
        except GivenBack:
            await self._lease.give_back()
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        """Says that we live, and hears what has become of the job."""
        while True:
            await asyncio.sleep(self._place.timing.beat)
            await self._lease.beat()
            try:
                await self._pen.look()
            except OUTAGES:
                continue
            except Exception as error:  # noqa: BLE001  # Over, most likely; whatever it is, the run raises it
                self.signals.fail(error)

    async def _round(self) -> bool:
        """Whether nothing is left to do."""
        try:
            return await self._heeding()
        except Moved:
            return False
        except Lost as lost:
            await self._lose(lost)
            return False
        except (Over, GivenBack):
            raise
        except Exception as error:
            log.exception("an attempt broke down", extra={"job": self.job_id})
            if is_disk_full(error):
                self._disk_full = True
                return False
            await self._lose(Lost("internal", f"a fault in the platform ({type(error).__name__})"))
            return False

    async def _heeding(self) -> bool:
        try:
            try:
                return await self._attempt_or_end()
            except Hopeless as why:
                return await self._fail(why)
        except Interrupted:
            if failure := self.signals.taken_failure():
                raise failure from None
            if self.signals.stop.is_set():
                await self._give_back()
            return False  # it is a cancel, and the next round ends the job

    async def _attempt_or_end(self) -> bool:
        if not self._story.created:
            await unless(self.signals.hard, self._pen.read())
        story = self._story
        if not takes(story):
            log.warning("a lease without a job to train", extra={"job": self.job_id})
            return True
        if self.signals.cancel.is_set():
            await self._end(TrainingCancelled(job_id=self.job_id, attempt=story.attempt, step=story.last.step if story.last else 0, steps=self._kept_log()))
            return True
        if self._disk_full:
            raise Hopeless("disk_full", DISK_FULL)
        if self._stumbles >= TRIES:
            raise Hopeless("internal", "The training could not be begun because of a fault in the platform. Its log says more; the operator can mend it.")
        if story.in_vain >= TRIES:
            cause = story.cause or "its machine was lost"
            what = "merge" if story.job.kind == EXPORT else "training"
            raise Hopeless("crashed", f"The {what} ended without a word {story.in_vain} times and came no further than step {self._reached()}: {cause}.")
        wanted = await unless(self.signals.any, self._order())
        with self._folder() as folder:
            attempt = Attempt(place=self._place, slot=self._slot, pen=self._pen, signals=self.signals, folder=folder, order=wanted)
            await self._end(await attempt.outcome())
        return True

    async def _order(self) -> Order:
        while True:
            try:
                return await order(self._story, self._place.log, tenant=self.tenant)
            except OUTAGES as error:
                log.warning("the log is away: %s", str(error) or type(error).__name__)
                await asyncio.sleep(AGAIN)

    async def _fail(self, why: Hopeless) -> bool:
        await self._end(
            TrainingFailed(
                job_id=self.job_id, code=why.code, message=telling.words(why.message), attempt=self._story.attempt, step=self._reached(), steps=self._kept_log()
            )
        )
        return True

    async def _end(self, event: Event) -> None:
        """Who was asked to cancel has no other end any more."""
        await unless(self.signals.hard, self._pen.read())
        if self.signals.cancel.is_set() and not isinstance(event, TrainingCancelled):
            step, kept = getattr(event, "step", 0), getattr(event, "steps", None)
            event = TrainingCancelled(job_id=self.job_id, attempt=self._story.attempt, step=step, steps=kept)
        await unless(self.signals.hard, self._pen.append(event))
        log.info("ended", extra={"job": self.job_id, "as": str(event.__struct_config__.tag)})

    async def _lose(self, lost: Lost) -> None:
        """The next round takes it up again, or gives up."""
        if self._pen.attempt == self._told_lost:
            self._stumbles += 1
            await asyncio.sleep(1)
            return
        _lost.inc()
        log.warning("attempt lost: %s", lost.message, extra={"job": self.job_id, "attempt": self._pen.attempt})
        await self._tell_lost(lost.cause, telling.words(lost.message))

    async def _give_back(self) -> None:
        if self._pen.attempt != self._told_lost:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._place.timing.answer / 4):
                    await self._tell_lost(GIVEN_BACK, "the training service was asked to end")
        raise GivenBack

    async def _tell_lost(self, cause: str, message: str) -> None:
        await self._pen.append(TrainingAttemptLost(job_id=self.job_id, attempt=self._pen.attempt, cause=cause, message=message))
        self._told_lost = self._pen.attempt

    def _kept_log(self) -> Claim | None:
        return self._story.last.steps if self._story.last else None

    def _reached(self) -> int:
        return self._story.last.step if self._story.last else 0

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = self._place.runs / f"{self.job_id}-{self._story.attempt + 1}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
