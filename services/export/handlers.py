"""What the service does when something happens in the log."""

from collections.abc import Iterator
from contextlib import contextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.events import Address, JobCreated, Recorded, TrainingCompleted
from libs.events.log import EventLog
from libs.storage import Storage

from .exporting import Export

KINDS = ("export",)
"""Kinds of jobs whose export this version does."""
CANCELS = "feed.*.job.cancel_requested.*"


class Exports:
    """Those that this process has in hand."""

    def __init__(self, event_log: EventLog, storage: Storage) -> None:
        self._log = event_log
        self._storage = storage
        self._in_hand: set[Export] = set()

    async def listen(self, nc: Client) -> None:
        """Cancels go to every replica: a shared durable would give each of them some."""
        await nc.subscribe(CANCELS, cb=self._cancel)

    async def export(self, created: Recorded) -> None:
        """Delivered at least once: the story in the log says how far things are."""
        if _ours(created, first=True):
            await self._run(created)

    async def export_merged(self, completed: Recorded) -> None:
        """The stage before ours has passed the baton: what was trained is merged. Most trainings are no stage of an export."""
        created = await self._created(completed)
        if _ours(created, first=False):
            await self._run(created)

    async def give_up_merged(self, completed: Recorded, error: Exception) -> None:
        created = await self._created(completed)
        if _ours(created, first=False):
            await self.give_up(created, error)

    async def give_up(self, created: Recorded, error: Exception) -> None:
        message = f"The model could not be exported because of a fault in the platform ({type(error).__name__}). Its log says more; the operator can mend it."
        await self._export(created).fail("internal", message)

    async def _run(self, created: Recorded) -> None:
        with self._holding(self._export(created)) as export:
            await export.run()

    async def _created(self, completed: Recorded) -> Recorded:
        assert isinstance(completed.event, TrainingCompleted)
        (created,) = await self._log.read(Address(tenant=completed.tenant, category="job", key=(completed.event.job_id,)).under("created"))
        return created

    async def _cancel(self, msg: Msg) -> None:
        _, tenant, *_, job_id = msg.subject.split(".")
        for export in self._in_hand:
            if (export.tenant, export.job_id) == (tenant, job_id):
                export.cancel_asked.set()

    def _export(self, created: Recorded) -> Export:
        return Export(created, event_log=self._log, storage=self._storage)

    @contextmanager
    def _holding(self, export: Export) -> Iterator[Export]:
        self._in_hand.add(export)
        try:
            yield export
        finally:
            self._in_hand.discard(export)


def _ours(created: Recorded, *, first: bool) -> bool:
    job = created.event
    return isinstance(job, JobCreated) and job.kind in KINDS and "export" in job.stages and (job.stages[0] == "export") is first
