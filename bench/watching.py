"""How soon a fact reaches who watches, whatever carries it there: append until arrival, against publish and acknowledgement; with one watcher, and with a crowd of which ten watch."""

import argparse
import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import uvloop

from bench.kit import Promises, fresh_servers, gateway, in_turns, ms, p50, p99, table
from infra.embedded import Process, Servers
from libs.events import Event, Origin, encode
from libs.events.catalog import envelope
from libs.events.log import EventLog, Write
from libs.events.subjects import subject
from libs.runtime import bus

EACH = 100
WATCHING = 10
ORIGIN = Origin(tenant="local")


class Watcher(ABC):
    """Knows when its last news came."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[float] = asyncio.Queue()

    def heard(self) -> None:
        self.arrived.put_nowait(time.perf_counter())

    @abstractmethod
    async def read(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...


class Show(ABC):
    """What is watched at this gateway, and how."""

    name: str
    """Of the promise."""
    seat: str
    """What a watcher holds open."""

    def __init__(self, process: Process, log: EventLog) -> None:
        self.process = process
        self.log = log
        self.position = 0
        """Of the last fact about what is watched."""

    async def begin(self) -> None:
        """What is watched must exist; nothing where it needn't."""
        return

    @abstractmethod
    def change(self) -> Event: ...

    @abstractmethod
    async def watcher(self) -> Watcher: ...

    @abstractmethod
    async def others(self, count: int) -> list[Watcher]:
        """Who watch something else."""


async def measure(servers: Servers, process: Process, made: Callable[[Process, EventLog], Show], *, rounds: int, crowd: int) -> int:
    nc = await bus.connect(servers.nats_url("infra"), name="bench")
    js = nc.jetstream()
    show = made(process, EventLog(nc, source="/bench"))
    await show.begin()
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    async with asyncio.TaskGroup() as tasks:
        watching = [await show.watcher()]
        idle: list[Watcher] = []
        reading = [tasks.create_task(watching[0].read())]

        async def publish() -> Sequence[float]:
            taken = []
            for _ in range(EACH):
                event = show.change()
                body = encode(envelope(event, origin=ORIGIN, source="/bench", id=str(uuid.uuid4()), at=datetime.now(UTC)))
                started = time.perf_counter()
                show.position = (await js.publish(subject(ORIGIN.tenant, event), body)).seq
                taken.append(time.perf_counter() - started)
                for one in watching:
                    await one.arrived.get()
            return taken

        async def arrive() -> Sequence[float]:
            taken = []
            for _ in range(EACH):
                event = show.change()
                started = time.perf_counter()
                (fact,) = await show.log.append([Write(events=[event], after=show.position)], origin=ORIGIN)
                show.position = fact.seq
                taken += [await one.arrived.get() - started for one in watching]
            return taken

        for name in (f"1 {show.seat}", f"{crowd:,} {show.seat}s, {WATCHING} watch"):
            if name != f"1 {show.seat}":
                for _ in range(WATCHING - 1):
                    watching.append(await show.watcher())
                    reading.append(tasks.create_task(watching[-1].read()))
                idle = await show.others(crowd - WATCHING)
            sides = await in_turns({"publish + ack": publish, "append to arrival": arrive}, rounds=rounds)
            rows += [[f"{name}: {side}", ms(p50(taken)), ms(p99(taken))] for side, taken in sides.items()]
            ratios[name] = p50(sides["append to arrival"]) / p50(sides["publish + ack"])
        for task in reading:
            task.cancel()
    await asyncio.gather(*(one.close() for one in [*watching, *idle]))
    await nc.close()
    table(["", "p50", "p99"], rows)
    promises = Promises()
    for name, ratio in ratios.items():
        promises.at_most(f"{show.name} p50, {name}", ratio, 5, of="publish + ack")
    return promises.exit_code()


def run(show: type[Show], *, description: str | None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m bench.{show.name}", description=description)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(f"--{show.seat}s", type=int, default=1000, dest="crowd")
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, log_level="warning") as process:
        return uvloop.run(measure(servers, process, show, rounds=arguments.rounds, crowd=arguments.crowd))
