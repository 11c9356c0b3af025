"""How much memory a large upload costs the gateway, and how fast it is beside PUTting the same bytes to the object store alone."""

import argparse
import asyncio
import io
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import uvloop
from minio import Minio

from bench.http import Connection
from bench.kit import Promises, fresh_servers, gateway, memory_mb, table
from infra.embedded import Process, Servers

MB = 1024 * 1024
BOUNDARY = "----bench"
LINE = b'{"instruction": "What is a yard?", "output": "Where trains are put together, taken apart and sorted, day and night."}\n'
CHUNK = LINE * (256 * 1024 // len(LINE))


class Peak:
    """The most memory that the process had, looked at often."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.idle = memory_mb(process)
        self.most = self.idle

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                self.most = max(self.most, memory_mb(self._process))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


async def upload(address: str, size: int) -> float:
    async with Connection(address) as connection:
        _, body = await connection.ask("POST", "/projects", {"name": "bench"})
        project = json.loads(body)["id"]
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="kind"\r\n\r\ndataset_upload\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="big.jsonl"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    chunks = size // len(CHUNK)
    async with Connection(address) as connection:
        started = time.perf_counter()
        length = len(head) + chunks * len(CHUNK) + len(tail)
        connection.writer.write(
            f"POST /projects/{project}/files/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
        )
        connection.writer.write(head)
        async for chunk in _times(chunks):
            connection.writer.write(chunk)
            await connection.writer.drain()
        connection.writer.write(tail)
        status, _ = await connection.head()
        assert status == 201, status
        return time.perf_counter() - started


async def _times(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield CHUNK


def put_alone(servers: Servers, size: int) -> float:
    store = servers.store
    client = Minio(store.endpoint.removeprefix("http://"), access_key=store.access_key, secret_key=store.secret_key, secure=False, region="us-east-1")
    source = io.BytesIO(CHUNK * (size // len(CHUNK)))
    started = time.perf_counter()
    client.put_object(store.bucket, "bench/alone", source, len(source.getbuffer()), part_size=8 * MB)
    return time.perf_counter() - started


async def measure(servers: Servers, process: Process, *, size_mb: int) -> int:
    await upload(process.part.address, 4 * MB)  # warms up: threads, connections
    await asyncio.sleep(1)
    peak = Peak(process)
    with peak.watched():
        took = await upload(process.part.address, size_mb * MB)
    alone = await asyncio.to_thread(put_alone, servers, min(size_mb, 256) * MB)
    growth = peak.most - peak.idle
    table(
        [f"{size_mb} MiB", "MB/s", "gateway grew by"],
        [["through the gateway", f"{size_mb / took:.0f}", f"{growth:.0f} MB"], ["PUT alone (at most 256 MiB)", f"{min(size_mb, 256) / alone:.0f}", "-"]],
    )
    promises = Promises()
    promises.at_most(f"memory for an upload of {size_mb} MiB", growth, 150, unit=" MB")
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.upload", description=__doc__)
    parser.add_argument("--size-mb", type=int, default=1024)
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, log_level="warning", max_file_mb="4096", max_project_mb="8192") as process:
        return uvloop.run(measure(servers, process, size_mb=arguments.size_mb))


if __name__ == "__main__":
    sys.exit(main())
