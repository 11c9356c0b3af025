"""The process that trainings are forked from: what takes long is imported once, nothing is computed, CUDA is untouched, and there is one thread."""

import gc
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import msgspec

from libs.runtime import network
from libs.runtime.orphan import die_with_parent
from services.training.forking import Exited, Order, Started, Warm, order, packed
from services.training.frames import FitSpec, RunSpec

LARGEST = 64 * 1024
FIRST_TO_GO = "1000"
"""What the kernel adds to a child's share when it looks for somebody to kill for lack of memory: the service stays."""


def main(parent: int, handle: int, preload: list[str]) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=handle)
    for module in preload:
        import_module(module)
    gc.collect()
    gc.freeze()
    control.sendall(packed(Warm()))
    _serve(control)


def _serve(control: socket.socket) -> None:
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    running: set[int] = set()
    buffer, handles = bytearray(), list[int]()
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            with suppress(BlockingIOError):
                os.read(woken, LARGEST)
            _reap(control, running)
        if control in ready:
            data, passed, _, _ = socket.recv_fds(control, LARGEST, 1)
            if not data:
                break
            buffer += data
            handles += passed
            if wanted := order(buffer):
                pid = _fork(wanted, handles.pop(0), inherited=[control.fileno(), woken, wake])
                running.add(pid)
                control.sendall(packed(Started(pid=pid)))
    for pid in running:
        _kill_group(pid)


def _reap(control: socket.socket, running: set[int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            running.discard(pid)
            _kill_group(pid)  # what it started itself must not outlive it
            control.sendall(packed(Exited(pid=pid, status=os.waitstatus_to_exitcode(status))))


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _fork(wanted: Order, handle: int, *, inherited: list[int]) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # here too: somebody may want to kill the group before the child has come this far
        os.close(handle)
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in inherited:
            os.close(other)
        os.setpgid(0, 0)
        _restrict(wanted, server)
        status = _entry(wanted.entry)(socket.socket(fileno=handle), _spec(wanted)) or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # nothing of the server's own may run in here any more
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _restrict(wanted: Order, server: int) -> None:
    os.environ.update(wanted.environ)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(FIRST_TO_GO)
    if wanted.offline:
        network.leave()
    die_with_parent(server)  # last: another user namespace would clear it


def _entry(name: str) -> Callable[[socket.socket, RunSpec | FitSpec | None], Any]:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def _spec(wanted: Order) -> RunSpec | FitSpec | None:
    return msgspec.msgpack.decode(wanted.spec, type=RunSpec | FitSpec | None)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
