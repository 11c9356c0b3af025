"""So many connections, each with one request after another until the time is over: `python -m bench.load ADDRESS SECONDS CONNECTIONS TOKEN METHOD PATH [BODY]`."""

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

from bench.kit import p50, p99


class Caller(asyncio.Protocol):
    """One connection; answers are told apart by their Content-Length."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._until = until
        self._held = b""
        self.taken: list[float] = []
        self.statuses: set[bytes] = set()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, ended, body = self._held.partition(b"\r\n\r\n")
        if not ended or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        self._held = b""
        self.taken.append(time.perf_counter() - self._asked)
        self.statuses.add(head[9:12])
        if self._asked < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(None)

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def load(address: str, seconds: float, connections: int, token: str, method: str, path: str, body: str) -> dict[str, object]:
    host, port = address.rsplit(":", 1)
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {address}",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    request = "\r\n".join([*lines, "", body]).encode()
    started = time.perf_counter()
    callers = [Caller(request, started + seconds) for _ in range(connections)]
    for caller in callers:
        await asyncio.get_running_loop().create_connection(lambda caller=caller: caller, host, int(port))
    await asyncio.gather(*(caller.done for caller in callers))
    taken = [some for caller in callers for some in caller.taken]
    statuses = sorted({status.decode() for caller in callers for status in caller.statuses})
    return {"requests": len(taken), "seconds": time.perf_counter() - started, "p50": p50(taken), "p99": p99(taken), "statuses": statuses}


def main() -> None:
    address, seconds, connections, token, method, path, *body = sys.argv[1:]
    print(json.dumps(uvloop.run(load(address, float(seconds), int(connections), token, method, path, "".join(body)))))


if __name__ == "__main__":
    main()
