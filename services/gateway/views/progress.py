"""How far the views have come, so that whoever wrote can wait to read it."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from itertools import count

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.runtime.waiting import within

SUBJECT = "proj.views"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    parts: bool = False
    """Whether there are new rows for the loader."""


class Progress:
    """One per process. The replica that projects tells the others over the bus."""

    def __init__(self) -> None:
        self.seq = 0
        self.parts = asyncio.Event()
        self.moved = asyncio.Event()
        """Somebody may have something to send."""
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = count()

    async def listen(self, nc: Client) -> None:
        async def heard(msg: Msg) -> None:
            self.reached(msgspec.json.decode(msg.data, type=Step))

        await nc.subscribe(SUBJECT, cb=heard)

    def reached(self, step: Step) -> None:
        self.seq = max(self.seq, step.seq)
        self.moved.set()
        if step.parts:
            self.parts.set()
        while self._waiting and self._waiting[0][0] <= self.seq:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)

    async def wait(self, seq: int, *, patience: float) -> bool:
        if seq <= self.seq:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (seq, next(self._ticket), future)
        heapq.heappush(self._waiting, waiter)
        try:
            await within(patience, future)
        except TimeoutError:
            return False
        finally:
            if seq > self.seq:  # nobody has taken it out: it would stay as long as the views stand still
                self._waiting.remove(waiter)
                heapq.heapify(self._waiting)
        return True


Tell = Callable[[Step], Awaitable[None]]


def teller(nc: Client, progress: Progress) -> Tell:
    async def tell(step: Step) -> None:
        progress.reached(step)
        await nc.publish(SUBJECT, msgspec.json.encode(step))

    return tell
