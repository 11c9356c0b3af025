"""What goes wrong, drawn from a seed: processes are killed or paused, and come back a moment later."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from infra.embedded import Process
from tests.kit.eventually import eventually
from tests.kit.platform import Platform
from tests.kit.processes import backends, children, decoders, forkservers, trainers
from tests.kit.servers import revive

TARGETS = {"projecting": 5, "other": 4, "datasets": 4, "nats": 3, "postgres": 2, "backend": 2, "s3": 3}
"""How often each is chosen."""
OF_TRAINING = {"training": 2, "forkserver": 1, "child": 3, "decoder": 1, "export": 2}
"""Besides, on a platform that trains."""
ALONE = ("backend", "forkserver", "child", "decoder")
"""Processes that somebody of ours starts again."""


@dataclass(frozen=True)
class Fault:
    target: str
    pause: float
    """Seconds that it sleeps; 0: it is killed."""
    back_after: float
    quiet: float
    """Seconds until the next fault."""

    def __str__(self) -> str:
        return f"{self.target} {f'paused {self.pause:.1f} s' if self.pause else f'killed, back after {self.back_after:.1f} s'}"


class Nemesis:
    def __init__(self, platform: Platform, *, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.journal: list[str] = []
        self.fell: list[str] = []
        """Those that ended although nobody killed them."""
        self._platform = platform
        self._rng = random.Random(f"{seed}/nemesis")
        self._ours: set[str] = set()
        self._healing: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()

    def draw(self) -> Fault:
        rng = self._rng
        targets = TARGETS | (OF_TRAINING if self._platform.training else {})
        (target,) = rng.choices(list(targets), weights=list(targets.values()))
        pause = rng.uniform(0.5, 4.0) if target not in ALONE and rng.random() < 0.35 else 0.0
        if pause and target == "training":
            pause = rng.choice((pause, 15.0))  # so long that its leases are somebody else's
        return Fault(target, pause, back_after=rng.choice((0.0, 0.1, 0.5, 1.0)), quiet=rng.uniform(0.4, 2.2))

    async def run(self, seconds: float) -> None:
        """Then everything is well again."""
        watch = asyncio.create_task(self._supervise())
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                fault = self.draw()
                await self._do(fault)
                await asyncio.sleep(fault.quiet)
            await asyncio.gather(*self._healing)
        finally:
            watch.cancel()
        await asyncio.gather(*(self._well(process) for process in self._platform.processes))

    async def _do(self, fault: Fault) -> None:
        if fault.target in ALONE:
            self._kill_one(fault)
            return
        process = await self._whom(fault.target)
        if process is None or process.pid is None or process.name in self._ours:
            return
        self._note(f"{fault} ({process.name})", f"{fault.target} {'paused' if fault.pause else 'killed'}")
        self._ours.add(process.name)
        healing = asyncio.create_task(self._pause(process, fault) if fault.pause else self._kill(process, fault))
        self._healing.add(healing)
        healing.add_done_callback(self._healing.discard)

    async def _whom(self, target: str) -> Process | None:
        platform = self._platform
        if target in ("projecting", "other"):
            leader = await platform.projecting()
            others = [gateway for gateway in platform.gateways if gateway is not leader]
            return leader if target == "projecting" else self._rng.choice(others)
        replicas = {"datasets": platform.datasets, "training": platform.training, "export": platform.export}
        return self._rng.choice(replicas[target]) if target in replicas else platform.servers[target]

    def _kill_one(self, fault: Fault) -> None:
        if found := self._loners(fault.target):
            self._note(str(fault), f"{fault.target} killed")
            _signal(self._rng.choice(found), signal.SIGKILL)

    def _loners(self, target: str) -> list[int]:
        if target == "backend":
            return backends(self._platform.servers["postgres"].pid or 0)
        find = {"forkserver": forkservers, "child": trainers, "decoder": decoders}[target]
        return [pid for service in self._platform.training for pid in find(service.pid or 0)]

    async def _kill(self, process: Process, fault: Fault) -> None:
        if process in self._platform.training:
            _signal(process.pid, signal.SIGKILL)  # alone: its children must end by themselves
            await eventually(lambda: process.ended() is not None)
        else:
            process.kill()
        await asyncio.sleep(fault.back_after)
        await revive(process)
        self._ours.discard(process.name)

    async def _pause(self, process: Process, fault: Fault) -> None:
        others = [child.pid for child in children(process.pid or 0)] if process.name == "postgres" else []
        for pid in (process.pid, *others):
            _signal(pid, signal.SIGSTOP)
        await asyncio.sleep(fault.pause)
        for pid in (*others, process.pid):
            _signal(pid, signal.SIGCONT)
        self._ours.discard(process.name)

    async def _supervise(self) -> None:
        """What ends by itself is started again, as the supervisor does it; and remembered."""
        while True:
            for process in self._platform.processes:
                if process.name not in self._ours and (code := process.ended()) is not None:
                    self.fell.append(f"{process.name} ({code}): {' '.join(process.last_words().splitlines()[-2:])[-600:]}")
                    self._note(f"{process.name} fell", "fell by itself")
                    self._ours.add(process.name)
                    healing = asyncio.create_task(self._raise(process))
                    self._healing.add(healing)
                    healing.add_done_callback(self._healing.discard)
            await asyncio.sleep(0.2)

    async def _raise(self, process: Process) -> None:
        await revive(process)
        self._ours.discard(process.name)

    async def _well(self, process: Process) -> None:
        if process.ended() is not None or process.pid is None:
            await revive(process)

    def _note(self, what: str, kind: str) -> None:
        self.done[kind] += 1
        self.journal.append(f"{time.monotonic() - self._began:5.1f} s {what}")


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
