"""A stored file, fetched by the event loop and read in a thread, with a few pieces in between."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

AHEAD = 4
"""Pieces that may wait for the thread."""


class Abandoned(Exception):
    """Nobody waits for the rest."""


class Source(Iterator[bytes]):
    """To be iterated in the thread. Hashes and counts what goes by."""

    def __init__(self, threads: Executor) -> None:
        self.digest = hashlib.sha256()
        self.done = 0
        self.steps: set[asyncio.Future[object]] = set()
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(AHEAD)
        self._pieces: SimpleQueue[bytes | Exception] = SimpleQueue()

    def __next__(self) -> bytes:
        piece = self._pieces.get()
        if isinstance(piece, Exception):
            self._pieces.put(piece)  # whoever asks again hears the same
            raise piece
        self._loop.call_soon_threadsafe(self._room.release)
        self.digest.update(piece)
        self.done += len(piece)
        return piece

    def step(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """One stretch of work in the thread."""
        future = asyncio.ensure_future(self._loop.run_in_executor(self._threads, work))
        self.steps.add(future)
        future.add_done_callback(self._stepped)
        return future

    async def fill(self, pieces: AsyncGenerator[bytes, None]) -> None:
        """However it ends, the thread hears of it: the file's end, what went wrong, or that nobody needs it any more."""
        end: Exception = Abandoned()
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    await self._room.acquire()
                    self._pieces.put(piece)
            end = StopIteration()
        except Exception as error:  # noqa: BLE001  # it is raised where the pieces are read
            end = error
        finally:
            self._pieces.put(end)

    def _stepped(self, future: asyncio.Future[object]) -> None:
        self.steps.discard(future)
        if not future.cancelled():
            future.exception()  # heard, also where nobody waits any more


@asynccontextmanager
async def reading(pieces: AsyncGenerator[bytes, None], *, threads: Executor) -> AsyncIterator[Source]:
    """Neither the file nor the thread is in use when this is left."""
    source = Source(threads)
    filling = asyncio.create_task(source.fill(pieces))
    try:
        yield source
    finally:
        filling.cancel()
        await asyncio.wait({filling, *source.steps})
