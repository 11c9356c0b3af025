"""Who listens to streams and sockets: so many of each person's at once, and each only as long as whoever opened it may hear what it tells."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from prometheus_client import Counter

from libs.events.log import Unavailable
from services.gateway.domain.user import LOCAL, Principal
from services.gateway.tokens import Bad
from services.gateway.views.database import DOWN

HEARTBEAT = 15.0

_ended = Counter("trainyard_streams_access_ended_total", "Live streams and sockets that were ended because the access was")

T = TypeVar("T")


class Crowded(Exception):
    """As many are open as one person may have."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} streams and sockets are open already, which is the most: close one first")


class AccessEnded(Exception):
    """Whoever listens may do so no more; the message says why."""

    @property
    def event(self) -> bytes:
        """As the last of a stream of server-sent events."""
        return b"event: access_ended\ndata: %s\n\n" % msgspec.json.encode({"reason": str(self)})


class Audience:
    def __init__(self, who: Callable[[str], Awaitable[Principal]], *, most: int, every: float) -> None:
        self._who = who
        self._most = most
        self._every = every
        self._open: dict[str, int] = {}

    @property
    def heartbeat(self) -> float:
        """Seconds until a stream with nothing to tell gives a sign of life, and looks whether it may go on."""
        return min(HEARTBEAT, self._every)

    def enter(self, scope: Any, workspaces: Sequence[str]) -> "Listener":
        """To these workspaces, until the request has ended. Raises Crowded."""
        person = scope["principal"].id
        if self._open.get(person, 0) >= self._most and person != LOCAL.id:
            raise Crowded(self._most)
        self._open[person] = self._open.get(person, 0) + 1
        scope["listener"] = person
        return Listener(self._who, scope.get("token"), workspaces, every=self._every)

    def leave(self, scope: Any) -> None:
        """At the end of each request, whether or not it was one that listened."""
        if (person := scope.pop("listener", None)) is None:
            return
        self._open[person] -= 1
        if self._open[person] == 0:
            del self._open[person]


class Listener:
    """Asks again now and then, not for each thing that is told: a thousand of them are a few dozen questions a second."""

    def __init__(self, who: Callable[[str], Awaitable[Principal]], token: str | None, workspaces: Sequence[str], *, every: float) -> None:
        self._who = who
        self._token = token
        self._workspaces = workspaces
        self._every = every

    async def hear(self, news: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """All of it, as long as access lasts. Raises AccessEnded."""
        due = time.monotonic() + self._pause()
        async with aclosing(news):
            async for some in news:
                if time.monotonic() >= due:
                    await self._check()
                    due = time.monotonic() + self._pause()
                yield some

    async def until_ended(self) -> str:
        """Returns why, once it has."""
        while True:
            await asyncio.sleep(self._pause())
            try:
                await self._check()
            except AccessEnded as ended:
                return str(ended)

    async def _check(self) -> None:
        """While nobody can tell, what is open stays open."""
        if self._token is None:
            return
        try:
            principal = await self._who(self._token)
        except Bad as bad:
            _ended.inc()
            raise AccessEnded("The token has expired or was revoked") from bad
        except (*DOWN, Unavailable):
            return
        if any(principal.role_in(workspace) is None for workspace in self._workspaces):
            _ended.inc()
            raise AccessEnded("The membership has ended")

    def _pause(self) -> float:
        """Never longer than it may be, and not all at the same moment."""
        return self._every * (0.75 + 0.25 * random.random())  # jitter, no secret
