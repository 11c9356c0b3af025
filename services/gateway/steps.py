"""A run's steps: those of its step log, those that the bus still keeps, those that come."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from libs.events import Claim
from libs.events.log import Unavailable, read_page
from libs.storage import Damaged, Storage

STREAM = "TEL"
BUFFER = 1000
"""Messages that a listener may be behind."""
_PAGE = 100
_NEAR = 256 * 1024
_GLANCE = 4096


class Step(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What viewers get of a line of the step log."""

    step: int
    train_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Steps as a worker tells them while they happen. They may be lost on the way, and come again from a later attempt."""

    attempt: int
    steps: list[Step]


_lines = msgspec.json.Decoder(Step)
_told = msgspec.json.Decoder(Told)


async def stored(storage: Storage, log: Claim, *, after: int) -> AsyncGenerator[list[Step], None]:
    """The lines of a step log behind a step, a few thousand at a time."""
    start = await _place(storage, log, after) if after else 0
    rest = b""
    async for chunk in storage.chunks(log.key, start=start):
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        yield [step for step in _decoded(whole + newline, log) if step.step > after]
    if rest:
        raise Damaged(f"{log.key} doesn't end with a whole line")


class Telemetry:
    """One subscription per job that is listened to, made for the first who listens and dropped with the last."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._ears: dict[str, set[Ear]] = defaultdict(set)
        self._subscriptions: dict[str, Subscription] = {}
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def listen(self, tenant: str, job_id: str) -> AsyncIterator["Ear"]:
        subject = f"tel.{tenant}.{job_id}"
        ear = Ear(self, subject)
        self._ears[subject].add(ear)
        try:
            yield ear
        finally:
            self._ears[subject].discard(ear)
            if not self._ears[subject]:
                del self._ears[subject]
                await self._close(subject)

    def resync(self) -> None:
        """The bus was away: what was told meanwhile is only where it is kept."""
        for ears in self._ears.values():
            for ear in ears:
                ear.lose()

    async def open(self, subject: str) -> None:
        async with self._changing:
            if subject in self._subscriptions or subject not in self._ears:
                return
            if not self._nc.is_connected:  # nats-py would remember the beginning for later, but not the end
                raise Unavailable("The bus does not answer")
            try:
                self._subscriptions[subject] = await self._nc.subscribe(subject, cb=self._heard)
            except (nats.errors.Error, OSError) as error:
                raise Unavailable("The bus does not answer") from error

    async def kept(self, subject: str) -> AsyncGenerator[list[Told], None]:
        """What was told in the last hours, as far as the bus still has it."""
        after, more = 0, True
        while more:
            page, more = await read_page(self._nc, STREAM, subject, start=after + 1, most=_PAGE)
            after = page[-1].seq if page else after
            yield [_told.decode(raw.data) for raw in page]

    async def _close(self, subject: str) -> None:
        async with self._changing:
            if subject not in self._ears and (subscription := self._subscriptions.pop(subject, None)):
                with suppress(nats.errors.Error, OSError):
                    await subscription.unsubscribe()

    async def _heard(self, msg: Msg) -> None:
        told = _told.decode(msg.data)
        for ear in self._ears.get(msg.subject, ()):
            ear.take(told)


class Ear:
    """Of one listener. Born deaf: `open` begins to keep what is told."""

    def __init__(self, telemetry: Telemetry, subject: str) -> None:
        self._telemetry = telemetry
        self._subject = subject
        self._buffer: deque[Told] = deque()
        self._wake = asyncio.Event()
        self.lost = True
        """Something may have gone by: only a look at what is kept can tell."""
        self.slow = False

    async def open(self) -> AsyncGenerator[list[Told], None]:
        """From here on what is told is heard; what this gives has all that was told before."""
        await self._telemetry.open(self._subject)
        self.lost = False
        return self._telemetry.kept(self._subject)

    def lose(self) -> None:
        self.lost = True
        self._wake.set()

    def take(self, told: Told) -> None:
        if self.lost:
            return
        if len(self._buffer) < BUFFER:
            self._buffer.append(told)
        else:
            self.slow = True
        self._wake.set()

    def heard(self) -> Told | None:
        return self._buffer.popleft() if self._buffer else None

    async def news(self) -> None:
        """Returns when there is something to hear, or to look up."""
        while not (self._buffer or self.slow or self._wake.is_set()):
            await self._wake.wait()
        self._wake.clear()


async def _place(storage: Storage, log: Claim, after: int) -> int:
    """Where a line begins, not far before the one behind `after`: lines lie in the order of their steps."""
    low, high = 0, log.size
    while high - low > _NEAR:
        middle = (low + high) // 2
        glance = b"".join([chunk async for chunk in storage.chunks(log.key, start=middle, length=_GLANCE)])
        _, _, behind = glance.partition(b"\n")
        line, newline, _ = behind.partition(b"\n")
        if newline and _decoded(line, log)[0].step <= after:
            low = middle + len(glance) - len(behind)
        else:
            high = middle
    return low


def _decoded(lines: bytes, log: Claim) -> list[Step]:
    try:
        return _lines.decode_lines(lines)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{log.key} is no step log: {error}") from error
