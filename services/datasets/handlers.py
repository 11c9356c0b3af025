"""What the service does when something happens in the log."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.config import Datasets
from libs.events import JobCreated, Recorded
from libs.events.log import EventLog
from libs.runtime.broker import Later
from libs.storage import Storage

from .chunk import Chunk
from .fit import TakeOver
from .generation.endpoint import Endpoint
from .generation.job import Generate
from .ingest import Ingest
from .preparation import Preparation
from .prepare import Prepare
from .snapshot import Snapshot
from .waiting import NotYet

P = TypeVar("P", bound=Preparation)

log = logging.getLogger(__name__)

KINDS: dict[str, type[Preparation]] = {
    "ingest": Ingest,
    "chunk": Chunk,
    "train": Snapshot,
    "fit": TakeOver,
    "preview": Generate,
    "generate": Generate,
    "prepare": Prepare,
}
"""Kinds of jobs whose preparation this version does; `fit` are those train jobs whose spec names that trainer."""
WAITING = (Snapshot, TakeOver, Generate)
"""What reads other jobs' parts."""
GENERATING = 4
"""Jobs whose examples are generated at the same time; together they ask the language model no more than one would."""
CANCELS = "feed.*.job.cancel_requested.*"
ENDS = ("feed.*.preparation.completed.*", "feed.*.preparation.failed.*", "feed.*.preparation.cancelled.*")


class Preparations:
    """Those that this process has in hand."""

    def __init__(self, event_log: EventLog, storage: Storage, *, workers: int, settings: Datasets, endpoint: Endpoint | None = None) -> None:
        """`endpoint`: of a language model, where there is one."""
        self._log = event_log
        self._storage = storage
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="parsing")
        self._settings = settings
        generate = partial(Generate, endpoint=endpoint, turns=asyncio.Semaphore(GENERATING))
        self._kinds: dict[str, Callable[..., Preparation]] = {name: generate if kind is Generate else kind for name, kind in KINDS.items()}
        self._in_hand: set[Preparation] = set()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def listen(self, nc: Client) -> None:
        """Every replica hears everything: a shared durable would give each of them some."""
        await nc.subscribe(CANCELS, cb=self._cancel)
        for ends in ENDS:
            await nc.subscribe(ends, cb=self._ended)

    async def prepare(self, created: Recorded) -> None:
        """Delivered at least once: the story in the log says how far things are. What waits for another job gives its worker free."""
        job = created.event
        if not isinstance(job, JobCreated) or _kind(job) not in KINDS or "preparation" not in job.stages:
            return
        with self._holding(self._preparation(created)) as preparation:
            try:
                await preparation.run()
            except NotYet:
                raise Later(partial(self._wait, created)) from None

    async def give_up(self, created: Recorded, error: Exception) -> None:
        preparation = self._preparation(created)
        fault = f"{preparation.WHAT} because of a fault in the platform ({type(error).__name__}). Its log says more; the operator can mend it."
        await preparation.fail("internal", fault)

    async def _wait(self, created: Recorded) -> None:
        with self._holding(self._preparation(created)) as preparation:
            assert isinstance(preparation, WAITING)
            await preparation.wait()

    async def _cancel(self, msg: Msg) -> None:
        _, tenant, *_, job_id = msg.subject.split(".")
        for preparation in self._in_hand:
            if (preparation.tenant, preparation.job_id) == (tenant, job_id):
                preparation.cancel_asked.set()

    async def _ended(self, msg: Msg) -> None:
        _, tenant, *_, job_id = msg.subject.split(".")
        for preparation in self._in_hand:
            if isinstance(preparation, WAITING):
                preparation.hear(tenant, job_id)

    def _preparation(self, created: Recorded) -> Preparation:
        assert isinstance(created.event, JobCreated)
        return self._kinds[_kind(created.event)](created, event_log=self._log, storage=self._storage, threads=self._threads, settings=self._settings)

    @contextmanager
    def _holding(self, preparation: P) -> Iterator[P]:
        self._in_hand.add(preparation)
        try:
            yield preparation
        finally:
            self._in_hand.discard(preparation)


def _kind(job: JobCreated) -> str:
    """What a train job learns with says what it learns from."""
    return job.spec.get("trainer") or job.kind if job.kind == "train" else job.kind
