"""How soon a fact reaches who watches a running job: append until the frame arrives over a WebSocket, against publish and acknowledgement; with one socket, and with a thousand open of which ten watch it."""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from bench.kit import Promises, fresh_servers, gateway, in_turns, memory_mb, ms, p50, p99, table
from infra.embedded import Process, Servers
from libs.events import JobCreated, Origin, PreparationCompleted, TrainingProgressed, TrainingStarted, encode
from libs.events.catalog import envelope
from libs.events.log import EventLog, Write
from libs.events.subjects import subject
from libs.runtime import bus

EACH = 100
WATCHING = 10
STEPS = 1_000_000
AT_ONCE = 50
"""Handshakes under way together."""


class Watcher:
    """An open socket of one job; knows when its last frame came."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.arrived: asyncio.Queue[float] = asyncio.Queue()

    async def read(self) -> None:
        async for _ in self.socket:
            self.arrived.put_nowait(time.perf_counter())


async def measure(servers: Servers, process: Process, *, rounds: int, crowd: int) -> int:
    nc = await bus.connect(servers.nats_url("infra"), name="bench")
    log = EventLog(nc, source="/bench")
    origin = Origin(tenant="local")
    js = nc.jetstream()
    step = 0

    async def begun() -> tuple[str, int]:
        """A job that trains, and the position of its last fact."""
        job = str(uuid.uuid4())
        await log.append([Write(events=[JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={})], after=0)], origin=origin)
        await log.append([Write(events=[PreparationCompleted(job_id=job, parts=0, rows=0, valid=0)], after=0)], origin=origin)
        (fact,) = await log.append([Write(events=[TrainingStarted(job_id=job, attempt=1)], after=0)], origin=origin)
        return job, fact.seq

    async def watcher(job: str) -> Watcher:
        made = Watcher(await connect(f"ws://{process.part.address}/ws/progress/{job}", proxy=None, compression=None, ping_interval=None, open_timeout=60))
        await made.socket.recv()
        return made

    def next_step(job: str) -> TrainingProgressed:
        nonlocal step
        step += 1
        return TrainingProgressed(job_id=job, attempt=1, step=step, total_steps=STEPS, epoch=0.5, metrics={"train_loss": 1.0, "learning_rate": 1e-4})

    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    job, position = await begun()
    async with asyncio.TaskGroup() as tasks:
        watching = [await watcher(job)]
        idle: list[Watcher] = []
        reading = [tasks.create_task(watching[0].read())]

        async def publish() -> Sequence[float]:
            nonlocal position
            taken = []
            for _ in range(EACH):
                event = next_step(job)
                body = encode(envelope(event, origin=origin, source="/bench", id=str(uuid.uuid4()), at=datetime.now(UTC)))
                started = time.perf_counter()
                position = (await js.publish(subject("local", event), body)).seq
                taken.append(time.perf_counter() - started)
                for one in watching:
                    await one.arrived.get()
            return taken

        async def arrive() -> Sequence[float]:
            nonlocal position
            taken = []
            for _ in range(EACH):
                event = next_step(job)
                started = time.perf_counter()
                (fact,) = await log.append([Write(events=[event], after=position)], origin=origin)
                position = fact.seq
                taken += [await one.arrived.get() - started for one in watching]
            return taken

        for name in ("1 socket", f"{crowd:,} sockets, {WATCHING} watch"):
            if name != "1 socket":
                for _ in range(WATCHING - 1):
                    watching.append(await watcher(job))
                    reading.append(tasks.create_task(watching[-1].read()))
                other, _ = await begun()
                left, started = crowd - WATCHING, time.perf_counter()
                while left:
                    some = min(AT_ONCE, left)
                    idle += await asyncio.gather(*(watcher(other) for _ in range(some)))
                    left -= some
                print(f"{len(idle):,} sockets opened in {time.perf_counter() - started:.1f} s; the gateway has {memory_mb(process):.0f} MB")
            sides = await in_turns({"publish + ack": publish, "append to arrival": arrive}, rounds=rounds)
            rows += [[f"{name}: {side}", ms(p50(taken)), ms(p99(taken))] for side, taken in sides.items()]
            ratios[name] = p50(sides["append to arrival"]) / p50(sides["publish + ack"])
        for task in reading:
            task.cancel()
    await asyncio.gather(*(one.socket.close() for one in [*watching, *idle]))
    await nc.close()
    table(["", "p50", "p99"], rows)
    promises = Promises()
    for name, ratio in ratios.items():
        promises.at_most(f"sockets p50, {name}", ratio, 5, of="publish + ack")
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sockets", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sockets", type=int, default=1000)
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, log_level="warning") as process:
        return uvloop.run(measure(servers, process, rounds=arguments.rounds, crowd=arguments.sockets))


if __name__ == "__main__":
    sys.exit(main())
