"""In which workspace a thing is. Ids never move from one to another, so that one answer is good for ever."""

import asyncpg
import msgspec

from libs.events.log import EventLog
from libs.events.subjects import SECRET_CATEGORIES, parse
from services.gateway.domain.user import Principal
from services.gateway.domain.workspace import CHANGE, MANAGE, READ, Power

MOST_KNOWN = 50_000


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """`reading` and `changing` are what a role in the workspace must allow."""

    category: str
    place: str
    """SQL that tells the workspace of an id."""
    reading: Power = READ
    changing: Power = CHANGE
    begins: str = "created"
    """The name of its first fact."""


KINDS = {
    "project_id": Kind(category="project", place="select tenant from projects where id = $1"),
    "job_id": Kind(category="job", place="select tenant from jobs where id = $1"),
    "dataset_id": Kind(category="dataset", place="select tenant from datasets where id = $1"),
    "model_id": Kind(category="model", place="select tenant from models where id = $1", begins="registered"),
    "webhook_id": Kind(category="webhook", place="select tenant from webhooks where id = $1", reading=MANAGE, changing=MANAGE),
}
"""By the name that the id has in a path. What is part of something bigger has that one's id before its own."""


class Places:
    def __init__(self, db: asyncpg.Pool, log: EventLog) -> None:
        self._db = db
        self._log = log
        self._known: dict[str, str] = {}

    async def of(self, kind: Kind, id: str, principal: Principal) -> str:
        """One of the caller's workspaces; his own also for what is in none of them: there it will not be found."""
        if not principal.workspaces:
            return principal.tenant
        place = self._known.get(id) or await self._look(kind, id)
        return place if place in principal.workspaces else principal.tenant

    async def _look(self, kind: Kind, id: str) -> str | None:
        place = await self._db.fetchval(kind.place, id) or await self._founded(kind, id)
        if place:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[id] = place
        return place

    async def _founded(self, kind: Kind, id: str) -> str | None:
        """The views may lack what was made just now."""
        root = "sec" if kind.category in SECRET_CATEGORIES else "ev"
        async for raw in self._log.scan_raw(f"{root}.*.{kind.category}.{kind.begins}.{id}", page=1):
            return parse(raw.subject).tenant
        return None
