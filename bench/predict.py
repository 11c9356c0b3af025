"""Predictions of a small model that is loaded already, against a request over the bus that somebody merely answers: one at a time, and 32 clients at once."""

import argparse
import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import uvloop
from nats.aio.client import Client

from bench.http import Connection
from bench.kit import Promises, cpu_seconds, fresh_servers, in_turns, ms, p50, table
from infra.embedded import Process, Servers
from infra.embedded.process import wait_ready
from libs.config import Service, load
from libs.events import Claim, Event, Fit, JobCreated, Origin, TrainingCompleted, address
from libs.events.log import EventLog, Write
from libs.prediction import SUBJECT, Answer
from libs.runtime import bus
from libs.storage import Storage
from tests.kit import predictors

CLIENTS = 32
FEATURES = [f"feature_{n}" for n in range(20)]
ROW = [round(0.1 * n - 1, 3) for n in range(20)]
TENANT = "local"
ECHO = "ask.echo"
QUIET = 0.05
"""Processor seconds within one, below which a process is taken to have come to rest."""

Ask = Callable[[], Awaitable[object]]


async def answer(url: str, said: bytes) -> None:
    """The floor: whoever asks gets these bytes."""
    nc = await bus.connect(url, name="training")

    async def respond(msg: object) -> None:
        await msg.respond(said)  # pyright: ignore[reportAttributeAccessIssue]

    await nc.subscribe(ECHO, queue="training", cb=respond)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()


@contextmanager
def echo(servers: Servers, said: bytes) -> Iterator[int]:
    """As the training service: a process of its own, the same loop, the same library."""
    command = [sys.executable, "-m", "bench.predict", "--echo", servers.nats_url("training"), said.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def at_rest(process: Process) -> None:
    """Its forkserver imports what trainings need, for some seconds."""
    used = _used(process)
    while True:
        time.sleep(1)
        used, before = _used(process), used
        if used - before < QUIET:
            return


def _used(process: Process) -> float:
    assert process.pid
    pids = [process.pid, *_children(process.pid)]
    return sum(cpu_seconds(pid) for pid in pids)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


async def model(log: EventLog, storage: Storage) -> tuple[str, tuple[Claim, Claim]]:
    """Of 20 numbers and 64 hidden units, as a run leaves it."""
    onnx = predictors.linear(width=len(FEATURES), hidden=64, outputs=3, seed=1)
    files = await predictors.stored(storage, TENANT, onnx=onnx, prepared=predictors.preparation(names=FEATURES))
    job = str(uuid.uuid4())
    inputs = {"dataset_id": str(uuid.uuid4()), "source": str(uuid.uuid4())}
    spec = msgspec.to_builtins(Fit(model_type="mlp"))
    artifacts = {"model.onnx": files[0], "preprocess.json": files[1]}
    facts: list[Event] = [
        JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs=inputs, spec=spec),
        TrainingCompleted(job_id=job, attempt=1, step=1, artifacts=artifacts, steps=files[1]),
    ]
    for fact in facts:
        known = await log.read(address(TENANT, fact))
        await log.append([Write(events=[fact], after=known[-1].seq if known else 0)], origin=Origin(tenant=TENANT))
    return job, files


async def one_by_one(ask: Ask, times: int) -> list[float]:
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)
    return taken


async def together(asks: Sequence[Ask], times: int) -> list[float]:
    """Seconds for each, of all clients together."""
    left = iter(range(times))

    async def client(ask: Ask) -> None:
        for _ in left:
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*map(client, asks))
    return [(time.perf_counter() - began) / times]


async def measure(servers: Servers, gateway: Process, training: Process, *, rounds: int, times: int) -> Promises:
    nc, storage = await bus.connect(servers.nats_url("infra"), name="infra"), Storage(load(Service, servers.environ("datasets", port=0)))
    id, files = await model(EventLog(nc, source="/bench"), storage)
    asked = msgspec.json.encode(predictors.question(TENANT, files, ROW))
    said = (await nc.request(f"ask.{SUBJECT}", asked, timeout=10)).data
    assert len(msgspec.json.decode(said, type=Answer).predictions) == 1, said
    with echo(servers, said) as pid:
        assert training.pid
        promises = await over_the_bus(nc, asked, {"echo": pid, "prediction": training.pid}, rounds=rounds, times=times)
    await over_http(gateway.part.address, f"/models/{id}/predict", rounds=rounds, times=times // 4)
    storage.close()
    await nc.close()
    return promises


async def over_the_bus(nc: Client, asked: bytes, pids: dict[str, int], *, rounds: int, times: int) -> Promises:
    asks: dict[str, Ask] = {
        "echo": lambda: nc.request(ECHO, asked, timeout=10),
        "prediction": lambda: nc.request(f"ask.{SUBJECT}", asked, timeout=10),
    }
    alone = await in_turns({name: lambda ask=ask: one_by_one(ask, times // 4) for name, ask in asks.items()}, rounds=rounds)
    spent = dict.fromkeys(asks, 0.0)

    async def busy(name: str) -> list[float]:
        before = cpu_seconds(pids[name])
        taken = await together([asks[name]] * CLIENTS, times)
        spent[name] += cpu_seconds(pids[name]) - before
        return taken

    crowd = await in_turns({name: lambda name=name: busy(name) for name in asks}, rounds=rounds)
    rows = [[name, ms(p50(alone[name])), f"{1 / p50(crowd[name]):,.0f}", f"{spent[name] / ((rounds + 1) * times) * 1e6:.0f} us"] for name in asks]
    table(["over the bus", "p50, one at a time", f"answers/s, {CLIENTS} clients", "CPU of who answers"], rows)
    promises = Promises()
    promises.at_most("predict p50, warm", p50(alone["prediction"]) / p50(alone["echo"]), 5, of="one request over the bus")
    promises.at_least(f"predictions/s, {CLIENTS} clients", p50(crowd["echo"]) / p50(crowd["prediction"]), 0.6, of="an echo")
    return promises


async def over_http(address: str, path: str, *, rounds: int, times: int) -> None:
    """Told, not promised: what a request costs is held by bench.commands."""
    connections = [await Connection(address).__aenter__() for _ in range(CLIENTS)]

    def asking(connection: Connection) -> Ask:
        async def ask() -> None:
            status, body = await connection.ask("POST", path, {"input": ROW})
            assert status == 200, body

        return ask

    asks = [asking(connection) for connection in connections]
    alone, crowd = await one_by_one(asks[0], times), [(await together(asks, times))[0] for _ in range(rounds)]
    print(f"over HTTP: p50 {ms(p50(alone))} one at a time, {1 / p50(crowd):,.0f} answers/s with {CLIENTS} connections")
    for connection in connections:
        await connection.__aexit__()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=4000)
    parser.add_argument("--echo", nargs=2, metavar=("URL", "ANSWER"), help="be the one who answers")
    arguments = parser.parse_args()
    if arguments.echo:
        url, said = arguments.echo
        uvloop.run(answer(url, said.encode()))
    with fresh_servers() as servers:
        started = [servers.service(name) for name in ("gateway", "training")]
        for process in started:
            process.spawn()
        wait_ready(started)
        try:
            at_rest(started[1])
            return uvloop.run(measure(servers, *started, rounds=arguments.rounds, times=arguments.times)).exit_code()
        finally:
            for process in started:
                process.stop()


if __name__ == "__main__":
    sys.exit(main())
