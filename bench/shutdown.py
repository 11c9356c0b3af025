"""How long a gateway takes to end with a hundred open streams, and whether each of them got all that was appended before."""

import argparse
import asyncio
import signal
import sys
import time
import uuid
from os import kill

import uvloop

from bench.http import Connection
from bench.kit import Promises, fresh_servers, gateway, table
from infra.embedded import Process, Servers
from libs.events import Origin, ProjectUpdated
from libs.events.log import EventLog, Write
from libs.runtime import bus

FACTS = 200
SETTLED = 1.0
"""Seconds after which nobody looks for the past any more."""


async def hold(address: str, about: str, live: asyncio.Event) -> int:
    """How many events came until the end. Who is still told of the past when the end comes hears the rest elsewhere, so all begin with one that they have."""
    async with Connection(address) as connection:
        connection.send("GET", f"/v2/events?about={about}", b"", "Accept: text/event-stream")
        await connection.head()
        count = 0
        while line := await connection.reader.readline():
            if line.startswith(b"data: "):
                count += 1
                live.set()
        return count


async def measure(servers: Servers, process: Process, *, streams: int) -> int:
    """Facts are appended as fast as can be, up to the very moment of the signal."""
    nc = await bus.connect(servers.nats_url("gateway"), name="bench")
    log, project, last = EventLog(nc, source="/bench"), str(uuid.uuid4()), 0
    live = [asyncio.Event() for _ in range(streams)]
    held = [asyncio.create_task(hold(process.part.address, project, one)) for one in live]
    for n in range(FACTS):
        (fact,) = await log.append([Write(events=[ProjectUpdated(project_id=project, name=str(n))], after=last)], origin=Origin(tenant="local"))
        last = fact.seq
        if n == 0:
            await asyncio.gather(*(one.wait() for one in live))
            await asyncio.sleep(SETTLED)
    pid = process.pid
    assert pid is not None
    started = time.perf_counter()
    kill(pid, signal.SIGTERM)
    counts = await asyncio.gather(*held)
    streams_ended = time.perf_counter() - started
    await asyncio.to_thread(_wait_for_end, pid)
    took = time.perf_counter() - started
    await nc.close()
    table(["", "seconds"], [["all streams closed", f"{streams_ended:.2f}"], ["process gone", f"{took:.2f}"]])
    promises = Promises()
    promises.at_most(f"SIGTERM with {streams} open streams", took, 2, unit=" s")
    promises.at_least("events that the stream with the fewest got", min(counts), FACTS, unit="")
    return promises.exit_code()


def _wait_for_end(pid: int) -> None:
    while _alive(pid):
        time.sleep(0.005)


def _alive(pid: int) -> bool:
    """A zombie has ended; nobody has asked for its exit code yet."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shutdown", description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, log_level="warning") as process:
        return uvloop.run(measure(servers, process, streams=arguments.streams))


if __name__ == "__main__":
    sys.exit(main())
