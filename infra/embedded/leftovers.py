"""What an earlier supervisor of this home may have left, where the kernel did not end it or has not yet."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infra.embedded.home import Home

GRACE = 5.0


def end_leftovers(home: Home) -> None:
    """To be called with the home locked: whoever of the last state still lives has lost its supervisor."""
    pids = [pid for pid in home.state().get("pids", {}).values() if pid and is_of(home, pid)]
    for pid in pids:
        _signal(pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE
    while any(is_of(home, pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in pids:
        if is_of(home, pid):
            _signal(pid, signal.SIGKILL)


def end_those_in(folder: Path) -> None:
    """A server that was killed may leave children busy in its data; with it gone nothing they do counts, and the next one can't start before they end."""
    for process in Path("/proc").glob("[0-9]*"):
        if _stands_in(process) == folder:
            _signal(int(process.name), signal.SIGKILL)


def is_of(home: Home, pid: int) -> bool:
    """The number alone proves nothing: it may belong to a stranger by now."""
    command, environ = _about(pid)
    return f"{home.path}/" in command or f"TRAINYARD_HOME={home.path}" in environ.split("\0")


def _about(pid: int) -> tuple[str, str]:
    """Command line and environment, as far as this system shows them."""
    if sys.platform != "linux":
        return subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout, ""
    try:
        folder = Path("/proc") / str(pid)
        return (folder / "cmdline").read_text(errors="replace"), (folder / "environ").read_text(errors="replace")
    except OSError:  # it has gone
        return "", ""


def _stands_in(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:  # it has gone, or is none of ours
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
