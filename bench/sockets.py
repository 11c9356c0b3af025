"""How soon a fact reaches who watches a running job: append until the frame arrives over a WebSocket, against publish and acknowledgement; with one socket, and with a thousand open of which ten watch it."""

import asyncio
import sys
import time
import uuid

from websockets.asyncio.client import ClientConnection, connect

from bench.kit import memory_mb
from bench.watching import ORIGIN, Show, Watcher, run
from libs.events import JobCreated, PreparationCompleted, TrainingProgressed, TrainingStarted
from libs.events.log import Write

STEPS = 1_000_000
AT_ONCE = 50
"""Handshakes under way together."""


class Socket(Watcher):
    """Of one job."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__()
        self._socket = socket

    async def read(self) -> None:
        async for _ in self._socket:
            self.heard()

    async def close(self) -> None:
        await self._socket.close()


class Sockets(Show):
    name, seat = "sockets", "socket"
    _job = ""
    _step = 0

    async def begin(self) -> None:
        self._job, self.position = await self._begun()

    def change(self) -> TrainingProgressed:
        self._step += 1
        metrics: dict[str, float | None] = {"train_loss": 1.0, "learning_rate": 1e-4}
        return TrainingProgressed(job_id=self._job, attempt=1, step=self._step, total_steps=STEPS, epoch=0.5, metrics=metrics)

    async def watcher(self) -> Socket:
        return await self._socket(self._job)

    async def others(self, count: int) -> list[Watcher]:
        other, _ = await self._begun()
        started, opened = time.perf_counter(), list[Watcher]()
        while left := count - len(opened):
            opened += await asyncio.gather(*(self._socket(other) for _ in range(min(AT_ONCE, left))))
        print(f"{len(opened):,} sockets opened in {time.perf_counter() - started:.1f} s; the gateway has {memory_mb(self.process):.0f} MB")
        return opened

    async def _begun(self) -> tuple[str, int]:
        """A job that trains, and the position of its last fact."""
        job = str(uuid.uuid4())
        await self.log.append([Write(events=[JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={})], after=0)], origin=ORIGIN)
        await self.log.append([Write(events=[PreparationCompleted(job_id=job, parts=0, rows=0, valid=0)], after=0)], origin=ORIGIN)
        (fact,) = await self.log.append([Write(events=[TrainingStarted(job_id=job, attempt=1)], after=0)], origin=ORIGIN)
        return job, fact.seq

    async def _socket(self, job: str) -> Socket:
        url = f"ws://{self.process.part.address}/ws/progress/{job}"
        socket = await connect(url, proxy=None, compression=None, ping_interval=None, open_timeout=60)
        await socket.recv()
        return Socket(socket)


if __name__ == "__main__":
    sys.exit(run(Sockets, description=__doc__))
