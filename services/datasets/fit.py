"""A run on a data set waits until that is prepared, and takes over what was made of it: nothing is copied, for a data set never changes."""

import asyncio
import logging
from concurrent.futures import Executor

import msgspec

from libs.config import Datasets
from libs.events import FitInputs, JobCreated, PreparationCancelled, PreparationCompleted, PreparationFailed, Recorded, story
from libs.events.log import EventLog
from libs.storage import Storage

from .preparation import Hopeless, Preparation
from .waiting import LOOK, SOON, NotYet, UnknownSource

log = logging.getLogger(__name__)


class TakeOver(Preparation):
    """The first stage of a train job with a `trainer`."""

    WHAT = "The data set could not be taken over"

    def __init__(self, created: Recorded, *, event_log: EventLog, storage: Storage, threads: Executor, settings: Datasets) -> None:
        super().__init__(created, event_log=event_log, storage=storage, threads=threads, settings=settings)
        self._source = ""
        self._stirred = asyncio.Event()
        self._heard = False

    async def prepare(self) -> None:
        prepared = await self._prepared()
        if prepared is None:
            raise NotYet
        await self.begin()
        await self.append(msgspec.structs.replace(prepared, job_id=self.job_id, parts=0, position=self.position))
        log.info("data set taken over", extra={"job": self.job_id, "source": self._source})

    async def wait(self) -> None:
        """Until the data set is prepared, or this job has ended. Takes up neither a worker nor a thread."""
        await self.live(self._wait)

    def hear(self, tenant: str, job_id: str) -> None:
        """The bus says that a preparation has ended."""
        if (tenant, job_id) == (self.tenant, self._source):
            self._heard = True
            self._stirred.set()

    async def _wait(self) -> None:
        while await self._prepared() is None:
            try:
                async with asyncio.timeout(SOON if self._heard else LOOK):  # the replica of the log that was read may lag behind the bus
                    await self._stirred.wait()
            except TimeoutError:
                pass
            self._stirred.clear()
            await self.look()

    async def _prepared(self) -> PreparationCompleted | None:
        """How the data set's preparation ended; None as long as it lasts."""
        self._source = msgspec.convert(self.job.inputs, FitInputs).source
        told = await self.log.read(story(self.tenant, self._source))
        if not any(isinstance(recorded.event, JobCreated) for recorded in told):
            raise UnknownSource(self._source)
        for recorded in told:
            match recorded.event:
                case PreparationCompleted() as completed:
                    return completed
                case PreparationFailed(message=message):
                    raise Hopeless("source_failed", f"The data set could not be read: {message} Upload it again, then start anew.")
                case PreparationCancelled():
                    raise Hopeless("source_failed", "The data set was not read to its end, because that was cancelled. Upload it again, then start anew.")
                case _:
                    continue
        return None
