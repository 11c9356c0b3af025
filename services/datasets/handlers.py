"""What the service does when something happens in the log."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.events import JobCreated, Recorded
from libs.events.log import EventLog
from libs.storage import Storage

from .preparation import Preparation

log = logging.getLogger(__name__)

KINDS = ("ingest",)
"""Kinds of jobs whose preparation this version does."""
CANCELS = "feed.*.job.cancel_requested.*"


class Preparations:
    """Those that this process has in hand."""

    def __init__(self, event_log: EventLog, storage: Storage, *, workers: int) -> None:
        self._log = event_log
        self._storage = storage
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="parsing")
        self._in_hand: set[Preparation] = set()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def listen(self, nc: Client) -> None:
        """Cancels go to every replica: a shared durable would give each of them some."""
        await nc.subscribe(CANCELS, cb=self._cancel)

    async def prepare(self, created: Recorded) -> None:
        """Delivered at least once: the story in the log says how far things are."""
        job = created.event
        if not isinstance(job, JobCreated) or job.kind not in KINDS or "preparation" not in job.stages:
            return
        with self._holding(self._preparation(created)) as preparation:
            await preparation.run()

    async def give_up(self, created: Recorded, error: Exception) -> None:
        message = f"The file could not be read because of a fault in the platform ({type(error).__name__}). Its log says more; the operator can mend it."
        await self._preparation(created).fail("internal", message)

    async def _cancel(self, msg: Msg) -> None:
        _, tenant, *_, job_id = msg.subject.split(".")
        for preparation in self._in_hand:
            if (preparation.tenant, preparation.job_id) == (tenant, job_id):
                preparation.cancel_asked.set()

    def _preparation(self, created: Recorded) -> Preparation:
        return Preparation(created, event_log=self._log, storage=self._storage, threads=self._threads)

    @contextmanager
    def _holding(self, preparation: Preparation) -> Iterator[Preparation]:
        self._in_hand.add(preparation)
        try:
            yield preparation
        finally:
            self._in_hand.discard(preparation)
