"""The log of truth: guards, batches, ids, every way of reading it, and what it says when it can't."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import Event, JobCreated, Origin, PreparationStarted, ProjectCreated, ProjectUpdated, Recorded, address, encode, story
from libs.events.catalog import LARGEST, envelope
from libs.events.log import Conflict, EventLog, Forbidden, Full, Misconfigured, RawFact, Unavailable, Write
from libs.events.storable import NotStorable
from libs.runtime import bus as runtime
from tests.kit.buses import Bus
from tests.kit.eventually import eventually
from tests.kit.proxy import Wire, wire
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway
ALONE = pytest.mark.parametrize("bus", ["alone"], indirect=True)
CREATED = ProjectCreated(project_id="p", name="Red")
GREEN, BLUE = ProjectUpdated(project_id="p", name="Green"), ProjectUpdated(project_id="p", name="Blue")
JOB = JobCreated(job_id="j", kind="ingest", stages=["preparation"], inputs={})
CAUSE = "019a0000-0000-7000-8000-000000000002"


def after(last: int, *events: Event, nth: int | None = None) -> list[Write]:
    return [Write(events=events, after=last, nth=nth)]


def positions(facts: list[Recorded]) -> list[int]:
    return [fact.seq for fact in facts]


def events(facts: list[Recorded]) -> list[Event | None]:
    return [fact.event for fact in facts]


async def there(bus: Bus, origin: Origin, *, of: int) -> list[Recorded]:
    """What the log holds for this test. A server of a cluster may be behind for a moment when it is asked."""
    return await eventually(lambda: bus.log.read(f"ev.{origin.tenant}.>"), of=of)


# Appending


async def test_what_is_appended_is_read_as_it_was_returned(log: EventLog, origin: Origin):
    written = await log.append(after(0, CREATED), origin=origin)

    assert await log.read(address(origin.tenant, CREATED)) == written
    assert written[0].event == CREATED
    assert written[0].subject == f"ev.{origin.tenant}.project.created.p"
    assert (written[0].tenant, written[0].envelope.actor, written[0].envelope.source) == (origin.tenant, "user-1", "/tests")


async def test_each_fact_of_an_aggregate_stands_right_after_the_one_before(log: EventLog, origin: Origin):
    (created,) = await log.append(after(0, CREATED), origin=origin)
    (green,) = await log.append(after(created.seq, GREEN), origin=origin)

    with pytest.raises(Conflict, match=rf"ev\.{origin.tenant}\.project\.\*\.p"):
        await log.append(after(created.seq, BLUE), origin=origin)

    assert events(await log.read(address(origin.tenant, CREATED))) == [CREATED, GREEN]
    assert await log.read(address(origin.tenant, CREATED), after=created.seq) == [green]


async def test_what_must_be_new_is_refused_where_something_is(log: EventLog, origin: Origin):
    await log.append(after(0, CREATED), origin=origin)

    with pytest.raises(Conflict):
        await log.append(after(0, GREEN), origin=origin)


async def test_aggregates_do_not_stand_in_each_others_way(log: EventLog, origin: Origin):
    others = [ProjectCreated(project_id=f"p-{n}", name="Red") for n in range(20)]

    await asyncio.gather(*(log.append(after(0, other), origin=origin) for other in others))

    assert sorted(map(repr, events(await log.read(f"ev.{origin.tenant}.>")))) == sorted(map(repr, others))


async def test_of_many_at_once_one_wins(log: EventLog, origin: Origin):
    outcomes = await asyncio.gather(*(log.append(after(0, CREATED), origin=origin) for _ in range(20)), return_exceptions=True)

    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
    assert len(await log.read(address(origin.tenant, CREATED))) == 1


async def test_a_batch_spans_aggregates_and_lies_in_one_piece(log: EventLog, origin: Origin):
    (created,) = await log.append(after(0, CREATED), origin=origin)

    written = await log.append([*after(created.seq, GREEN, BLUE), *after(0, JOB), *after(0, PreparationStarted(job_id="j"))], origin=origin)

    assert positions(written) == list(range(written[0].seq, written[0].seq + 4))
    assert await log.read(f"ev.{origin.tenant}.>") == [created, *written]
    assert events(await log.read(story(origin.tenant, "j"))) == [JOB, PreparationStarted(job_id="j")]


async def test_a_batch_with_one_moved_guard_writes_nothing_at_all(bus: Bus, origin: Origin):
    (created,) = await bus.log.append(after(0, CREATED), origin=origin)
    (job,) = await bus.log.append(after(0, JOB), origin=origin)

    for stale in (
        [*after(created.seq, GREEN), *after(0, JOB)],
        [*after(0, JOB), *after(created.seq, GREEN)],
        [*after(created.seq, GREEN), *after(job.seq - 1, JOB)],
    ):
        with pytest.raises(Conflict, match=rf"ev\.{origin.tenant}\.job\.\*\.j"):
            await bus.log.append(stale, origin=origin)

    assert await there(bus, origin, of=2) == [created, job]
    (green,) = await bus.log.append(after(created.seq, GREEN), origin=origin)
    assert green.seq == job.seq + 1


async def test_more_batches_at_once_than_the_server_holds_open_all_come_through(bus: Bus, origin: Origin):
    def batch(n: int) -> list[Write]:
        return [*after(0, ProjectCreated(project_id=f"p-{n}", name="Red")), *after(0, JobCreated(job_id=f"j-{n}", kind="ingest", stages=[], inputs={}))]

    written = await asyncio.gather(*(bus.log.append(batch(n), origin=origin) for n in range(80)))

    assert sorted(seq for facts in written for seq in positions(facts)) == positions(await there(bus, origin, of=160))


async def test_a_reaction_that_is_repeated_writes_the_same_fact(bus: Bus, origin: Origin):
    """Whatever it read in the meantime."""
    caused = Origin(tenant=origin.tenant, causation=CAUSE)

    (first,) = await bus.log.append(after(0, CREATED, nth=0), origin=caused)
    (again,) = await bus.log.append(after(0, CREATED, nth=0), origin=caused)
    (later,) = await bus.log.append(after(first.seq, CREATED, nth=0), origin=caused)
    (second,) = await bus.log.append(after(first.seq, CREATED, nth=1), origin=caused)

    assert first.seq == again.seq == later.seq
    assert first.id == again.id == later.id != second.id
    assert positions(await there(bus, origin, of=2)) == [first.seq, second.seq]


async def test_a_reaction_of_several_facts_that_is_repeated_writes_them_once(bus: Bus, origin: Origin):
    caused = Origin(tenant=origin.tenant, causation=CAUSE)
    facts = (CREATED, GREEN, BLUE)

    first = await bus.log.append(after(0, *facts, nth=0), origin=caused)
    again = await bus.log.append(after(0, *facts, nth=0), origin=caused)
    later = await bus.log.append(after(first[-1].seq, *facts, nth=0), origin=caused)

    assert positions(first) == positions(again) == positions(later) == positions(await there(bus, origin, of=3))


async def test_two_causes_or_two_aggregates_are_two_facts(log: EventLog, origin: Origin):
    (first,) = await log.append(after(0, CREATED, nth=0), origin=Origin(tenant=origin.tenant, causation=CAUSE))
    (second,) = await log.append(after(first.seq, CREATED, nth=0), origin=Origin(tenant=origin.tenant, causation=first.id))
    (other,) = await log.append(after(0, ProjectCreated(project_id="other", name="Red"), nth=0), origin=Origin(tenant=origin.tenant, causation=CAUSE))

    assert len({first.id, second.id, other.id}) == 3
    assert first.seq < second.seq < other.seq


@pytest.mark.parametrize(
    "event",
    [
        ProjectUpdated(project_id="p", name="a\0b"),
        ProjectUpdated(project_id="p", config={"loss": float("nan")}),
        ProjectUpdated(project_id="p", config={"text": "x" * LARGEST}),
        ProjectUpdated(project_id="p.*", name="Red"),
    ],
    ids=["nul", "nan", "too large", "id"],
)
async def test_what_can_not_be_a_fact_is_refused_before_anything_is_sent(log: EventLog, infra_nc: Client, origin: Origin, event: Event):
    sent = infra_nc.stats["out_msgs"]

    with pytest.raises(ValueError, match=r"name|config|subject|bytes") as refusal:
        await log.append([*after(0, JOB), *after(0, event)], origin=origin)

    assert isinstance(refusal.value, NotStorable) or "subject" in str(refusal.value)
    assert infra_nc.stats["out_msgs"] == sent


async def test_the_largest_event_there_may_be_is_taken(log: EventLog, origin: Origin):
    room = LARGEST - len('{"type":"project.updated","project_id":"p","name":null,"description":null,"task_type":null,"config":{"text":""}}')
    event = ProjectUpdated(project_id="p", config={"text": "x" * room})

    await log.append(after(0, event), origin=origin)

    assert events(await log.read(address(origin.tenant, event))) == [event]
    with pytest.raises(NotStorable):
        await log.append(after(0, ProjectUpdated(project_id="p", config={"text": "x" * (room + 1)})), origin=origin)


# Doubtful answers


@asynccontextmanager
async def through_a_wire(bus: Bus) -> AsyncIterator[tuple[EventLog, Wire]]:
    url = urlsplit(bus.url.split(",")[0])
    async with wire("127.0.0.1", url.port or 0) as between:
        nc = await runtime.connect(f"nats://{url.username}:{url.password}@127.0.0.1:{between.port}", name="infra")
        yield EventLog(nc, source="/tests"), between
        await nc.close()


@pytest.mark.parametrize("writes", [after(0, CREATED), [*after(0, CREATED, GREEN), *after(0, JOB)]], ids=["fact", "batch"])
@pytest.mark.parametrize("hung_up", [False, True], ids=["answer lost", "connection lost"])
async def test_a_lost_answer_ends_in_one_fact_and_a_normal_return(bus: Bus, origin: Origin, writes: list[Write], hung_up: bool):
    async with through_a_wire(bus) as (log, between):
        between.answers_lost = True
        appending = asyncio.create_task(log.append(writes, origin=origin))
        size = sum(len(write.events) for write in writes)
        written = await there(bus, origin, of=size)
        if hung_up:
            between.cut()
        between.answers_lost = False

        assert await appending == written
    assert await there(bus, origin, of=size) == written


async def test_a_lost_answer_to_a_loser_is_a_conflict(bus: Bus, origin: Origin):
    async with through_a_wire(bus) as (log, between):
        await bus.log.append(after(0, CREATED), origin=origin)
        between.answers_lost = True
        appending = asyncio.create_task(log.append(after(0, GREEN), origin=origin))
        await asyncio.sleep(0.1)
        between.answers_lost = False

        with pytest.raises(Conflict):
            await appending
    assert events(await there(bus, origin, of=1)) == [CREATED]


@pytest.mark.parametrize("writes", [after(0, CREATED), [*after(0, CREATED), *after(0, JOB)]], ids=["fact", "batch"])
async def test_a_try_that_lands_when_its_id_is_forgotten_is_stopped_by_the_guard(bus: Bus, origin: Origin, writes: list[Write]):
    def same_ids() -> EventLog:
        numbers = count()
        return EventLog(
            bus.nc, source="/tests", now=lambda: datetime(2026, 11, 5, tzinfo=UTC), entropy=lambda _: f"{origin.tenant[-7:]}{next(numbers):03}".encode()
        )

    async with changed(bus, duplicate_window=100_000_000):
        first = await same_ids().append(writes, origin=origin)
        await asyncio.sleep(0.3)
        late = await same_ids().append(writes, origin=origin)

    assert late == first
    assert await there(bus, origin, of=len(first)) == first


# A log that can't


@asynccontextmanager
async def changed(bus: Bus, **options: Any) -> AsyncIterator[None]:
    config = (await asked(bus, "INFO"))["config"]
    await asked(bus, "UPDATE", **config | options)
    try:
        yield
    finally:
        await asked(bus, "UPDATE", **config)


async def asked(bus: Bus, verb: str, **body: Any) -> dict[str, Any]:
    answer = json.loads((await bus.nc.request(f"$JS.API.STREAM.{verb}.EV", json.dumps(body).encode(), timeout=5)).data)
    assert "error" not in answer, answer
    return answer


async def test_a_full_log_says_so_writes_nothing_and_heals(bus: Bus, origin: Origin):
    (created,) = await bus.log.append(after(0, CREATED), origin=origin)
    async with changed(bus, max_bytes=(await bus.log.position()).bytes + 100):
        with pytest.raises(Full, match="maximum bytes"):
            await bus.log.append(after(created.seq, GREEN), origin=origin)
        with pytest.raises(Full):
            await bus.log.append([*after(created.seq, GREEN), *after(0, JOB)], origin=origin)
        assert (await bus.log.position()).fill > 0.8

    assert await there(bus, origin, of=1) == [created]
    assert len(await bus.log.append(after(created.seq, GREEN), origin=origin)) == 1


@ALONE
@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("discard", "old", "discard is 'old', must be 'new'"),
        ("max_age", 10**15, "max_age"),
        ("max_msgs_per_subject", 10, "max_msgs"),
        ("allow_atomic", False, "allow_atomic"),
    ],
)
async def test_a_stream_that_would_lose_facts_is_refused(bus: Bus, option: str, value: Any, reason: str):
    async with changed(bus, **{option: value}):
        with pytest.raises(Misconfigured, match=rf"EV: {reason}.*infra\.nats\.provision"):
            await bus.log.check()

    await bus.log.check()


async def test_a_bus_without_streams_is_refused(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("libs.events.log.STREAM", "NONE")

    with pytest.raises(Misconfigured, match=r"NONE: stream not found.*infra\.nats\.provision"):
        await bus.log.check()


@pytest.mark.parametrize(
    "writes",
    [after(0, CREATED), [*after(0, CREATED), *after(0, PreparationStarted(job_id="j"))], [*after(0, PreparationStarted(job_id="j")), *after(0, CREATED)]],
)
async def test_what_a_service_may_not_write_is_named(servers: Servers, log: EventLog, origin: Origin, caplog: pytest.LogCaptureFixture, writes: list[Write]):
    datasets = await runtime.connect(servers.nats_url("datasets"), name="datasets")

    with caplog.at_level(logging.WARNING), pytest.raises(Forbidden, match=rf"ev\.{origin.tenant}\.project\.created\.p"):
        await EventLog(datasets, source="/datasets").append(writes, origin=origin)

    assert "permissions violation" in caplog.text.lower()
    assert await log.read(f"ev.{origin.tenant}.>") == []
    assert await EventLog(datasets, source="/datasets").append(after(0, PreparationStarted(job_id="j")), origin=origin)
    await datasets.close()


# Reading


async def test_reading_goes_on_over_many_pages(log: EventLog, origin: Origin):
    last, many = 0, 1_010
    for n in range(0, many, 101):
        last = (await log.append(after(last, *(ProjectUpdated(project_id="p", name=str(n + m)) for m in range(101))), origin=origin))[-1].seq

    facts = await log.read(address(origin.tenant, CREATED))

    assert events(facts) == [ProjectUpdated(project_id="p", name=str(n)) for n in range(many)]
    assert positions(await log.read(f"ev.{origin.tenant}.>", after=facts[700].seq)) == positions(facts[701:])


async def test_nothing_is_read_where_nothing_is(log: EventLog, origin: Origin):
    assert await log.read(address(origin.tenant, CREATED)) == []
    assert await log.read("ev.>", after=(await log.position()).last) == []


async def test_up_to_a_position_nothing_is_missing_even_where_a_replica_lags(log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    facts = await log.append(after(0, CREATED, *[GREEN, BLUE] * 3), origin=origin)
    pattern, scan, lag = f"ev.{origin.tenant}.>", log.scan_raw, [2, 0, 1]

    async def lagging(pattern: str, *, after: int, page: int) -> AsyncIterator[RawFact]:
        most = lag.pop(0) if lag else len(facts)
        async for raw in scan(pattern, after=after, page=page):
            if most == 0:
                return
            most -= 1
            yield raw

    monkeypatch.setattr(log, "scan_raw", lagging)

    assert [raw.seq async for raw in log.scan_to(pattern, last=facts[4].seq)] == positions(facts[:5])
    assert [raw.seq async for raw in log.scan_to(pattern, last=facts[-1].seq + 1)] == positions(facts)
    assert [raw.seq async for raw in log.scan_to(pattern, last=facts[0].seq - 1)] == []
    assert [raw.seq async for raw in log.scan_to(pattern, last=facts[4].seq, after=facts[1].seq, page=2)] == positions(facts[2:5])


async def test_a_fact_of_a_newer_version_is_handed_on_without_its_event(log: EventLog, infra_nc: Client, origin: Origin):
    made = envelope(CREATED, origin=origin, source="/tests", id=CAUSE, at=datetime.now(UTC))
    body = json.loads(encode(made)) | {"type": "project.teleported", "dataschema": "urn:trainyard:project.teleported:1"}
    await infra_nc.request(f"ev.{origin.tenant}.project.teleported.p", json.dumps(body).encode(), timeout=1)

    (fact,) = await log.read(address(origin.tenant, CREATED))

    assert (fact.event, fact.id, fact.envelope.type) == (None, CAUSE, "project.teleported")


async def test_the_position_is_that_of_the_last_fact(log: EventLog, origin: Origin):
    (created,) = await log.append(after(0, CREATED), origin=origin)

    position = await log.position()

    assert position.last == created.seq
    assert 0 < position.fill < 1
    assert position.created == (await log.position()).created


# Following


class Heard(list[RawFact]):
    async def note(self, fact: RawFact) -> None:
        self.append(fact)

    @property
    def positions(self) -> list[int]:
        return [fact.seq for fact in self]


async def test_a_follower_hears_what_was_and_what_comes_in_order(log: EventLog, origin: Origin):
    (before,) = await log.append(after(0, CREATED), origin=origin)
    (first,) = await log.append(after(before.seq, GREEN), origin=origin)
    heard = Heard()

    following = await log.follow(after=before.seq, deliver=heard.note, pattern=f"ev.{origin.tenant}.>")
    (second,) = await log.append(after(first.seq, BLUE), origin=origin)

    assert (await eventually(lambda: heard.positions, of=2)) == [first.seq, second.seq]
    assert heard[0].data == encode(first.envelope)
    await following.close()
    await log.append(after(second.seq, GREEN), origin=origin)
    assert len(heard) == 2


@ALONE
async def test_followers_survive_the_server_without_a_gap_or_a_double(bus: Bus, origin: Origin):
    """Also one that had nothing to hear yet: it doesn't begin at the log's beginning again."""
    (created,) = await bus.log.append(after(0, CREATED), origin=origin)
    idle, busy = Heard(), Heard()
    followings = [await bus.log.follow(after=created.seq, deliver=idle.note), await bus.log.follow(after=created.seq - 1, deliver=busy.note)]
    await eventually(lambda: busy.positions)

    bus.nodes[0].kill()
    await revive(bus.nodes[0])
    expected, last = [], created.seq
    for _ in range(30):
        last = (await bus.log.append(after(last, GREEN), origin=origin))[0].seq
        expected.append(last)

    assert (await eventually(lambda: idle.positions, of=30)) == expected
    assert (await eventually(lambda: busy.positions, of=31)) == [created.seq, *expected]
    for following in followings:
        await following.close()


@ALONE
async def test_an_append_waits_for_a_server_that_restarts(bus: Bus, origin: Origin):
    bus.nodes[0].kill()
    appending = asyncio.create_task(bus.log.append(after(0, CREATED), origin=origin, budget=20))
    await revive(bus.nodes[0])

    assert await appending == await bus.log.read(f"ev.{origin.tenant}.>")


@ALONE
async def test_a_log_that_stays_away_is_called_so(bus: Bus, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("libs.events.log._PATIENCE", 0.1)
    bus.nodes[0].pause()
    try:
        for asking in (bus.log.append(after(0, CREATED), origin=origin, budget=0.1), bus.log.read("ev.>"), bus.log.position(), bus.log.check()):
            with pytest.raises(Unavailable, match="does not answer"):
                await asking
    finally:
        bus.nodes[0].resume()


async def test_a_slow_reader_holds_the_server_back(servers: Servers, log: EventLog, origin: Origin):
    """What it hasn't read stays in the log: in its memory it would grow without end, or be dropped."""
    (last,) = await log.append(after(0, CREATED), origin=origin)
    for _ in range(20):
        *_, last = await log.append(after(last.seq, *[ProjectUpdated(project_id="p", config={"text": "x" * 60_000})] * 10), origin=origin)
    gate, heard = asyncio.Event(), Heard()

    async def slowly(fact: RawFact) -> None:
        await gate.wait()
        await heard.note(fact)

    reader = await runtime.connect(servers.nats_url("gateway"), name="gateway")
    following = await EventLog(reader, source="/tests").follow(after=0, deliver=slowly, pattern=f"ev.{origin.tenant}.>")
    await asyncio.sleep(1)
    assert 0 < reader.stats["in_bytes"] < 6_000_000
    gate.set()

    assert (await eventually(lambda: heard.positions, of=201)) == positions(await log.read(f"ev.{origin.tenant}.>"))
    await following.close()
    await reader.close()


async def test_a_fact_whose_delivery_failed_comes_again(log: EventLog, origin: Origin):
    facts = await log.append(after(0, CREATED, GREEN, BLUE), origin=origin)
    heard, tries = Heard(), []

    async def clumsily(fact: RawFact) -> None:
        tries.append(fact.seq)
        if len(tries) == 2:
            raise RuntimeError("once")
        await heard.note(fact)

    following = await log.follow(after=0, deliver=clumsily, pattern=f"ev.{origin.tenant}.>")

    assert (await eventually(lambda: heard.positions, of=3)) == positions(facts)
    assert tries == [facts[0].seq, facts[1].seq, facts[1].seq, facts[2].seq]
    await following.close()


async def test_a_log_that_can_not_be_followed_says_why(log: EventLog):
    with pytest.raises(Unavailable, match="can't be followed"):
        await log.follow(after=0, deliver=Heard().note, pattern="ev..>")
