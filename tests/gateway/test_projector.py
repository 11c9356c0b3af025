"""From the log to the views: each fact once, in order, whatever dies or is odd; and the same again from the beginning."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, example, settings
from hypothesis import given as examples
from hypothesis import strategies as st
from nats.aio.client import Client
from sqlalchemy import JSON, Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from infra.embedded import Servers
from libs.events import (
    Claim,
    DatasetCreated,
    DatasetUsed,
    Event,
    File,
    JobCreated,
    PreparationCompleted,
    PreparationProduced,
    ProjectCreated,
    ProjectDeleted,
    ProjectFilesAdded,
    ProjectRunStarted,
    ProjectWorkStarted,
)
from libs.events.catalog import encode, envelope
from libs.events.log import EventLog, Misconfigured, RawFact, Write
from libs.runtime import bus as runtime
from services.gateway import migrations
from services.gateway.loader import load_next
from services.gateway.rebuild import rebuild
from services.gateway.views import datasets, projects
from services.gateway.views.database import LIVE, NEXT, connection, ensure_views, pool
from services.gateway.views.rows import Batch, Change, Drop, Merge, Operation, Put
from services.gateway.views.runner import BATCH, Fenced, apply
from tests.kit.eventually import eventually
from tests.kit.gateway import client
from tests.kit.gateway import running as running_gateway
from tests.kit.given import BEGINNING
from tests.kit.history import Scribe, live_through
from tests.kit.servers import bus_alone, storage_of
from tests.kit.views import ORIGIN, World, copied, database, dump, everything, fresh_log, running, world


@pytest.fixture(scope="module")
def bus() -> Iterator[Servers]:
    with bus_alone() as bus:
        yield bus


@pytest.fixture(scope="module")
async def bus_nc(bus: Servers) -> AsyncIterator[Client]:
    nc = await runtime.connect(bus.nats_url("infra"), name="infra")
    yield nc
    await nc.close()


@pytest.fixture
async def here(servers: Servers, bus: Servers, bus_nc: Client) -> AsyncIterator[World]:
    async with world(servers, bus, bus_nc) as world_:
        yield world_


# ---- facts become rows


async def test_facts_are_projected_in_batches_of_many(here: World):
    await write(here.log, 3 * BATCH + 7)

    async with running(here.projector()):
        last = await here.caught_up()

    assert last == 3 * BATCH + 7
    assert await here.db.fetchval("select count(*) from projects") == last
    assert await here.db.fetchval("select count(distinct xmin::text) from core.event_log") < 40


async def test_the_copy_of_the_log_is_the_log_byte_for_byte(here: World):
    await live_through(here.log, here.storage, projects=10, seed=1)

    async with running(here.projector()):
        await here.caught_up()

    assert await copied(here.db) == await everything(here.log)
    aggregates = {row["aggregate"] for row in await here.db.fetch("select aggregate from core.event_log where subject like 'ev.local.project.%'")}
    assert all(aggregate.startswith("local/") and aggregate.count("/") == 1 for aggregate in aggregates)


@pytest.mark.parametrize("seed", [1, 2])
async def test_from_the_beginning_the_views_become_the_same_bit_for_bit(here: World, servers: Servers, seed: int):
    async with running(here.projector()):
        await live_through(here.log, here.storage, projects=15, seed=seed)
        await here.caught_up()
    await load_all(here.db, here)
    grown = await dump(here.url)

    async with database(servers) as url:
        again = await replay(here, url)

    assert again == grown
    assert all(grown[table] for table in ("projects", "files", "jobs", "parts", "examples", "example_edits", "runs", "exports", "objects"))


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_its_jobs_made_goes_with_a_project_however_many_they_were(here: World, at_once: bool):
    scribe, claim = Scribe(here.log), Claim(key="local/x/0", sha256="0" * 64, size=1)

    async def life() -> None:
        for project in ("stays", "goes"):
            await scribe.write(ProjectCreated(project_id=project, name="n"))
            for job in (f"{project}-{n}" for n in range(20)):
                await scribe.write(JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={}, project_id=project))
                part = PreparationProduced(job_id=job, part=1, content=claim, rows=1, valid=1)
                await scribe.write(part, PreparationCompleted(job_id=job, parts=1, rows=1, valid=1, snapshot=msgspec.structs.replace(claim, key=job)))
        await scribe.write(ProjectDeleted(project_id="goes"))

    if at_once:
        await life()
    async with running(here.projector()):
        if not at_once:
            await life()
        await here.caught_up()

    left = {f"stays-{n}" for n in range(20)}
    for table in ("parts", "objects"):
        assert {row["job_id"] for row in await here.db.fetch(f"select job_id from {table}")} == left, table


async def test_work_that_a_project_was_told_of_goes_on_also_before_its_job_is_shown(here: World):
    """The batch that begins it may reach the views in two pieces."""
    scribe = Scribe(here.log)
    works = [ProjectWorkStarted(project_id="p", job_id=kind, kind=kind) for kind in ("chunk", "generate", "lend")]
    jobs = [
        JobCreated(job_id=id, kind=kind, stages=["training"], inputs={}, project_id=project)
        for id, kind, project in (("run", "train", "p"), ("chunk", "chunk", "p"), ("generate", "generate", "p"), ("lend", "train", "another"))
    ]
    file = File(
        file_id="f", filename="a.jsonl", kind="dataset_upload", mime_type="application/jsonl", size=1, sha256="0" * 64, key="local/p/0", job_id="ingest"
    )
    added = ProjectFilesAdded(project_id="p", files=[file])
    await scribe.write(ProjectCreated(project_id="p", name="n"), added, ProjectRunStarted(project_id="p", job_id="run"), *works)
    await scribe.write(*jobs)
    facts = await everything(here.log)
    session = await connection(here.url)
    try:
        await apply(session, facts[:6], 0, schema=LIVE, copy=True)
        before, version = await projects.load(here.db, "local", "p")
        await apply(session, facts[6:], 6, schema=LIVE, copy=True)
        after, _ = await projects.load(here.db, "local", "p")
    finally:
        session.terminate()

    assert before
    assert after
    assert version == 6
    assert before.active_jobs == after.active_jobs == {"run", "chunk", "generate", "lend"}
    assert before.works == after.works == {"run", "chunk", "generate"}
    assert before.read_by_run == after.read_by_run == {"ingest"}
    assert (before.run, before.chunking, before.generating) == ("run", "chunk", "generate")


async def test_a_data_set_is_busy_also_before_the_jobs_that_read_it_are_shown(here: World):
    scribe = Scribe(here.log)
    file = File(file_id="f", filename="a.csv", kind="dataset_upload", mime_type="text/csv", size=1, sha256="0" * 64, key="local/d/0", job_id="prepare")
    await scribe.write(DatasetCreated(dataset_id="d", name="n", file=file), DatasetUsed(dataset_id="d", job_id="fit"))
    session = await connection(here.url)
    try:
        await apply(session, await everything(here.log), 0, schema=LIVE, copy=True)
        state, _ = await datasets.load(here.db, "local", "d")
    finally:
        session.terminate()

    assert state
    assert state.active_jobs == {"prepare", "fit"}


async def test_a_type_that_this_version_does_not_know_passes_by(here: World):
    await publish(here.nc, "ev.local.comet.seen.x", fact(ProjectCreated(project_id="x", name="x"), type="comet.seen", dataschema="urn:trainyard:comet.seen:1"))
    await write(here.log, 1)

    async with running(here.projector()):
        await here.caught_up()

    assert await here.db.fetchval("select count(*) from core.event_log") == 2
    assert await here.db.fetchval("select count(*) from core.parked") == 0


# ---- one bad fact


def fact(event: Event, **changed: Any) -> bytes:
    made = envelope(event, origin=ORIGIN, source="/elsewhere", id="019a0000-0000-7000-8000-000000000003", at=BEGINNING)
    return encode(msgspec.structs.replace(made, **changed))


def odd(**data: Any) -> bytes:
    """A fact as it should be, but for its data."""
    return fact(ProjectCreated(project_id="a", name="a"), data=msgspec.Raw(json.dumps(data).encode()))


POISON: dict[str, tuple[str, bytes]] = {
    "no JSON": ("ev.local.project.created.a", b"\xff\x00 not json"),
    "nothing": ("ev.local.project.created.a", b""),
    "JSON that is no fact": ("ev.local.project.created.a", b"[]"),
    "a subject that is no subject": ("ev.local", b"{}"),
    "100,000 deep": ("ev.local.project.created.a", b"[" * 100_000),
    "a field of a wrong type": ("ev.local.project.created.a", odd(type="project.created", project_id=1, name="a")),
    "a field too few": ("ev.local.project.created.a", odd(type="project.created", name="a")),
    "NUL in a text": ("ev.local.project.created.a", odd(type="project.created", project_id="a", name="a\0b")),
    "NUL in a JSON column": ("ev.local.project.created.a", odd(type="project.created", project_id="a", name="a", config={"a\0": "\0"})),
    "half a character": ("ev.local.project.created.a", fact(ProjectCreated(project_id="a", name="half")).replace(b'"half"', b'"\\ud800"')),
    "a schema that is no number": ("ev.local.project.created.a", fact(ProjectCreated(project_id="a", name="a"), dataschema="urn:trainyard:x:y")),
}


@pytest.mark.parametrize("case", POISON)
async def test_a_fact_that_no_view_can_take_is_parked_and_the_rest_goes_on(here: World, case: str):
    subject, body = POISON[case]
    await write(here.log, 5)
    await publish(here.nc, subject, body)
    await write(here.log, 5, start=5)

    async with running(here.projector()):
        await here.caught_up()

    assert [(row["seq"], row["subject"]) for row in await here.db.fetch("select seq, subject from core.parked")] == [(6, subject)]
    assert await here.db.fetchval("select count(*) from projects") == 10
    assert await copied(here.db) == await everything(here.log)


async def test_a_number_too_large_for_its_column_is_parked(here: World):
    content = Claim(key="k", sha256="s", size=1)
    await publish(here.nc, "ev.local.preparation.produced.j", fact(PreparationProduced(job_id="j", part=2**40, content=content, rows=1, valid=1)))
    await write(here.log, 3)

    async with running(here.projector()):
        await here.caught_up()

    assert await here.db.fetchval("select count(*) from core.parked") == 1
    assert await here.db.fetchval("select count(*) from projects") == 3


async def test_many_bad_facts_among_many_good_ones_are_all_found(here: World):
    for n in range(40):
        if n % 7 == 3:
            await publish(here.nc, f"ev.local.project.created.bad{n}", b"bad")
        await write(here.log, 5, start=5 * n)

    async with running(here.projector()):
        await here.caught_up()

    assert await here.db.fetchval("select count(*) from core.parked") == 6
    assert await here.db.fetchval("select count(*) from projects") == 200


async def test_a_rebuild_parks_the_same_and_goes_on(here: World):
    await write(here.log, 3)
    await publish(here.nc, *POISON["NUL in a JSON column"])
    await write(here.log, 3, start=3)
    async with running(here.projector()):
        await here.caught_up()
        before = await dump(here.url)

        await rebuild(here.log, here.storage, here.url, tell=ignore)

        assert await dump(here.url) == before
        assert await here.db.fetchval("select count(*) from core.parked") == 1
        await write(here.log, 1, start=6)
        await here.caught_up()


# ---- who projects


async def test_whoever_is_behind_the_checkpoint_is_fenced_and_writes_nothing(here: World):
    await write(here.log, 4)
    facts = await everything(here.log)
    first, second = await connection(here.url), await connection(here.url)
    try:
        await apply(first, facts[:2], 0, schema=LIVE, copy=True)
        after = await dump(here.url)

        with pytest.raises(Fenced):
            await apply(second, facts, 0, schema=LIVE, copy=True)
        with pytest.raises(Fenced):
            await apply(second, [RawFact(seq=1, subject="ev.local.project.created.a", data=b"bad")], 0, schema=LIVE, copy=True)

        assert await dump(here.url) == after
        assert await here.db.fetchval("select count(*) from core.event_log") == 2
        assert await here.db.fetchval("select count(*) from core.parked") == 0
    finally:
        first.terminate()
        second.terminate()


@pytest.mark.alone
async def test_of_several_projectors_one_works_and_another_takes_over_when_it_ends(here: World):
    async with running(here.projector("second")):
        await write(here.log, 3)
        await here.caught_up()
        async with running(here.projector("first")):
            await write(here.log, 3, start=3)
            await here.caught_up()
            assert await leader(here.db) == "second"
    async with running(here.projector("third")):
        await write(here.log, 3, start=6)
        await here.caught_up(patience=2)

    assert await copied(here.db) == await everything(here.log)


async def test_a_projector_goes_on_when_the_database_hangs_up(here: World):
    async with running(here.projector()):
        for n in range(3):
            await write(here.log, 20, start=20 * n)
            await here.caught_up()
            async with here.db.acquire() as session:
                await session.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
        await write(here.log, 20, start=60)
        await eventually(lambda: reached(here.url, 80), patience=20)

    assert await copied_from(here.url) == await everything(here.log)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_the_views_follow_again_soon_after_their_leader_is_gone(mortal: Servers, how: str):
    """Killed it leaves its lease behind; paused it wakes up and believes that it leads still."""
    async with database(mortal) as url:
        environ = {"TRAINYARD_DATABASE_URL": url}
        with running_gateway(mortal, label=f"{how}-1", environ=environ) as first, running_gateway(mortal, label=f"{how}-2", environ=environ) as second:
            async with client(second) as api:
                made = (await api.post("/projects", json={"name": "before"})).json()
                await eventually(lambda: listed(api, made["id"]))
                getattr(first, how)()

                await api.post("/projects", json={"name": "meanwhile"})
                after = (await api.post("/projects", json={"name": "after"})).json()
                await eventually(lambda: listed(api, after["id"]), patience=8)
                if how == "pause":
                    first.resume()
                    last = (await api.post("/projects", json={"name": "last"})).json()
                    async with client(first) as woken:
                        await eventually(lambda: listed(woken, last["id"]))
        nc = await runtime.connect(mortal.nats_url("infra"), name="infra")
        facts = await everything(EventLog(nc, source="/tests"))
        await nc.close()

        assert await copied_from(url) == facts


# ---- another log


async def test_a_log_that_ends_before_the_views_is_refused_in_words(here: World):
    await write(here.log, 3)
    async with running(here.projector()):
        await here.caught_up()
    await here.db.execute("update core.checkpoints set seq = 4 where name = $1", LIVE)

    with pytest.raises(Misconfigured, match=r"ends at 3, the views are at 4: facts were lost.*restore"):
        await here.projector().run()


async def test_another_log_is_refused_in_words(here: World, bus: Servers):
    await write(here.log, 3)
    async with running(here.projector()):
        await here.caught_up()
    await fresh_log(here.nc, bus)
    await write(here.log, 9)

    with pytest.raises(Misconfigured, match=r"facts were lost.*restore"):
        await here.projector().run()
    assert await here.db.fetchval("select count(*) from projects") == 3


# ---- made anew


async def test_the_views_are_made_anew_while_people_write_and_read(mortal: Servers):
    """No request fails or goes back in time, and what is there afterwards is what the log says."""
    async with database(mortal) as url:
        with running_gateway(mortal, label="rebuilt", environ={"TRAINYARD_DATABASE_URL": url}) as gateway:
            nc = await runtime.connect(mortal.nats_url("infra"), name="infra")
            here = World(nc=nc, log=EventLog(nc, source="/tests"), url=url, db=await pool(url), storage=storage_of(mortal))
            async with client(gateway) as api:
                await live_through(here.log, here.storage, projects=15, seed=3)
                enough = asyncio.Event()
                people = [asyncio.create_task(person(api, n, until=enough)) for n in range(6)]
                try:
                    for _ in range(4):
                        await rebuild(here.log, here.storage, url, tell=ignore)
                        await asyncio.sleep(0.2)  # some traffic in between, too
                finally:
                    enough.set()  # each finishes what it asked for: a request cut off might still become a fact after the look at the views
                    await asyncio.gather(*people)
                await here.caught_up()
                await eventually(lambda: nothing_pending(here.db))
                shown = await dump(url)
                assert await copied(here.db) == await everything(here.log)
            async with database(mortal) as fresh:
                assert await replay(here, fresh) == shown
            await here.db.close()
            here.storage.close()
            await nc.close()


async def test_a_rebuild_that_is_interrupted_leaves_the_old_views(here: World):
    async with running(here.projector()):
        await live_through(here.log, here.storage, projects=8, seed=4)
        await here.caught_up()
        await load_all(here.db, here)
        before = await dump(here.url)

        for _ in range(2):
            work = asyncio.create_task(rebuild(here.log, Stuck(), here.url, tell=ignore))  # type: ignore[arg-type]
            await eventually(lambda: half_made(here.db))
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            assert await dump(here.url) == before
        await rebuild(here.log, here.storage, here.url, tell=ignore)

    assert await dump(here.url) == before
    assert await dump(here.url, NEXT) == {}


async def test_a_rebuild_without_a_projector_loses_nothing_that_the_copy_lacks(here: World):
    """The log is ahead of the views: facts that the rebuild has seen must still be copied by whoever projects next."""
    await write(here.log, 5)
    async with running(here.projector()):
        await here.caught_up()
    await write(here.log, 5, start=5)

    await rebuild(here.log, here.storage, here.url, tell=ignore)
    async with running(here.projector()):
        await here.caught_up()

    assert await copied(here.db) == await everything(here.log)
    assert await here.db.fetchval("select count(*) from projects") == 10


async def test_two_rebuilds_at_once_are_one_and_a_refusal(here: World):
    await write(here.log, 2)
    async with running(here.projector()):
        await here.caught_up()

    outcomes = await asyncio.gather(*(rebuild(here.log, here.storage, here.url, tell=ignore) for _ in range(3)), return_exceptions=True)

    assert sum(outcome == 2 for outcome in outcomes) >= 1
    assert {str(outcome) for outcome in outcomes if outcome != 2} <= {"Another rebuild is running", "Another rebuild took over"}


# ---- operations on rows: folded into few statements they do what they would do one by one


THINGS = Table("things", MetaData(), Column("id", Text, primary_key=True), Column("a", Integer), Column("b", Text), Column("config", JSON))
KEYS = st.sampled_from(["x", "y", "z"])
VALUES = st.fixed_dictionaries({}, optional={"a": st.none() | st.integers(-3, 3), "b": st.none() | st.text("pqé'\"\\", max_size=3)})
CONFIGS = st.dictionaries(
    st.sampled_from("klm"), st.none() | st.integers(-3, 3) | st.lists(st.integers(0, 3), max_size=2) | st.text('p{,"', max_size=2), max_size=3
)
OPERATIONS = st.one_of(
    st.builds(lambda key, values, config: Put(THINGS, {"id": key, "a": None, "b": None, "config": config, **values}), KEYS, VALUES, CONFIGS),
    st.builds(lambda key, values: Change(THINGS, key, values), KEYS, VALUES.filter(bool)),
    st.builds(lambda key, config: Change(THINGS, key, {"config": config}), KEYS, CONFIGS),
    st.builds(lambda keys: Drop(THINGS, "id", keys), st.lists(KEYS, max_size=2)),
    st.builds(lambda values: Drop(THINGS, "a", values), st.lists(st.integers(-3, 3), max_size=2)),
    st.builds(lambda key, config: Merge(THINGS, key, "config", config), KEYS, CONFIGS),
)
PUT_X = Put(THINGS, {"id": "x", "a": 1, "b": None, "config": {}})


@pytest.fixture(scope="module")
async def scratch(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    async with database(servers) as url:
        session = await connection(url, schema="public")
        await session.execute(str(CreateTable(THINGS).compile(dialect=postgresql.dialect())))
        yield session
        await session.close()


@examples(batches=st.lists(st.lists(OPERATIONS, max_size=8), max_size=3))
@example(batches=[[PUT_X], [Put(THINGS, {"id": "x", "a": 2, "b": "p", "config": {}}), Change(THINGS, "x", {"a": 3})]])
@example(batches=[[Change(THINGS, "x", {"a": 3}), PUT_X]])
@example(batches=[[PUT_X, Drop(THINGS, "a", [1]), PUT_X, Change(THINGS, "x", {"a": 2}), Drop(THINGS, "a", [1])]])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_batch_of_operations_does_what_they_do_one_by_one(scratch: asyncpg.Connection, batches: list[list[Operation]]):
    together = await outcome(scratch, batches)
    one_by_one = await outcome(scratch, [[operation] for batch in batches for operation in batch])

    assert together == one_by_one == plainly([operation for batch in batches for operation in batch])


def plainly(operations: list[Operation]) -> list[Any]:
    """The meaning of the operations, on a dict."""
    rows: dict[str, dict[str, Any]] = {}
    for operation in operations:
        match operation:
            case Put(row=row):
                rows.setdefault(row["id"], dict(row))
            case Change(key=key, columns=columns) if key in rows:
                rows[key] |= columns
            case Merge(key=key, value=value) if key in rows:
                rows[key] = {**rows[key], "config": {**rows[key]["config"], **value}}
            case Drop(column=column, values=values):
                rows = {key: row for key, row in rows.items() if row[column] not in values}
            case _:
                continue
    return [rows[key] for key in sorted(rows)]


async def outcome(session: asyncpg.Connection, batches: list[list[Operation]]) -> list[Any]:
    await session.execute("truncate things")
    for operations in batches:
        batch = Batch()
        batch.add(operations)
        async with session.transaction():
            await batch.write(session)
    rows = await session.fetch("select * from things order by id")
    return [{**row, "config": msgspec.json.decode(row["config"])} for row in rows]


# ---- helpers


async def write(log: EventLog, count: int, *, start: int = 0) -> None:
    """So many projects, quickly."""
    for n in range(start, start + count, 100):
        some = range(n, min(n + 100, start + count))
        await log.append([Write(events=[ProjectCreated(project_id=f"p{each}", name=f"project {each}")], after=0) for each in some], origin=ORIGIN)


async def publish(nc: Client, subject: str, body: bytes) -> None:
    await nc.jetstream().publish(subject, body)


def ignore(_: str) -> None:
    return None


async def load_all(db: asyncpg.Pool, here: World) -> None:
    while await load_next(db, here.storage):
        pass


async def replay(here: World, url: str) -> dict[str, list[str]]:
    """The same log into an empty database, in large batches."""
    await migrations.upgrade(url)
    db = await pool(url)
    session = await connection(url)
    try:
        await ensure_views(db, LIVE)
        facts = await everything(here.log)
        for n in range(0, len(facts), BATCH):
            await apply(session, facts[n : n + BATCH], n, schema=LIVE, copy=True)
        await load_all(db, here)
        return await dump(url)
    finally:
        session.terminate()
        db.terminate()


async def leader(db: asyncpg.Pool) -> str:
    return await db.fetchval("select holder from core.leases where name = 'projector'")


async def reached(url: str, seq: int) -> bool:
    session = await asyncpg.connect(url)
    try:
        return await session.fetchval("select seq from core.checkpoints where name = $1", LIVE) >= seq
    finally:
        await session.close()


async def copied_from(url: str) -> list[RawFact]:
    db = await pool(url, size=2)
    try:
        return await copied(db)
    finally:
        await db.close()


async def listed(api: httpx.AsyncClient, id: str) -> bool:
    return id in [project["id"] for project in (await api.get("/projects", params={"limit": 1000})).json()["items"]]


async def nothing_pending(db: asyncpg.Pool) -> bool:
    return not await db.fetchval("select exists (select from parts where state = 'pending')")


async def half_made(db: asyncpg.Pool) -> bool:
    return await db.fetchval("select seq from core.checkpoints where name = $1", NEXT) == await db.fetchval(
        "select seq from core.checkpoints where name = $1", LIVE
    )


async def person(api: httpx.AsyncClient, n: int, *, until: asyncio.Event) -> None:
    """Changes things, and looks at them."""
    made = await api.post("/projects", json={"name": "0"})
    path, change = made.headers["location"], 0
    while not until.is_set():
        change += 1
        changed = await api.patch(path, json={"name": str(change)})
        assert changed.status_code == 200, changed.text
        seen = await api.get(path)
        assert seen.status_code == 200, seen.text
        assert int(seen.json()["name"]) >= (change if "x-event-seq" not in changed.headers else 0)
        for more in ("/projects", f"{path}/files", f"{path}/jobs", f"{path}/dataset/examples", f"{path}/dataset/stats"):
            answer = await api.get(more)
            assert answer.status_code == 200, answer.text
        if change % 5 == n % 5:
            rows = b'{"instruction": "a", "output": "b"}\n' * 50
            added = await api.post(f"{path}/files/upload", files={"files": ("a.jsonl", rows)}, data={"kind": "dataset_upload"})
            assert added.status_code == 201, added.text


class Stuck:
    """An object store that never answers."""

    async def get(self, claim: Claim) -> bytes:
        await asyncio.Event().wait()
        return b""
