"""What a few busy people and services might have done: a log full of plausible facts, the same for the same seed."""

import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from libs.events import (
    Claim,
    CreditCaptured,
    CreditGranted,
    CreditReleased,
    CreditReserved,
    Event,
    ExampleDeleted,
    ExampleEdited,
    ExampleMarked,
    ExportCancelled,
    ExportCompleted,
    ExportedFile,
    ExportFailed,
    ExportProgressed,
    ExportStarted,
    File,
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    PreparationProgressed,
    PreparationStarted,
    ProjectCreated,
    ProjectDeleted,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectModelResolved,
    ProjectRunStarted,
    ProjectUpdated,
    ProjectWorkStarted,
    QuotaTaken,
    TrainingAttemptLost,
    TrainingBatchReduced,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingSampled,
    TrainingStarted,
    address,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage
from tests.kit.views import ORIGIN

PRICE = 10


class Scribe:
    """Appends where the guards stand."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._guards: dict[str, int] = defaultdict(int)

    async def write(self, *events: Event) -> None:
        groups: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            groups[address(ORIGIN.tenant, event).guard].append(event)
        recorded = await self._log.append([Write(events=group, after=self._guards[guard]) for guard, group in groups.items()], origin=ORIGIN)
        for fact in recorded:
            assert fact.event
            self._guards[address(ORIGIN.tenant, fact.event).guard] = fact.seq


async def live_through(log: EventLog, storage: Storage, *, projects: int, seed: int) -> None:
    rng = random.Random(seed)
    scribe = Scribe(log)
    lives = [_life(rng, storage) for _ in range(projects)]
    while lives:
        life = rng.choice(lives)
        events = await anext(life, None)
        if events is None:
            lives.remove(life)
        else:
            await scribe.write(*events)


async def _life(rng: random.Random, storage: Storage) -> AsyncIterator[list[Event]]:
    project = _id(rng)
    yield [ProjectCreated(project_id=project, name="yard", task_type="qa", config={"a": 1.0, "b": {"c": [1, "é"]}}, request="r")]
    files: list[File] = []
    for _ in range(rng.randrange(4)):
        yield [ProjectUpdated(project_id=project, name=f"yard {rng.randrange(9)}", config={"a": rng.random(), f"k{rng.randrange(3)}": None})]
        added = [_file(rng, project) for _ in range(rng.randrange(1, 3))]
        files += added
        yield [ProjectFilesAdded(project_id=project, files=added), *(_job(project, file) for file in added)]
        for file in added:
            async for events in _reading(rng, storage, file):
                yield events
        if files and rng.random() < 0.3:
            gone = files.pop(rng.randrange(len(files)))
            yield [ProjectFileDeleted(project_id=project, file_id=gone.file_id, key=gone.key, job_id=gone.job_id)]
        if files and rng.random() < 0.5:
            job = rng.choice(files).job_id
            whose: Any = {"project_id": project, "example_id": _row_id(job, rng.randrange(5)), "job_id": job}
            yield [
                rng.choice(
                    [
                        ExampleDeleted(**whose),
                        ExampleMarked(**whose, is_valid=False, message="é"),
                        ExampleEdited(**whose, format="text", data={"text": "𝄞"}, tokens=1, split="eval"),
                    ]
                )
            ]
    payer, balance = _id(rng), 100
    yield [CreditGranted(user_id=payer, grant_id=_id(rng), amount=balance, balance=balance, reason="é")]
    for _ in range(rng.randrange(3)):
        yield [ProjectModelResolved(project_id=project, base_model_id=f"some/llama-{rng.randrange(3)}", model_info={"valid": True}, revision="abc")]
        job, said = _id(rng), list[Event]()
        async for events in _training(rng, storage, project, job):
            said = [*events[:1], *_place(payer, job, balance), *events[1:]] if not said else events
            yield said
        match said[-1]:
            case TrainingCompleted():
                balance -= PRICE
                yield [CreditCaptured(user_id=payer, job_id=job, amount=PRICE, balance=balance)]
            case TrainingFailed() | TrainingCancelled() | PreparationFailed():
                yield [CreditReleased(user_id=payer, job_id=job, amount=PRICE, balance=balance)]
            case _:
                balance -= PRICE
        if rng.random() < 0.6:
            async for events in _exporting(rng, storage, project, _id(rng), of=job):
                yield events
    if rng.random() < 0.25:
        yield [ProjectDeleted(project_id=project, job_ids=[file.job_id for file in files] if rng.random() < 0.5 else [])]


def _place(payer: str, job: str, balance: int) -> list[Event]:
    return [CreditReserved(user_id=payer, job_id=job, amount=PRICE, balance=balance - PRICE), QuotaTaken(user_id=payer, job_id=job, most=5)]


async def _reading(rng: random.Random, storage: Storage, file: File) -> AsyncIterator[list[Event]]:
    yield [PreparationStarted(job_id=file.job_id)]
    for part in range(1, rng.randrange(4)):
        yield [PreparationProgressed(job_id=file.job_id, done=part, total=3)]
        content = b"".join(_line(file.job_id, part * 10 + n) for n in range(5))
        claim = await storage.put(f"local/{file.job_id}", content)
        yield [PreparationProduced(job_id=file.job_id, part=part, content=claim, rows=5, valid=4)]
    ending = rng.randrange(4)
    if ending == 0:
        yield [JobCancelRequested(job_id=file.job_id, reason="enough")]
        yield [PreparationCancelled(job_id=file.job_id)]
    elif ending == 1:
        yield [PreparationFailed(job_id=file.job_id, code="x", message="it's damaged")]
    elif ending == 2:
        yield [PreparationCompleted(job_id=file.job_id, parts=2, rows=10, valid=8, refused={"json_invalid": 2})]


async def _training(rng: random.Random, storage: Storage, project: str, job: str) -> AsyncIterator[list[Event]]:
    """Attempts are lost and taken up again; the ends are all that there are."""

    async def stored(attempt: int) -> Claim:
        return await storage.put(f"local/{job}/{attempt}", rng.randbytes(20))

    spec = {"base_model": "some/llama", "method": rng.choice(["lora", "qlora"]), "smoke": rng.random() < 0.5}
    created = JobCreated(job_id=job, kind="train", stages=["preparation", "training"], project_id=project, inputs={"sources": []}, spec=spec)
    yield [ProjectRunStarted(project_id=project, job_id=job), created]
    if rng.random() < 0.1:
        yield [JobCancelRequested(job_id=job)]
        yield [TrainingCancelled(job_id=job)]
        return
    yield [PreparationStarted(job_id=job)]
    if rng.random() < 0.1:
        yield [PreparationFailed(job_id=job, code="no_examples", message="no row is usable")]
        return
    snapshot = await storage.put(f"local/{job}", rng.randbytes(20))
    yield [PreparationCompleted(job_id=job, parts=0, rows=9, valid=9, snapshot=snapshot, position=7, splits={"train": 8, "eval": 1})]
    step, attempt = 0, rng.randrange(2, 4)
    for lost in range(1, attempt):
        yield [TrainingStarted(job_id=job, attempt=lost, worker="w", device="cpu", resumed_from=step)]
        yield [TrainingEvaluated(job_id=job, attempt=lost, step=step, metrics={"eval_loss": rng.random(), "perplexity": None}, nonfinite={"perplexity": "inf"})]
        for _ in range(rng.randrange(3)):
            step += rng.randrange(1, 5)
            metrics: dict[str, float | None] = {"train_loss": rng.random(), "learning_rate": 1e-4}
            yield [TrainingProgressed(job_id=job, attempt=lost, step=step, total_steps=20, epoch=step / 8, metrics=metrics)]
            yield [TrainingSampled(job_id=job, attempt=lost, step=step, samples=[{"prompt": "é", "completion": "𝄞"}])]
            yield [TrainingCheckpointed(job_id=job, attempt=lost, step=step, state=await stored(lost), steps=await stored(lost))]
        yield [TrainingBatchReduced(job_id=job, attempt=lost, step=step, micro_tokens=512)]
        yield [TrainingAttemptLost(job_id=job, attempt=lost, cause="killed", message="signal 9")]
    yield [TrainingStarted(job_id=job, attempt=attempt, worker="w", device="cpu", resumed_from=step)]
    match rng.randrange(4):
        case 0:
            yield [JobCancelRequested(job_id=job)]
            yield [TrainingCancelled(job_id=job, attempt=attempt, step=step, steps=await stored(attempt))]
        case 1:
            yield [TrainingFailed(job_id=job, code="diverged", message="the loss is no number", attempt=attempt, step=step, steps=await stored(attempt))]
        case 2:
            artifacts = {"adapter_model.safetensors": await stored(attempt), "adapter_config.json": await stored(attempt)}
            summary = {"hardware": "cpu", "seconds": 1.5}
            steps = await stored(attempt)
            yield [TrainingCompleted(job_id=job, attempt=attempt, step=step, artifacts=artifacts, steps=steps, metrics={"train_loss": 0.3}, summary=summary)]


async def _exporting(rng: random.Random, storage: Storage, project: str, job: str, *, of: str) -> AsyncIterator[list[Event]]:
    inputs = {"project_id": project, "training_job_id": of}
    created = JobCreated(job_id=job, kind="export", stages=["export"], project_id=project, inputs=inputs)
    yield [ProjectWorkStarted(project_id=project, job_id=job, kind="export"), created]
    yield [ExportStarted(job_id=job)]
    yield [ExportProgressed(job_id=job, done=1, total=3, doing="copying")]
    match rng.randrange(4):
        case 0:
            yield [JobCancelRequested(job_id=job)]
            yield [ExportCancelled(job_id=job)]
        case 1:
            yield [ExportFailed(job_id=job, code="unverifiable", message="a key doesn't fit")]
        case 2:
            content = await storage.put(f"local/{job}", rng.randbytes(20))
            yield [ExportCompleted(job_id=job, files=[ExportedFile(name="report.md", content=content, crc32=rng.getrandbits(32))])]


def _line(job: str, row: int) -> bytes:
    line = {"id": _row_id(job, row), "row": row, "split": "train", "format": "alpaca", "data": {"instruction": f"{row} é"}, "valid": row % 5 != 0}
    return msgspec.json.encode(line | {"reason": "" if row % 5 else "json_invalid", "message": "", "tokens": row}) + b"\n"


def _row_id(job: str, row: int) -> str:
    return str(uuid.uuid5(uuid.UUID(job), str(row)))


def _file(rng: random.Random, project: str) -> File:
    id = _id(rng)
    return File(
        file_id=id, filename="a.jsonl", kind="dataset_upload", mime_type="application/jsonl", size=1, sha256="s", key=f"local/{project}/{id}", job_id=_id(rng)
    )


def _job(project: str, file: File) -> JobCreated:
    return JobCreated(job_id=file.job_id, kind="ingest", stages=["preparation"], project_id=project, inputs={"file": msgspec.to_builtins(file)})


def _id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
