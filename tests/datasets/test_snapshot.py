"""What a training run learns from: the right rows, the same bytes whoever makes them, and one end whatever comes between."""

import asyncio
import hashlib
import json
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs import config
from libs.events import (
    Claim,
    Event,
    ExampleDeleted,
    ExampleEdited,
    ExampleMarked,
    File,
    JobCreated,
    Origin,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectWorkStarted,
    Recorded,
    Source,
    TrainInputs,
    address,
)
from libs.events.log import EventLog, Write
from libs.runtime.broker import HandedOver, Later
from libs.storage import Storage, StorageDown
from services.datasets.handlers import Preparations
from tests.kit.eventually import eventually
from tests.kit.preparing import alpaca, cancel, ended, facts, job_id, names, process, settings_of, uploaded, with_bad_ones
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

PROJECT = "p"


async def append(log: EventLog, origin: Origin, event: Event) -> Recorded:
    last = await log.read(address(origin.tenant, event))
    (recorded,) = await log.append([Write(events=[event], after=last[-1].seq if last else 0)], origin=origin)
    return recorded


async def added(log: EventLog, origin: Origin, *sources: Recorded, **changed: Any) -> None:
    """The files that these ingest jobs read become the project's, unless they are already."""
    before = [fact.event for fact in await log.read(f"ev.{origin.tenant}.project.files_added.{PROJECT}")]
    known = {file.job_id for event in before if isinstance(event, ProjectFilesAdded) for file in event.files}
    fields = {"filename": "rows.jsonl", "kind": "dataset_upload", "mime_type": "", "size": 1, "sha256": "", "key": "", **changed}
    if files := [File(file_id=file_of(job), job_id=job, **fields) for source in sources if (job := job_id(source)) not in known]:
        await append(log, origin, ProjectFilesAdded(project_id=PROJECT, files=files))


def file_of(job: str) -> str:
    return f"file-{job}"


async def train(log: EventLog, origin: Origin, *sources: Recorded, named: bool = False) -> Recorded:
    """The fact that starts a run on the rows of these ingest jobs. `named`: as facts did before the log was asked for them."""
    if not named:
        await added(log, origin, *sources)
    inputs = TrainInputs(project_id=PROJECT, sources=[Source(job_id=job_id(source)) for source in sources] if named else [])
    stages = ["preparation", "training"]
    return await append(log, origin, JobCreated(job_id=str(uuid.uuid4()), kind="train", stages=stages, project_id=PROJECT, inputs=msgspec.to_builtins(inputs)))


async def unfinished(log: EventLog, origin: Origin) -> Recorded:
    """A job that nobody does before the test says so."""
    file = File(file_id="f", filename="slow.jsonl", kind="dataset", mime_type="", size=1, sha256="", key="")
    inputs = {"project_id": PROJECT, "file": msgspec.to_builtins(file)}
    return await append(log, origin, JobCreated(job_id=str(uuid.uuid4()), kind="by hand", stages=["preparation"], inputs=inputs))


async def finish(log: EventLog, storage: Storage, slow: Recorded, *, rows: int = 3) -> None:
    origin, job = Origin(tenant=slow.tenant), job_id(slow)
    lines = [
        {"id": str(uuid.uuid5(uuid.UUID(job), str(n))), "row": n, "split": "train", "format": "text", "data": {"text": f"{n}"}, "valid": True, "reason": ""}
        for n in range(rows)
    ]
    content = await storage.put(f"{slow.tenant}/{job}", "".join(json.dumps(line) + "\n" for line in lines).encode())
    await append(log, origin, PreparationProduced(job_id=job, part=1, content=content, rows=rows, valid=rows))
    await append(log, origin, PreparationCompleted(job_id=job, parts=1, rows=rows, valid=rows))


async def usable(log: EventLog, storage: Storage, *sources: Recorded) -> list[dict[str, Any]]:
    """What should be learned from, put together in the plainest way."""
    rows: list[dict[str, Any]] = []
    for source in sources:
        for fact in await facts(log, source):
            if isinstance(fact.event, PreparationProduced):
                lines = map(json.loads, (await storage.get(fact.event.content)).splitlines())
                rows += [{key: line[key] for key in ("id", "split", "format", "data")} for line in lines if line["valid"]]
    return rows


async def made(log: EventLog, created: Recorded) -> PreparationCompleted:
    """The snapshot's one fact: it is the only end, and nothing is there for a view to load."""
    told = [fact.envelope.type for fact in await facts(log, created) if fact.envelope.type != "preparation.progress"]
    assert told == ["preparation.started", "preparation.completed"]
    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationCompleted)
    return end


async def rows_of(storage: Storage, completed: PreparationCompleted) -> list[dict[str, Any]]:
    assert completed.snapshot
    assert completed.snapshot.key.endswith(f"{completed.job_id}/{completed.snapshot.sha256}")
    return [json.loads(line) for line in (await storage.get(completed.snapshot)).splitlines()]


async def failure(log: EventLog, created: Recorded) -> PreparationFailed:
    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed), end
    return end


async def ingested(service: Preparations, storage: Storage, log: EventLog, origin: Origin, rows: list[str], **changed: Any) -> Recorded:
    created = await uploaded(storage, log, origin, rows, **changed)
    await service.prepare(created)
    return created


# The rows


@pytest.mark.parametrize("named", [False, True])
async def test_it_holds_the_usable_rows_of_all_files_in_their_order(service: Preparations, storage: Storage, log: EventLog, origin: Origin, named: bool):
    one = await ingested(service, storage, log, origin, with_bad_ones(alpaca(2_500)))
    other = await ingested(service, storage, log, origin, alpaca(10, start=7_000))
    created = await train(log, origin, other, one, named=named)

    await service.prepare(created)

    end = await made(log, created)
    rows = await rows_of(storage, end)
    assert rows == await usable(log, storage, other, one)
    assert (end.parts, end.rows, end.valid, end.refused) == (0, 2_510, 2_481, {"json_invalid": 25, "duplicate": 4})
    assert end.splits == {split: sum(row["split"] == split for row in rows) for split in ("train", "eval")}
    assert end.position == created.seq


async def test_examples_that_were_deleted_before_are_left_out_later_ones_are_not(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    source = await ingested(service, storage, log, origin, alpaca(1_100))
    every = await usable(log, storage, source)
    for row in (every[0], every[1_050]):
        await append(log, origin, ExampleDeleted(project_id=PROJECT, example_id=row["id"]))
    await append(log, origin, ExampleDeleted(project_id="another", example_id=every[5]["id"]))
    created = await train(log, origin, source)
    await append(log, origin, ExampleDeleted(project_id=PROJECT, example_id=every[2]["id"]))

    await service.prepare(created)

    end = await made(log, created)
    assert await rows_of(storage, end) == [row for n, row in enumerate(every) if n not in (0, 1_050)]
    assert end.refused == {"deleted": 2}


async def test_edits_that_were_made_before_are_in_it_later_ones_are_not(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    source = await ingested(service, storage, log, origin, [*alpaca(1_100), "{broken"])
    every = await usable(log, storage, source)
    broken = str(uuid.uuid5(uuid.UUID(job_id(source)), "1101"))
    train_row = next(n for n, row in enumerate(every) if n > 10 and row["split"] == "train")

    async def tell(type_: Any, id: str, **said: Any) -> None:
        await append(log, origin, type_(project_id=PROJECT, example_id=id, job_id=job_id(source), **said))

    async def write(id: str, text: str) -> None:
        await tell(ExampleEdited, id, format="text", data={"text": text}, tokens=1)

    long = "é\u2028" + "x" * 40_000
    await write(every[3]["id"], "overwritten")
    await write(every[3]["id"], long)
    await tell(ExampleEdited, every[train_row]["id"], split="eval")
    await write(broken, "mended")
    await tell(ExampleMarked, every[4]["id"], is_valid=False, message="dull")
    await write(every[4]["id"], "still refused")
    await tell(ExampleMarked, every[5]["id"], is_valid=False)
    await tell(ExampleMarked, every[5]["id"], is_valid=True)
    await write(every[6]["id"], "gone anyhow")
    await tell(ExampleDeleted, every[6]["id"])
    created = await train(log, origin, source)
    await write(every[7]["id"], "too late")
    await tell(ExampleMarked, every[8]["id"], is_valid=False)

    await service.prepare(created)

    expected = [dict(row) for row in every]
    expected[3] |= {"format": "text", "data": {"text": long}}
    expected[train_row]["split"] = "eval"
    expected.append({"id": broken, "split": "train", "format": "text", "data": {"text": "mended"}})
    end = await made(log, created)
    assert await rows_of(storage, end) == [row for n, row in enumerate(expected) if n not in (4, 6)]
    assert (end.rows, end.valid, end.refused) == (1_101, 1_099, {"refused_by_person": 1, "deleted": 1})
    assert end.splits == {split: sum(row["split"] == split for n, row in enumerate(expected) if n not in (4, 6)) for split in ("train", "eval")}


@pytest.mark.parametrize("named", [False, True])
async def test_rows_of_a_file_that_was_deleted_before_are_left_out(service: Preparations, storage: Storage, log: EventLog, origin: Origin, named: bool):
    gone, stays = await unfinished(log, origin), await ingested(service, storage, log, origin, alpaca(100))
    await added(log, origin, gone, stays)
    await deleted(log, origin, gone)
    created = await train(log, origin, gone, stays, named=named)
    await deleted(log, origin, stays)

    await service.prepare(created)

    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, stays)


async def deleted(log: EventLog, origin: Origin, source: Recorded) -> None:
    await append(log, origin, ProjectFileDeleted(project_id=PROJECT, file_id=file_of(job_id(source)), key="k", job_id=job_id(source)))


async def test_the_project_as_it_was_when_the_run_was_asked_for_says_what_is_read(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    wanted, later, document, _elsewhere = [await ingested(service, storage, log, origin, alpaca(20, start=20 * n)) for n in range(4)]
    empty, mended = [await ingested(service, storage, log, origin, ["{"]) for _ in range(2)]
    torn, stopped = [await unfinished(log, origin) for _ in range(2)]
    await added(log, origin, torn, wanted, empty, mended, stopped)
    await added(log, origin, document, kind="raw_doc")
    await append(log, origin, PreparationFailed(job_id=job_id(torn), code="c", message="torn"))
    await append(log, origin, PreparationCancelled(job_id=job_id(stopped)))
    usable_now = {"project_id": PROJECT, "example_id": str(uuid.uuid5(uuid.UUID(job_id(mended)), "1")), "job_id": job_id(mended)}
    await append(log, origin, ExampleEdited(**usable_now, format="text", data={"text": "mended"}, tokens=1))
    created = await train(log, origin)
    await added(log, origin, later)
    await storage.delete([part.key for part in await parts_of(log, empty)])  # as when it was deleted since

    await service.prepare(created)

    rows = await rows_of(storage, await made(log, created))
    assert rows[:-1] == await usable(log, storage, wanted)
    assert rows[-1]["data"] == {"text": "mended"}


@pytest.mark.parametrize(("ends", "read"), [(("ok", "ok"), 1), (("ok", "failed"), 0), (("ok", "cancelled"), 0), (("failed", "ok"), 1), (("ok", "runs"), 1)])
async def test_of_examples_that_were_generated_the_latest_are_read_that_did_not_fail(
    service: Preparations, storage: Storage, log: EventLog, origin: Origin, ends: tuple[str, str], read: int
):
    made_by = [await unfinished(log, origin) for _ in ends]
    for job, end in zip(made_by, ends, strict=True):
        await append(log, origin, ProjectWorkStarted(project_id=PROJECT, job_id=job_id(job), kind="generate"))
        match end:
            case "ok":
                await finish(log, storage, job)
            case "failed":
                await append(log, origin, PreparationFailed(job_id=job_id(job), code="c", message="m"))
            case "cancelled":
                await append(log, origin, PreparationCancelled(job_id=job_id(job)))
            case _:
                continue
    created = await train(log, origin)

    if "runs" in ends:
        await parked(service, created)
        await finish(log, storage, made_by[read])
    await service.prepare(created)

    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, made_by[read])


async def test_a_project_of_800_files_can_be_trained(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    files = [await many_files(log, storage, origin, 20) for _ in range(40)]
    created = await train(log, origin)

    await service.prepare(created)

    rows = await rows_of(storage, await made(log, created))
    assert [row["id"] for row in rows] == [f"row-{job}" for jobs in files for job in jobs]


async def many_files(log: EventLog, storage: Storage, origin: Origin, count: int) -> list[str]:
    """Read already, each with one row."""
    jobs = [str(uuid.uuid4()) for _ in range(count)]
    fields = {"filename": "a.jsonl", "kind": "dataset_upload", "mime_type": "", "size": 1, "sha256": "", "key": ""}
    await append(log, origin, ProjectFilesAdded(project_id=PROJECT, files=[File(file_id=file_of(job), job_id=job, **fields) for job in jobs]))

    async def content(job: str) -> Claim:
        line = {"id": f"row-{job}", "row": 1, "split": "train", "format": "text", "data": {}, "valid": True, "reason": ""}
        return await storage.put(f"{origin.tenant}/{job}", json.dumps(line).encode() + b"\n")

    contents = await asyncio.gather(*map(content, jobs))
    writes: list[Write] = []
    for job, claim in zip(jobs, contents, strict=True):
        writes.append(Write(events=[JobCreated(job_id=job, kind="by hand", stages=["preparation"], project_id=PROJECT, inputs={})], after=0))
        ended = [PreparationProduced(job_id=job, part=1, content=claim, rows=1, valid=1), PreparationCompleted(job_id=job, parts=1, rows=1, valid=1)]
        writes.append(Write(events=ended, after=0))
    await log.append(writes, origin=origin)
    return jobs


async def parts_of(log: EventLog, source: Recorded) -> list[Claim]:
    return [fact.event.content for fact in await facts(log, source) if isinstance(fact.event, PreparationProduced)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "hold no rows"), (["{", "["], "none of the 2 rows can be used"), ("held out", "all 1 usable rows are held out for evaluation")],
)
async def test_without_a_row_to_train_on_it_fails(service: Preparations, storage: Storage, log: EventLog, origin: Origin, rows: list[str] | str, said: str):
    if isinstance(rows, list):
        source = await ingested(service, storage, log, origin, rows)
    else:
        one_of_many = await ingested(service, storage, log, origin, alpaca(200))
        held_out = next(n for n, row in enumerate(await usable(log, storage, one_of_many)) if row["split"] == "eval")
        source = await ingested(service, storage, log, origin, alpaca(1, start=held_out))
    created = await train(log, origin, source, named=True)

    await service.prepare(created)

    end = await failure(log, created)
    assert end.code == "no_examples"
    assert said in end.message


# Waiting


async def parked(service: Preparations, created: Recorded) -> Later:
    with pytest.raises(Later) as later:
        await service.prepare(created)
    return later.value


async def test_it_waits_for_files_that_are_still_read(service: Preparations, own_nc: Client, storage: Storage, log: EventLog, origin: Origin):
    """And goes on as soon as the bus says that they are, long before it would look again."""
    await service.listen(own_nc)
    slow, done = await unfinished(log, origin), await ingested(service, storage, log, origin, alpaca(100))
    created = await train(log, origin, done, slow)

    waiting = asyncio.ensure_future((await parked(service, created)).until())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert await names(log, created) == []
    await finish(log, storage, slow)
    await asyncio.wait_for(waiting, 5)
    await service.prepare(created)

    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, done, slow)


async def test_a_cancel_while_it_waits_is_heard_at_once(service: Preparations, own_nc: Client, log: EventLog, origin: Origin):
    await service.listen(own_nc)
    created = await train(log, origin, await unfinished(log, origin))

    waiting = asyncio.ensure_future((await parked(service, created)).until())
    await cancel(log, created)
    await asyncio.wait_for(waiting, 5)
    await service.prepare(created)

    assert await names(log, created) == ["cancelled"]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (PreparationFailed(job_id="", code="c", message="It is torn."), "could not be read: It is torn."),
        (PreparationCancelled(job_id=""), "because reading it was cancelled"),
    ],
)
@pytest.mark.parametrize("meanwhile", [True, False])
async def test_it_fails_with_a_file_that_it_can_never_have(
    service: Preparations, own_nc: Client, log: EventLog, origin: Origin, end: Event, said: str, meanwhile: bool
):
    """Nobody asked for a model that learned from less."""
    await service.listen(own_nc)
    source = await unfinished(log, origin)
    created = await train(log, origin, source)
    end = msgspec.structs.replace(end, job_id=job_id(source))

    if meanwhile:
        waiting = asyncio.ensure_future((await parked(service, created)).until())
        await append(log, origin, end)
        await asyncio.wait_for(waiting, 5)
    else:
        await append(log, origin, end)
    await service.prepare(created)

    told = await failure(log, created)
    assert told.code == "source_failed"
    assert said in told.message
    assert "'slow.jsonl'" in told.message
    assert job_id(source) in told.message
    assert await names(log, created) == ["failed"]


# Again, damage, two at once


class Wary(Storage):
    """An object store that does something before the n-th part is read, or before the snapshot is stored (0)."""

    def __init__(self, settings: config.Service, *, at: int, failing: Exception | None = None) -> None:
        super().__init__(settings)
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self._at = at
        self._failing = failing
        self._gets = 0

    async def get(self, claim: Claim) -> bytes:
        self._gets += 1
        if self._gets == self._at:
            await self._stop()
        return await super().get(claim)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, expected: int = 0) -> Claim:
        if self._at == 0:
            await self._stop()
        return await super().put_stream(key, chunks, expected=expected)

    async def _stop(self) -> None:
        self.reached.set()
        if self._failing:
            self._at = -1
            raise self._failing
        await self.opened.wait()


@asynccontextmanager
async def wary(place: Servers, log: EventLog, *, at: int, failing: Exception | None = None) -> AsyncIterator[tuple[Wary, Preparations]]:
    storage = Wary(settings_of(place), at=at, failing=failing)
    preparations = Preparations(log, storage, workers=2, settings=settings_of(place))
    yield storage, preparations
    preparations.close()
    storage.close()


@pytest.mark.parametrize("at", [2, 0])
async def test_after_an_outage_the_same_bytes_come_out(
    place: Servers, own_log: EventLog, service: Preparations, storage: Storage, log: EventLog, origin: Origin, at: int
):
    source = await ingested(service, storage, log, origin, alpaca(5_000))
    created = await train(log, origin, source)

    async with wary(place, own_log, at=at, failing=StorageDown("away")) as (_, unlucky):
        with pytest.raises(StorageDown):
            await unlucky.prepare(created)
        assert await names(log, created) == ["started"]
        await unlucky.prepare(created)

    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, source)


async def test_a_delivery_again_changes_nothing(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await train(log, origin, await ingested(service, storage, log, origin, alpaca(10)))

    await service.prepare(created)
    once = await facts(log, created)
    await service.prepare(created)

    assert await facts(log, created) == once


@pytest.mark.parametrize(("content", "code"), [(None, "source_missing"), (b"{}", "source_damaged")])
async def test_rows_that_are_gone_or_changed_fail_the_job(
    service: Preparations, storage: Storage, log: EventLog, origin: Origin, content: bytes | None, code: str
):
    source = await ingested(service, storage, log, origin, alpaca(2_500))
    part = [fact.event.content for fact in await facts(log, source) if isinstance(fact.event, PreparationProduced)][1]
    if content is None:
        await storage.delete([part.key])
    else:
        await storage.put_stream(part.key, just(content))
    created = await train(log, origin, source)

    await service.prepare(created)

    end = await failure(log, created)
    assert end.code == code
    assert "'rows.jsonl'" in end.message


async def just(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_two_that_begin_together_make_one_snapshot(service: Preparations, another: Preparations, storage: Storage, log: EventLog, origin: Origin):
    source = await ingested(service, storage, log, origin, alpaca(5_000))
    created = await train(log, origin, source)

    ends = await asyncio.gather(service.prepare(created), another.prepare(created), return_exceptions=True)

    assert all(end is None or isinstance(end, HandedOver) for end in ends)
    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, source)
    assert len(await storage.keys(f"{origin.tenant}/{job_id(created)}/")) == 1


@pytest.mark.parametrize("at", [3, 0])
async def test_one_that_slept_while_another_finished_writes_nothing_more(
    place: Servers, own_log: EventLog, another: Preparations, storage: Storage, log: EventLog, origin: Origin, at: int
):
    created = await train(log, origin, await ingested(another, storage, log, origin, alpaca(4_000)))

    async with wary(place, own_log, at=at) as (gate, sleeper):
        work = asyncio.create_task(sleeper.prepare(created))
        await gate.reached.wait()
        await another.prepare(created)
        finished = await facts(log, created)
        gate.opened.set()
        await work

    assert await facts(log, created) == finished
    await made(log, created)


@pytest.mark.parametrize("at", [2, 0])
async def test_a_cancel_is_heard_at_once_while_the_object_store_hangs(
    place: Servers, own_nc: Client, own_log: EventLog, service: Preparations, storage: Storage, log: EventLog, origin: Origin, at: int
):
    created = await train(log, origin, await ingested(service, storage, log, origin, alpaca(3_000)))

    async with wary(place, own_log, at=at) as (gate, hanging):
        await hanging.listen(own_nc)
        work = asyncio.create_task(hanging.prepare(created))
        await gate.reached.wait()
        await cancel(log, created)
        await asyncio.wait_for(work, 5)

    assert await names(log, created) == ["started", "cancelled"]


async def test_what_can_never_be_done_ends_as_failed(service: Preparations, log: EventLog, origin: Origin):
    """A job whose inputs no version of this service understands, for one."""
    created = await append(log, origin, JobCreated(job_id=str(uuid.uuid4()), kind="train", stages=["preparation", "training"], inputs={"secret": 1}))

    with pytest.raises(msgspec.ValidationError):
        await service.prepare(created)
    await service.give_up(created, ValueError("secret"))

    end = await failure(log, created)
    assert end.code == "internal"
    assert "secret" not in end.message


# The process


async def test_those_that_wait_keep_nobody_from_working(place: Servers, storage: Storage, log: EventLog, origin: Origin):
    """More of them than the process has workers, and what they wait for comes behind them."""
    with process(place, impatient=False) as datasets:
        await revive(datasets)
        slow = await unfinished(log, origin)
        waiting = [await train(log, origin, slow) for _ in range(9)]

        upload = await uploaded(storage, log, origin, alpaca(10))
        await ended(log, upload)
        assert [await names(log, created) for created in waiting] == [[]] * 9
        await cancel(log, waiting[0])
        await ended(log, waiting[0], patience=5)
        await finish(log, storage, slow)
        for created in waiting[1:]:
            await ended(log, created, patience=5)

    assert await names(log, waiting[0]) == ["cancelled"]
    ends = [await made(log, created) for created in waiting[1:]]
    assert len({end.snapshot.sha256 for end in ends if end.snapshot}) == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_new_process_goes_on_waiting_for_one_that_ended(
    place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin, end: signal.Signals
):
    with process(place) as datasets:
        await revive(datasets)
        slow = await unfinished(log, origin)
        created = await train(log, origin, slow)
        await ended(log, await uploaded(storage, log, origin, []))
        datasets.signal(end)
        await eventually(lambda: datasets.ended() is not None, patience=5)
        await finish(log, storage, slow)

        await revive(datasets)
        await ended(log, created)

    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, slow)


async def test_killed_at_any_moment_it_makes_the_same_snapshot(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as datasets:
        await revive(datasets)
        source = await uploaded(storage, log, origin, alpaca(30_000))
        await ended(log, source)
        undisturbed = await train(log, origin, source)
        await ended(log, undisturbed)

        killed: list[Recorded] = []
        for after in (0.0, 0.05, 0.1, 0.2):
            killed.append(await interrupted(nc, log, origin, source, by=datasets.kill, after=after))
            await revive(datasets)
        for created in killed:
            await ended(log, created, patience=40)

    expected = (await made(log, undisturbed)).snapshot
    assert expected
    for created in killed:
        snapshot = (await made(log, created)).snapshot
        assert snapshot
        assert snapshot.sha256 == expected.sha256 == hashlib.sha256(await storage.get(snapshot)).hexdigest()
        assert len(await storage.keys(f"{origin.tenant}/{job_id(created)}/")) == 1


async def test_it_waits_until_the_object_store_is_back(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    with process(place) as datasets:
        await revive(datasets)
        source = await uploaded(storage, log, origin, alpaca(30_000))
        await ended(log, source)

        created = await interrupted(nc, log, origin, source, by=place["s3"].kill)
        await asyncio.sleep(2)
        assert await names(log, created) == ["started"]
        await revive(place["s3"])
        await ended(log, created)

    assert await rows_of(storage, await made(log, created)) == await usable(log, storage, source)


async def interrupted(nc: Client, log: EventLog, origin: Origin, source: Recorded, *, by: Callable[[], None], after: float = 0.0) -> Recorded:
    """A snapshot that has just been begun, and what happens then or a little later."""
    heard = asyncio.Event()

    async def hear(_: Any) -> None:
        await asyncio.sleep(after)
        by()
        heard.set()

    subscription = await nc.subscribe(f"feed.{origin.tenant}.preparation.started.*", cb=hear)
    await nc.flush()
    created = await train(log, origin, source)
    await asyncio.wait_for(heard.wait(), 10)
    await subscription.unsubscribe()
    return created
