"""What the gateway does because something happened. Delivered at least once, so each is safe to do again; never in the projector, or a rebuild would repeat it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial

import asyncpg

from libs.events import (
    Address,
    Event,
    JobCreated,
    Origin,
    PreparationCancelled,
    PreparationFailed,
    ProjectDeleted,
    ProjectFileDeleted,
    ProjectWorkStarted,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    decode,
    kind,
)
from libs.events.log import EventLog, Unavailable
from libs.runtime.broker import Broker, react
from libs.storage import Storage, StorageDown
from services.gateway.commands import Commands
from services.gateway.domain.credit import Settle, settlement
from services.gateway.domain.errors import Conflicted, JobEnded
from services.gateway.domain.jobs import CancelJob
from services.gateway.domain.project import DELETED, LEND
from services.gateway.views import jobs, leases, objects
from services.gateway.views.database import DOWN
from services.gateway.views.progress import Progress

log = logging.getLogger(__name__)

ENDS: tuple[type[Event], ...] = (PreparationFailed, PreparationCancelled, TrainingCompleted, TrainingFailed, TrainingCancelled)
"""Of jobs that may have a price."""
SWEEP_EVERY = 3600.0
CAUGHT_UP = 10.0
"""Seconds that a sweep waits for the views: while people work they are always a moment behind."""
AT_ONCE = 16
SHOWN = 2.0
"""Seconds that a settlement waits for them, before another gateway may: one that has just started doesn't know how far they are until something happens."""


def subscribe(broker: Broker, storage: Storage, event_log: EventLog, commands: Commands, db: asyncpg.Pool) -> None:
    async def remove_project(recorded: Recorded) -> None:
        """What nobody can reach any more needs no room, and no work."""
        assert isinstance(recorded.event, ProjectDeleted)
        project_id = recorded.event.project_id
        if not await commands.visible(recorded.seq, patience=SHOWN):
            raise Unavailable(f"the views don't show the end of project {project_id} yet")  # nor, perhaps, all of its jobs
        try:
            found = await jobs.all_of_project(db, recorded.tenant, project_id)
            lent = await jobs.going_on(db, recorded.tenant, await _lent(event_log, recorded, project_id))
        except DOWN as error:
            raise Unavailable(f"jobs of project {project_id}: {str(error) or type(error).__name__}") from error
        await _a_few_at_once(partial(cancel, recorded), [*(id for id, goes_on in found if goes_on), *lent])
        await _a_few_at_once(lambda owner: storage.delete_folder(f"{recorded.tenant}/{owner}"), [project_id, *(id for id, _ in found)])

    async def cancel(because: Recorded, job_id: str) -> None:
        """One for which the batch had no room."""
        origin = Origin(tenant=because.tenant, correlation=because.envelope.correlationid, causation=because.id, traceparent=because.envelope.traceparent)
        try:
            await commands.run(CancelJob(job_id=job_id, reason=DELETED), origin=origin)
        except JobEnded:
            return
        except (Conflicted, *DOWN) as error:
            raise Unavailable(f"job {job_id}: {str(error) or type(error).__name__}") from error

    async def remove_file(recorded: Recorded) -> None:
        assert isinstance(recorded.event, ProjectFileDeleted)
        await storage.delete([recorded.event.key])
        if recorded.event.job_id:  # documents have none
            await storage.delete_folder(f"{recorded.tenant}/{recorded.event.job_id}")

    async def settle(recorded: Recorded) -> None:
        """Whether a worker had begun is asked of the log. The purse's guard lets one settlement through, whoever delivers this again."""
        job_id = recorded.subject.rsplit(".", 1)[1]
        job = await _first(event_log, recorded, Address(tenant=recorded.tenant, category="job", key=(job_id,)).under("created"))
        created = job.event if job else None
        if not isinstance(created, JobCreated) or not created.payer:
            return
        if not await commands.visible(recorded.seq, patience=SHOWN):
            raise Unavailable(f"the views don't show the end of job {job_id} yet")  # nor, perhaps, what was put aside for it
        begun = await _first(event_log, recorded, Address(tenant=recorded.tenant, category="training", key=(job_id,)).under("started"))
        spent, reason = settlement(recorded.event, begun=begun is not None)
        origin = Origin(tenant=created.payer, correlation=recorded.envelope.correlationid, causation=recorded.id, traceparent=recorded.envelope.traceparent)
        try:
            await commands.run(Settle(user_id=created.payer, job_id=job_id, spent=spent, reason=reason), origin=origin)
        except (Conflicted, *DOWN) as error:
            raise Unavailable(f"credits of job {job_id}: {str(error) or type(error).__name__}") from error

    for end in ENDS:
        react(broker, end, durable=f"gateway-settle-{kind(end).replace('.', '-')}", to=settle, give_up=_never)
    react(broker, ProjectDeleted, durable="gateway-remove-project", to=remove_project, give_up=_left_to_the_sweep)
    react(broker, ProjectFileDeleted, durable="gateway-remove-file", to=remove_file, give_up=_left_to_the_sweep)


async def _a_few_at_once(do: Callable[[str], Awaitable[None]], ids: Sequence[str]) -> None:
    """A project may have thousands of jobs."""
    for start in range(0, len(ids), AT_ONCE):
        await asyncio.gather(*map(do, ids[start : start + AT_ONCE]))


async def _first(event_log: EventLog, before: Recorded, subject: str) -> Recorded | None:
    """The first fact of a subject, if there is one before this one."""
    async with aclosing(event_log.scan_to(subject, last=before.seq, page=1)) as facts:
        async for raw in facts:
            return decode(raw.data, seq=raw.seq, subject=raw.subject)
    return None


async def _lent(event_log: EventLog, before: Recorded, project_id: str) -> list[str]:
    """Jobs of other projects that begin with a run of this one."""
    told = Address(tenant=before.tenant, category="project", key=(project_id,)).under(kind(ProjectWorkStarted).split(".")[1])
    works = [decode(raw.data, seq=raw.seq, subject=raw.subject).event async for raw in event_log.scan_to(told, last=before.seq)]
    return [work.job_id for work in works if isinstance(work, ProjectWorkStarted) and work.kind == LEND]


async def _never(recorded: Recorded, error: Exception) -> None:
    """Money is not left lying: it comes again until it is settled."""
    raise error


async def _left_to_the_sweep(recorded: Recorded, error: Exception) -> None:
    log.error("objects stay until the sweep: %s", error, extra={"fact": recorded.id})


class Sweep:
    """Removes old objects that no fact refers to: of uploads whose gateway was killed, of jobs that outlived their project."""

    def __init__(
        self, event_log: EventLog, db: asyncpg.Pool, storage: Storage, progress: Progress, *, holder: str, older_than: timedelta, every: float = SWEEP_EVERY
    ) -> None:
        self._log = event_log
        self._db = db
        self._storage = storage
        self._progress = progress
        self._holder = holder
        self._older_than = older_than
        self._every = min(every, older_than.total_seconds())

    async def run(self) -> None:
        while True:
            try:
                if await leases.hold(self._db, "sweep", self._holder):
                    await self.once()
            except (*DOWN, StorageDown, Unavailable) as error:
                log.warning("sweep: %s", str(error) or type(error).__name__)
            await asyncio.sleep(self._every)

    async def once(self) -> int:
        """Only views that have all facts can tell what is referred to."""
        if not await self._progress.wait((await self._log.position()).last, patience=CAUGHT_UP):
            return 0
        removed = 0
        async for keys in self._storage.stale(older_than=self._older_than):
            orphans = set(keys) - await objects.referred(self._db, keys)
            await self._storage.delete(orphans)
            removed += len(orphans)
        if removed:
            log.info("sweep: removed %d objects that nothing refers to", removed)
        return removed
