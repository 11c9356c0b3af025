"""How fast the views are made from the log: a gateway on an empty database, against COPYing the same rows alone into the same tables."""

import argparse
import asyncio
import random
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import uvloop

from bench.kit import Promises, fresh_servers, p50, table
from infra.embedded import Servers
from libs.events import (
    Claim,
    Event,
    ExampleDeleted,
    File,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationProduced,
    PreparationProgressed,
    PreparationStarted,
    ProjectCreated,
    ProjectFilesAdded,
    ProjectUpdated,
    encode,
    uuid7,
)
from libs.events.catalog import envelope
from libs.events.subjects import subject
from libs.runtime import bus
from services.gateway import migrations
from services.gateway.loader import LEASE as LOADER
from services.gateway.views.database import LIVE, connection, create_views
from services.gateway.views.runner import LEASE as PROJECTOR
from services.gateway.views.schema import views

ORIGIN = Origin(tenant="local", actor="local", correlation=str(uuid.UUID(int=3)), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
START = datetime(2026, 1, 5, tzinfo=UTC)
AT_ONCE = 100
"""Projects that go on side by side: the fewer, the more facts of one row would meet in one batch."""
ATOMIC = 500
COPIED = {"event_log": ("seq", "subject", "aggregate", "id", "body")} | {
    name: tuple(column.name for column in found.columns if column.computed is None)
    for name, found in views.tables.items()
    if name not in ("examples", "example_totals", "project_totals")
}
"""The others follow from these by triggers, or are loaded from the object store."""


def life_of_a_project(rng: random.Random) -> Iterator[Event]:
    """35 facts: three uploads are read, some examples thrown out."""
    project = new_id(rng)
    config = {"num_examples_target": 2000, "max_seq_length": 2048, "train_eval_split": 0.9}
    yield ProjectCreated(project_id=project, name="Questions about our docs", task_type="qa", config=config, request=f"{rng.getrandbits(128):032x}")
    yield ProjectUpdated(project_id=project, name="Questions about our documents")
    for _ in range(3):
        yield from an_upload(rng, project)
    for _ in range(6):
        yield ExampleDeleted(project_id=project, example_id=new_id(rng))


def an_upload(rng: random.Random, project: str) -> Iterator[Event]:
    job, size = new_id(rng), rng.randrange(1_000_000, 4_000_000)
    file = File(
        file_id=new_id(rng),
        filename="answers.jsonl",
        kind="dataset_upload",
        mime_type="application/jsonl",
        size=size,
        sha256=f"{rng.getrandbits(256):064x}",
        key=f"local/{project}/{new_id(rng)}",
        job_id=job,
    )
    yield ProjectFilesAdded(project_id=project, files=[file])
    inputs = {"project_id": project, "file": msgspec.to_builtins(file)}
    yield JobCreated(job_id=job, kind="ingest", stages=["preparation"], inputs=inputs, spec={"train_share": 0.9}, project_id=project)
    yield PreparationStarted(job_id=job)
    for part in range(2):
        yield PreparationProgressed(job_id=job, done=size * part // 2, total=size)
        content = Claim(key=f"local/{job}/{rng.getrandbits(256):064x}", sha256=f"{rng.getrandbits(256):064x}", size=size // 2)
        yield PreparationProduced(job_id=job, part=part, content=content, rows=1000, valid=990)
    yield PreparationProgressed(job_id=job, done=size, total=size)
    yield PreparationCompleted(job_id=job, parts=2, rows=2000, valid=1980, refused={"empty": 20})


def new_id(rng: random.Random) -> str:
    return uuid7(1_767_600_000_000 + rng.randrange(10**9), rng.randbytes(10))


def history(count: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """The facts of many projects at once, each in its order: subject, body, headers."""
    rng = random.Random(7)
    open_stories = [life_of_a_project(rng) for _ in range(AT_ONCE)]
    for n in range(count):
        place = rng.randrange(AT_ONCE)
        while (event := next(open_stories[place], None)) is None:
            open_stories[place] = life_of_a_project(rng)
        made = envelope(event, origin=ORIGIN, source="/bench", id=new_id(rng), at=START + timedelta(seconds=n))
        yield subject("local", event), encode(made), {"Nats-Msg-Id": made.id}


async def write(url: str, facts: Iterable[tuple[str, bytes, dict[str, str]]]) -> None:
    """In atomic batches: the server syncs each to the disk once."""
    nc = await bus.connect(url, name="bench")
    waiting = list(facts)
    for start in range(0, len(waiting), ATOMIC):
        batch, some = uuid.uuid4().hex, waiting[start : start + ATOMIC]
        for n, (where, body, headers) in enumerate(some[:-1], 1):
            await nc.publish(where, body, headers={**headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n)})
        where, body, headers = some[-1]
        commit = {**headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(some)), "Nats-Batch-Commit": "1"}
        acked = await nc.request(where, body, timeout=30, headers=commit)
        assert b'"error"' not in acked.data, acked.data
    await nc.close()


async def emptied(url: str) -> None:
    """Views without a row. The loader's lease is ours: loading parts is another work than replaying, and these parts lie nowhere."""
    await migrations.upgrade(url)
    db = await connection(url)
    async with db.transaction():
        await create_views(db, LIVE)
    await db.execute("truncate core.event_log")
    await db.execute("insert into leases (name, holder, until) values ($1, 'bench', 'infinity') on conflict do nothing", LOADER)
    await db.close()


async def replayed(url: str, last: int) -> float:
    """Seconds from a gateway's lease to the checkpoint that is the log's end."""
    db = await connection(url)
    started = 0.0
    while (reached := await db.fetchval("select seq from checkpoints where name = $1", LIVE) or 0) < last:
        if not started and (reached or await db.fetchval("select true from leases where name = $1", PROJECTOR)):
            started = time.perf_counter()
        await asyncio.sleep(0.01)
    taken = time.perf_counter() - started
    assert await db.fetchval("select count(*) from parked") == 0, "facts were parked"
    await db.close()
    return taken


async def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    db = await connection(url)
    found = {name: [tuple(row) for row in await db.fetch(f"select {columns(name)} from {name}")] for name in COPIED}
    await db.close()
    return found


async def copied(url: str, found: dict[str, list[tuple[Any, ...]]]) -> float:
    db = await connection(url)
    start = time.perf_counter()
    for name, records in found.items():
        await db.copy_records_to_table(name, schema_name="core" if name == "event_log" else LIVE, columns=COPIED[name], records=records)
    taken = time.perf_counter() - start
    await db.close()
    return taken


def columns(name: str) -> str:
    return ", ".join(f'"{column}"' for column in COPIED[name])


def measure(servers: Servers, promises: Promises, *, count: int, rounds: int) -> None:
    url = servers.database_url
    uvloop.run(write(servers.nats_url("infra"), history(count)))
    replays: list[float] = []
    copies: list[float] = []
    found: dict[str, list[tuple[Any, ...]]] = {}
    for _ in range(rounds):
        uvloop.run(emptied(url))
        process = servers.service("gateway")
        process.spawn()
        replays.append(uvloop.run(replayed(url, count)))
        process.stop()
        found = found or uvloop.run(rows(url))
        uvloop.run(emptied(url))
        copies.append(uvloop.run(copied(url, found)))
    say(count, replays, copies, sum(map(len, found.values())))
    promises.at_least("replay", count / p50(replays), 10_000, unit=" facts/s")
    promises.at_least("replay", p50(copies) / p50(replays), 0.25, of="COPY alone")


def say(count: int, replays: Sequence[float], copies: Sequence[float], rows: int) -> None:
    def line(name: str, taken: Sequence[float]) -> list[str]:
        return [name, f"{p50(taken):.2f} s", f"{count / p50(taken):,.0f}/s", f"{min(taken):.2f} to {max(taken):.2f} s"]

    print(f"{count:,} facts, {rows:,} rows")
    table(["", "time", "facts", "rounds"], [line("replay", replays), line("COPY alone", copies)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the facts, once")
    quick = parser.parse_args().quick
    promises = Promises()
    with fresh_servers() as servers:
        measure(servers, promises, count=20_000 if quick else 200_000, rounds=1 if quick else 3)
    return promises.exit_code()


if __name__ == "__main__":
    sys.exit(main())
