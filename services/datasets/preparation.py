"""What every preparation has in common: its stage of the job's story, progress, and its one end."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ClassVar, TypeVar

from libs.config import Datasets
from libs.events import Claim, JobCreated, PreparationCancelled, PreparationFailed, PreparationProduced, PreparationProgressed, PreparationStarted, Recorded
from libs.events.log import EventLog
from libs.pace import Pace
from libs.runtime.stage import Ended, Stage
from libs.runtime.waiting import Stopped, unless
from libs.storage import Storage

T = TypeVar("T")

log = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between looks at the log while nothing else happens, and at least between two facts about progress."""


class Hopeless(Exception):
    """The work can never be done: why, as a stable code and in words for who asked for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Preparation(Stage, ABC):
    """One job's, in the hands of whoever holds its delivery."""

    WHAT: ClassVar[str]
    """What did not come about, for who reads that the platform is at fault."""

    def __init__(self, created: Recorded, *, event_log: EventLog, storage: Storage, threads: Executor, settings: Datasets) -> None:
        super().__init__(created, category="preparation", event_log=event_log)
        assert isinstance(created.event, JobCreated)
        self.job = created.event
        self.position = created.seq
        self.parts: dict[int, Claim] = {}
        """Those that are told."""
        self.log = event_log
        self.storage = storage
        self.threads = threads
        self.settings = settings
        self._reported = (0.0, 0, "")
        self.pace = Pace()

    @abstractmethod
    async def prepare(self) -> None:
        """The work, from wherever the story says it is to its `completed`."""

    async def run(self) -> None:
        await self.live(self.prepare)

    async def live(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does work as long as the job wants it, and tells how the job ended where it did."""
        try:
            await self.look()
            self._reported = (asyncio.get_running_loop().time(), 0, "")
            await unless(self.cancel_asked, work())
        except Ended:
            return
        except Stopped:
            await self._end(PreparationCancelled(job_id=self.job_id))
        except Hopeless as why:
            await self.fail(why.code, why.message)

    async def begin(self) -> None:
        await self.start(PreparationStarted(job_id=self.job_id))

    async def fail(self, code: str, message: str) -> None:
        log.warning("preparation failed", extra={"job": self.job_id, "code": code})
        await self._end(PreparationFailed(job_id=self.job_id, code=code, message=message))

    async def attend(self, work: "asyncio.Future[T]", *, done: Callable[[], int], total: int, waiting: Callable[[], str] = str) -> T:
        """What the work gives, with a look at the log and a word about progress now and then until then. `waiting`: for what, in words, if for anything."""
        self.pace.note(done(), at=asyncio.get_running_loop().time())
        while True:
            await asyncio.wait({work}, timeout=HEARTBEAT)
            await self.look()
            if self.cancel_asked.is_set():
                raise Stopped  # whoever waits for that would hear of it only after the next part
            await self._report(done(), total, waiting())
            if work.done():
                return work.result()

    async def _report(self, done: int, total: int, message: str) -> None:
        at, reported, said = self._reported
        now = asyncio.get_running_loop().time()
        self.pace.note(done, at=now)
        if now - at >= HEARTBEAT and (done > reported or message != said):
            self._reported, speed = (now, done, message), self.pace.speed
            await self.append(PreparationProgressed(job_id=self.job_id, done=done, total=total, made=speed.made, seconds=speed.seconds, message=message))

    async def _end(self, event: PreparationFailed | PreparationCancelled) -> None:
        await self.end(event, cancelled=PreparationCancelled(job_id=self.job_id))

    def _tell(self, recorded: Recorded) -> None:
        super()._tell(recorded)
        if isinstance(recorded.event, PreparationProduced):
            self.parts[recorded.event.part] = recorded.event.content
