"""Chunks for the datasets service as a chunk job would leave them, generate jobs over them, and what became of those."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from libs.events import (
    Event,
    GenerateInputs,
    GenerateSpec,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationProduced,
    Recorded,
    address,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage
from services.gateway.loader import Line
from tests.kit.preparing import facts, job_id

PROJECT = "p"
PARTS = 3
"""Chunks of one part: few, so that neighbours lie in different ones."""


async def append(log: EventLog, origin: Origin, event: Event) -> Recorded:
    last = await log.read(address(origin.tenant, event))
    (recorded,) = await log.append([Write(events=[event], after=last[-1].seq if last else 0)], origin=origin)
    return recorded


async def chunk_job(log: EventLog, origin: Origin, *, kind: str = "by hand") -> Recorded:
    """One that nobody does before the test says so."""
    return await append(
        log, origin, JobCreated(job_id=str(uuid.uuid4()), kind=kind, stages=["preparation"], project_id=PROJECT, inputs={"project_id": PROJECT})
    )


async def fill(log: EventLog, storage: Storage, created: Recorded, documents: Mapping[str, Sequence[str]]) -> None:
    """Its parts and its end: each document's chunks, in their order."""
    job, origin = job_id(created), Origin(tenant=created.tenant)
    rows = [
        {"id": str(uuid.uuid5(uuid.UUID(job), f"{file}/{n}")), "file_id": file, "index": n, "content": text, "tokens": len(text.split()), "metadata": {}}
        for file, texts in documents.items()
        for n, text in enumerate(texts)
    ]
    for number, start in enumerate(range(0, len(rows), PARTS), 1):
        some = rows[start : start + PARTS]
        content = await storage.put(f"{created.tenant}/{job}", "".join(json.dumps(row) + "\n" for row in some).encode())
        await append(log, origin, PreparationProduced(job_id=job, part=number, content=content, rows=len(some), valid=len(some)))
    await append(log, origin, PreparationCompleted(job_id=job, parts=-(-len(rows) // PARTS), rows=len(rows), valid=len(rows)))


async def chunked(log: EventLog, storage: Storage, origin: Origin, documents: Mapping[str, Sequence[str]]) -> Recorded:
    created = await chunk_job(log, origin)
    await fill(log, storage, created, documents)
    return created


async def generate_job(log: EventLog, origin: Origin, chunks: Recorded, *, kind: str = "generate", **spec: Any) -> Recorded:
    """The fact that the gateway appends when somebody wants examples."""
    inputs = GenerateInputs(project_id=PROJECT, chunks=job_id(chunks))
    asked = msgspec.convert({"task_type": "qa", **spec}, GenerateSpec)
    job = JobCreated(
        job_id=str(uuid.uuid4()),
        kind=kind,
        stages=["preparation"],
        project_id=PROJECT,
        inputs=msgspec.to_builtins(inputs),
        spec=msgspec.to_builtins(asked),
    )
    return await append(log, origin, job)


class Row(msgspec.Struct, kw_only=True):
    """A line of a generated part, with what people look at."""

    part: int
    id: str
    row: int
    split: str
    format: str
    data: dict[str, Any]
    valid: bool
    reason: str
    message: str
    tokens: int
    file_id: str

    @property
    def chunk(self) -> str:
        return self.data["meta"]["chunk_id"]


async def rows(log: EventLog, storage: Storage, created: Recorded) -> list[Row]:
    """In the order of the plan; whatever the parts claim holds."""
    found: list[Row] = []
    produced = [fact.event for fact in await facts(log, created) if isinstance(fact.event, PreparationProduced)]
    assert len({event.part for event in produced}) == len(produced), "a part is told twice"
    for event in produced:
        content = await storage.get(event.content)
        lines = msgspec.json.Decoder(Line).decode_lines(content)
        assert (len(lines), sum(line.valid for line in lines)) == (event.rows, event.valid)
        found += [msgspec.convert({"part": event.part, **line}, Row) for line in msgspec.json.Decoder(dict).decode_lines(content)]
    return sorted(found, key=lambda row: row.row)


async def complete(log: EventLog, storage: Storage, created: Recorded, *, of: int) -> PreparationCompleted:
    """One end; no part and no row of the plan is missing or double, and the counts are those of the rows."""
    told = [fact.envelope.type.removeprefix("preparation.") for fact in await facts(log, created)]
    assert (told.count("started"), told.count("completed"), told[-1]) == (1, 1, "completed"), told
    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationCompleted)
    every = await rows(log, storage, created)
    assert [row.row for row in every] == list(range(1, of + 1)), (end, [row.row for row in every])
    assert sorted({row.part for row in every}) == list(range(1, end.parts + 1))
    assert (end.rows, end.valid, sum(end.refused.values())) == (of, sum(row.valid for row in every), sum(not row.valid for row in every))
    assert sum(end.splits.values()) == end.valid
    return end


def story(number: int, sentences: int = 8) -> str:
    """A chunk that no other is like: facts about an invented ship."""
    name = f"{_NAMES[number % len(_NAMES)]} {number}"
    facts = [
        f"The ferry {name} was built in {1850 + number % 150} by the yard of Port {_NAMES[(number * 7) % len(_NAMES)]}.",
        f"The hull of the {name} is made of {number + 12} steel plates that were riveted by hand.",
        f"The {name} carries {number * 3 + 40} passengers between the island and the coast every summer.",
        f"The engine room of the {name} lies below the second deck and is {number + 5} metres long.",
        f"The captain of the {name} must call the harbour office before the ship passes buoy {number + 100}.",
        f"A crossing of the {name} takes {number + 20} minutes when the sea is calm.",
        f"The {name} is a paddle steamer with two funnels and a white bridge.",
        f"In {1900 + number % 99}, the {name} rescued {number + 3} fishermen from a sinking trawler.",
    ]
    return " ".join(facts[:sentences])


_NAMES = ("Amalia", "Brunhild", "Carola", "Dagny", "Elinor", "Frida", "Gesine", "Hedda", "Isolde", "Jorun", "Kirsten", "Ludmilla", "Marit")
