"""Which processes there are, and which of them were started for a home of ours: told by what the kernel knows, not by what we remember."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.training.eyes import NAME


@dataclass(frozen=True)
class Seen:
    pid: int
    parent: int
    name: str
    command: bytes

    def __str__(self) -> str:
        return f"{self.pid} (child of {self.parent}) {self.command.replace(bytes(1), b' ').decode(errors='replace')[:200]}"


def backends(postmaster: int) -> list[int]:
    """Processes in which PostgreSQL serves somebody."""
    return [seen.pid for seen in children(postmaster) if b"trainyard trainyard" in seen.command]


def children(parent: int) -> list[Seen]:
    return sorted((seen for seen in _all() if seen.parent == parent), key=lambda seen: seen.pid)


def forkservers(service: int) -> list[int]:
    """Of a training service: what its runs are forked from."""
    return [seen.pid for seen in children(service) if _forks(seen)]


def trainers(service: int) -> list[int]:
    """Of a training service: those in which its runs are trained."""
    return [child.pid for server in forkservers(service) for child in children(server) if child.name != NAME]


def decoders(service: int) -> list[int]:
    """Of a training service: that in which the images are decoded that it is asked about, once there were some."""
    return [child.pid for server in forkservers(service) for child in children(server) if child.name == NAME]


def still_training(home: Path) -> list[str]:
    """Everything that was forked from a forkserver, also from one that is gone; and forkservers without a service. Not who decodes images, as long as his forkserver lives."""
    found = list(_all())
    services = {seen.pid for seen in found if seen.command.endswith(b"services.training\0") or b"from services.training.app import serve" in seen.command}
    servers = {seen.pid for seen in found if _forks(seen) and seen.parent in services}
    well = services | servers
    return [str(seen) for seen in found if _forks(seen) and seen.parent not in (well if seen.name == NAME else services) and _is_of(home, seen)]


def lives(pid: int) -> bool:
    return any(seen.pid == pid for seen in _all())


def left_running(home: Path) -> list[str]:
    """Processes that were started for this home and still live: none, once the servers are stopped."""
    return [str(seen) for seen in _all() if seen.pid != os.getpid() and _is_of(home, seen)]


def _forks(seen: Seen) -> bool:
    return b"services.training.runner.forkserver" in seen.command


def _is_of(home: Path, seen: Seen) -> bool:
    """By its environment, its command, where it stands, or a file that it holds open: who changed one of them has the others."""
    folder = Path("/proc") / str(seen.pid)
    try:
        if f"{home}/".encode() in seen.command or f"TRAINYARD_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
            return True
        return any(str(link.readlink()).startswith(str(home)) for link in (folder / "cwd", *(folder / "fd").iterdir()))
    except OSError:  # it has gone, or is none of ours
        return False


def _all() -> Iterator[Seen]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about, _, rest = (process / "stat").read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if state != "Z":
                yield Seen(int(process.name), int(parent), about.partition("(")[2], (process / "cmdline").read_bytes())
        except (OSError, ValueError):
            continue
