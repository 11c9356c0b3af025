"""Whoever makes chunks and examples dies, and what that rests on too: over HTTP nothing is missing and nothing is double."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.embedded import Process
from libs.config import Datasets
from libs.events import PreparationProduced
from libs.events.log import EventLog
from tests.kit.checker import check, summary
from tests.kit.chunked import story
from tests.kit.eventually import eventually
from tests.kit.place import one_service
from tests.kit.platform import Platform, client, platform
from tests.kit.servers import revive

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # nats-py leaves them behind where a reconnect fails halfway
    pytest.mark.timeout(240),
]

ROOT = Path(__file__).parents[2]
AWAY = 60.0 if "LONG_FAULTS" in os.environ else 1.0
"""Seconds, at least, without the store: `make chaos` has the time."""
PATIENCE = 60.0
DOCUMENTS, SHIPS = 6, 8


class LanguageModel:
    """A server that can be killed; on the same port again."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.kit.llm", "--port", str(self.port), "--slots", "4", "--seconds", "0.04", "0.08"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Ground:
    platform: Platform
    datasets: Process
    model: LanguageModel
    http: httpx.AsyncClient
    log: EventLog

    async def project(self) -> str:
        made = await self.http.post(f"{self.platform.urls[0]}/projects", json={"name": "Ferries", "task_type": "qa"})
        path = f"{self.platform.urls[0]}/projects/{made.json()['id']}"
        texts = ["\n\n".join(f"# Ship {ship}\n\n{story(SHIPS * n + ship)}" for ship in range(SHIPS)) for n in range(DOCUMENTS)]
        files = [("files", (f"ships-{n}.md", text.encode())) for n, text in enumerate(texts)]
        uploaded = await self.http.post(f"{path}/files/upload", files=files, data={"kind": "raw_doc"})
        assert uploaded.status_code == 201, uploaded.text
        return path

    async def ordered(self, path: str, **body: Any) -> str:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    async def told(self, job: str, *, of: int) -> None:
        """So many parts; never waits behind the end of the job."""
        while len(await self.log.read(f"ev.local.preparation.produced.{job}")) < of:
            assert not await self.log.read(f"ev.local.preparation.completed.{job}"), "it was done too soon"
            await asyncio.sleep(0.005)

    async def ended(self, job: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            seen = (await self.http.get(f"{self.platform.urls[0]}/jobs/{job}")).json()
            return seen if seen["status"] in ("success", "failed", "cancelled") else await asyncio.sleep(0.1)

        seen = await eventually(look, patience=PATIENCE)
        assert seen
        assert seen["status"] == "success", seen
        return seen

    async def every(self, path: str, **query: Any) -> list[dict[str, Any]]:
        page = (await self.http.get(path, params={"limit": 1000, **query})).json()
        assert page["total"] == len(page["items"])
        return page["items"]

    async def without_the_store(self) -> None:
        store = self.platform.servers["s3"]
        store.kill()
        await asyncio.sleep(AWAY)
        await revive(store)


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    there = LanguageModel()
    yield there
    there.kill()


@pytest.fixture(scope="module")
async def ground(model: LanguageModel) -> AsyncIterator[Ground]:
    """One gateway, and a datasets service whose work is taken up again two seconds after it was killed."""
    with pytest.MonkeyPatch.context() as environ:
        for name, value in {"LLM_URL": f"http://127.0.0.1:{model.port}", "LLM_MODEL": "small", "LLM_CONCURRENCY": "4", "LOG_LEVEL": "warning"}.items():
            environ.setenv(f"TRAINYARD_{name}", value)
        with platform(gateways=1, datasets=0) as made, one_service(made.servers, "datasets", settings=Datasets) as datasets:
            await revive(datasets)
            async with client() as http, made.log() as log:
                yield Ground(made, datasets, model, http, log)


async def test_chunks_are_made_once_whoever_dies_meanwhile(ground: Ground):
    path = await ground.project()
    size = {"chunk_size_tokens": 128, "chunk_overlap_tokens": 16}
    await ground.ended(await ground.ordered(f"{path}/chunks/generate", **size))
    undisturbed = [(chunk["source_file_id"], chunk["chunk_index"], chunk["content"]) for chunk in await ground.every(f"{path}/chunks")]

    job = await ground.ordered(f"{path}/chunks/generate", **size)
    await ground.told(job, of=1)
    ground.datasets.kill()
    await revive(ground.datasets)
    await ground.told(job, of=2)
    await ground.without_the_store()
    seen = await ground.ended(job)

    found = [(chunk["source_file_id"], chunk["chunk_index"], chunk["content"]) for chunk in await ground.every(f"{path}/chunks")]
    assert len(found) > DOCUMENTS * SHIPS
    assert found == undisturbed
    assert seen["result_summary"]["chunks"] == len(found)
    assert len(await ground.log.read(f"ev.local.preparation.completed.{job}")) == 1


async def test_examples_are_generated_once_of_each_chunk_whoever_dies_meanwhile(ground: Ground):
    path = await ground.project()
    await ground.ended(await ground.ordered(f"{path}/chunks/generate", chunk_size_tokens=128, chunk_overlap_tokens=0))
    chunks = {chunk["id"] for chunk in await ground.every(f"{path}/chunks")}

    job = await ground.ordered(f"{path}/dataset/generate", num_examples_target=5_000, examples_per_chunk=2)
    await ground.told(job, of=8)
    ground.model.kill()
    await asyncio.to_thread(ground.model.start)
    await ground.told(job, of=25)
    ground.datasets.kill()
    await revive(ground.datasets)
    await ground.told(job, of=45)
    await ground.without_the_store()
    seen = await ground.ended(job)

    examples = await ground.every(f"{path}/dataset/examples")
    stats = (await ground.http.get(f"{path}/dataset/stats")).json()
    assert Counter(example["data"]["meta"]["chunk_id"] for example in examples) == dict.fromkeys(chunks, 2)
    assert len({example["id"] for example in examples}) == len(examples) == 2 * len(chunks)
    assert (stats["total"], seen["result_summary"]["total_generated"]) == (len(examples), len(examples))
    assert stats["valid"] == sum(example["is_valid"] for example in examples) == seen["result_summary"]["valid"] > len(chunks)
    told = [fact.event.part for fact in await ground.log.read(f"ev.local.preparation.produced.{job}") if isinstance(fact.event, PreparationProduced)]
    assert sorted(told) == list(range(1, len(chunks) + 1))


async def test_after_all_of_this_nothing_is_wrong(ground: Ground):
    assert await ground.platform.rest(PATIENCE) == ""
    await ground.platform.sweep()

    assert summary(check(await ground.platform.collect())) == ""
