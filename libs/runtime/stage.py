"""A stage of a job, as its service sees it in the log: read again and again, written under one guard, ended once."""

import asyncio
from collections.abc import Callable

from libs import telemetry
from libs.events import Event, JobCancelRequested, JobCreated, Origin, Recorded, kind, story
from libs.events.log import Conflict, EventLog, Write
from libs.runtime.broker import HandedOver

ENDS = ("completed", "failed", "cancelled")


class Ended(Exception):
    """The stage has its last fact: nothing more is wanted."""


class Stage:
    """Held by whoever holds the job's delivery. What he wrote himself he goes on from, what others wrote meanwhile makes him stop."""

    def __init__(self, created: Recorded, *, category: str, event_log: EventLog) -> None:
        assert isinstance(created.event, JobCreated)
        self.job_id = created.event.job_id
        self.tenant = created.tenant
        self.started = False
        self.cancel_asked = asyncio.Event()
        self._category = category
        self._log = event_log
        self._origin = Origin(
            tenant=created.tenant,
            actor=created.envelope.actor,
            correlation=created.envelope.correlationid,
            causation=created.id,
            traceparent=telemetry.traceparent(),
        )
        self._guard = 0
        self._read = 0
        self._ended = False
        self._wrote = False

    async def look(self) -> None:
        """Reads what is new. A fact of this stage behind one of ours shows that another replica got the job after us:
        what an earlier life of ours had under way can't land there, the guard has moved."""
        foreign = False
        for recorded in await self._log.read(story(self.tenant, self.job_id), after=self._read):
            self._read = recorded.seq
            foreign = foreign or (self._is_ours(recorded) and recorded.seq > self._guard)
            self._tell(recorded)
        if self._ended:
            raise Ended
        if foreign and self._wrote:
            raise HandedOver(f"the {self._category} of job {self.job_id} is done by another replica")

    async def append(self, event: Event, *, there: Callable[[], bool] = lambda: False) -> None:
        """Right behind the stage's last fact. `there` tells whether what somebody wrote meanwhile is this very fact."""
        while True:
            guard = self._guard
            try:
                (recorded,) = await self._log.append([Write(events=[event], after=guard)], origin=self._origin)
            except Conflict:
                await self.look()
                if there():
                    return
                if self._guard == guard:
                    await asyncio.sleep(0.05)  # the replica that was read lags behind the one that refused
            else:
                self._wrote = True
                self._tell(recorded)
                return

    async def start(self, event: Event) -> None:
        if not self.started:
            await self.append(event, there=lambda: self.started)

    async def end(self, event: Event, *, cancelled: Event) -> None:
        """Behind whatever was written meanwhile, by an interrupted append of our own for one. Who was asked to cancel has no failures any more."""
        self._wrote = False
        try:
            await self.look()
            await self.append(cancelled if self.cancel_asked.is_set() else event)
        except Ended:
            return

    def _tell(self, recorded: Recorded) -> None:
        if self._is_ours(recorded):
            self._guard = max(self._guard, recorded.seq)
            name = recorded.envelope.type.split(".", 1)[1]
            self.started = self.started or name == "started"
            self._ended = self._ended or name in ENDS
        elif recorded.envelope.type == kind(JobCancelRequested):
            self.cancel_asked.set()

    def _is_ours(self, recorded: Recorded) -> bool:
        return recorded.envelope.type.startswith(f"{self._category}.")
