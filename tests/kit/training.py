"""Training services as real processes, the jobs they are given, and what the log says came of them."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from infra.embedded import Process, Servers
from infra.embedded import services as embedded
from infra.embedded.process import Command
from libs import config, tiny
from libs.events import (
    Address,
    Claim,
    FineTune,
    JobCancelRequested,
    JobCreated,
    Origin,
    PreparationCompleted,
    Recorded,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingStarted,
    story,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage
from services.training.place import Timing
from tests.kit import trainer
from tests.kit.eventually import eventually
from tests.kit.gateway import own_port

ENDS = ("training.completed", "training.failed", "training.cancelled")
HASTY = Timing(ack_wait=2.0, beat=0.5, progress=0.3, batch=0.05, heed=0.5, term=0.5)
"""As the service, but nobody has to wait for long."""
ROWS = b'{"id": "1", "split": "train", "format": "alpaca", "data": {"instruction": "2 + 2", "input": "", "output": "4"}}\n'


# Services


class Quick(embedded.Service):
    """`python -m services.training` with our timing and a trainer of ours."""

    def __init__(self, *, timing: Timing, entry: str, preload: tuple[str, ...], within: tuple[str, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self._within = within
        self._call = f"timing=msgspec.convert({msgspec.to_builtins(timing)!r}, Timing), entry={entry!r}, preload={preload!r}"

    def command(self) -> Command:
        code = (
            "import msgspec; from functools import partial; from libs.config import Training; from libs.runtime import process; "
            "from services.training.app import serve; from services.training.place import Timing; "
            f"process.run('training', Training, partial(serve, {self._call}))"
        )
        there = super().command()
        return Command([*self._within, *there.argv[:2], "-c", code], environ=there.environ)


@contextmanager
def service(
    place: Servers,
    *,
    label: str = "training",
    timing: Timing = HASTY,
    entry: str = "tests.kit.trainer:run",
    preload: tuple[str, ...] = ("tests.kit.trainer",),
    within: tuple[str, ...] = (),
    **settings: str,
) -> Iterator[Process]:
    """Not started yet; killed at the end, whatever became of it. `within` is a command that goes over to the one behind it."""
    port = own_port(place, label)
    environ = place.environ("training", port=port) | {f"TRAINYARD_{name.upper()}": value for name, value in settings.items()}
    part = Quick(name="training", label=label, host="127.0.0.1", port=port, environ=environ, timing=timing, entry=entry, preload=preload, within=within)
    process = Process(part, place.home)
    try:
        yield process
    finally:
        if process.pid:
            process.resume()
        process.kill()


def descendants(process: Process) -> list[psutil.Process]:
    """The forkserver first, then its children."""
    assert process.pid
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def forkserver(process: Process) -> psutil.Process:
    return next(child for child in descendants(process) if process.pid == child.ppid())


def child(process: Process) -> psutil.Process | None:
    """The one run's process."""
    with suppress(psutil.NoSuchProcess):
        return next((found for found in descendants(process) if found.ppid() != process.pid), None)
    return None


async def gone(*processes: psutil.Process, patience: float = 5.0) -> None:
    await eventually(lambda: not any(_lives(process) for process in processes), patience=patience)


def kill(process: psutil.Process | None) -> None:
    assert process
    os.kill(process.pid, signal.SIGKILL)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def settings_of(place: Servers) -> config.Training:
    return config.load(config.Training, place.environ("training", port=0))


# Jobs


class Job:
    """A train job, as the gateway and the datasets service leave it for us."""

    def __init__(self, log: EventLog, storage: Storage, tenant: str) -> None:
        self.id = str(uuid.uuid4())
        self.tenant = tenant
        self._log = log
        self._storage = storage
        self._origin = Origin(tenant=tenant, actor="user-1")

    async def create(self, *, priority: int | None = None, **script: Any) -> None:
        spec = msgspec.to_builtins(FineTune(base_model=tiny.BASE, revision=trainer.revision(**script)))
        await self.create_with(spec | ({} if priority is None else {"priority": priority}))

    async def create_with(self, spec: dict[str, Any], *, inputs: dict[str, Any] | None = None) -> None:
        created = JobCreated(job_id=self.id, kind="train", stages=["preparation", "training"], inputs=inputs or {}, spec=spec)
        await self._log.append([Write(events=[created], after=0)], origin=self._origin)

    async def prepare(self, rows: bytes = ROWS) -> Claim:
        snapshot = await self._storage.put(f"{self.tenant}/{self.id}", rows)
        await self.prepare_with(snapshot)
        return snapshot

    async def prepare_with(self, snapshot: Claim) -> None:
        prepared = PreparationCompleted(job_id=self.id, parts=0, rows=1, valid=1, snapshot=snapshot)
        await self._log.append([Write(events=[prepared], after=0)], origin=self._origin)

    async def cancel(self) -> None:
        last = (await self._log.read(Address(tenant=self.tenant, category="job", key=(self.id,))))[-1].seq
        await self._log.append([Write(events=[JobCancelRequested(job_id=self.id)], after=last)], origin=self._origin)

    # What came of it

    async def facts(self) -> list[Recorded]:
        return [fact for fact in await self._log.read(story(self.tenant, self.id)) if fact.envelope.type.startswith("training.")]

    async def names(self) -> list[str]:
        return [name for fact in await self.facts() if (name := fact.envelope.type.removeprefix("training.")) != "progress"]

    async def of(self, kind: type[Any]) -> list[Any]:
        return [fact.event for fact in await self.facts() if isinstance(fact.event, kind)]

    async def started(self, *, attempt: int = 1, patience: float = 15.0) -> TrainingStarted:
        async def look() -> TrainingStarted | None:
            return next((event for event in await self.of(TrainingStarted) if event.attempt == attempt), None)

        found = await eventually(look, patience=patience)
        assert found
        return found

    async def stepped(self, *, step: int = 1, attempt: int = 1) -> None:
        async def look() -> bool:
            told = [fact.event for fact in await self.facts() if fact.envelope.type == "training.progress"]
            return any(getattr(event, "step", 0) >= step and getattr(event, "attempt", 0) >= attempt for event in told)

        await eventually(look, patience=15)

    async def checkpointed(self) -> TrainingCheckpointed:
        async def look() -> TrainingCheckpointed | None:
            return next(iter(await self.of(TrainingCheckpointed)), None)

        found = await eventually(look, patience=15)
        assert found
        return found

    async def ended(self, *, patience: float = 20.0) -> Any:
        """Its last fact; there is never another end."""

        async def look() -> Any:
            ends = [fact.event for fact in await self.facts() if fact.envelope.type in ENDS]
            assert len(ends) < 2, ends
            return ends and ends[0]

        return await eventually(look, patience=patience)

    async def completed(self, *, patience: float = 20.0) -> TrainingCompleted:
        end = await self.ended(patience=patience)
        assert isinstance(end, TrainingCompleted), end
        return end

    async def steps(self, claim: Claim) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in (await self._storage.get(claim)).splitlines()]

    async def curve(self, claim: Claim) -> list[float | None]:
        """Losses of every step, once each and in order."""
        lines = await self.steps(claim)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["train_loss"] for line in lines]

    async def whole(self) -> None:
        """Every object that its facts refer to is there, with its hash, and of its own attempt."""
        for event in await self.of(TrainingCheckpointed):
            for claim in (event.state, event.steps):
                assert claim.key.startswith(f"{self.tenant}/{self.id}/{event.attempt}/")
                await self._storage.get(claim)


async def settled(job: Job, *, for_a: float = 0.5) -> list[str]:
    """The names of its facts, once nothing has come for a while."""
    names = await job.names()
    while True:
        await asyncio.sleep(for_a)
        if names == (names := await job.names()):
            return names


def folders(place: Servers) -> list[Path]:
    root = Path(settings_of(place).runs_folder)
    return [run for service in root.iterdir() for run in service.iterdir() if run.is_dir()] if root.exists() else []
