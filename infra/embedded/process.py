"""One child process: it can't outlive us, says when it is ready, and can be stopped, killed, paused and started again on the same data."""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infra.embedded.home import Home

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
LAST_LINES = 15
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "GOMAXPROCS", "GOMEMLIMIT")
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Command:
    argv: list[str]
    cwd: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    disguised: bool = False


class Part(ABC):
    """What there is to know about one server or service; `Process` does the rest."""

    name: str
    address: str
    patience = 20.0  # seconds until it must be ready
    stop_signal = signal.SIGTERM
    death_signal = signal.SIGKILL  # what it gets when the supervisor is killed

    def create(self) -> None:
        """What must exist before the first start; nothing where it exists already."""
        return

    def prepare(self) -> None:
        """What each start needs anew."""
        return

    @abstractmethod
    def command(self) -> Command: ...

    @abstractmethod
    def ready(self, pid: int) -> bool: ...

    def will_pass(self, last_words: str) -> bool:
        """Is the reason why it ended at its start one that goes away by itself?"""
        return False


class NotReady(Exception):
    """The message ends with the last lines of the part's log."""


class Interrupted(Exception):
    """Somebody asked us to stop while we were starting."""


def never() -> bool:
    return False


class Process:
    def __init__(self, part: Part, home: Home) -> None:
        self.part = part
        self.name = part.name
        self.log = home.log(part.name)
        self._home = home
        self._popen: subprocess.Popen[Any] | None = None
        self._log_start = 0
        self._spawned = 0.0

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    def spawn(self) -> None:
        assert threading.current_thread() is threading.main_thread(), "a child dies with the THREAD that started it"
        assert self._popen is None, f"{self.name} runs already"
        self._spawned = time.monotonic()
        self._launch()

    def start(self) -> None:
        self.spawn()
        wait_ready([self])

    def stop(self, grace: float = 10.0) -> None:
        stop([self], grace=grace)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """None of its threads runs any more when this returns."""
        self.signal(signal.SIGSTOP)
        if self._popen:
            os.waitid(os.P_PID, self._popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def ended(self) -> int | None:
        """The exit code (negative: the signal) once it has ended by itself."""
        code = self._popen.poll() if self._popen else None
        if code is not None:
            self._forget()
        return code

    def ready(self) -> bool:
        return self._popen is not None and self.part.ready(self._popen.pid)

    def overdue(self) -> bool:
        return time.monotonic() - self._spawned > self.part.patience

    def age(self) -> float:
        """Seconds since it was spawned."""
        return time.monotonic() - self._spawned

    def came_up(self) -> bool:
        """One look at a start; an end that will pass is answered with another start."""
        if (code := self.ended()) is not None:
            if not self.part.will_pass(self.last_words()) or self.overdue():
                raise NotReady(self.report(f"ended with {named(code)} before it was ready"))
            time.sleep(0.1)
            self._launch()
        if self.overdue():
            raise NotReady(self.report(f"is not ready after {self.part.patience:.0f} s"))
        return self.ready()

    def last_words(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self._popen:
            self._popen.send_signal(number)

    def begin_stop(self) -> None:
        self.signal(signal.SIGCONT)  # one that was paused would never hear the other
        self.signal(self.part.stop_signal)

    def kill(self) -> None:
        """SIGKILL for it and whatever it started in its own process group."""
        if self._popen:
            if self._popen.poll() is None:
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
            self._forget()

    def report(self, problem: str) -> str:
        lines = self.last_words().splitlines()[-LAST_LINES:]
        return "\n".join([f"{self.name} {problem}", *(f"  | {line}" for line in lines), f"  all of it: {self.log}"])

    def _launch(self) -> None:
        self.part.prepare()
        command = self.part.command()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            popen: subprocess.Popen[Any] = subprocess.Popen(
                command.argv,
                env={**bare_environ(), **command.environ, "TRAINYARD_HOME": str(self._home.path)},
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **tied_to_us(user=command.user, disguised=command.disguised, death_signal=self.part.death_signal),
            )
        self._popen = popen
        self._home.record(self.name, popen.pid)

    def _forget(self) -> None:
        self._popen = None
        self._home.record(self.name, None)


def wait_ready(processes: Iterable[Process], *, interrupted: Callable[[], bool] = never, on_ready: Callable[[Process], None] = lambda _: None) -> None:
    waiting = list(processes)
    while waiting:
        if interrupted():
            raise Interrupted
        for process in [process for process in waiting if process.came_up()]:
            on_ready(process)
            waiting.remove(process)
        time.sleep(0.02)


def stop(processes: Iterable[Process], *, grace: float, hurry: Callable[[], bool] = never) -> None:
    """Ask all at once, wait for all, kill who is still there when the grace or our patience ends."""
    running = [process for process in processes if process.pid]
    for process in running:
        process.begin_stop()
    deadline = time.monotonic() + grace
    while running := [process for process in running if process.ended() is None]:
        if hurry() or time.monotonic() > deadline:
            for process in running:
                process.kill()
            return
        time.sleep(0.02)


def named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def tied_to_us(*, user: str | None, disguised: bool = False, death_signal: signal.Signals = signal.SIGKILL) -> dict[str, Any]:
    """How any child of ours is started, for subprocess. Disguised, it only believes to be that user, and keeps our own rights to files."""
    account = pwd.getpwnam(user) if user else None
    mask = (account.pw_uid, account.pw_gid) if account and disguised else None
    real = account if not disguised else None
    return {
        "start_new_session": True,  # a terminal's Ctrl-C is for the supervisor alone
        "user": real.pw_uid if real else None,
        "group": real.pw_gid if real else None,
        "extra_groups": [] if real else None,
        "preexec_fn": partial(_prepare, os.getpid(), death_signal, mask) if sys.platform == "linux" else None,
    }


def can_disguise(user: str) -> bool:
    """Whether the kernel lets us make user namespaces; some containers don't."""
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, **tied_to_us(user=user, disguised=True))
    except (subprocess.SubprocessError, OSError):
        return False
    return True


def bare_environ() -> dict[str, str]:
    """Servers get no settings of the user's shell (PG*, RCLONE_*, a locale), and no secrets either."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"LC_ALL": "C"}


def _prepare(parent: int, death_signal: signal.Signals, mask: tuple[int, int] | None) -> None:
    """Runs in the child between fork and exec. The death signal comes last: taking on a disguise would clear it."""
    if mask:
        _disguise(*mask)
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _disguise(uid: int, gid: int) -> None:
    """Into a user namespace of its own, where our user and group have other numbers."""
    ours, group = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError("user namespaces are not to be had here")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {ours} 1"), ("gid_map", f"{gid} {group} 1")):
        with open(f"/proc/self/{file}", "w") as told:
            told.write(text)
