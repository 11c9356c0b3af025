"""A run as the platform sees it, without training anything: facts, steps on the bus, step logs in the store."""

import json
import math
from typing import Any
from uuid import uuid4

import httpx
import msgspec
from nats.aio.client import Client

from libs.events import (
    Address,
    Claim,
    Event,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationFailed,
    PreparationStarted,
    ProjectRunStarted,
    TrainingAttemptLost,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage

LOCAL = "local"


def loss(step: int) -> float:
    return round(3 / math.sqrt(step), 6)


def line(step: int, attempt: int = 1) -> dict[str, Any]:
    rest = {"tokens": 512, "grad_norm": 1.0, "tokens_per_second": 1e4}
    return {"step": step, "attempt": attempt, "train_loss": loss(step), "learning_rate": 2e-4, "epoch": step / 100, **rest}


def shown(step: int) -> dict[str, Any]:
    """What the document's stream says of it."""
    return {field: line(step)[field] for field in ("step", "train_loss", "learning_rate", "epoch")}


class FakeRun:
    """`log` and `nc` belong to a user who may write anything."""

    def __init__(self, log: EventLog, nc: Client, storage: Storage, project: str, *, total: int = 40) -> None:
        self.log, self.nc, self.storage, self.project, self.total = log, nc, storage, project, total
        self.job = str(uuid4())
        self.attempt = 0
        self._last: dict[str, int] = {}
        self._origin = Origin(tenant=LOCAL)

    async def create(self) -> None:
        project = Address(tenant=LOCAL, category="project", key=(self.project,))
        story = await self.log.read(project)
        created = JobCreated(job_id=self.job, kind="train", stages=["preparation", "training"], inputs={}, spec={"method": "lora"}, project_id=self.project)
        begun = Write(events=[ProjectRunStarted(project_id=self.project, job_id=self.job)], after=story[-1].seq)
        await self.log.append([begun, Write(events=[created], after=0)], origin=self._origin)

    async def prepare(self) -> None:
        await self.add(PreparationStarted(job_id=self.job))
        await self.add(PreparationCompleted(job_id=self.job, parts=0, rows=0, valid=0))

    async def begin(self, *, resumed_from: int = 0) -> None:
        self.attempt += 1
        await self.add(TrainingStarted(job_id=self.job, attempt=self.attempt, device="cpu", resumed_from=resumed_from))

    async def tell(self, first: int, last: int, *, attempt: int = 0) -> None:
        steps = [line(step, attempt or self.attempt) for step in range(first, last + 1)]
        await self.nc.request(f"tel.{LOCAL}.{self.job}", json.dumps({"attempt": attempt or self.attempt, "steps": steps}).encode(), timeout=5)

    async def progress(self, step: int) -> None:
        await self.add(TrainingProgressed(job_id=self.job, attempt=self.attempt, step=step, total_steps=self.total, metrics={"train_loss": 1.0}))

    async def evaluate(self, step: int) -> int:
        return await self.add(
            TrainingEvaluated(job_id=self.job, attempt=self.attempt, step=step, metrics={"eval_loss": 1.85, "perplexity": 6.36, "other": 1.0})
        )

    async def checkpoint(self, step: int) -> None:
        state = Claim(key=f"{LOCAL}/{self.job}/state", sha256="0" * 64, size=1)
        await self.add(TrainingCheckpointed(job_id=self.job, attempt=self.attempt, step=step, state=state, steps=await self.store(step)))

    async def lose(self) -> None:
        await self.add(TrainingAttemptLost(job_id=self.job, attempt=self.attempt, cause="killed"))

    async def complete(self, step: int) -> None:
        await self.add(TrainingCompleted(job_id=self.job, attempt=self.attempt, step=step, artifacts={}, steps=await self.store(step)))

    async def fail(self, message: str, step: int = 0) -> None:
        steps = await self.store(step) if step else None
        await self.add(TrainingFailed(job_id=self.job, code="oom", message=message, attempt=self.attempt, step=step, steps=steps))

    async def cancel(self, step: int = 0) -> None:
        steps = await self.store(step) if step else None
        await self.add(TrainingCancelled(job_id=self.job, attempt=self.attempt, step=step, steps=steps))

    async def refuse(self, message: str) -> None:
        await self.add(PreparationFailed(job_id=self.job, code="no_examples", message=message))

    async def store(self, last: int) -> Claim:
        lines = b"".join(msgspec.json.encode(line(step, self.attempt)) + b"\n" for step in range(1, last + 1))
        return await self.storage.put(f"{LOCAL}/{self.job}/{self.attempt}", lines)

    async def add(self, event: Event) -> int:
        """Its position in the log."""
        category = str(event.__struct_config__.tag).partition(".")[0]
        (fact,) = await self.log.append([Write(events=[event], after=self._last.get(category, 0))], origin=self._origin, budget=20)
        self._last[category] = fact.seq
        return fact.seq


async def new_run(api: httpx.AsyncClient, log: EventLog, nc: Client, storage: Storage, *, total: int = 40) -> FakeRun:
    project = (await api.post("/projects", json={"name": "watched"})).json()["id"]
    run = FakeRun(log, nc, storage, project, total=total)
    await run.create()
    return run
