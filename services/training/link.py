"""The line to one child: frames in as they come, the few orders out, and what its end means."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import msgspec

from .children import Child
from .frames import BrokenFrame, Cancel, Completed, Failed, Frame, FromChild, Ready, Stopped, Unpacker, from_child, packed

log = logging.getLogger(__name__)

LEAVING = 5.0
"""Seconds from a child's last word to its end."""
LEFT = 1.0
"""Seconds from a dead line to the news of how its child ended."""


class Link(asyncio.Protocol):
    """`hear` gets every frame but the last word, in order, at once."""

    def __init__(self, child: Child, hear: Callable[[FromChild], None]) -> None:
        self.child = child
        self.ready = False
        """Steps have begun: there may be something to keep."""
        self.last_word: Completed | Stopped | Failed | None = None
        self.over = asyncio.Event()
        """The last word was spoken, or the line is dead."""
        self.broken = ""
        self._hear = hear
        self._unpacker = Unpacker()
        self._transport: asyncio.Transport | None = None
        self._held = False

    @classmethod
    async def open(cls, child: Child, hear: Callable[[FromChild], None]) -> "Link":
        _, link = await asyncio.get_running_loop().create_unix_connection(lambda: cls(child, hear), sock=child.sock)
        return link

    def send(self, frame: Frame) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(packed(frame))

    def hold(self, on: bool) -> None:
        """While it is held, a child that says too much has to wait."""
        if self._transport and not self._transport.is_closing() and on != self._held:
            self._held = on
            (self._transport.pause_reading if on else self._transport.resume_reading)()

    async def stop(self, *, heed: float, term: float) -> None:
        """Asked kindly, then by a signal after `heed` seconds, and killed after `term` more. Before the first step there is nothing to keep."""
        self.send(Cancel())
        if not self.ready:
            heed = min(heed, 1.0)
        await _within(heed, self.over)
        if not self.over.is_set() and self.ready and term:
            log.warning("a child doesn't heed a cancel", extra={"child": self.child.pid})
            self.child.signal(signal.SIGTERM)
            await _within(term, self.over)
        if not self.over.is_set():
            self.child.signal(signal.SIGKILL)

    async def close(self, *, leaving: float = LEAVING) -> None:
        """Returns when the process has ended, or was killed and nobody says that it has."""
        if not self.broken:
            await _within(leaving if self.last_word else LEFT, self.child.ended)
        self.child.signal(signal.SIGKILL)
        await _within(LEAVING, self.child.ended)
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        if self.last_word or self.broken:
            return
        try:
            for body in self._unpacker.feed(data):
                self._take(from_child.decode(body))
        except (BrokenFrame, msgspec.DecodeError, OSError) as error:  # OSError: what it said could not be kept
            self.broken = f"{type(error).__name__}: {error}"
            self.over.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()

    def _take(self, frame: FromChild) -> None:
        match frame:
            case Completed() | Stopped() | Failed():
                self.last_word = frame
                self.over.set()
            case Ready():
                self.ready = True
                self._hear(frame)
            case _:
                self._hear(frame)


async def _within(patience: float, event: asyncio.Event) -> None:
    """Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes together with what it waits for."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await event.wait()
