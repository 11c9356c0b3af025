"""Files on their way from a training's objects into an export's: piece by piece, and only the bytes that were claimed."""

import hashlib
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from libs.events import Claim, ExportedFile
from libs.storage import Storage

from . import header
from .refused import Refused

SETTINGS = 1024 * 1024
"""Most bytes that are kept of a file of settings."""
LONGEST_LINE = 64 * 1024


class Abandoned(Exception):
    """Nobody waits for the rest."""


class Copy:
    """Keeps what the check will need of it: the head of a file of weights, or settings as a whole. What this very job has made stays where it is, and is only read."""

    def __init__(self, name: str, source: Claim, *, folder: str = "", passed: Callable[[int], None]) -> None:
        self.abandoned = False
        self.kept = bytearray()
        self._name = name
        self._source = source
        self._target = f"{folder}/{source.sha256}" if folder else ""
        self._passed = passed
        self._crc32 = 0

    @property
    def file(self) -> ExportedFile:
        claim = Claim(key=self._target or self._source.key, sha256=self._source.sha256, size=self._source.size)
        return ExportedFile(name=self._name, content=claim, crc32=self._crc32)

    async def make(self, storage: Storage) -> None:
        try:
            if self._target:
                await storage.put_stream(self._target, self._pieces(storage), expected=self._source.size)
            else:
                async with aclosing(self._pieces(storage)) as pieces:
                    async for _ in pieces:
                        continue
        finally:
            self.abandoned = True  # the thread that stores it doesn't hear of a cancellation

    async def _pieces(self, storage: Storage) -> AsyncGenerator[bytes, None]:
        async with aclosing(sound(storage, self._source, self._name)) as pieces:
            async for piece in pieces:
                if self.abandoned:
                    raise Abandoned(self._name)
                self._crc32 = zlib.crc32(piece, self._crc32)
                self._keep(piece)
                self._passed(len(piece))
                yield piece

    def _keep(self, piece: bytes) -> None:
        if len(self.kept) < (most := self._most()):
            self.kept += piece
            del self.kept[min(most, self._most()) :]

    def _most(self) -> int:
        if not self._name.endswith(".safetensors"):
            return SETTINGS
        try:
            return header.length(self.kept) if len(self.kept) >= 8 else 8 + header.LONGEST
        except header.Unsound:
            return 8  # enough to be told so


async def sound(storage: Storage, claim: Claim, name: str) -> AsyncGenerator[bytes, None]:
    """Raises at the end when these weren't the bytes that were claimed: whoever stores them on the way then stores nothing."""
    digest, size = hashlib.sha256(), 0
    async with aclosing(storage.chunks(claim.key)) as pieces:
        async for piece in pieces:
            digest.update(piece)
            size += len(piece)
            yield piece
    if size != claim.size or digest.hexdigest() != claim.sha256:
        raise Refused("artifact_damaged", f"{name} in the object store is not what the training stored there.")


async def lines(pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    held = b""
    async with aclosing(pieces):
        async for piece in pieces:
            *complete, held = (held + piece).split(b"\n")
            for line in complete:
                yield line
            if len(held) > LONGEST_LINE:
                raise Refused("artifact_damaged", "The log of the run's steps has a line without an end.")
    if held:
        yield held
