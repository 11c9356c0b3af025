"""The log as it grows, for any number of watchers: one subscription per process, replay by direct gets, no consumer per connection."""

import asyncio
import heapq
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from prometheus_client import Gauge

from libs.events.log import EventLog, RawFact, Unavailable
from libs.events.subjects import parse
from libs.runtime.waiting import within
from services.gateway.steps import Telemetry

BUFFER = 1000
"""Facts a watcher may be behind. One that is slower is closed and comes back with its last id."""
_AT_ONCE = 100
"""Facts of the past that a watcher fetches at a time: many who begin at once, or are told to end meanwhile, wait for each other's."""

_NO_END = 2**62

_watchers = Gauge("trainyard_live_watchers", "Open live streams")


class TooSlow(Exception):
    """The watcher doesn't take what it is sent."""


class Live:
    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._watchers: dict[str, set[_Watcher]] = defaultdict(set)
        self._closed = False
        self._last = 0
        self._guests = 0
        self._deserted = asyncio.Event()

    async def listen(self, nc: Client) -> None:
        self.telemetry = Telemetry(nc)
        self._feed = await nc.subscribe("feed.>", cb=self._heard, pending_msgs_limit=100_000)

    async def resync(self) -> None:
        """The bus was away: every watcher reads on from the log where it stands."""
        self._lose()
        self.telemetry.resync()

    @property
    def closing(self) -> bool:
        return self._closed

    async def drain(self) -> None:
        """Hears what was appended until now, and no more."""
        try:
            await within(0.3, self._feed.drain())
        except (nats.errors.Error, OSError, TimeoutError):
            return  # without the bus there is nothing to hear: clients resume elsewhere

    def close(self) -> None:
        """All streams end once they have sent what was heard; clients reconnect elsewhere."""
        self._closed = True
        for watcher in self._all():
            watcher.wake.set()

    @contextmanager
    def guest(self) -> Iterator[None]:
        """Somebody who is to be told when the gateway ends, and not just cut off."""
        self._guests += 1
        try:
            yield
        finally:
            self._guests -= 1
            if self._guests == 0:
                self._deserted.set()

    async def deserted(self, patience: float) -> None:
        """Waits for the guests to be gone, but not for those who don't take what they are sent."""
        self._deserted.clear()
        if self._guests:
            with suppress(TimeoutError):
                await within(patience, self._deserted.wait())

    async def watch(self, *tenants: str, after: int, about: str = "", heartbeat: float = 15.0) -> AsyncGenerator[RawFact | None, None]:
        """Every fact of some workspaces (or about one thing in them) after a position, exactly once and in order, for ever. None is a heartbeat."""
        watcher = _Watcher(after)
        places = [_key(tenant, about) for tenant in tenants]
        for place in places:
            self._watchers[place].add(watcher)
        _watchers.inc()
        try:
            while not self._closed or (watcher.buffer and not watcher.lost):
                if watcher.lost:
                    watcher.found()
                    try:
                        async for raw in past(self._log, tenants, after=watcher.seq, about=about):
                            watcher.seq = raw.seq
                            yield raw
                            if self._closed:
                                return
                    except Unavailable:
                        watcher.lose()
                        await watcher.news(0.5)
                        continue
                    watcher.live = True
                while watcher.buffer and not watcher.lost:
                    raw = watcher.buffer.popleft()
                    if raw.seq > watcher.seq:
                        watcher.seq = raw.seq
                        yield raw
                if watcher.slow:
                    raise TooSlow
                if not (self._closed or watcher.buffer or watcher.lost or await watcher.news(heartbeat)):
                    yield None
        finally:
            for place in places:
                self._watchers[place].discard(watcher)
                if not self._watchers[place]:
                    del self._watchers[place]
            _watchers.dec()

    async def _heard(self, msg: Msg) -> None:
        seq = int((msg.headers or {})["Nats-Sequence"])
        if seq != self._last + 1 and self._watchers and await self._missed(seq):
            self._lose()  # after a reconnect the first that comes need not be the next
        self._last = seq
        where = parse(msg.subject)
        about = self._watchers.get(_key(where.tenant, where.key[0]), ()) if len(where.key) == 1 else ()  # as the pattern of a replay has it
        watchers = [*self._watchers.get(where.tenant, ()), *about]
        if not watchers:
            return
        raw = RawFact(seq=seq, subject="ev" + msg.subject[4:], data=msg.data)
        for watcher in watchers:
            watcher.take(raw)

    async def _missed(self, seq: int) -> bool:
        """Whether something between the last heard and this should have been heard: secret facts are in the log, but never told."""
        try:
            return await self._log.next_position("ev.>", after=self._last) != seq
        except Unavailable:
            return True

    def _lose(self) -> None:
        for watcher in self._all():
            watcher.lose()

    def _all(self) -> list["_Watcher"]:
        return [watcher for place in self._watchers.values() for watcher in place]


async def past(log: EventLog, tenants: Sequence[str], *, after: int, about: str = "", page: int = _AT_ONCE) -> AsyncGenerator[RawFact, None]:
    """Every fact of some workspaces (or about one thing in them) behind a position, in the log's order; none is missing because a replica lags."""
    patterns = [f"ev.{tenant}.*.*.{about}" if about else f"ev.{tenant}.>" for tenant in tenants]
    if len(patterns) == 1:
        async for raw in log.scan_to(patterns[0], last=_NO_END, after=after, page=page):
            yield raw
        return
    last = (await log.position()).last  # one workspace is read after another: what happens meanwhile is not for this time
    async with AsyncExitStack() as stack:
        stories = [
            await stack.enter_async_context(aclosing(log.scan_to(pattern, last=last, after=after, page=1 + page // len(patterns)))) for pattern in patterns
        ]
        heads = [(raw.seq, n, raw) for n, raw in enumerate(await asyncio.gather(*(anext(story, None) for story in stories))) if raw]
        heapq.heapify(heads)
        while heads:
            _, n, raw = heads[0]
            yield raw
            if following := await anext(stories[n], None):
                heapq.heapreplace(heads, (following.seq, n, following))
            else:
                heapq.heappop(heads)


class _Watcher:
    def __init__(self, after: int) -> None:
        self.seq = after
        self.buffer: deque[RawFact] = deque()
        self.wake = asyncio.Event()
        self.lost = True
        self.live = False
        self.slow = False

    def take(self, raw: RawFact) -> None:
        if len(self.buffer) < BUFFER:
            self.buffer.append(raw)
        elif self.live:
            self.slow = True
        else:
            self.lose()  # it is still reading the past: it will come by this again
        self.wake.set()

    def lose(self) -> None:
        self.lost, self.live = True, False
        self.wake.set()

    def found(self) -> None:
        """From here on what is heard is kept; the replay that begins now has all that was before."""
        self.lost, self.live = False, False
        self.buffer.clear()

    async def news(self, patience: float) -> bool:
        self.wake.clear()
        try:
            await within(patience, self.wake.wait())
        except TimeoutError:
            return False
        return True


def _key(tenant: str, about: str) -> str:
    return f"{tenant}/{about}" if about else tenant
