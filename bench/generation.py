"""What generating examples costs a language model's server of its throughput: chunks through the whole datasets service, against a bare client that keeps the same requests under way; answers a second."""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import msgspec
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from bench.kit import ELSEWHERE, Promises, cpu_seconds, fresh_servers, in_turns, p50, table
from infra.embedded import Process, Servers, Settings
from libs import config
from libs.events import Event, GenerateInputs, GenerateSpec, JobCreated, Origin, PreparationCompleted, PreparationProduced, address, story
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.storage import Storage
from services.datasets.generation.language import tell
from services.datasets.generation.prompts import prompt

ORIGIN = Origin(tenant="bench")
EXAMPLES = 3
"""Of each chunk."""


class Chunks:
    """About 500 tokens each, no two alike; told as the parts of a job."""

    def __init__(self, count: int) -> None:
        self.texts = [_text(n) for n in range(count)]
        self.job_id = str(uuid.uuid4())

    async def store(self, log: EventLog, storage: Storage) -> None:
        lines = [{"id": str(uuid.uuid4()), "file_id": f"f{n % 5}", "index": n, "content": text, "tokens": 500} for n, text in enumerate(self.texts)]
        content = await storage.put(f"{ORIGIN.tenant}/{self.job_id}", "".join(json.dumps(line) + "\n" for line in lines).encode())
        await _append(log, JobCreated(job_id=self.job_id, kind="by hand", stages=["preparation"], inputs={}))
        await _append(log, PreparationProduced(job_id=self.job_id, part=1, content=content, rows=len(lines), valid=len(lines)))
        await _append(log, PreparationCompleted(job_id=self.job_id, parts=1, rows=len(lines), valid=len(lines)))


class Sides:
    def __init__(self, nc: Client, chunks: Chunks, *, url: str, concurrency: int, service: Process) -> None:
        self._nc, self._chunks, self._url, self._concurrency, self._service = nc, chunks, url, concurrency, service
        self._log = EventLog(nc, source="/bench")
        self.cpu: list[float] = []

    async def bare(self) -> Sequence[float]:
        """The same prompts, one after another in as many loops as there may be requests."""
        bodies = iter([msgspec.json.encode({"model": "m", "messages": _messages(text)}) for text in self._chunks.texts])
        started = time.perf_counter()
        async with aiohttp.ClientSession() as http:

            async def loop() -> None:
                for body in bodies:
                    async with http.post(f"{self._url}/v1/chat/completions", data=body) as answer:
                        json.loads(await answer.read())

            await asyncio.gather(*(loop() for _ in range(self._concurrency)))
        return [len(self._chunks.texts) / (time.perf_counter() - started)]

    async def service(self) -> Sequence[float]:
        """From the fact that asks for it to the one that says that all of it is done."""
        done = asyncio.Event()

        async def hear(_: Msg) -> None:
            done.set()

        heard = [await self._nc.subscribe(f"feed.{ORIGIN.tenant}.preparation.{end}.*", cb=hear) for end in ("completed", "failed")]
        inputs = msgspec.to_builtins(GenerateInputs(project_id="p", chunks=self._chunks.job_id))
        spec = msgspec.to_builtins(GenerateSpec(task_type="qa", num_examples=1_000_000, examples_per_chunk=EXAMPLES))
        job = JobCreated(job_id=str(uuid.uuid4()), kind="generate", stages=["preparation"], inputs=inputs, spec=spec)
        assert self._service.pid
        used, started = cpu_seconds(self._service.pid), time.perf_counter()
        await _append(self._log, job)
        await done.wait()
        taken = time.perf_counter() - started
        self.cpu.append((cpu_seconds(self._service.pid) - used) / len(self._chunks.texts))
        for subscription in heard:
            await subscription.unsubscribe()
        end = (await self._log.read(story(ORIGIN.tenant, job.job_id)))[-1].event
        assert isinstance(end, PreparationCompleted), end
        assert end.valid == end.rows == EXAMPLES * len(self._chunks.texts), end
        return [len(self._chunks.texts) / taken]


async def measure(servers: Servers, service: Process, *, url: str, chunks: int, concurrency: int, rounds: int) -> int:
    nc = await bus.connect(servers.nats_url("infra"), name="bench")
    storage = Storage(config.load(config.Service, servers.environ("datasets", port=0)))
    there = Chunks(chunks)
    await there.store(EventLog(nc, source="/bench"), storage)
    sides = Sides(nc, there, url=url, concurrency=concurrency, service=service)
    rates = await in_turns({"bare": sides.bare, "service": sides.service}, rounds=rounds)
    storage.close()
    await nc.close()
    table(
        [f"{concurrency} requests at a time", "answers/s", "CPU of the service per chunk"],
        [["a bare client", f"{p50(rates['bare']):,.1f}", ""], ["the datasets service", f"{p50(rates['service']):,.1f}", f"{p50(sides.cpu) * 1000:.1f} ms"]],
    )
    promises = Promises()
    promises.at_least("chunks answered a second", p50(rates["service"]) / p50(rates["bare"]), 0.95, of="of the server's throughput with a bare client")
    return promises.exit_code()


@contextmanager
def model(*, slots: int, seconds: tuple[float, float]) -> Iterator[str]:
    """A server that answers as many at a time as it may be asked, each after a while: its address."""
    command = [sys.executable, "-m", "tests.kit.llm", "--slots", str(slots), "--seconds", *map(str, seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


async def _append(log: EventLog, event: Event) -> None:
    last = await log.read(address(ORIGIN.tenant, event))
    await log.append([Write(events=[event], after=last[-1].seq if last else 0)], origin=ORIGIN)


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": said.role, "content": said.content} for said in prompt(text, task_type="qa", count=EXAMPLES, language=tell(text))]


def _text(number: int) -> str:
    return " ".join(f"The lighthouse number {number} keeps record {n} of the storms that were seen from its gallery in the year {1700 + n}." for n in range(25))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, nargs=2, default=(0.1, 0.3), help="between which an answer takes")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with model(slots=arguments.concurrency, seconds=tuple(arguments.seconds)) as url, fresh_servers(Settings(database_url=ELSEWHERE)) as servers:
        settings = {"TRAINYARD_LLM_URL": url, "TRAINYARD_LLM_MODEL": "m", "TRAINYARD_LLM_CONCURRENCY": str(arguments.concurrency)}
        service = servers.service("datasets", environ=settings)
        service.start()
        try:
            return uvloop.run(measure(servers, service, url=url, chunks=arguments.chunks, concurrency=arguments.concurrency, rounds=arguments.rounds))
        finally:
            service.stop()


if __name__ == "__main__":
    sys.exit(main())
