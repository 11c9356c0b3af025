"""Preparing an upload, with everything that can come between: again, crashes, other replicas, cancels, damage, outages."""

import asyncio
import hashlib
import json
import signal
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs import config
from libs.events import JobCreated, Origin, PreparationCompleted, PreparationFailed, PreparationProduced, Recorded
from libs.events.log import EventLog
from libs.runtime.broker import HandedOver
from libs.storage import Storage, StorageDown
from services.datasets import ingest, preparation
from services.datasets.handlers import Preparations
from services.datasets.parts import cut
from services.gateway.loader import Line
from tests.kit.eventually import eventually
from tests.kit.preparing import ENDED, JSON_LINES, alpaca, cancel, ended, facts, gated, job_id, names, process, settings_of, uploaded, with_bad_ones
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


async def lines(log: EventLog, storage: Storage, created: Recorded) -> list[Line]:
    """All rows of all parts, as the gateway reads them; whatever is claimed of a part holds."""
    produced = [fact.event for fact in await facts(log, created) if isinstance(fact.event, PreparationProduced)]
    assert [event.part for event in produced] == list(range(1, len(produced) + 1))
    every: list[Line] = []
    for event in produced:
        found = msgspec.json.Decoder(Line).decode_lines(await storage.get(event.content))
        assert (len(found), sum(line.valid for line in found)) == (event.rows, event.valid)
        every += found
    return every


async def complete(log: EventLog, storage: Storage, created: Recorded, *, rows: int) -> None:
    """No row is missing, none is double, and there is one end."""
    told = await facts(log, created)
    end = told[-1].event
    assert isinstance(end, PreparationCompleted), end
    assert sum(fact.envelope.type in ENDED for fact in told) == 1
    assert sum(fact.envelope.type == "preparation.started" for fact in told) == 1
    found = await lines(log, storage, created)
    assert [line.row for line in found] == list(range(1, rows + 1))
    assert len({line.id for line in found}) == rows
    assert (end.parts, end.rows) == (sum(isinstance(fact.event, PreparationProduced) for fact in told), rows)


class Gone(Storage):
    """An object store from which the source goes away, after `asking`."""

    def __init__(self, settings: config.Service, *, asking: Callable[[], Awaitable[None]]) -> None:
        super().__init__(settings)
        self._asking = asking

    async def chunks(self, key: str, **_: Any) -> AsyncGenerator[bytes, None]:
        await self._asking()
        async for chunk in super().chunks(key):
            yield chunk


@asynccontextmanager
async def gone(place: Servers, log: EventLog, *, asking: Callable[[], Awaitable[None]]) -> AsyncIterator[Preparations]:
    storage = Gone(settings_of(place), asking=asking)
    preparations = Preparations(log, storage, workers=1, settings=settings_of(place))
    yield preparations
    preparations.close()
    storage.close()


# The work


async def test_a_file_becomes_parts_of_a_thousand_rows(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, with_bad_ones(alpaca(2_500)))

    await service.prepare(created)

    told = await facts(log, created)
    found = await lines(log, storage, created)
    assert await names(log, created) == ["started", "produced", "produced", "produced", "completed"]
    assert [fact.event.rows for fact in told if isinstance(fact.event, PreparationProduced)] == [1000, 1000, 500]
    assert told[-1].event == PreparationCompleted(job_id=job_id(created), parts=3, rows=2_500, valid=2_471, refused={"json_invalid": 25, "duplicate": 4})
    assert [line.row for line in found] == list(range(1, 2_501))
    assert {line.split for line in found if line.valid} == {"train", "eval"}
    assert all(line.id == str(uuid.uuid5(uuid.UUID(job_id(created)), str(line.row))) for line in found)


async def test_a_refused_row_is_kept_with_its_reason(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, ["{broken\0", *alpaca(1)])

    await service.prepare(created)

    bad, good = await lines(log, storage, created)
    assert (bad.valid, bad.reason, msgspec.json.decode(bad.data)) == (False, "json_invalid", {"raw": "{broken\u2400"})
    assert bad.message
    assert (good.valid, good.reason, good.format) == (True, "", "alpaca")


async def test_its_facts_say_on_whose_behalf_and_why(service: Preparations, storage: Storage, log: EventLog, tenant: str):
    created = await uploaded(storage, log, Origin(tenant=tenant, actor="user-7", correlation="c-1"), alpaca(1))

    await service.prepare(created)

    for fact in await facts(log, created):
        envelope = fact.envelope
        assert (envelope.tenant, envelope.actor, envelope.correlationid, envelope.causationid, envelope.source) == (
            tenant,
            "user-7",
            "c-1",
            created.id,
            "/datasets",
        )


@pytest.mark.parametrize(("rows", "parts"), [([], 0), (["{", "["], 1)])
async def test_a_file_without_a_usable_row_is_read_to_its_end(
    service: Preparations, storage: Storage, log: EventLog, origin: Origin, rows: list[str], parts: int
):
    created = await uploaded(storage, log, origin, rows)

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationCompleted)
    assert (end.parts, end.rows, end.valid) == (parts, len(rows), 0)


async def test_a_file_that_no_row_can_be_read_from_is_one_refused_row(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(50_000), mime_type="application/pdf")

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert end == PreparationCompleted(job_id=job_id(created), parts=1, rows=1, valid=0, refused={"unknown_format": 1})


async def test_parts_stay_below_four_megabytes(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    rows = [json.dumps({"instruction": f"{n} " + "long " * 40_000, "input": "", "output": "Yes."}) for n in range(45)]
    created = await uploaded(storage, log, origin, rows)

    await service.prepare(created)

    sizes = [fact.event.content.size for fact in await facts(log, created) if isinstance(fact.event, PreparationProduced)]
    assert len(sizes) == 3
    assert max(sizes) <= 4_000_000
    await complete(log, storage, created, rows=45)


async def test_progress_is_told_while_it_lasts(
    place: Servers, own_log: EventLog, log: EventLog, storage: Storage, origin: Origin, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preparation, "HEARTBEAT", 0.05)
    created = await uploaded(storage, log, origin, alpaca(20_000))

    async with gated(place, own_log, at=3) as (gate, service):
        work = asyncio.create_task(service.prepare(created))
        await gate.reached.wait()
        await asyncio.sleep(0.1)
        gate.opened.set()
        await work

    progress = [msgspec.to_builtins(fact.event) for fact in await facts(log, created) if fact.envelope.type == "preparation.progress"]
    assert progress
    assert all(0 < told["done"] <= told["total"] for told in progress)
    await complete(log, storage, created, rows=20_000)


# Again


async def test_a_delivery_again_changes_nothing(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(10))

    await service.prepare(created)
    once = await facts(log, created)
    await service.prepare(created)

    assert await facts(log, created) == once


@pytest.mark.parametrize("job", [{"kind": "export"}, {"kind": "unheard-of"}])
async def test_other_jobs_are_left_alone(service: Preparations, storage: Storage, log: EventLog, origin: Origin, job: dict[str, Any]):
    created = await uploaded(storage, log, origin, alpaca(1), **job)

    await service.prepare(created)

    assert await facts(log, created) == []


async def test_it_goes_on_where_it_was_interrupted(place: Servers, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    rows = with_bad_ones(alpaca(4_200))
    undisturbed, created = await uploaded(storage, log, origin, rows), await uploaded(storage, log, origin, rows)

    async with gated(place, own_log, at=3, failing=StorageDown("away")) as (gate, service):
        with pytest.raises(StorageDown):
            await service.prepare(created)
        await service.prepare(created)
        assert gate.puts == 2 + 1 + 3
    async with gated(place, own_log, at=0) as (_, service):
        await service.prepare(undisturbed)

    await complete(log, storage, created, rows=4_200)

    def content(line: Line) -> tuple[Any, ...]:
        return (line.row, bytes(line.data), line.split, line.reason, line.message)

    assert list(map(content, await lines(log, storage, created))) == list(map(content, await lines(log, storage, undisturbed)))


async def test_parts_of_another_cut_are_never_mixed_with_ours(
    place: Servers, own_log: EventLog, service: Preparations, storage: Storage, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch
):
    created = await uploaded(storage, log, origin, alpaca(4_000))
    with monkeypatch.context() as older:
        older.setattr(ingest, "cut", partial(cut, most_rows=700))
        async with gated(place, own_log, at=2, failing=StorageDown("away")) as (_, before):
            with pytest.raises(StorageDown):
                await before.prepare(created)

    with pytest.raises(ingest.Drifted):
        await service.prepare(created)

    assert await names(log, created) == ["started", "produced"]


async def test_what_can_never_be_done_ends_as_failed_once(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(1))

    await service.give_up(created, RuntimeError("secret"))
    await service.give_up(created, RuntimeError("secret"))

    (told,) = await facts(log, created)
    assert isinstance(told.event, PreparationFailed)
    assert told.event.code == "internal"
    assert "secret" not in told.event.message


# Sources


async def test_a_source_that_is_gone_fails_the_job(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(1), key=f"{origin.tenant}/files/{'0' * 64}")

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "source_missing"


@pytest.mark.parametrize("mime_type", [JSON_LINES, "application/pdf"])
async def test_a_source_that_was_changed_fails_the_job(service: Preparations, storage: Storage, log: EventLog, origin: Origin, mime_type: str):
    created = await uploaded(storage, log, origin, alpaca(5), sha256=hashlib.sha256(b"other").hexdigest(), mime_type=mime_type)

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "source_damaged"


async def test_a_source_that_changes_between_two_tries_is_damaged_not_our_fault(
    place: Servers, own_log: EventLog, service: Preparations, storage: Storage, log: EventLog, origin: Origin
):
    created = await uploaded(storage, log, origin, alpaca(3_000))
    async with gated(place, own_log, at=2, failing=StorageDown("away")) as (_, before):
        with pytest.raises(StorageDown):
            await before.prepare(created)
    assert isinstance(created.event, JobCreated)
    (place.store.root / place.store.bucket / created.event.inputs["file"]["key"]).write_text("\n".join(alpaca(3_000, start=7)))

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "source_damaged"


# Cancels


async def test_a_cancel_before_the_start_is_all_that_happens(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(10))
    await cancel(log, created)

    await service.prepare(created)

    assert await names(log, created) == ["cancelled"]


async def test_a_cancel_is_heard_at_once(place: Servers, own_nc: Client, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    """Also while the object store hangs."""
    created = await uploaded(storage, log, origin, alpaca(5_000))

    async with gated(place, own_log, at=2) as (gate, service):
        await service.listen(own_nc)
        work = asyncio.create_task(service.prepare(created))
        await gate.reached.wait()
        await cancel(log, created)
        await asyncio.wait_for(work, 2)

    assert await names(log, created) == ["started", "produced", "cancelled"]


async def test_a_cancel_is_read_where_it_was_not_heard(place: Servers, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(5_000))

    async with gated(place, own_log, at=2) as (gate, service):
        work = asyncio.create_task(service.prepare(created))
        await gate.reached.wait()
        await cancel(log, created)
        gate.opened.set()
        await work

    assert await names(log, created) == ["started", "produced", "produced", "cancelled"]


async def test_a_cancel_after_the_end_changes_nothing(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(1))
    await service.prepare(created)
    await cancel(log, created)

    await service.prepare(created)

    assert await names(log, created) == ["started", "produced", "completed"]


async def test_a_project_that_is_deleted_meanwhile_cancels_and_doesnt_fail(place: Servers, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(1), key=f"{origin.tenant}/files/{'0' * 64}")

    async with gone(place, own_log, asking=lambda: cancel(log, created)) as service:
        await service.prepare(created)

    assert await names(log, created) == ["started", "cancelled"]


# Two at once


async def test_two_that_begin_together_write_everything_once(service: Preparations, another: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(6_000))

    ends = await asyncio.gather(service.prepare(created), another.prepare(created), return_exceptions=True)

    assert all(end is None or isinstance(end, HandedOver) for end in ends)
    await complete(log, storage, created, rows=6_000)


async def test_one_that_slept_while_another_finished_writes_nothing_more(
    place: Servers, own_log: EventLog, another: Preparations, storage: Storage, log: EventLog, origin: Origin
):
    created = await uploaded(storage, log, origin, alpaca(4_000))

    async with gated(place, own_log, at=2) as (gate, sleeper):
        work = asyncio.create_task(sleeper.prepare(created))
        await gate.reached.wait()
        await another.prepare(created)
        finished = await facts(log, created)
        gate.opened.set()
        await work

    assert await facts(log, created) == finished
    await complete(log, storage, created, rows=4_000)


async def test_one_that_wakes_while_another_is_at_work_leaves_it_to_it(place: Servers, own_log: EventLog, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, alpaca(5_000))

    async with gated(place, own_log, at=2) as (slept, sleeper), gated(place, own_log, at=3) as (held, holder):
        first = asyncio.create_task(sleeper.prepare(created))
        await slept.reached.wait()
        second = asyncio.create_task(holder.prepare(created))
        await held.reached.wait()
        slept.opened.set()
        with pytest.raises(HandedOver):
            await first
        held.opened.set()
        await second

    await complete(log, storage, created, rows=5_000)


# The process


async def test_the_process_prepares_what_is_uploaded(place: Servers, storage: Storage, log: EventLog, origin: Origin):
    with process(place, impatient=False) as datasets:
        await revive(datasets)

        created = await uploaded(storage, log, origin, alpaca(2_500))
        await ended(log, created)

    await complete(log, storage, created, rows=2_500)


async def test_after_kill_9_a_new_process_goes_on(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as datasets:
        await revive(datasets)
        created = await uploaded(storage, log, origin, [])
        await ended(log, created)
        created = await interrupted(nc, storage, log, origin, by=datasets.kill)
        assert "completed" not in await names(log, created)

        await revive(datasets)
        await ended(log, created)

    await complete(log, storage, created, rows=20_000)


async def test_asked_to_end_it_gives_its_work_back_at_once(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    """Deliveries of this one would come again after 20 s only."""
    with process(place, impatient=False) as datasets:
        await revive(datasets)
        created = await interrupted(nc, storage, log, origin, by=lambda: datasets.signal(signal.SIGTERM))
        await eventually(lambda: datasets.ended() is not None, patience=5)

        await revive(datasets)
        await ended(log, created, patience=8)

    await complete(log, storage, created, rows=20_000)


async def test_two_replicas_share_the_work(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as one, process(place, label="datasets-2") as two:
        await asyncio.gather(revive(one), revive(two))

        jobs = [await uploaded(storage, log, origin, alpaca(3_000)) for _ in range(8)]
        for created in jobs:
            await ended(log, created)

    for created in jobs:
        await complete(log, storage, created, rows=3_000)


async def test_a_paused_replica_finds_its_work_taken(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as paused, process(place, label="datasets-2") as other:
        await revive(paused)
        created = await interrupted(nc, storage, log, origin, by=paused.pause)
        await revive(other)
        finished = await ended(log, created)
        other.kill()

        paused.resume()
        next_one = await uploaded(storage, log, origin, alpaca(10))
        await ended(log, next_one)

        assert await facts(log, created) == finished
    await complete(log, storage, created, rows=20_000)


async def test_it_waits_until_the_object_store_is_back(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as datasets:
        await revive(datasets)
        created = await interrupted(nc, storage, log, origin, by=place["s3"].kill)
        await asyncio.sleep(3)
        assert "completed" not in await names(log, created)

        await revive(place["s3"])
        await ended(log, created)

    await complete(log, storage, created, rows=20_000)


async def test_it_waits_until_the_bus_is_back(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as datasets:
        await revive(datasets)
        created = await interrupted(nc, storage, log, origin, by=place["nats"].kill)
        await eventually(lambda: asyncio.to_thread(lambda: not datasets.ready()))

        await revive(place["nats"])
        await eventually(lambda: nc.is_connected)
        await ended(log, created)
        await eventually(lambda: asyncio.to_thread(datasets.ready))

    await complete(log, storage, created, rows=20_000)


async def interrupted(nc: Client, storage: Storage, log: EventLog, origin: Origin, *, by: Callable[[], None]) -> Recorded:
    """A job of 20 parts, and what happens to it once three of them are told."""
    heard = asyncio.Semaphore(0)

    async def hear(_: Any) -> None:
        heard.release()

    subscription = await nc.subscribe(f"feed.{origin.tenant}.preparation.produced.*", cb=hear)
    await nc.flush()
    created = await uploaded(storage, log, origin, alpaca(20_000))
    for _ in range(3):
        await asyncio.wait_for(heard.acquire(), 10)
    by()
    if nc.is_connected:
        await subscription.unsubscribe()
    return created
