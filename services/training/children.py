"""The processes that do the training: a forkserver that is kept warm, and what is forked from it."""

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

from .forking import Answer, Exited, Order, Started, Warm, answer, packed, raw
from .frames import FitSpec, RunSpec

log = logging.getLogger(__name__)

ENTRY = "services.training.runner.entry:run"
PRELOAD = ("services.training.runner.preload",)

_PATIENCE = 20.0
"""Seconds for one fork. A forkserver that takes longer hangs, and gets another."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 10.0
_SECRET = re.compile(r"\A(TRAINYARD|AWS|OTEL)_|SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|DATABASE_URL", re.IGNORECASE)
"""Settings that are none of a child's business: keys of the store, the bus's password, and whatever else an operator's shell holds."""


class Gone(Exception):
    """The forkserver ended before it could fork; the next one is under way."""


class Child:
    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        """Our end of the line."""
        self.ended = asyncio.Event()
        self.status: int | None = None
        """The exit code (negative: the signal); unknown when the forkserver ended, and the child with it."""

    def signal(self, number: signal.Signals) -> None:
        """To all that it started, too."""
        if not self.ended.is_set():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


class Children:
    """Must be opened, and stays, in the main thread: the forkserver dies with the THREAD that started it."""

    def __init__(self, *, entry: str = ENTRY, preload: Sequence[str] = PRELOAD, environ: Mapping[str, str] | None = None) -> None:
        self._entry = entry
        self._preload = preload
        self._environ = dict(environ or {})
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._warm = asyncio.Event()
        self._orders = asyncio.Lock()
        self._forks: deque[asyncio.Future[int]] = deque()
        self._running: dict[int, Child] = {}
        self._exited: dict[int, int] = {}
        self._problem = ""

    def open(self) -> None:
        assert threading.current_thread() is threading.main_thread()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ends whatever still runs."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)

    async def check(self) -> str:
        return self._problem

    async def warm(self) -> None:
        await self._warm.wait()

    @property
    def server_pid(self) -> int:
        return self._server.pid if self._server else 0

    async def start(self, spec: RunSpec | FitSpec | None, *, entry: str = "", environ: Mapping[str, str] | None = None, offline: bool = False) -> Child:
        order = Order(entry=entry or self._entry, spec=raw(spec), environ=dict(environ or {}), offline=offline)
        async with self._orders:
            await self._warm.wait()
            ours, theirs = socket.socketpair()
            try:
                pid = await self._fork(order, theirs)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        child = Child(pid, ours)
        if pid in self._exited:
            child.status = self._exited.pop(pid)
            child.ended.set()
        else:
            self._running[pid] = child
        return child

    async def _fork(self, order: Order, theirs: socket.socket) -> int:
        assert self._control
        assert self._server
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks.append(forked)
        try:
            socket.send_fds(self._control, [packed(order)], [theirs.fileno()])
            async with asyncio.timeout(_PATIENCE):
                return await forked
        except asyncio.CancelledError:
            if not forked.cancelled() and forked.exception() is None:  # it was forked at this very moment
                _end(forked.result())
            raise
        except (TimeoutError, OSError) as error:
            self._server.kill()
            raise Gone(f"no child within {_PATIENCE:g} s") from error

    async def _keep(self) -> None:
        """Another forkserver whenever one ended."""
        delay = _FIRST_DELAY
        while True:
            self._spawn()
            try:
                await self._listen()
            finally:
                served = self._warm.is_set()
                status = self._bury()
            delay = _FIRST_DELAY if served else min(2 * delay, _LONGEST_DELAY)
            self._problem = "" if served else f"children can't be started (exit status {status}); is everything installed? pip install 'trainyard[training]'"
            log.error("the forkserver ended; another one starts", extra={"status": status, "delay": delay})
            await asyncio.sleep(delay)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        program = [sys.executable, "-P", "-m", "services.training.runner.forkserver", str(os.getpid()), str(theirs.fileno()), *self._preload]
        self._server = subprocess.Popen(program, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env={**_bare(), **self._environ})
        theirs.close()
        self._control = ours

    async def _listen(self) -> None:
        assert self._control
        loop, buffer = asyncio.get_running_loop(), bytearray()
        with suppress(OSError):
            while data := await loop.sock_recv(self._control, 64 * 1024):
                buffer += data
                while told := answer(buffer):
                    self._hear(told)

    def _hear(self, told: Answer) -> None:
        match told:
            case Warm():
                self._problem = ""
                self._warm.set()
            case Started(pid=pid):
                forked = self._forks.popleft()
                if forked.done():  # whoever wanted it has gone
                    _end(pid)
                else:
                    forked.set_result(pid)
            case Exited(pid=pid, status=status):
                if child := self._running.pop(pid, None):
                    child.status = status
                    child.ended.set()
                else:
                    self._exited = {pid: status}  # before `start` came to know of it; only one fork is under way

    def _bury(self) -> int:
        """What was forked ends together with the forkserver."""
        assert self._control
        assert self._server
        self._warm.clear()
        for child in self._running.values():
            child.signal(signal.SIGKILL)
            child.ended.set()
        self._running.clear()
        self._server.kill()
        self._control.close()
        for forked in self._forks:
            if not forked.done():
                forked.set_exception(Gone("the forkserver ended"))
        self._forks.clear()
        return self._server.wait()


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _bare() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def frugal(threads: int) -> dict[str, str]:
    """So many threads in all the libraries that would take every core; to be set before they are loaded."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",  # who waits for a core doesn't spin on another
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to ask for CUDA the other way would touch it, and what is forked then can't use it
    }
