"""The jobs whose parts another job reads: how far they are, and when they have ended."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from libs.events import JobCreated, PreparationCancelled, PreparationCompleted, PreparationFailed, PreparationProduced, Source, story
from libs.events.log import EventLog

from .preparation import Hopeless

LOOK = 10.0
"""Seconds between looks at those that still run; usually the bus says at once that one has ended."""
SOON = 0.1
"""Seconds until the next look, where the bus said so and the replica of the log that was read didn't know yet."""


class NotYet(Exception):
    """The rest of the work waits for others, and needs no worker."""


class UnknownSource(Exception):
    """A job that nobody made is to be read: whoever asked for that is at fault."""


class Awaited(msgspec.Struct, kw_only=True):
    """One of them. Each reading goes on where the one before stopped."""

    job_id: str
    kind: str = "ingest"
    name: str = ""
    """Of the file that it read, where it read one."""
    parts: list[PreparationProduced] = []
    ended: bool = False
    barren_since: int = 0
    """Where it ended without a usable row, if it did."""
    read: int = 0

    async def look(self, log: EventLog, tenant: str) -> None:
        """Hopeless when its rows will never be there: to train on less than was asked for is worse than not to train."""
        for recorded in await log.read(story(tenant, self.job_id), after=self.read):
            self.read = recorded.seq
            match recorded.event:
                case JobCreated(kind=kind, inputs=inputs):
                    self.kind = kind
                    self.name = inputs.get("file", {}).get("filename", "")
                case PreparationProduced() as part:
                    self.parts.append(part)
                case PreparationCompleted(valid=valid):
                    self.ended, self.barren_since = True, 0 if valid else recorded.seq
                case PreparationFailed(message=message):
                    raise self._lost(_FAILED[self.kind], message)
                case PreparationCancelled():
                    raise self._lost(_CANCELLED[self.kind])
                case _:
                    continue
        if not self.read:
            raise UnknownSource(self.job_id)

    @property
    def rows(self) -> str:
        """What is read of it, in words."""
        return f"Rows of the file {self.name!r}" if self.name else "Generated examples"

    @property
    def remedy(self) -> str:
        return _REMEDIES[self.kind]

    def _lost(self, what: str, why: str = "") -> Hopeless:
        told = what.format(file=f"The file {self.name!r} (job {self.job_id})", job=f"(job {self.job_id})")
        return Hopeless("source_failed", " ".join(filter(None, (told, why, self.remedy))))


_FAILED = defaultdict(
    lambda: "{file} could not be read:",
    chunk="The documents could not be divided into chunks {job}:",
    generate="The examples could not be generated {job}:",
)
_CANCELLED = defaultdict(
    lambda: "{file} has no rows, because reading it was cancelled.",
    chunk="There are no chunks, because making them was cancelled {job}.",
    generate="There are no examples, because generating them was cancelled {job}.",
)
_REMEDIES = defaultdict(
    lambda: "Delete it or upload it again, then start anew.",
    chunk="Make the chunks again, then start anew.",
    generate="Generate them again, then start anew.",
)


class Sources:
    """All of them, in the order in which their rows are wanted."""

    def __init__(self, sources: Sequence[Source], *, log: EventLog, tenant: str) -> None:
        self.awaited = [Awaited(job_id=source.job_id) for source in sources]
        self._log = log
        self._tenant = tenant
        self._heard: set[str] = set()
        self._stirred = asyncio.Event()

    async def look(self) -> bool:
        """Whether all have ended."""
        self._stirred.clear()
        for job in self._running():
            await job.look(self._log, self._tenant)
        return not self._running()

    def hear(self, job_id: str) -> None:
        """The bus says that a preparation has ended."""
        if any(job.job_id == job_id for job in self._running()):
            self._heard.add(job_id)
            self._stirred.set()

    async def stirred(self) -> None:
        """When it is time for another look."""
        known_to_end = any(job.job_id in self._heard for job in self._running())
        try:
            async with asyncio.timeout(SOON if known_to_end else LOOK):
                await self._stirred.wait()
        except TimeoutError:
            return

    def _running(self) -> list[Awaited]:
        return [job for job in self.awaited if not job.ended]
