"""Commands against a real log and database: who wins, what is answered, and on which state."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from infra.embedded import Servers
from libs.events import File, JobCreated, Origin, ProjectUpdated, encode
from libs.events.log import EventLog, RawFact
from services.gateway import migrations
from services.gateway.commands import Commands
from services.gateway.domain.errors import IdempotencyKeyReused, LogFull, NotFound, StaleVersion
from services.gateway.domain.project import AddFiles, ChangeProject, CreateProject, DeleteProject, Project
from services.gateway.rooms import rooms
from services.gateway.views.database import ensure_views, pool
from services.gateway.views.progress import Progress, Step
from services.gateway.views.runner import fold


@pytest.fixture(scope="module")
async def db(servers: Servers) -> AsyncIterator[asyncpg.Pool]:
    """Views that nobody projects into: every command meets a stale one."""
    schema = f"commands_{uuid4().hex[:8]}"
    await migrations.upgrade(servers.database_url)
    made = await pool(servers.database_url, schema=schema)
    await ensure_views(made, schema)
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here waits for a view that nobody projects into."""
    monkeypatch.setattr("services.gateway.commands.VISIBLE", 0.01)


@pytest.fixture
def commands(log: EventLog, db: asyncpg.Pool) -> Commands:
    return a_gateway(log, db)


def a_gateway(log: EventLog, db: asyncpg.Pool, fill: float = 0.0) -> Commands:
    return Commands(log, Progress(), rooms(db), fill=lambda: fill)


def create(id: str, name: str = "yard", request: str = "r1") -> CreateProject:
    return CreateProject(project_id=id, name=name, description="", task_type="qa", config={}, request=request)


def new_id() -> str:
    return str(uuid4())


async def outcomes(*attempts) -> tuple[list, list[BaseException]]:
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, BaseException)], [answer for answer in answers if isinstance(answer, BaseException)]


async def test_a_command_is_answered_from_the_facts_also_when_the_views_are_behind(commands: Commands, origin: Origin):
    id = new_id()

    created = await commands.run(create(id), origin=origin)
    changed = await commands.run(ChangeProject(project_id=id, name="shed"), origin=origin)

    assert (created.state.name, created.visible) == ("yard", False)
    assert (changed.state.name, changed.version) == ("shed", changed.events[-1].seq)


async def test_fifty_honest_writers_of_one_project_all_succeed(commands: Commands, origin: Origin, log: EventLog, tenant: str):
    id = new_id()
    await commands.run(create(id), origin=origin)

    won, lost = await outcomes(*(commands.run(ChangeProject(project_id=id, name=f"name {n}"), origin=origin) for n in range(50)))

    assert (len(won), lost) == (50, [])
    names = [fact.event.name or "" for fact in await log.read(f"ev.{tenant}.project.*.{id}") if isinstance(fact.event, ProjectUpdated)]
    assert sorted(names) == sorted(f"name {n}" for n in range(50))


async def test_of_two_deletes_through_two_gateways_one_wins(log: EventLog, db: asyncpg.Pool, origin: Origin):
    for _ in range(10):
        id = new_id()
        first, second = a_gateway(log, db), a_gateway(log, db)
        await first.run(create(id), origin=origin)

        won, lost = await outcomes(*(gateway.run(DeleteProject(project_id=id), origin=origin) for gateway in (first, second)))

        assert len(won) == 1
        assert [type(refusal) for refusal in lost] == [NotFound]


async def test_of_an_upload_and_a_deletion_at_once_one_wins(log: EventLog, db: asyncpg.Pool, origin: Origin, tenant: str):
    """Either the project is gone and no job was made, or the job is there and the project too."""
    for _ in range(10):
        id, job = new_id(), new_id()
        first, second = a_gateway(log, db), a_gateway(log, db)
        await first.run(create(id), origin=origin)
        upload = AddFiles(project_id=id, files=[file(new_id(), job)], limit_mb=1)

        won, lost = await outcomes(first.run(upload, origin=origin), second.run(DeleteProject(project_id=id), origin=origin))

        assert (len(won), len(lost)) == (1, 1)
        state, _ = await first.newest(Project, id, tenant=tenant)
        assert state is not None
        made = [fact for fact in await log.read(f"ev.{tenant}.job.*.{job}") if isinstance(fact.event, JobCreated)]
        assert state.deleted == (not made)


async def test_two_creations_under_one_key_make_one_project_and_one_answer(log: EventLog, db: asyncpg.Pool, origin: Origin, tenant: str):
    id = new_id()

    won, lost = await outcomes(*(a_gateway(log, db).run(create(id), origin=origin) for _ in range(4)))

    assert lost == []
    assert len({answer.state.created_at for answer in won}) == 1
    assert len(await log.read(f"ev.{tenant}.project.*.{id}")) == 1


async def test_a_repeated_creation_gives_the_first_answer_after_changes_and_after_deletion(commands: Commands, origin: Origin):
    id = new_id()
    first = await commands.run(create(id), origin=origin)
    await commands.run(ChangeProject(project_id=id, name="shed"), origin=origin)

    after_change = await commands.run(create(id), origin=origin)
    await commands.run(DeleteProject(project_id=id), origin=origin)
    after_deletion = await commands.run(create(id), origin=origin)

    assert after_change.state == after_deletion.state == first.state


async def test_another_request_under_a_used_key_is_refused(commands: Commands, origin: Origin):
    id = new_id()
    await commands.run(create(id), origin=origin)

    with pytest.raises(IdempotencyKeyReused):
        await commands.run(create(id, name="other", request="r2"), origin=origin)


async def test_if_match_is_held_against_the_log_not_the_view(commands: Commands, origin: Origin):
    id = new_id()
    created = await commands.run(create(id), origin=origin)

    changed = await commands.run(ChangeProject(project_id=id, name="shed"), origin=origin, if_match=created.version)
    with pytest.raises(StaleVersion) as refusal:
        await commands.run(ChangeProject(project_id=id, name="barn"), origin=origin, if_match=created.version)

    assert refusal.value.context == {"version": changed.version, "yours": created.version}


async def test_a_change_back_is_made_although_the_view_says_that_it_is_so_still(
    commands: Commands, origin: Origin, db: asyncpg.Pool, log: EventLog, tenant: str
):
    id = new_id()
    created = await commands.run(create(id), origin=origin)
    raw = [RawFact(seq=fact.seq, subject=fact.subject, data=encode(fact.envelope)) for fact in created.events]
    async with db.acquire() as session:
        proxy: Any = session
        await fold(raw).rows.write(proxy)
    await commands.run(ChangeProject(project_id=id, name="shed"), origin=origin)

    back = await commands.run(ChangeProject(project_id=id, name="yard"), origin=origin)

    assert back.state.name == "yard"
    names = [fact.event.name for fact in await log.read(f"ev.{tenant}.project.*.{id}") if isinstance(fact.event, ProjectUpdated)]
    assert names == ["shed", "yard"]


async def test_a_job_and_its_project_are_cancelled_and_deleted_in_one_step(commands: Commands, origin: Origin, log: EventLog, tenant: str):
    id, job = new_id(), new_id()
    await commands.run(create(id), origin=origin)
    await commands.run(AddFiles(project_id=id, files=[file(new_id(), job)], limit_mb=1), origin=origin)

    deleted = await commands.run(DeleteProject(project_id=id, cancel=True), origin=origin)

    assert [fact.envelope.type for fact in deleted.events] == ["job.cancel_requested", "project.deleted"]
    assert deleted.events[1].seq == deleted.events[0].seq + 1
    assert [fact.envelope.type for fact in await log.read(f"ev.{tenant}.job.*.{job}")] == ["job.created", "job.cancel_requested"]


async def test_a_log_that_is_nearly_full_takes_only_commands_that_end_something(log: EventLog, db: asyncpg.Pool, origin: Origin):
    id = new_id()
    await a_gateway(log, db).run(create(id), origin=origin)
    before = (await log.position()).last

    with pytest.raises(LogFull):
        await a_gateway(log, db, fill=0.9).run(create(new_id()), origin=origin)

    assert (await log.position()).last == before
    await a_gateway(log, db, fill=0.9).run(DeleteProject(project_id=id), origin=origin)


async def test_someone_elses_project_is_not_there(commands: Commands, origin: Origin):
    id = new_id()
    await commands.run(create(id), origin=origin)

    with pytest.raises(NotFound):
        await commands.run(ChangeProject(project_id=id, name="mine"), origin=Origin(tenant="t-other"))


async def test_who_has_stopped_waiting_for_views_that_stand_still_is_forgotten_and_the_others_hear_of_them():
    progress = Progress()
    patient, gone = (asyncio.create_task(progress.wait(seq, patience=60)) for seq in (7, 8))

    assert not any(await asyncio.gather(*(progress.wait(seq % 10 + 1, patience=0.001) for seq in range(100))))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert len(progress._waiting) == 1

    progress.reached(Step(seq=6))
    assert await progress.wait(6, patience=0)
    assert not patient.done()
    progress.reached(Step(seq=7))
    assert await patient
    assert not progress._waiting


def file(id: str, job: str) -> File:
    return File(file_id=id, filename="a.jsonl", kind="dataset_upload", mime_type="application/jsonl", size=10, sha256="0" * 64, key=f"k/{id}", job_id=job)
