"""`up`: start everything in order, start again what crashes, end all of it when asked to."""

import contextlib
import signal
import sys
import time
from dataclasses import dataclass
from types import FrameType

from infra.embedded.home import AlreadyRunning, is_free
from infra.embedded.process import Interrupted, NotReady, Process, named, stop, wait_ready
from infra.embedded.servers import Servers
from infra.embedded.services import NAMES
from libs.config import Refused

FIRST_DELAY, LONGEST_DELAY = 0.2, 10.0
HEALTHY_AFTER = 30.0  # seconds: then earlier crashes are forgotten
SERVICE_GRACE = 5.0
LOOK_EVERY = 0.1
STOPPED, FAILED, KILLED = 0, 1, 130


@dataclass
class Watched:
    """One part and how its restarts go."""

    process: Process
    up: bool = True
    crashes: int = 0
    start_at: float = 0.0

    @property
    def delay(self) -> float:
        return min(FIRST_DELAY * 2 ** (self.crashes - 1), LONGEST_DELAY)


class Supervisor:
    def __init__(self, servers: Servers, *, with_services: bool) -> None:
        self._servers = servers
        self._with_services = with_services
        self._services: list[Process] = []
        self._asked_to_stop = 0

    def run(self) -> int:
        """The exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._heard)
        try:
            self._start()
            self._watch()
        except AlreadyRunning as running:
            say(str(running))
            return STOPPED
        except (Refused, NotReady) as problem:
            complain(str(problem))
            return FAILED
        except Interrupted:
            say("stopping")
        finally:
            self._stop()
        return KILLED if self._hurry() else STOPPED

    def _start(self) -> None:
        for name in self._servers.open():
            say(f"{name:<10} the port it had is taken; it has a new one")
        if self._with_services:
            self._refuse_taken_port()
            self._servers.refuse_wrong_settings()
        self._servers.start(interrupted=self._interrupted, hurry=self._hurry, on_ready=announce)
        if self._with_services:
            self._start_services()
        say(f"ready {self._servers.url}" if self._with_services else "ready without services")

    def _refuse_taken_port(self) -> None:
        host, port = self._servers.settings.host, self._servers.port
        try:
            free = is_free(port, host)
        except OSError as error:
            raise Refused(f"TRAINYARD_HOST, TRAINYARD_PORT: can't listen on {host}:{port}: {error.strerror}") from error
        if not free:
            raise Refused(
                f"TRAINYARD_PORT: {host}:{port} is taken by another program: choose another, e.g. `TRAINYARD_PORT={port + 1} make up`, or 0 for any that is free"
            )

    def _start_services(self) -> None:
        self._services = [self._servers.service(name) for name in NAMES]
        for process in self._services:
            process.spawn()
        wait_ready(self._services, interrupted=self._interrupted, on_ready=announce)

    def _watch(self) -> None:
        watched = [Watched(process) for process in self._servers.processes.values()]
        while not self._interrupted():
            for part in watched:
                self._look_after(part)
            time.sleep(LOOK_EVERY)
        raise Interrupted

    def _look_after(self, part: Watched) -> None:
        process = part.process
        if process.pid is None:
            if time.monotonic() >= part.start_at:
                self._start_again(part)
        elif (code := process.ended()) is not None:
            self._crashed(part, f"ended with {named(code)}")
        elif part.up:
            if process.age() > HEALTHY_AFTER:
                part.crashes = 0
        elif process.ready():
            part.up = True
            announce(process)
        elif process.overdue():
            process.kill()
            self._crashed(part, f"was not ready after {process.part.patience:.0f} s")

    def _start_again(self, part: Watched) -> None:
        try:
            part.process.spawn()
        except (Refused, OSError) as problem:
            self._crashed(part, str(problem))

    def _crashed(self, part: Watched, how: str) -> None:
        part.up = False
        part.crashes += 1
        part.start_at = time.monotonic() + part.delay
        say(f"{part.process.name:<10} {how}; starts again in {part.delay:.1f} s; its log: {part.process.log}")

    def _stop(self) -> None:
        stop(self._services, grace=SERVICE_GRACE, hurry=self._hurry)
        self._servers.stop(hurry=self._hurry)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop += 1

    def _interrupted(self) -> bool:
        return self._asked_to_stop > 0

    def _hurry(self) -> bool:
        return self._asked_to_stop > 1


def announce(process: Process) -> None:
    say(f"{process.name:<10} {process.part.address:<21} ready in {process.age():.1f} s")


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal has gone; the work goes on
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def complain(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")
