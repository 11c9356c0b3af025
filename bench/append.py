"""What guard, envelope and ids cost: an append against a bare publish of the same bytes, into the same stream of the same server."""

import argparse
import asyncio
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from nats.aio.client import Client

from bench.kit import Promises, bus_alone, fresh_servers, in_turns, ms, p50, p99, table
from infra.embedded import Settings, nats
from libs.events import JobCreated, Origin, encode
from libs.events.catalog import envelope
from libs.events.log import EventLog, Write
from libs.runtime import bus

ORIGIN = Origin(tenant="bench", actor=uuid.UUID(int=1).hex, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
WRITERS = 50
BATCH = 4


def job(job_id: str) -> JobCreated:
    inputs = {"project_id": uuid.UUID(int=2).hex, "file": {"key": "local/files/0123456789abcdef", "sha256": "0" * 64, "size": 1234}}
    return JobCreated(job_id=job_id, kind="ingest", stages=["preparation"], inputs=inputs, project_id=uuid.UUID(int=2).hex)


class Rounds:
    """Each answers the seconds of its single appends; with many writers, of the whole divided by their number."""

    def __init__(self, nc: Client, *, size: int) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=10)
        self._log = EventLog(nc, source="/bench")
        self._size = size
        self._body = encode(envelope(job(uuid.uuid4().hex), origin=ORIGIN, source="/bench", id=str(uuid.uuid4()), at=datetime.now(UTC)))

    async def appends(self) -> list[float]:
        return await self._append_to(uuid.uuid4().hex, self._size)

    async def publishes(self) -> list[float]:
        return await self._publish_to(uuid.uuid4().hex, self._size)

    async def many_appends(self) -> list[float]:
        return await self._many(self._append_to)

    async def many_publishes(self) -> list[float]:
        return await self._many(self._publish_to)

    async def batches(self) -> list[float]:
        taken = []
        for _ in range(self._size // BATCH):
            ids = [uuid.uuid4().hex for _ in range(BATCH)]
            start = time.perf_counter()
            await self._log.append([Write(events=[job(id)], after=0) for id in ids], origin=ORIGIN)
            taken.append(time.perf_counter() - start)
        return taken

    async def bare_batches(self) -> list[float]:
        taken = []
        for _ in range(self._size // BATCH):
            ids = [uuid.uuid4().hex for _ in range(BATCH)]
            start = time.perf_counter()
            batch = uuid.uuid4().hex
            for n, id in enumerate(ids[:-1], 1):
                await self._nc.publish(f"ev.bench.bare.created.{id}", self._body, headers={"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n)})
            await self._js.publish(
                f"ev.bench.bare.created.{ids[-1]}", self._body, headers={"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(BATCH), "Nats-Batch-Commit": "1"}
            )
            taken.append(time.perf_counter() - start)
        return taken

    async def _many(self, one: Callable[[str, int], Awaitable[list[float]]]) -> list[float]:
        share = 2 * self._size // WRITERS
        start = time.perf_counter()
        await asyncio.gather(*(one(uuid.uuid4().hex, share) for _ in range(WRITERS)))
        return [(time.perf_counter() - start) / (share * WRITERS)]

    async def _append_to(self, id: str, times: int) -> list[float]:
        last, taken = 0, []
        for _ in range(times):
            start = time.perf_counter()
            last = (await self._log.append([Write(events=[job(id)], after=last)], origin=ORIGIN))[0].seq
            taken.append(time.perf_counter() - start)
        return taken

    async def _publish_to(self, id: str, times: int) -> list[float]:
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            await self._js.publish(f"ev.bench.bare.created.{id}", self._body)
            taken.append(time.perf_counter() - start)
        return taken


async def measure(url: str, promises: Promises, *, size: int, rounds: int, disk: str = "") -> None:
    nc = await bus.connect(url, name="bench")
    some = Rounds(nc, size=size)
    try:
        one = await in_turns({"append": some.appends, "publish": some.publishes}, rounds=rounds)
        many = await in_turns({"append": some.many_appends, "publish": some.many_publishes}, rounds=rounds)
        batch = await in_turns({"append": some.batches, "publish": some.bare_batches}, rounds=rounds)
    finally:
        await nc.close()
    rows = [
        [name, ms(p50(one[side])), ms(p99(one[side])), f"{1 / p50(many[side]):,.0f}/s", ms(p50(batch[side])), ms(p99(batch[side]))]
        for side, name in (("append", "guarded append"), ("publish", "bare publish"))
    ]
    table(["", "p50", "p99", f"{WRITERS} writers", f"batch of {BATCH}, p50", "p99"], rows)
    promises.at_most(f"append p50{disk}", p50(one["append"]) / p50(one["publish"]), 1.5, of="bare")
    promises.at_least(f"{WRITERS} writers{disk}", p50(many["publish"]) / p50(many["append"]), 0.67, of="bare")
    promises.at_most(f"batch of {BATCH} p50{disk}", p50(batch["append"]) / p50(batch["publish"]), 1.5, of="bare")


@contextmanager
def slow_disk(delay_ms: float) -> Iterator[str]:
    """A nats-server whose every fsync takes that much longer: the server stays our child, strace (-D) is the one apart."""
    server = nats.nats_program(Settings())
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "nats-server"
        strace = f"strace -D -f --seccomp-bpf -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_exit={delay_ms * 1000:.0f}"
        program.write_text(f'#!/bin/sh\nexec {strace} {shlex.quote(str(server))} "$@"\n')
        program.chmod(0o755)
        yield str(program)


def why_no_slow_disk() -> str:
    if not shutil.which("strace"):
        return "strace is not installed (apt-get install strace)"
    tried = subprocess.run(["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=fsync", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace can't trace here: {tried.stderr.strip()[:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.append", description=__doc__)
    parser.add_argument(
        "--fsync-delay-ms", nargs="*", type=float, default=[], metavar="MS", help="again, with each fsync slower by so much, e.g. 2 5 (needs strace)"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    arguments = parser.parse_args()
    promises = Promises()
    size, rounds = (100, 2) if arguments.quick else (300, 7)
    with fresh_servers(bus_alone()) as servers:
        uvloop.run(measure(servers.nats_url("infra"), promises, size=size, rounds=rounds))
    reason = why_no_slow_disk() if arguments.fsync_delay_ms else ""
    for delay in arguments.fsync_delay_ms:
        print(f"\nfsync + {delay:g} ms{f': skipped, {reason}' if reason else ''}")
        if not reason:
            with slow_disk(delay) as program, fresh_servers(bus_alone(program)) as servers:
                uvloop.run(measure(servers.nats_url("infra"), promises, size=100, rounds=2, disk=f", fsync + {delay:g} ms"))
    return promises.exit_code()


if __name__ == "__main__":
    sys.exit(main())
