"""The least HTTP/1.1 client that can be: one connection kept alive, so that what is measured is the server."""

import asyncio
import json
from typing import Any, Self


class Connection:
    def __init__(self, address: str) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        content = b"" if body is None else json.dumps(body).encode()
        self.send(method, path, content)
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers.get(b"content-length", b"0")))

    def send(self, method: str, path: str, content: bytes = b"", *headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {len(content)}", *headers]
        if content:
            lines.append("Content-Type: application/json")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *rest = raw.split(b"\r\n")
        pairs = (line.split(b": ", 1) for line in rest if line)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}
