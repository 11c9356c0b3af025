"""A gateway as its clients meet it: over HTTP, or over a bare socket where a client library is too polite."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from infra.embedded import Process, Servers
from libs.events.log import EventLog

KEPT = {"detail", "error_code", "context"}
"""What every error body of the family finetuneflow has."""


@contextmanager
def running(servers: Servers, *, label: str = "gateway", environ: Mapping[str, str] | None = None) -> Iterator[Process]:
    process = servers.service("gateway", port=own_port(servers, label), label=label, environ=environ)
    process.start()
    try:
        yield process
    finally:
        process.stop()


def client(process: Process, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{process.part.address}", timeout=30, **options)


async def bare(process: Process, request: bytes, *, patience: float = 5.0) -> tuple[int, bytes]:
    """Status and all that follows it, until the server hangs up. 0: it hung up without a word."""
    host, port = process.part.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), patience)
    finally:
        writer.close()
    first, _, rest = answer.partition(b"\r\n")
    return int(first.split()[1]) if first else 0, rest


def plain(method: str, target: str, *, headers: tuple[bytes, ...] = (b"Host: localhost",)) -> bytes:
    """A request as bytes, for what no client library would send."""
    return b"\r\n".join([f"{method} ".encode() + target.encode("latin-1") + b" HTTP/1.1", *headers, b"Connection: close", b"", b""])


async def footprint(log: EventLog, servers: Servers) -> tuple[int, list[Path]]:
    """What a refused request must not change: the end of the log, and the objects in the store."""
    return (await log.position()).last, stored(servers)


def stored(servers: Servers, *owners: str) -> list[Path]:
    """All objects, or those of some projects and jobs. Folders may go while they are looked through."""
    files = [Path(folder) / name for folder, _, names in os.walk(servers.store.root) for name in names]
    return sorted(file for file in files if not owners or set(owners) & set(file.parts))


def own_port(servers: Servers, label: str) -> int:
    """Kept for one more service, so that nobody who starts at the same time gets it."""
    servers.home.choose_ports([label])
    return servers.home.ports[label]
