"""What is shown of a data set: the rows of the jobs that count, with all that people did to them, and counted right whatever came first."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import msgspec
import pytest
from asyncpg.pool import PoolConnectionProxy
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import (
    Event,
    ExampleDeleted,
    ExampleEdited,
    ExampleMarked,
    File,
    JobCreated,
    PreparationCompleted,
    PreparationProduced,
    PreparationStarted,
    ProjectCreated,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectWorkStarted,
)
from libs.runtime import bus as runtime
from services.gateway import migrations
from services.gateway.loader import load_next
from services.gateway.views import chunks, examples
from services.gateway.views.database import LIVE, ensure_views, pool
from services.gateway.views.examples import Wanted
from tests.kit.eventually import eventually
from tests.kit.history import Scribe
from tests.kit.servers import bus_alone
from tests.kit.views import World, database, dump, everything, running, world

PROJECT = "p"
FILES = [
    File(file_id=f"f{n}", filename="rows.jsonl", kind="dataset_upload", mime_type="", size=1, sha256="", key=f"k{n}", job_id=str(uuid.UUID(int=n)))
    for n in (1, 2)
]
DOCUMENT = File(file_id="d", filename="a.pdf", kind="raw_doc", mime_type="", size=1, sha256="", key="d")
GENERATED, AGAIN = str(uuid.UUID(int=7)), str(uuid.UUID(int=8))
ROWS = 60


@pytest.fixture(scope="module")
def bus() -> Iterator[Servers]:
    with bus_alone() as bus:
        yield bus


@pytest.fixture
async def here(servers: Servers, bus: Servers) -> AsyncIterator[World]:
    nc: Client = await runtime.connect(bus.nats_url("infra"), name="infra")
    async with world(servers, bus, nc) as world_:
        yield world_
    await nc.close()


async def read(here: World) -> None:
    """All that was told is projected, and its rows are loaded."""
    async with running(here.projector()):
        await here.caught_up()
    while await load_next(here.db, here.storage):
        pass
    await chunks.clear(here.db)


def row_id(job: str, row: int) -> str:
    return str(uuid.uuid5(uuid.UUID(job), str(row)))


def line(job: str, row: int, *, file_id: str) -> dict[str, Any]:
    """Every fourth is held out, every fifth has no form, every seventh is doubtful."""
    reason = "json_invalid" if row % 5 == 0 else "not_grounded" if row % 7 == 0 else ""
    data = {"raw": "{"} if reason == "json_invalid" else {"text": f"row {row} of {job[-1]}"}
    split, format = ("eval" if row % 4 == 0 else "train"), ("" if reason == "json_invalid" else "text")
    told = {"id": row_id(job, row), "row": row, "split": split, "format": format, "data": data, "valid": not reason, "reason": reason, "message": reason}
    return {**told, "tokens": 0 if reason == "json_invalid" else row, "file_id": file_id}


async def produced(here: World, scribe: Scribe, job: str, *, file_id: str = "") -> None:
    """In two parts."""
    await scribe.write(PreparationStarted(job_id=job))
    for part in (1, 2):
        lines = [line(job, row, file_id=file_id) for row in range((part - 1) * ROWS // 2 + 1, part * ROWS // 2 + 1)]
        content = await here.storage.put(f"local/{job}", b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        valid = sum(line["valid"] for line in lines)
        await scribe.write(PreparationProduced(job_id=job, part=part, content=content, rows=len(lines), valid=valid, file_id=file_id))
    await scribe.write(PreparationCompleted(job_id=job, parts=2, rows=ROWS, valid=ROWS))


async def uploaded(here: World, scribe: Scribe) -> None:
    jobs = [JobCreated(job_id=file.job_id, kind="ingest", stages=["preparation"], inputs={}, project_id=PROJECT) for file in FILES]
    await scribe.write(ProjectCreated(project_id=PROJECT, name="Red"), ProjectFilesAdded(project_id=PROJECT, files=[*FILES, DOCUMENT]), *jobs)
    for file in FILES:
        await produced(here, scribe, file.job_id)


async def generated(here: World, scribe: Scribe, job: str) -> None:
    created = JobCreated(job_id=job, kind="generate", stages=["preparation"], inputs={}, project_id=PROJECT)
    await scribe.write(ProjectWorkStarted(project_id=PROJECT, job_id=job, kind="generate"), created)
    await produced(here, scribe, job, file_id=DOCUMENT.file_id)


def edits(seed: int, *jobs: str) -> Iterator[Event]:
    """What people might do, also to one example again and again."""
    rng = random.Random(seed)
    for _ in range(120):
        job = rng.choice(jobs)
        whose: Any = {"project_id": PROJECT, "example_id": row_id(job, rng.randrange(1, ROWS + 1)), "job_id": job}
        match rng.randrange(4):
            case 0:
                yield ExampleEdited(**whose, format="alpaca", data={"instruction": "é", "output": f"{rng.random()}"}, tokens=rng.randrange(1, 99))
            case 1:
                yield ExampleEdited(**whose, split=rng.choice(["train", "eval"]))
            case 2:
                yield ExampleMarked(**whose, is_valid=rng.random() < 0.5, message="")
            case _:
                yield ExampleDeleted(**whose)


async def shown(db: asyncpg.Pool) -> list[examples.Row]:
    return await examples.page(db, PROJECT, await examples.dataset(db, PROJECT), Wanted(), limit=1000, offset=0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_people_did_is_laid_over_the_rows_whichever_comes_first(here: World, servers: Servers, seed: int):
    scribe = Scribe(here.log)
    await uploaded(here, scribe)
    await read(here)
    for event in edits(seed, *(file.job_id for file in FILES)):
        await scribe.write(event)
    await read(here)
    grown = await dump(here.url)

    async with database(servers) as url:
        await migrations.upgrade(url)
        late = World(nc=here.nc, log=here.log, url=url, db=await pool(url), storage=here.storage)
        await ensure_views(late.db, LIVE)
        await read(late)  # all facts, and only then the rows
        assert await dump(url) == grown
        late.db.terminate()
    assert len(await everything(here.log)) > 120
    await counted_right(here.db)


async def test_rows_and_edits_that_come_at_the_same_time_meet(here: World, monkeypatch: pytest.MonkeyPatch):
    """Neither sees what the other hasn't committed, so that one of them waits."""
    scribe, job = Scribe(here.log), FILES[0].job_id
    await uploaded(here, scribe)
    async with running(here.projector()):
        await here.caught_up()
    copied, edited = asyncio.Event(), asyncio.Event()
    pooled: Any = PoolConnectionProxy
    copy = pooled.copy_records_to_table

    async def slowly(*arguments: Any, **options: Any) -> Any:
        answer = await copy(*arguments, **options)
        copied.set()
        await edited.wait()
        return answer

    monkeypatch.setattr(PoolConnectionProxy, "copy_records_to_table", slowly)
    loading = asyncio.create_task(load_next(here.db, here.storage))
    await asyncio.wait_for(copied.wait(), 10)
    await scribe.write(ExampleDeleted(project_id=PROJECT, example_id=row_id(job, 1), job_id=job))
    async with running(here.projector()):
        await eventually(
            lambda: here.db.fetchval(
                "select exists (select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database()))"
            )
        )
        edited.set()
        await asyncio.wait_for(loading, 10)
        await here.caught_up()

    assert [row.row for row in await shown(here.db)] == list(range(2, ROWS // 2 + 1))
    await counted_right(here.db)


async def counted_right(db: asyncpg.Pool) -> None:
    """What is kept beside the rows is what counting them gives, for every filter; and every page is the part of the whole that it says."""
    rows, dataset = await shown(db), await examples.dataset(db, PROJECT)
    kept = Counter({(group.file_id, group.split, group.is_valid, group.format, group.reason): group.count for group in dataset.groups})
    assert kept == Counter((row.file_id, row.split, row.is_valid, row.format, row.reason) for row in rows)
    assert sum(group.tokens for group in dataset.groups) == sum(row.token_count for row in rows)
    lengths = await examples.lengths(db, dataset)
    for split, told in lengths.items():
        tokens = [row.token_count for row in rows if row.is_valid and row.split == split]
        assert (told.least, told.most) == (min(tokens), max(tokens))
    for wanted in (
        Wanted(),
        Wanted(split="train"),
        Wanted(split="eval", is_valid=True),
        Wanted(is_valid=False),
        Wanted(reason="refused_by_person"),
        Wanted(format="alpaca", split="eval"),
        Wanted(file_id=FILES[0].file_id, is_valid=True),
    ):
        those = [row for row in rows if all(value in (None, getattr(row, name)) for name, value in msgspec.structs.asdict(wanted).items() if name in ASKED)]
        assert dataset.count(wanted) == len(those)
        for offset in (0, 3, len(those) // 2, len(those) // 2 + 1, len(those) - 2, len(those)):
            assert await examples.page(db, PROJECT, dataset, wanted, limit=7, offset=max(0, offset)) == those[max(0, offset) :][:7]
        after, found = (0, -1), list[examples.Row]()
        while some := await examples.behind(db, PROJECT, dataset, wanted, after=after, most_rows=9, most_bytes=200):
            after, found = (some[-1].position, some[-1].row), found + some
        assert found == those


ASKED = ("split", "is_valid", "reason", "format", "file_id")


async def test_examples_that_newer_ones_replaced_are_neither_shown_nor_counted(here: World):
    scribe = Scribe(here.log)
    await uploaded(here, scribe)
    await generated(here, scribe, GENERATED)
    await read(here)
    for event in edits(3, FILES[0].job_id, GENERATED):
        await scribe.write(event)
    await read(here)
    before = await shown(here.db)
    await counted_right(here.db)

    await generated(here, scribe, AGAIN)
    async with running(here.projector()):
        await here.caught_up()
    hidden = await shown(here.db)  # not loaded yet, and the old ones are not removed
    assert {row.file_id for row in before} == {"f1", "f2", "d"}
    assert {row.file_id for row in hidden} == {"f1", "f2"}
    await counted_right(here.db)

    await read(here)
    assert sum(row.file_id == "d" for row in await shown(here.db)) == ROWS
    await counted_right(here.db)
    left = await here.db.fetchval("select count(*) from example_edits where job_id = $1", GENERATED)
    assert left == 0


async def test_a_deleted_file_takes_its_examples_edits_and_counts_along(here: World):
    scribe = Scribe(here.log)
    await uploaded(here, scribe)
    for event in edits(4, *(file.job_id for file in FILES)):
        await scribe.write(event)
    await read(here)

    await scribe.write(ProjectFileDeleted(project_id=PROJECT, file_id=FILES[0].file_id, key="", job_id=FILES[0].job_id))
    await read(here)

    assert {row.file_id for row in await shown(here.db)} == {FILES[1].file_id}
    await counted_right(here.db)
    for table in ("examples", "example_edits", "example_totals"):
        assert {row[0] for row in await here.db.fetch(f"select distinct job_id from {table}")} == {FILES[1].job_id}
