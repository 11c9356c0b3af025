"""An OpenAI-compatible server that answers as a test tells it: at once, slowly, with errors, with rubbish, not at all; `python -m tests.kit.llm` is one of its own."""

import argparse
import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_MARKED = re.compile(r"^(=== [0-9a-f]{12} ===)\n(.*)\n\1$", re.DOTALL | re.MULTILINE)
_SENTENCE = re.compile(r"[A-ZÀ-Ý][^.!?]{20,}[.!?]")


@dataclass
class Asked:
    """A request for a completion."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def user(self) -> str:
        return self.body["messages"][-1]["content"]

    @property
    def text(self) -> str:
        """The chunk's, out of the prompt."""
        found = _MARKED.search(self.user)
        return found.group(2) if found else ""

    @property
    def count(self) -> int:
        found = re.search(r"\d+", self.user)
        return int(found.group()) if found else 1


Behave = Callable[[Asked], Awaitable[bytes | None]]
"""Gives all of a response; None never answers."""


def questions(asked: Asked) -> dict[str, Any]:
    """As many examples as were asked for, each a sentence of the text and a question that has its words."""
    sentences = _SENTENCE.findall(asked.text)[: asked.count]
    return {"examples": [{"question": f"What is said here: {sentence[:60]}?", "answer": sentence} for sentence in sentences]}


def response(status: int, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Said", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


def completion(content: str) -> bytes:
    message = {"role": "assistant", "content": content}
    return response(200, json.dumps({"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())


def refusal(status: int, message: str, *headers: str) -> bytes:
    return response(status, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode(), *headers)


async def good(asked: Asked) -> bytes:
    return completion(json.dumps(questions(asked)))


def says(content: str) -> Behave:
    async def behave(_: Asked) -> bytes:
        return completion(content)

    return behave


def always(answer: bytes | None) -> Behave:
    async def behave(_: Asked) -> bytes | None:
        return answer

    return behave


def first(*answers: bytes | None, then: Behave = good) -> Behave:
    """These answers, one each, and then as ever."""
    left = list(answers)

    async def behave(asked: Asked) -> bytes | None:
        return left.pop(0) if left else await then(asked)

    return behave


@dataclass
class Model:
    behave: Behave = good
    slots: int = 0
    """Requests that are worked on at the same time; 0: all that come."""
    asked: list[Asked] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """On the port that it had before."""
        self._turns = asyncio.Semaphore(self.slots or 10_000)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1000)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As its end would: everybody who waits is hung up on, nobody new gets through."""
        assert self._server
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                asked = Asked(path=head[0].split()[1], headers=headers, body=body)
                self.asked.append(asked)
                if (answer := await self._answer(asked)) is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
                if b"Connection: close" in answer[:500]:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()

    async def _answer(self, asked: Asked) -> bytes | None:
        async with self._turns:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            try:
                return await self.behave(asked)
            finally:
                self.busy -= 1


@asynccontextmanager
async def model(behave: Behave = good, *, slots: int = 0) -> AsyncIterator[Model]:
    there = Model(behave=behave, slots=slots)
    await there.start()
    try:
        yield there
    finally:
        await there.kill()


def taking(shortest: float, longest: float) -> Behave:
    """Each answer takes some time between these, the same time for the same question."""

    async def behave(asked: Asked) -> bytes:
        await asyncio.sleep(random.Random(asked.user).uniform(shortest, longest))
        return await good(asked)

    return behave


async def _forever(there: Model) -> None:
    await there.start()
    print(there.port, flush=True)  # noqa: T201  # who started us reads it
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--seconds", type=float, nargs=2, default=(0.0, 0.0))
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_forever(Model(behave=taking(*arguments.seconds), slots=arguments.slots, port=arguments.port)))


if __name__ == "__main__":
    main()
