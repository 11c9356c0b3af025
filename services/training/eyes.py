"""Strangers' images are decoded in a process of their own, which is given little: what breaks it there ends only it."""

import asyncio
import logging
import signal
import struct
from collections.abc import Sequence

import msgspec
import numpy as np

from .children import Child, Children, Gone, frugal
from .images import Pixels, Preparation
from .reading import Wrong

log = logging.getLogger(__name__)

ENTRY, PRELOAD = "services.training.runner.looking:run", ("services.training.runner.looking",)
NAME = "image-decoder"
"""What the kernel calls the process: whatever is forked from a forkserver has the same command line."""
PATIENCE = 20.0
"""Seconds for what is shown at once."""
LENGTH = struct.Struct("<I")


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    preparation: Preparation
    items: list[bytes]
    are_json: bool
    """Base64, or rows of pixels; else they are files."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    pixels: bytes = b""
    """Of all, [size, size, 3] each."""
    wrong: int = 0
    message: str = ""
    """What is wrong with that one; empty: nothing."""


class Blind(Exception):
    """Nobody can be had who would look; the images have nothing to do with it."""


class Eyes:
    """Whose processes are not those that train: PyTorch takes many seconds until anything can be forked from it."""

    def __init__(self) -> None:
        self.children = Children(entry=ENTRY, preload=PRELOAD, environ=frugal(1) | {"CUDA_VISIBLE_DEVICES": ""})
        self._is_open = False
        self._turn = asyncio.Lock()
        self._child: Child | None = None

    async def look(self, preparation: Preparation, items: Sequence[bytes], *, are_json: bool) -> Pixels:
        """Raises Wrong, with the place among these, or Blind."""
        async with self._turn:
            try:
                seen = await self._look(Shown(preparation=preparation, items=list(items), are_json=are_json))
            except _Blinded as error:
                if len(items) == 1:
                    log.warning("an image that can't be decoded: %s", error)
                    raise Wrong(0, "", "the image takes too long or too much memory to decode, or breaks its decoder") from None
                seen = None
        if seen is None:  # one of them did it
            alone: list[Pixels] = []
            for n, item in enumerate(items):
                try:
                    alone.append(await self.look(preparation, [item], are_json=are_json))
                except Wrong as error:
                    raise Wrong(n, error.at, str(error)) from None
            return np.concatenate(alone)
        if seen.message:
            raise Wrong(seen.wrong, "", seen.message)
        return np.frombuffer(seen.pixels, dtype=np.uint8).reshape(len(items), preparation.size, preparation.size, 3)

    async def close(self) -> None:
        self._end()
        if self._is_open:
            await self.children.close()

    async def _look(self, shown: Shown) -> Seen:
        """An image whose decoder ended may have nothing to do with it: whatever kills processes for want of memory begins with ours."""
        try:
            return await self._show(shown)
        except _Ended:
            if len(shown.items) > 1:
                raise
            return await self._show(shown)

    async def _show(self, shown: Shown) -> Seen:
        """Whoever is cancelled in the middle leaves nobody an answer that isn't his."""
        await self._open()
        body = msgspec.msgpack.encode(shown)
        try:
            async with asyncio.timeout(PATIENCE):
                self._writer.write(LENGTH.pack(len(body)))
                self._writer.write(body)
                await self._writer.drain()
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                return msgspec.msgpack.decode(await self._reader.readexactly(length), type=Seen)
        except TimeoutError as error:
            self._end()
            raise _Blinded(f"not within {PATIENCE:g} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            self._end()
            raise _Ended(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self._end()
            raise

    async def _open(self) -> None:
        """It may have ended since it was shown something."""
        if self._child and self._child.ended.is_set():
            self._end()
        if self._child is None:
            if not self._is_open:
                self._is_open = True
                self.children.open()
            try:
                child = await self.children.start(None, offline=True)
            except (Gone, OSError) as error:
                raise Blind(f"no process to decode images: {error}") from error
            try:
                self._reader, self._writer = await asyncio.open_unix_connection(sock=child.sock)
            except BaseException:
                child.signal(signal.SIGKILL)
                raise
            self._child = child

    def _end(self) -> None:
        if self._child:
            self._child.signal(signal.SIGKILL)
            self._writer.close()
            self._child = None


class _Blinded(Exception):
    """The process ended while it looked, or had to be ended."""


class _Ended(_Blinded):
    """Nobody of ours ended it."""
