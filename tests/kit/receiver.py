"""An endpoint that webhooks are sent to: keeps what it gets, and answers as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def seq(self) -> int:
        return int(self.headers["trainyard-sequence"])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def verify(self, secret: str) -> None:
        """Raises when it isn't signed with this secret."""
        Webhook(secret).verify(self.body, self.headers)


Answer = bytes | None
"""All of a response; None never answers."""


@dataclass
class Receiver:
    port: int = 0
    got: list[Got] = field(default_factory=list)
    connections: int = 0
    answer: Callable[[Got], Answer] = lambda _: OK
    open: dict[asyncio.StreamWriter, "asyncio.Task[None] | None"] = field(default_factory=dict)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def at(self, path: str) -> list[Got]:
        return [got for got in self.got if got.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open[writer] = asyncio.current_task()
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                got = Got(path=head[0].split()[1], headers=headers, body=body)
                self.got.append(got)
                if (answer := self.answer(got)) is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open.pop(writer)
            writer.close()

    async def hang_up(self) -> None:
        """On those that keep their connection for later: a loop that ends with them complains."""
        if tasks := [task for task in self.open.values() if task]:
            for writer in self.open:
                writer.close()
            await asyncio.wait(tasks, timeout=1)


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} Said", *headers, "Content-Length: 0", "", ""]).encode()


@asynccontextmanager
async def receiving(host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, host, 0, backlog=1000)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await receiver.hang_up()
