"""TRAINYARD_HOME: the folder that remembers ports, secrets and who runs, and lets only one supervisor in."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import msgspec

from infra.embedded.files import read_json, write_json
from infra.nats import users
from libs.config import Refused
from libs.runtime.nkeys import new_seed

LEAST_FREE = 1024**3
KEPT_LOGS = 3
# Below the range that Linux hands to outgoing connections, so that a kept port is rarely taken by one of those.
FIRST_PORT, LAST_PORT = 20_000, 32_000


class AlreadyRunning(Exception):
    """Another supervisor holds this home."""

    def __init__(self, pid: int, url: str) -> None:
        super().__init__(f"already running: {url} (pid {pid})")
        self.pid = pid
        self.url = url


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    nats: dict[str, str]  # user -> password
    nats_routes: str
    nats_issuer: str  # the seed of the key with which gateways let event consumers onto the bus
    s3_access_key: str
    s3_secret_key: str
    postgres: str
    postgres_superuser: str
    gateway: str


class Home:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int | None] = {}
        self._lock: IO[str] | None = None
        self._claims: dict[int, socket.socket] = {}

    def open(self) -> None:
        """Make the folders; refuse a home that can't be written or has no room."""
        try:
            self._make()
            with tempfile.TemporaryFile(dir=self.run):
                pass
        except OSError as error:
            raise Refused(f"TRAINYARD_HOME: {self.path} can't be written: {error.strerror}") from error
        free = shutil.disk_usage(self.path).free
        if free < LEAST_FREE:
            raise Refused(f"TRAINYARD_HOME: {self.path} has {free / 1024**2:.0f} MiB free; at least 1 GiB is needed")

    def lock(self) -> None:
        """Held until `unlock` or the end of this process, however it ends."""
        lock = (self.run / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise self._other() from None
        self._lock = lock

    @property
    def locked(self) -> bool:
        return self._lock is not None

    def unlock(self) -> None:
        for claim in self._claims.values():
            claim.close()
        self._claims.clear()
        if self._lock:
            self._lock.close()
            self._lock = None

    def announce(self, url: str) -> None:
        """For whoever comes second."""
        write_json(self.run / "supervisor.json", {"pid": os.getpid(), "url": url})

    def supervisor(self) -> AlreadyRunning | None:
        """Who holds the lock, if anybody does."""
        if not (self.run / "lock").exists():
            return None
        with (self.run / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._other()
        return None

    def secrets(self) -> Secrets:
        """Chosen once; a user that a later version adds gets a password when it is first seen."""
        path = self.path / "secrets.json"
        kept = read_json(path)
        chosen = {
            "nats": {user: _secret() for user in users.NAMES} | kept.get("nats", {}),
            "nats_issuer": kept.get("nats_issuer") or new_seed(),
            **{name: kept.get(name) or _secret() for name in ("nats_routes", "s3_access_key", "s3_secret_key", "postgres", "postgres_superuser", "gateway")},
        }
        if chosen != kept:
            write_json(path, chosen)
        return msgspec.convert(chosen, Secrets)

    def kept_ports(self) -> dict[str, int]:
        return read_json(self.path / "ports.json")

    def choose_ports(self, names: Iterable[str]) -> list[str]:
        """Each name gets the port it had before, or a free one; answers which kept ports were taken by somebody else."""
        path = self.path / "ports.json"
        kept = self.kept_ports()
        lost = [name for name in names if name in kept and not self._claim(kept[name])]
        for name in names:
            if name not in kept or name in lost:
                kept[name] = self._free_port(taken=kept.values())
            self.ports[name] = kept[name]
        write_json(path, kept)
        return lost

    def record(self, part: str, pid: int | None) -> None:
        """run/state.json always tells the truth: whoever reads it may kill what it names."""
        self.pids[part] = pid
        self.write_state()

    def write_state(self) -> None:
        write_json(self.run / "state.json", {"ports": self.ports, "pids": self.pids})

    def state(self) -> dict[str, Any]:
        return read_json(self.run / "state.json")

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def rotate_log(self, part: str) -> None:
        log = self.log(part)
        for age in range(KEPT_LOGS, 0, -1):
            older, newer = log.with_suffix(f".log.{age}"), log.with_suffix(f".log.{age - 1}") if age > 1 else log
            if newer.exists():
                newer.replace(older)

    def _free_port(self, taken: Iterable[int]) -> int:
        while True:
            port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
            if port not in taken and self._claim(port):
                return port

    def _claim(self, port: int) -> bool:
        """Between its choice and its server's start a port is nobody's: while we hold UDP's of the same number, no other home chooses it."""
        if port not in self._claims:
            claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                claim.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                return False
            self._claims[port] = claim
        return is_free(port)

    def _other(self) -> AlreadyRunning:
        about = read_json(self.run / "supervisor.json")
        return AlreadyRunning(pid=about.get("pid", 0), url=about.get("url", "it has just begun"))

    def _make(self) -> None:
        if not self.path.exists():
            self.path.mkdir(parents=True)
            # As root, PostgreSQL runs as another user, who must be able to pass (not to look).
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for folder in (self.run, self.logs):
            folder.mkdir(mode=0o700, exist_ok=True)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def _secret() -> str:
    return secrets.token_hex(24)
