"""How soon a fact reaches a watcher: append until a server-sent event arrives, against publish and acknowledgement; with one stream, and with a thousand open of which ten watch."""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import uvloop

from bench.http import Connection
from bench.kit import Promises, fresh_servers, gateway, in_turns, ms, p50, p99, table
from infra.embedded import Servers
from libs.events import Origin, ProjectUpdated, encode
from libs.events.catalog import envelope
from libs.events.log import EventLog, Write
from libs.events.subjects import subject
from libs.runtime import bus

EACH = 100
WATCHING = 10


class Watcher:
    """An open stream about one thing; knows when its last event came."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.arrived: asyncio.Queue[float] = asyncio.Queue()

    async def open(self, about: str, *, after: int) -> None:
        self._connection.send("GET", f"/v2/events?about={about}&after={after}", b"", "Accept: text/event-stream")
        await self._connection.head()
        await self._connection.reader.readuntil(b"retry: 1000\n\n")

    async def read(self) -> None:
        while True:
            line = await self._connection.reader.readline()
            if line.startswith(b"data: "):
                self.arrived.put_nowait(time.perf_counter())


async def measure(servers: Servers, address: str, *, rounds: int, crowd: int) -> int:
    nc = await bus.connect(servers.nats_url("gateway"), name="bench")
    log = EventLog(nc, source="/bench")
    origin = Origin(tenant="local")
    project = str(uuid.uuid4())
    changed = ProjectUpdated(project_id=project, name="n")
    js, body = nc.jetstream(), encode(envelope(changed, origin=origin, source="/bench", id=str(uuid.uuid4()), at=datetime.now(UTC)))
    position = 0
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    async with asyncio.TaskGroup() as tasks:
        streams: list[Connection] = []

        async def watcher(about: str) -> Watcher:
            connection = await Connection(address).__aenter__()
            streams.append(connection)
            made = Watcher(connection)
            await made.open(about, after=position)
            return made

        watching = [await watcher(project)]
        reading = [tasks.create_task(watching[0].read())]

        async def publish() -> Sequence[float]:
            nonlocal position
            taken = []
            for _ in range(EACH):
                started = time.perf_counter()
                position = (await js.publish(subject("local", changed), body)).seq
                taken.append(time.perf_counter() - started)
                for one in watching:
                    await one.arrived.get()
            return taken

        async def arrive() -> Sequence[float]:
            nonlocal position
            taken = []
            for _ in range(EACH):
                started = time.perf_counter()
                (fact,) = await log.append([Write(events=[changed], after=position)], origin=origin)
                position = fact.seq
                taken += [await one.arrived.get() - started for one in watching]
            return taken

        for name in ("1 stream", f"{crowd:,} streams, {WATCHING} watch"):
            if name != "1 stream":
                for _ in range(WATCHING - 1):
                    watching.append(await watcher(project))
                    reading.append(tasks.create_task(watching[-1].read()))
                for _ in range(crowd - WATCHING):
                    await watcher(str(uuid.uuid4()))
            sides = await in_turns({"publish + ack": publish, "append to arrival": arrive}, rounds=rounds)
            rows += [[f"{name}: {side}", ms(p50(taken)), ms(p99(taken))] for side, taken in sides.items()]
            ratios[name] = p50(sides["append to arrival"]) / p50(sides["publish + ack"])
        for task in reading:
            task.cancel()
        for stream in streams:
            stream.writer.close()
    await nc.close()
    table(["", "p50", "p99"], rows)
    promises = Promises()
    for name, ratio in ratios.items():
        promises.at_most(f"live p50, {name}", ratio, 5, of="publish + ack")
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=1000)
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, log_level="warning") as process:
        return uvloop.run(measure(servers, process.part.address, rounds=arguments.rounds, crowd=arguments.streams))


if __name__ == "__main__":
    sys.exit(main())
