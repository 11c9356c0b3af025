"""Files between a run's folder and the object store: whole, hashed, in bounded memory; and checkpoints on their way there while the run goes on."""

import asyncio
import errno
import hashlib
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from libs.events import Claim
from libs.storage import Storage, StorageDown

log = logging.getLogger(__name__)

_CHUNK = 4 * 1024 * 1024
_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0


class Spoiled(Exception):
    """What lies in the store isn't what was stored there."""


async def fetch(storage: Storage, claim: Claim, path: Path) -> None:
    """Missing and Spoiled are final; while the store is down it is tried again, for ever."""
    delay = _FIRST_DELAY
    while True:
        try:
            return await _fetch(storage, claim, path)
        except StorageDown as error:
            log.warning("the object store is away: %s", error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)


async def store(storage: Storage, folder: str, path: Path, *, size: int | None = None) -> Claim:
    """The file, or its first `size` bytes, under its own hash."""
    digest = await asyncio.to_thread(_digest, path, size)
    with _opened(path) as file:
        return await storage.put_stream(f"{folder}/{digest}", _pieces(file, size), expected=os.fstat(file.fileno()).st_size)


async def patiently(work: Callable[[], Awaitable[Claim]]) -> Claim:
    """Until the store has taken it."""
    delay = _FIRST_DELAY
    while True:
        try:
            return await work()
        except StorageDown as error:
            log.warning("the object store is away: %s", error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint on its way: its file, and how long the step log was then."""

    step: int
    path: Path
    log_size: int


class Uploads:
    """One at a time, the newest first; older ones that wait are let go. So a store that is away costs the disk two checkpoints, whatever the run writes."""

    def __init__(self, put: Callable[[Kept], Awaitable[None]], *, stored: int = 0) -> None:
        self._put = put
        self._stored = stored
        """The last step of which a checkpoint is in the store: another one of it adds nothing."""
        self._newest: Kept | None = None
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def offer(self, kept: Kept) -> None:
        if self._newest:
            self._newest.path.unlink(missing_ok=True)
        self._newest = kept
        self._idle.clear()
        self._news.set()

    async def drained(self) -> None:
        await self._idle.wait()

    async def run(self) -> None:
        """Until cancelled."""
        delay = _FIRST_DELAY
        while True:
            await self._news.wait()
            self._news.clear()
            while kept := self._newest:
                self._newest = None
                try:
                    if kept.step > self._stored:
                        await self._put(kept)
                        self._stored = kept.step
                    delay = _FIRST_DELAY
                except StorageDown as error:
                    log.warning("a checkpoint waits for the object store: %s", error, extra={"step": kept.step})
                    self._newest = self._newest or kept
                    if self._newest is kept:
                        await self._wait(delay)
                        delay = min(2 * delay, _LONGEST_DELAY)
                if self._newest is not kept:
                    kept.path.unlink(missing_ok=True)
            self._idle.set()

    async def _wait(self, delay: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._news.wait()


async def _fetch(storage: Storage, claim: Claim, path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for chunk in storage.chunks(claim.key, size=_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != claim.sha256:
        raise Spoiled(claim.key)


async def _pieces(file: BinaryIO, size: int | None) -> AsyncIterator[bytes]:
    left = size
    while piece := await asyncio.to_thread(file.read, _CHUNK if left is None else min(_CHUNK, left)):
        if left is not None:
            left -= len(piece)
        yield piece


def _opened(path: Path) -> BinaryIO:
    """A file of a child's: where it has put a link or a pipe meanwhile, it would be somebody else's bytes, or an endless wait."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "no plain file", path.name)
    return os.fdopen(handle, "rb")


def _digest(path: Path, size: int | None) -> str:
    digest = hashlib.sha256()
    with _opened(path) as file:
        left = size
        while piece := file.read(_CHUNK if left is None else min(_CHUNK, left)):
            digest.update(piece)
            if left is not None:
                left -= len(piece)
    return digest.hexdigest()
