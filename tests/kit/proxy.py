"""A wire between client and server that can be told to misbehave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 64 * 1024


_FULL = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>XMinioStorageFull</Code><Message>Storage is full.</Message></Error>'
STORE_IS_FULL = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_FULL), _FULL)


class Wire:
    """While `answers_lost`, all that the server says is swallowed: it has done the work, and nobody hears of it. While `full`, it takes nothing more, as an
    object store whose disk is."""

    def __init__(self, host: str, port: int) -> None:
        self.answers_lost = False
        self.full = False
        self.port = 0
        self._target = (host, port)
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    def cut(self) -> None:
        """Hangs up on both sides, at once."""
        for pair in list(self._pairs):
            for end in pair:
                end.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, server_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass_on(self._taken(reader, writer), server_writer), self._pass_on(_read(server_reader), writer, answers=True))
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.transport.abort()

    async def _taken(self, reader: asyncio.StreamReader, answers: asyncio.StreamWriter) -> AsyncIterator[bytes]:
        """What the client sends, up to the first request that a full store refuses. A client waits for its answer, so each request begins a read."""
        async for data in _read(reader):
            if self.full and data.startswith((b"PUT ", b"POST ")):
                answers.write(STORE_IS_FULL)
                await answers.drain()
                return
            yield data

    async def _pass_on(self, pieces: AsyncIterator[bytes], writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        try:
            async for data in pieces:
                if not (answers and self.answers_lost):
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(_CHUNK):
        yield data


@asynccontextmanager
async def wire(host: str, port: int) -> AsyncIterator[Wire]:
    """Listens on a port of its own and carries everything to the server there."""
    between = Wire(host, port)
    server = await asyncio.start_server(between.carry, "127.0.0.1", 0)
    between.port = server.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        server.close()
        between.cut()
        await server.wait_closed()
