"""How often somebody may ask: counters on the bus that all gateways share, and each gateway's own account while the bus is away."""

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any, Protocol
from zlib import crc32

import msgspec
import nats.errors
from nats.aio.client import Client
from prometheus_client import Counter, Gauge

from libs.events.log import Misconfigured

log = logging.getLogger(__name__)

STREAM = "RATE"
REQUIRED = {"allow_msg_counter": True, "max_msgs_per_subject": 1}
PATIENCE = 0.1
"""Seconds that a request waits for a counter, before it is let through on this gateway's own account."""
MOST_REMEMBERED = 50_000
SHORTEST_SHARED = 10
"""Seconds. A shorter window protects the gateway from one caller, so each gateway counts it for itself: a counter for every caller and second would fill the bus."""

_TURNS = 8
_ANSWERED_WITHIN = 2.0
_LOOK_AGAIN = 0.25
_AT_ONCE = 100
_SHARE = 10
"""A gateway takes at most a tenth of what is left at once, so that little lies unused where a caller goes to several."""
_PROBE = "rate.gateway"

_refused = Counter("trainyard_rate_limited_total", "Requests refused because there were too many", ["bucket"])
_alone = Gauge("trainyard_rate_limits_alone", "1 while this gateway counts for itself because the counters on the bus are away: limits hold per gateway then")


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """So many requests of one caller within so many seconds."""

    name: str
    limit: int
    seconds: int
    covers: str
    """In words, for the documentation."""

    @property
    def shared(self) -> bool:
        return self.seconds >= SHORTEST_SHARED


class Standing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a caller stands after a request."""

    allowed: bool
    limit: int
    remaining: int
    reset: int
    """When the window ends, in seconds since the epoch."""
    retry_after: int


class Silent(Exception):
    """The counters can't be asked now; the message says why."""


class Counters(Protocol):
    """Numbers that many may add to at once. Each hears the sum after its own addition. They may lose the last of it when their server dies."""

    @property
    def interruptions(self) -> int:
        """How often something may have been lost until now."""
        ...

    async def add(self, subject: str, amount: int) -> int: ...


class BusCounters:
    """A counter is the last message of its subject; the server does the sum."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    @property
    def interruptions(self) -> int:
        return self._nc.stats["reconnects"]

    async def check(self) -> None:
        """Raises Misconfigured or Silent."""
        subject = f"$JS.API.STREAM.INFO.{STREAM}"
        try:
            answer = await self._asked(subject, None)
        except Silent as silent:
            told = str(self._nc.last_error or "").lower()
            if "permissions violation" in told and subject.lower() in told:  # looks like an outage to whoever asks
                raise Misconfigured(f"{told}: the users of the bus are those of an older version, see infra/nats/users.py") from silent
            raise
        if "error" in answer and answer["error"].get("code") != 404:
            raise Silent(answer["error"].get("description", ""))
        wrong = [f"{name} must be {value!r}" for name, value in REQUIRED.items() if answer.get("config", {}).get(name) != value]
        if wrong:
            reason = answer["error"].get("description") if "error" in answer else "; ".join(wrong)
            raise Misconfigured(
                f"Stream {STREAM}: {reason}. Run `python -m infra.nats.provision` (NATS 2.12 or newer has counters), or turn the limits off: TRAINYARD_RATE_LIMITS=0."
            )

    async def add(self, subject: str, amount: int) -> int:
        answer = await self._asked(subject, {"Nats-Incr": str(amount)})
        if "error" in answer:
            raise Silent(answer["error"].get("description", ""))
        return int(answer["val"])

    async def _asked(self, subject: str, headers: dict[str, str] | None) -> dict[str, Any]:
        if not self._nc.is_connected:  # what is asked now would be sent, and counted, after the reconnect
            raise Silent("no connection to the bus")
        try:
            return json.loads((await self._nc.request(subject, b"", timeout=_ANSWERED_WITHIN, headers=headers)).data)
        except (nats.errors.Error, OSError) as error:
            raise Silent(f"the bus does not answer ({str(error) or type(error).__name__})") from error


class Limits:
    """Takes a few requests' worth from a counter at once, so that most requests cost no round trip.

    What was taken is counted before it is given out: no fault of a gateway lets more through than the limit, it can only waste what it held.
    """

    def __init__(self, counters: Counters, *, factor: float = 1.0, now: Callable[[], float] = time.time, jitter: Callable[[], float] = random.random) -> None:
        self._counters = counters
        self._factor = factor
        self._now = now
        self._jitter = jitter
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._interruptions = counters.interruptions
        self._away = False

    async def count(self, bucket: Bucket, caller: str) -> Standing:
        """`caller` must be fit for a subject: letters, digits, - and _."""
        now = self._now()
        tally = self._tallies.get((bucket.name, caller))
        if tally is None or not tally.begins <= now < tally.ends:
            tally = self._opened(bucket, caller, now)
        if not tally.held and tally.left > 0:
            await self._more(tally)
        allowed = tally.held > 0
        if allowed:
            tally.held -= 1
        else:
            _refused.labels(bucket.name).inc()
        return Standing(
            allowed=allowed,
            limit=tally.limit,
            remaining=tally.held + max(0, tally.left),
            reset=tally.ends,
            retry_after=math.ceil(tally.ends - now),
        )

    @property
    def alone(self) -> bool:
        """Whether this gateway counts for itself now."""
        return self._away

    async def run(self) -> None:
        """Until cancelled: once the counters are away, or were, looks for them, tells them what they don't know, and goes back to them."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN * (0.5 + self._jitter()))  # gateways that agree with lost counters at once restore too much
            self._notice_interruption()
            if not self._away:
                continue
            interruptions = self._counters.interruptions
            try:
                await self._counters.add(_PROBE, 0)
                await self._agree()
            except Silent:
                continue
            self._interruptions = interruptions
            self._away = False
            _alone.set(0)
            log.info("rate limits are counted for all gateways again")

    def _opened(self, bucket: Bucket, caller: str, now: float) -> "_Tally":
        """The window that it is now. Callers' windows begin at different times, so that not everybody comes back at once."""
        if len(self._tallies) >= MOST_REMEMBERED:
            self._forget(now)
        offset = crc32(caller.encode()) % bucket.seconds
        number = int(now + offset) // bucket.seconds
        before = self._tallies.pop((bucket.name, caller), None)  # put in again behind all others: the oldest are forgotten first
        limit = max(1, int(bucket.limit * self._factor))
        tally = self._tallies[bucket.name, caller] = _Tally(
            subject=f"rate.{bucket.name}.{caller}.{number}",
            begins=number * bucket.seconds - offset,
            seconds=bucket.seconds,
            limit=limit,
            shared=bucket.shared,
        )
        if not bucket.shared:
            tally.held = tally.taken = limit
        elif before:
            tally.lot = before.lot // 2
        return tally

    def _forget(self, now: float) -> None:
        self._tallies = {key: tally for key, tally in self._tallies.items() if tally.ends > now}
        for key in list(self._tallies)[: max(0, len(self._tallies) - MOST_REMEMBERED * 9 // 10)]:
            del self._tallies[key]  # what it held is lost to its caller, what it took stays counted

    async def _more(self, tally: "_Tally") -> None:
        """At least one to spend, if there is one."""
        while not tally.held and tally.left > 0:
            if self._away:
                tally.untold += 1
                tally.held += 1
                return
            tally.waiting += 1
            try:
                await self._patiently(tally)
            finally:
                tally.waiting -= 1

    async def _patiently(self, tally: "_Tally") -> None:
        """In turns, so that only time counts in which this process could have listened: its being busy is not the bus being slow."""
        asking = tally.asking = tally.asking or asyncio.create_task(self._take(tally))
        for _ in range(_TURNS):
            await asyncio.wait({asking}, timeout=PATIENCE / _TURNS)
            if asking.done():
                asking.result()
                return
            if self._away:
                return
        self._leave(f"no answer within {1000 * PATIENCE:.0f} ms")

    async def _take(self, tally: "_Tally") -> None:
        """Goes on when nobody waits any more: a late answer counts too."""
        tally.lot = min(2 * tally.lot or 1, max(1, tally.left // _SHARE))
        try:
            self._notice_interruption()
            if not self._away:
                await self._tell(tally, wanted=min(max(tally.lot, tally.waiting), tally.left))
        except Silent as silent:
            self._leave(str(silent))
        finally:
            tally.asking = None

    async def _tell(self, tally: "_Tally", *, wanted: int = 0) -> None:
        told, known = tally.untold, tally.taken
        heard = await self._counters.add(tally.subject, told + wanted)
        lost = max(0, known - (heard - told - wanted))  # of what was counted when this was heard before: the server has died
        granted = min(wanted, max(0, tally.limit - heard - lost + wanted))
        tally.taken = heard
        since = min(granted, tally.untold - told)  # passed on our own account because this took too long
        tally.held += granted - since
        tally.untold += lost - told - since

    async def _agree(self) -> None:
        """Every gateway does this after an interruption. A sum is what all had taken: whoever heard it last restores it for all."""
        now = self._now()
        known = [tally for tally in self._tallies.values() if tally.shared and tally.ends > now and not tally.asking]
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            await self._told(some)  # what passed here; what the counters have lost is heard
            await self._told([tally for tally in some if tally.untold])

    async def _told(self, tallies: list["_Tally"]) -> None:
        for answer in await asyncio.gather(*(self._tell(tally) for tally in tallies), return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

    def _notice_interruption(self) -> None:
        if self._counters.interruptions != self._interruptions:
            self._leave("the connection to the bus was lost")

    def _leave(self, reason: str) -> None:
        if self._away:
            return
        self._away = True
        _alone.set(1)
        log.warning("rate limits: %s; each gateway counts for itself until all can count together again", reason)


class _Tally:
    """What one caller has had of one bucket in one window, as far as this gateway knows."""

    __slots__ = ("asking", "begins", "ends", "held", "limit", "lot", "shared", "subject", "taken", "untold", "waiting")

    def __init__(self, *, subject: str, begins: int, seconds: int, limit: int, shared: bool) -> None:
        self.subject = subject
        self.begins = begins
        self.ends = begins + seconds
        self.limit = limit
        self.shared = shared
        self.taken = 0  # by all gateways, when the counter was heard last
        self.held = 0  # taken by this one and not spent yet
        self.untold = 0  # spent on our own account: the counter doesn't know yet
        self.lot = 0  # how many were taken at once last
        self.waiting = 0
        self.asking: asyncio.Task[None] | None = None

    @property
    def left(self) -> int:
        return self.limit - self.taken - self.untold
