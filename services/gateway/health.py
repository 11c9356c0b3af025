"""What the gateway depends on, and how each part does."""

import asyncio
import logging

import asyncpg
from prometheus_client import Gauge

from libs.events.log import EventLog, Position, Unavailable
from libs.runtime.health import report
from libs.storage import Storage
from services.gateway.views.database import DOWN
from services.gateway.views.progress import Progress, Step
from services.gateway.views.runner import Fenced, same_log

log = logging.getLogger(__name__)

INTERVAL = 1.0
TOLERATED = 2000
"""Facts that the views may lag behind while this replica still says it is ready."""

_lag = Gauge("trainyard_projection_lag_facts", "Facts in the log that the views don't have yet")
_fill = Gauge("trainyard_log_fill_ratio", "How much of the log's room is used; commands stop at 0.9")


class Health:
    def __init__(self, event_log: EventLog, db: asyncpg.Pool, storage: Storage, progress: Progress, *, version: str) -> None:
        self._log = event_log
        self._db = db
        self._storage = storage
        self._progress = progress
        self._position: Position | None = None
        self.version = version

    async def parts(self) -> dict[str, str]:
        """Each part with what is wrong with it, "" when all is well."""
        return await report({"db": self._database, "bus": self._bus, "storage": self._storage.check})

    async def ready(self) -> dict[str, str]:
        """What must be well for requests to be sent here. Without the object store nearly all of the API still works."""
        return await report({"db": self._database, "bus": self._bus, "views": self._views})

    def fill(self) -> float:
        return self._position.fill if self._position else 0.0

    async def watch(self) -> None:
        """Until cancelled: keeps the figures, and catches up with news from the projector that the bus lost. Ends when the log is not the views' log any more."""
        while True:
            try:
                seq, self._position = await same_log(self._log, self._db)
                self._progress.reached(Step(seq=seq))
                _lag.set(max(0, self._position.last - self._progress.seq))
                _fill.set(self._position.fill)
            except (*DOWN, Unavailable, Fenced) as error:
                log.warning("health: %s", str(error) or type(error).__name__)
            await asyncio.sleep(INTERVAL)

    async def _database(self) -> str:
        await self._db.fetchval("select 1")
        return ""

    async def _bus(self) -> str:
        await self._log.position()
        return ""

    async def _views(self) -> str:
        if self._position is None:
            return "not known yet"
        behind = self._position.last - self._progress.seq
        return f"{behind} facts behind the log" if behind > TOLERATED else ""
