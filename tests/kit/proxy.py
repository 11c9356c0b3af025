"""A wire between client and server that can be told to misbehave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 64 * 1024


class Wire:
    """While `answers_lost`, all that the server says is swallowed: it has done the work, and nobody hears of it."""

    def __init__(self, host: str, port: int) -> None:
        self.answers_lost = False
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
            await asyncio.gather(self._pass_on(reader, server_writer), self._pass_on(server_reader, writer, answers=True))
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if not (answers and self.answers_lost):
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort()


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
