"""What dead endpoints cost the healthy ones: a thousand endpoints of which ten never answer, against the same without dead ones; deliveries a second in a burst, and append to arrival at a steady pace."""

import argparse
import asyncio
import random
import sys
import time
import uuid
from collections.abc import Sequence

import asyncpg
import uvloop

from bench.kit import Promises, fresh_servers, gateway, in_turns, ms, p50, p99, table
from infra.embedded import Servers
from libs.events import Origin, ProjectCreated, WebhookCreated
from libs.events.log import EventLog, Write
from libs.runtime import bus
from services.gateway.webhooks.signing import Seal, new_secret

GROUP = 10
"""Endpoints of one workspace: each fact is sent to so many."""
DEAD = 10
BURST = 300
PACE, PACED = 20, 100
"""Facts a second, and how many at this pace."""


class Sink:
    """All endpoints: notes when each was sent which position. The dead ones never answer."""

    def __init__(self) -> None:
        self.dead = False
        self.arrived: dict[tuple[int, int], float] = {}
        self.came = asyncio.Event()
        self._hanging: list[asyncio.StreamWriter] = []
        self._open: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                endpoint = int(head.split(" ", 2)[1][1:])
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
                await reader.readexactly(int(fields["content-length"]))
                if self.dead and endpoint < DEAD:
                    self._hanging.append(writer)
                    await reader.read()
                    return
                self.arrived.setdefault((endpoint, int(fields["trainyard-sequence"])), time.perf_counter())
                self.came.set()
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self.serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def let_go(self) -> None:
        for writer in self._hanging:
            writer.close()
        self._hanging.clear()


class Yard:
    def __init__(self, log: EventLog, db: asyncpg.Connection, sink: Sink, *, endpoints: int) -> None:
        self._log, self._db, self._sink, self._endpoints = log, db, sink, endpoints
        self._random = random.Random(1)

    async def register(self, port: int, seal: Seal) -> None:
        for n in range(self._endpoints):
            id = str(uuid.uuid4())
            secret = seal.close(new_secret(b"s" * 32), about=id)
            made = WebhookCreated(webhook_id=id, url=f"http://127.0.0.1:{port}/{n}", secret=secret, format="cloudevents")
            await self._log.append([Write(events=[made], after=0)], origin=_workspace(n // GROUP))
        while True:
            if await self._db.fetchval("select count(*) = $1 from core.webhook_endpoints", self._endpoints):
                return
            await asyncio.sleep(0.1)

    async def burst(self, *, dead: bool) -> Sequence[float]:
        await self._begin(dead)
        started = time.perf_counter()
        due: list[tuple[int, int]] = []
        for first in range(0, BURST, 16):
            told = await asyncio.gather(*(self._tell() for _ in range(first, min(BURST, first + 16))))
            due += [pair for pairs, _ in told for pair in pairs]
        await self._all_arrived(due)
        return [len(due) / (max(self._sink.arrived[pair] for pair in due) - started)]

    async def pace(self, *, dead: bool) -> Sequence[float]:
        await self._begin(dead)
        started = time.perf_counter()
        taken: list[tuple[list[tuple[int, int]], float]] = []
        for n in range(PACED):
            await asyncio.sleep(max(0.0, started + n / PACE - time.perf_counter()))
            taken.append(await self._tell())
        await self._all_arrived([pair for pairs, _ in taken for pair in pairs])
        return [self._sink.arrived[pair] - at for pairs, at in taken for pair in pairs]

    async def _tell(self) -> tuple[list[tuple[int, int]], float]:
        """A fact, the healthy endpoints that it is for, and when it was appended."""
        group = self._random.randrange(self._endpoints // GROUP)
        at = time.perf_counter()
        (fact,) = await self._log.append([Write(events=[ProjectCreated(project_id=str(uuid.uuid4()), name="n")], after=0)], origin=_workspace(group))
        members = range(group * GROUP, (group + 1) * GROUP)
        return [(n, fact.seq) for n in members if n >= DEAD], at

    async def _begin(self, dead: bool) -> None:
        """With everything delivered that was before; then the dead ones have something that they don't take."""
        self._sink.dead = False
        self._sink.let_go()
        while await self._db.fetchval("select count(*) from core.webhook_endpoints where newest > cursor"):
            await self._db.execute("update core.webhook_endpoints set next_at = clock_timestamp(), fails = 0 where fails > 0")
            await asyncio.sleep(0.2)
        self._sink.dead = dead
        await self._log.append([Write(events=[ProjectCreated(project_id=str(uuid.uuid4()), name="n")], after=0)], origin=_workspace(0))
        await asyncio.sleep(0.5)

    async def _all_arrived(self, due: list[tuple[int, int]]) -> None:
        for pair in due:
            while pair not in self._sink.arrived:
                self._sink.came.clear()
                await self._sink.came.wait()


async def measure(servers: Servers, *, endpoints: int, rounds: int) -> int:
    nc = await bus.connect(servers.nats_url("infra"), name="bench")
    db = await asyncpg.connect(servers.database_url)
    sink = Sink()
    receiver = await asyncio.start_server(sink.accept, "127.0.0.1", 0, backlog=2000)
    yard = Yard(EventLog(nc, source="/bench"), db, sink, endpoints=endpoints)
    await yard.register(receiver.sockets[0].getsockname()[1], Seal(servers.home.secrets().gateway))
    bursts = await in_turns({"healthy": lambda: yard.burst(dead=False), "dead": lambda: yard.burst(dead=True)}, rounds=rounds)
    paced = await in_turns({"healthy": lambda: yard.pace(dead=False), "dead": lambda: yard.pace(dead=True)}, rounds=rounds)
    receiver.close()
    await sink.close()
    await db.close()
    await nc.close()
    table(
        ["", "deliveries/s in a burst", "append to arrival p50", "p99"],
        [
            [name, f"{p50(bursts[side]):,.0f}", ms(p50(paced[side])), ms(p99(paced[side]))]
            for side, name in (("healthy", f"{endpoints:,} endpoints"), ("dead", f"{DEAD} of them dead"))
        ],
    )
    promises = Promises()
    promises.at_least("healthy deliveries/s with dead endpoints", p50(bursts["dead"]) / p50(bursts["healthy"]), 0.9, of="of those without")
    promises.at_most("p50 from append to arrival with dead endpoints", p50(paced["dead"]) / p50(paced["healthy"]), 1.5, of="of that without")
    return promises.exit_code()


def _workspace(number: int) -> Origin:
    return Origin(tenant=f"w{number}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, egress_allow="127.0.0.0/8"):
        return uvloop.run(measure(servers, endpoints=arguments.endpoints, rounds=arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
