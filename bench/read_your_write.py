"""How soon what was written can be read: POST /projects until GET shows it, against one durable append to the same log."""

import argparse
import json
import sys
import time
import uuid
from collections.abc import Sequence

import uvloop

from bench.http import Connection
from bench.kit import Promises, fresh_servers, gateway, in_turns, ms, p50, p99, table
from infra.embedded import Servers
from libs.events import Origin, ProjectCreated
from libs.events.log import EventLog, Write
from libs.runtime import bus

EACH = 100


async def measure(servers: Servers, address: str, *, rounds: int) -> int:
    nc = await bus.connect(servers.nats_url("gateway"), name="bench")
    log = EventLog(nc, source="/bench")

    async def append() -> Sequence[float]:
        taken = []
        for _ in range(EACH):
            event = ProjectCreated(project_id=str(uuid.uuid4()), name="bench")
            started = time.perf_counter()
            await log.append([Write(events=[event], after=0)], origin=Origin(tenant="bench"))
            taken.append(time.perf_counter() - started)
        return taken

    async with Connection(address) as connection:

        async def post_and_get() -> Sequence[float]:
            taken = []
            for _ in range(EACH):
                started = time.perf_counter()
                status, body = await connection.ask("POST", "/projects", {"name": "bench"})
                assert status == 201, body
                path = f"/projects/{json.loads(body)['id']}"
                status, _ = await connection.ask("GET", path)
                assert status == 200
                taken.append(time.perf_counter() - started)
            return taken

        sides = await in_turns({"one durable append": append, "POST, then GET": post_and_get}, rounds=rounds)
    await nc.close()
    table(["", "p50", "p99"], [[name, ms(p50(taken)), ms(p99(taken))] for name, taken in sides.items()])
    promises = Promises()
    promises.at_most("read your write p50", p50(sides["POST, then GET"]) / p50(sides["one durable append"]), 10, of="one durable append")
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.read_your_write", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers, log_level="warning") as process:
        return uvloop.run(measure(servers, process.part.address, rounds=arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
