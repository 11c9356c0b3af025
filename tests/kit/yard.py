"""A project with a data set on a platform that trains: runs are started and looked at the way that people and the log see them."""

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from infra.embedded import Process
from libs.config import Gateway, load
from libs.events import Event, TrainingCheckpointed, kind
from libs.events.log import EventLog
from libs.storage import Storage
from libs.tiny import BASE
from tests.kit.eventually import eventually
from tests.kit.platform import Platform
from tests.kit.processes import lives, trainers

DATA = Path(__file__).parents[2] / "infra" / "demo" / "marlow_yard.jsonl"
ENDED = ("training.completed", "export.completed")
PATIENCE = 60.0
"""Seconds for anything that a worker has to do: a forkserver takes ten to be warm on a busy machine, a lease ten to be somebody else's."""

PAUSE = 0.1
"""Seconds between looks: the run needs the machine more than we do."""


@dataclass
class Yard:
    platform: Platform
    http: httpx.AsyncClient
    log: EventLog
    project: str = ""
    hyperparams: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"{self.platform.urls[0]}/projects/{self.project}"

    def another(self) -> "Yard":
        """To be opened."""
        return replace(self, project="")

    async def open(self) -> None:
        """A project with a model and all its rows."""
        made = await self.http.post(f"{self.platform.urls[0]}/projects", json={"name": "yard"})
        self.project = made.json()["id"]
        resolved = await self.http.post(f"{self.path}/model/resolve", json={"model_id": BASE})
        form = {"files": {"files": (DATA.name, await asyncio.to_thread(DATA.read_bytes), "application/jsonl")}, "data": {"kind": "dataset_upload"}}
        uploaded = await self.http.post(f"{self.path}/files/upload", **form)
        assert (made.status_code, resolved.status_code, uploaded.status_code) == (201, 200, 201), (resolved.text, uploaded.text)

    async def start(self, **hyperparams: Any) -> str:
        """The job."""
        answer = await self.http.post(f"{self.path}/train/start", json={"method": "lora", "hyperparams": {**self.hyperparams, **hyperparams}})
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    async def cancel(self) -> dict[str, Any]:
        answer = await self.http.post(f"{self.path}/train/cancel")
        assert answer.status_code == 200, answer.text
        return answer.json()

    # What the log says

    async def story(self, job: str) -> list[Event]:
        return [recorded.event for recorded in await self.log.read(f"ev.local.*.*.{job}") if recorded.event]

    async def said(self, job: str, type_: type[Event], **about: Any) -> list[Any]:
        found = [event for event in await self.story(job) if isinstance(event, type_)]
        return [event for event in found if all(getattr(event, name) == value for name, value in about.items())]

    async def until(self, job: str, type_: type[Event], *, of: int = 1, patience: float = PATIENCE, **about: Any) -> Any:
        """The last of these facts, once there are so many; never waits behind the end of a job."""

        async def look() -> list[Any]:
            found = await self.said(job, type_, **about)
            if len(found) < of:
                assert not (ends := await self.ends(job)), f"the job ended: {ends}"
                await asyncio.sleep(PAUSE)
            return found

        return (await eventually(look, of=of, patience=patience))[-1]

    async def ends(self, job: str) -> list[Any]:
        return [event for event in await self.story(job) if kind(event) in ENDED or kind(event).endswith((".failed", ".cancelled"))]

    async def end(self, job: str, *, patience: float = PATIENCE) -> Any:
        async def look() -> list[Any]:
            return await self.ends(job) or await asyncio.sleep(PAUSE, [])

        return (await eventually(look, patience=patience))[0]

    async def progressed(self, job: str, attempt: int) -> None:
        """This attempt has come behind where it started, and that is stored."""
        await self.until(job, TrainingCheckpointed, attempt=attempt)

    # Who does it

    async def at_work(self) -> Process:
        """The training service that has a child."""
        busy = await eventually(lambda: [service for service in self.platform.training if trainers(service.pid or 0)])
        return busy[0]

    async def read(self, claim: Any) -> bytes:
        storage = Storage(load(Gateway, self.platform.servers.environ("gateway", port=1)))
        try:
            return await storage.get(claim)
        finally:
            storage.close()


def kill(*processes: int) -> None:
    """Each alone, not its group: whatever hangs on it must end by itself."""
    for pid in processes:
        os.kill(pid, signal.SIGKILL)


async def gone(processes: Iterable[int], *, patience: float) -> float:
    """Seconds until none of them lived any more."""
    began = time.monotonic()
    await eventually(lambda: not any(lives(pid) for pid in processes), patience=patience)
    return time.monotonic() - began
