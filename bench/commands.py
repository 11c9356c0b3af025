"""Requests a second and CPU per request, sixteen connections at once, with tokens, limits and metrics: against the same API in FastAPI with an ORM (bench/reference), and against a raw ASGI program that does the same I/O."""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import uvloop

from bench.kit import Promises, cpu_seconds, fresh_servers, gateway, ms, p50, table
from infra.embedded import Servers
from infra.embedded.probe import http_status
from infra.embedded.process import tied_to_us
from libs.events import Origin, ProjectCreated
from libs.events.log import EventLog, Write
from libs.runtime import bus

CONNECTIONS = 16
PROJECTS = 10_000
SECRET = "a secret of the bench, long enough to sign tokens with"
AS_IN_LIFE = {"auth": "jwt", "secret": SECRET, "rate_limits": "100000"}
"""Limits count every request, and are above what this machine can do."""
NEW = {"name": "Questions about our docs", "task_type": "qa"}
CONFIG = {"num_examples_target": 2000, "max_seq_length": 2048, "train_eval_split": 0.9}
AT_LEAST = {"GET one": 3.0, "list 50": 6.0, "POST": 2.0}
"""Times the reference's requests a second."""
AT_MOST = {"GET one": 3.5, "list 50": 4.0, "POST": 4.0}
"""Times the floor's CPU for a request."""
SIDES = ("gateway", "reference", "floor")


class Round:
    """One kind of request for some seconds, and the CPU that the server spent on it."""

    def __init__(self, pid: int, address: str, seconds: float, token: str, method: str, path: str) -> None:
        body = [json.dumps(NEW)] if method == "POST" else []
        command = [sys.executable, "-m", "bench.load", address, str(seconds), str(CONNECTIONS), token, method, path, *body]
        before = cpu_seconds(pid)
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert found["statuses"] in (["200"], ["201"]), found
        self.rate = found["requests"] / found["seconds"]
        self.cpu = (cpu_seconds(pid) - before) / found["requests"]
        self.p50, self.p99 = found["p50"], found["p99"]


class Person:
    """Someone with an account at the gateway, whom the reference lets in by a token of its own."""

    def __init__(self, address: str, name: str) -> None:
        password = {"username": name, "password": "correct horse battery"}
        self.id: str = _posted(address, "/auth/register", {**password, "email": f"{name}@example.com", "full_name": "Ann Other"})["id"]
        self.token: str = _posted(address, "/auth/login", password)["access_token"]
        signing = ["-c", "import sys; from bench.reference.app import token; print(token(*sys.argv[1:]))", self.id, SECRET]
        self.other_token = subprocess.run([sys.executable, *signing], capture_output=True, text=True, check=True).stdout.strip()


def _posted(address: str, path: str, body: dict[str, str]) -> Any:
    request = urllib.request.Request(f"http://{address}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def serving(servers: Servers, instead: str, program: str, path: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """A server once it answers, at the port of a service that doesn't run."""
    port = servers.home.ports[instead]
    with (servers.home.path / f"{program}.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", program, str(port), *arguments], stdout=log, stderr=log, **tied_to_us(user=None))
    try:
        while http_status("127.0.0.1", port, path) != 200:
            assert process.poll() is None, f"{program} ended"
        yield process.pid, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


async def furnish(servers: Servers, owner: Person) -> str:
    """Projects, as facts from which the gateway makes its rows. Answers the id of one of them."""
    nc = await bus.connect(servers.nats_url("gateway"), name="bench")
    log, free = EventLog(nc, source="/bench"), asyncio.Semaphore(50)

    async def add(id: str) -> None:
        event = ProjectCreated(project_id=id, name=NEW["name"], task_type=NEW["task_type"], config=CONFIG)
        async with free:
            await log.append([Write(events=[event], after=0)], origin=Origin(tenant=owner.id, actor=owner.id))

    ids = [str(uuid.uuid4()) for _ in range(PROJECTS)]
    await asyncio.gather(*map(add, ids))
    await nc.close()
    db = await asyncpg.connect(servers.database_url)
    while await db.fetchval("select count(*) from views.projects where tenant = $1", owner.id) < PROJECTS:  # noqa: ASYNC110  # filled by another process
        await asyncio.sleep(0.1)
    await db.close()
    return ids[PROJECTS // 2]


async def copy(database_url: str, owner: Person) -> None:
    """The gateway's rows into the reference's table."""
    db = await asyncpg.connect(database_url)
    await db.execute(
        """insert into reference.projects
           select id::uuid, $1::text::uuid, name, description, task_type, base_model_id, null, 'draft', config::jsonb, created_at, updated_at
             from views.projects where tenant = $1""",
        owner.id,
    )
    await db.execute("vacuum analyze")
    await db.close()


def shown(address: str, path: str, token: str) -> Any:
    """The answer without its times, which are written in two ways."""
    request = urllib.request.Request(f"http://{address}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer, object_hook=lambda found: {name: value for name, value in found.items() if not name.endswith("_at")})


def measure(servers: Servers, *, rounds: int, seconds: float) -> int:
    with gateway(servers, **AS_IN_LIFE) as process:
        assert process.pid
        owner, writer = Person(process.part.address, "owner"), Person(process.part.address, "writer")
        project = uvloop.run(furnish(servers, owner))
        with (
            serving(servers, "training", "bench.reference.app", "/metrics", servers.database_url, SECRET) as reference,
            serving(servers, "datasets", "bench.floor", "/projects", servers.nats_url("gateway"), servers.database_url, owner.id) as floor,
        ):
            uvloop.run(copy(servers.database_url, owner))
            sides = {"gateway": (process.pid, process.part.address), "reference": reference, "floor": floor}
            asked = {"GET one": ("GET", f"/projects/{project}", owner), "list 50": ("GET", "/projects", owner), "POST": ("POST", "/projects", writer)}
            for _, path, who in list(asked.values())[:2]:
                ours, others = shown(sides["gateway"][1], path, who.token), shown(sides["reference"][1], path, who.other_token)
                assert ours == others, f"the reference answers something else to {path}"
            return judged(in_turns(sides, asked, rounds=rounds, seconds=seconds))


def in_turns(
    sides: dict[str, tuple[int, str]], asked: dict[str, tuple[str, str, Person]], *, rounds: int, seconds: float
) -> dict[tuple[str, str], list[Round]]:
    """Whatever else the machine does hits all sides alike. The round before the first only warms up."""
    taken: dict[tuple[str, str], list[Round]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, (method, path, who) in asked.items():
            for side in SIDES[:: 1 if number % 2 else -1]:
                pid, address = sides[side]
                token = who.other_token if side == "reference" else who.token
                one = Round(pid, address, seconds, token, method, path)
                settled(sides["gateway"][0])
                if number:
                    taken[name, side].append(one)
    return taken


def settled(pid: int) -> None:
    """The gateway makes rows of the floor's facts too, which is not to be counted as its answers."""
    before = -1.0
    while cpu_seconds(pid) - before > 0.02:
        before = cpu_seconds(pid)
        time.sleep(0.2)


def judged(taken: dict[tuple[str, str], list[Round]]) -> int:
    rows = []
    for name in AT_LEAST:
        for side in SIDES:
            some = taken[name, side]
            spread = f"{min(r.rate for r in some):,.0f} to {max(r.rate for r in some):,.0f}"
            times = [ms(p50([r.p50 for r in some])), ms(p50([r.p99 for r in some]))]
            rows.append([f"{name}, {side}", f"{_rate(some):,.0f}/s", spread, *times, ms(_cpu(some))])
    table([f"{CONNECTIONS} connections", "requests", "rounds", "p50", "p99", "CPU each"], rows)
    promises = Promises()
    for name, least in AT_LEAST.items():
        promises.at_least(f"{name}: requests/s", _faster(taken[name, "gateway"], taken[name, "reference"]), least, of="reference")
    for name, most in AT_MOST.items():
        promises.at_most(f"{name}: CPU each", _cpu(taken[name, "gateway"]) / _cpu(taken[name, "floor"]), most, of="floor")
    return promises.exit_code()


def _rate(some: list[Round]) -> float:
    return p50([r.rate for r in some])


def _faster(ours: list[Round], others: list[Round]) -> float:
    """Of rounds that stood beside each other: what the machine did besides hit both."""
    return p50([one.rate / other.rate for one, other in zip(ours, others, strict=True)])


def _cpu(some: list[Round]) -> float:
    """Of the best round: whatever else the machine does only adds to it, and to much code more than to little."""
    return min(r.cpu for r in some)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.commands", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    quick = parser.parse_args().quick
    with fresh_servers() as servers:
        return measure(servers, rounds=1 if quick else 12, seconds=1)


if __name__ == "__main__":
    sys.exit(main())
