"""Uploads for the datasets service, its processes, and what it told about them."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from infra.embedded import Process, Servers
from libs import config
from libs.events import Claim, File, JobCancelRequested, JobCreated, Origin, Recorded, address, story
from libs.events.log import EventLog, Write
from libs.storage import Storage
from services.datasets.handlers import Preparations
from tests.kit.eventually import eventually
from tests.kit.place import killed_at_the_end, one_service

ENDED = ("preparation.completed", "preparation.failed", "preparation.cancelled")
JSON_LINES = "application/jsonl"


def replica(place: Servers, log: EventLog, storage: Storage) -> Iterator[Preparations]:
    preparations = Preparations(log, storage, workers=2, settings=settings_of(place))
    yield preparations
    preparations.close()


def settings_of(place: Servers) -> config.Datasets:
    return config.load(config.Datasets, place.environ("datasets", port=0))


@contextmanager
def process(place: Servers, *, label: str = "datasets", impatient: bool = True) -> Iterator[Process]:
    service = one_service(place, "datasets", settings=config.Datasets, label=label) if impatient else killed_at_the_end(place.service("datasets"))
    with service as process:
        yield process


def alpaca(count: int, *, start: int = 0) -> list[str]:
    return [
        json.dumps({"instruction": f"What is {n} plus one?", "input": "", "output": f"It is {n + 1}, as anybody can count."})
        for n in range(start, start + count)
    ]


def with_bad_ones(rows: list[str]) -> list[str]:
    """Every 100th is no JSON, every 500th the same as the first."""
    return ["{broken" if n % 100 == 50 else rows[0] if n and n % 500 == 0 else row for n, row in enumerate(rows)]


async def uploaded(storage: Storage, log: EventLog, origin: Origin, rows: list[str] | bytes, *, kind: str = "ingest", **changed: Any) -> Recorded:
    """The fact that the gateway appends once the bytes are stored."""
    data = rows if isinstance(rows, bytes) else "\n".join(rows).encode()
    job_id = str(uuid.uuid4())
    claim = await storage.put(f"{origin.tenant}/files", data)
    fields = {"filename": "rows.jsonl", "kind": "dataset", "mime_type": JSON_LINES, "size": claim.size, "sha256": claim.sha256, "key": claim.key, **changed}
    file = File(file_id=str(uuid.uuid4()), job_id=job_id, **fields)
    inputs = {"project_id": "p", "file": msgspec.to_builtins(file)}
    job = JobCreated(job_id=job_id, kind=kind, stages=["preparation"], project_id="p", inputs=inputs, spec={"train_share": 0.9})
    (created,) = await log.append([Write(events=[job], after=0)], origin=origin)
    return created


async def cancel(log: EventLog, created: Recorded) -> None:
    assert created.event
    where = address(created.tenant, created.event)
    last = (await log.read(where))[-1].seq
    await log.append([Write(events=[JobCancelRequested(job_id=job_id(created))], after=last)], origin=Origin(tenant=created.tenant))


def job_id(created: Recorded) -> str:
    assert isinstance(created.event, JobCreated)
    return created.event.job_id


async def facts(log: EventLog, created: Recorded) -> list[Recorded]:
    return [fact for fact in await log.read(story(created.tenant, job_id(created))) if fact.envelope.type.startswith("preparation.")]


async def names(log: EventLog, created: Recorded) -> list[str]:
    return [name for fact in await facts(log, created) if (name := fact.envelope.type.removeprefix("preparation.")) != "progress"]


async def ended(log: EventLog, created: Recorded, *, patience: float = 15.0) -> list[Recorded]:
    async def look() -> list[Recorded]:
        told = await facts(log, created)
        return told if told and told[-1].envelope.type in ENDED else []

    return await eventually(look, patience=patience)


class Gate(Storage):
    """An object store that waits, or fails, before the n-th part is stored."""

    def __init__(self, settings: config.Service, *, at: int, failing: Exception | None = None) -> None:
        super().__init__(settings)
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.puts = 0
        self._at = at
        self._failing = failing

    async def put(self, folder: str, data: bytes) -> Claim:
        self.puts += 1
        if self.puts == self._at:
            self.reached.set()
            if self._failing:
                raise self._failing
            await self.opened.wait()
        return await super().put(folder, data)


@asynccontextmanager
async def gated(place: Servers, log: EventLog, *, at: int, failing: Exception | None = None) -> AsyncIterator[tuple[Gate, Preparations]]:
    gate = Gate(settings_of(place), at=at, failing=failing)
    preparations = Preparations(log, gate, workers=2, settings=settings_of(place))
    yield gate, preparations
    preparations.close()
    gate.close()
