"""The servers of one home: started together, reachable by name, alike for `up` and for tests."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import environ as os_environ
from pathlib import Path
from typing import Any, Self, TypeVar

from infra.embedded.home import Home
from infra.embedded.leftovers import end_leftovers
from infra.embedded.nats import Nats, Routes, nats_program
from infra.embedded.postgres import Postgres, postgres_programs
from infra.embedded.process import Part, Process, never, stop, wait_ready
from infra.embedded.s3 import S3, rclone_program
from infra.embedded.services import DATASETS, GATEWAY, NAMES, TRAINING, Service, reachable
from infra.embedded.settings import Settings
from infra.nats.provision import provision
from libs import config
from libs.runtime.nkeys import Issuer

T = TypeVar("T")
REGION = "us-east-1"


@dataclass(frozen=True)
class Store:
    """The object store, for whoever needs a client of it. `root` holds the buckets as folders."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    root: Path


class Parts(ABC):
    """A locked home and the processes in it: `parts["nats"]` can be started, stopped, killed, paused, resumed, restarted on its data."""

    def __init__(self, home: Path | str) -> None:
        self.home = Home(home)
        self.processes: dict[str, Process] = {}

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, *, interrupted: Callable[[], bool] = never, hurry: Callable[[], bool] = never, on_ready: Callable[[Process], None] = lambda _: None
    ) -> Self:
        """Everything is ready when this returns; nothing runs when it raises."""
        try:
            if not self.home.locked:
                self.open()
            for process in self.processes.values():
                process.part.create()
            for process in self.processes.values():
                process.spawn()
            wait_ready(self.processes.values(), interrupted=interrupted, on_ready=on_ready)
            self._furnish()
        except BaseException:
            self.stop(hurry=hurry)
            raise
        return self

    def stop(self, hurry: Callable[[], bool] = never) -> None:
        """The last started first."""
        for process in reversed(self.processes.values()):
            stop([process], grace=10.0, hurry=hurry)
        self.home.unlock()

    @abstractmethod
    def open(self) -> list[str]:
        """Lock the home and settle ports and secrets; nothing is started yet. Answers whose port had to change."""

    @abstractmethod
    def _furnish(self) -> None: ...

    def _enter(self) -> None:
        self.home.open()
        self.home.lock()
        end_leftovers(self.home)
        self.processes.clear()  # of an earlier start

    def _add(self, part: Part) -> Process:
        process = self.processes[part.name] = Process(part, self.home)
        self.home.rotate_log(part.name)
        return process


class Servers(Parts):
    """NATS, PostgreSQL and S3, but for those that the settings replace by servers of your own."""

    def __init__(self, home: Path | str, settings: Settings | None = None) -> None:
        super().__init__(home)
        self.settings = settings or Settings()
        self.port = self.settings.port
        self._nats: Nats | None = None
        self._postgres: Postgres | None = None
        self._store: Store | None = None

    def open(self) -> list[str]:
        self._enter()
        moved = self.home.choose_ports(self._ports_needed())
        self.port = self.settings.port or self.home.ports[GATEWAY]
        self.home.ports[GATEWAY] = self.port
        self.home.announce(self.url)
        self.home.pids = dict.fromkeys(("nats", "postgres", "s3", *NAMES))
        self.home.write_state()
        for part in self._build():
            self._add(part)
        return moved

    def attach(self) -> Self:
        """To servers that another process runs on this home: their addresses and secrets, nothing to start or stop."""
        self.home.ports = self.home.kept_ports()
        self._build()
        return self

    @property
    def url(self) -> str:
        host = reachable(self.settings.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def nats_url(self, user: str) -> str:
        return self._nats.url(user) if self._nats else self.settings.nats_url

    @property
    def database_url(self) -> str:
        return self._postgres.url if self._postgres else self.settings.database_url

    @property
    def store(self) -> Store:
        assert self._store, "the object store is not ours"
        return self._store

    def service(self, name: str, *, port: int | None = None, label: str | None = None, environ: Mapping[str, str] | None = None) -> Process:
        """One of the four services, not started yet; a second one of a kind needs a port and a label."""
        port = port or self.home.ports[name]
        settings = self.environ(name, port=port) | dict(environ or {})
        return self._add(Service(name=name, label=label or name, host=self.settings.host if name == GATEWAY else "127.0.0.1", port=port, environ=settings))

    def refuse_wrong_settings(self) -> None:
        """Before anything is started, as far as this can be known from here."""
        kinds = {GATEWAY: config.Gateway, DATASETS: config.Datasets, TRAINING: config.Training}
        for name in NAMES:
            config.load(kinds.get(name, config.Service), self.environ(name, port=self.home.ports[name]))

    def environ(self, name: str, *, port: int) -> dict[str, str]:
        """The user's own settings, and over them what only we know."""
        known = {"HOME": str(self.home.path), "NATS_URL": self.nats_url(name), "S3_BUCKET": self.settings.s3_bucket}
        if self._store:
            known |= {"S3_ENDPOINT": self._store.endpoint, "S3_ACCESS_KEY": self._store.access_key, "S3_SECRET_KEY": self._store.secret_key}
            known |= {"S3_REGION": REGION, "S3_LOCAL_ROOT": str(self._store.root)}
        if name == GATEWAY:
            known |= {"SECRET": self.settings.secret or self.home.secrets().gateway}
            known |= {"DATABASE_URL": self.database_url, "HOST": self.settings.host, "PORT": str(port)}
            known |= {"NATS_ISSUER_SEED": self.home.secrets().nats_issuer} if self._nats else {}
        else:
            known |= {"HEALTH_PORT": str(port)}
        if name == DATASETS:
            known |= {"TOKENIZERS_FOLDER": str(self.home.path / "tokenizers")}
        if name == TRAINING:
            known |= {"RUNS_FOLDER": str(self.home.path / "runs"), "MODELS_FOLDER": str(self.home.path / "models")}
        return {**os_environ, **{f"TRAINYARD_{setting}": value for setting, value in known.items()}}

    def _ports_needed(self) -> list[str]:
        servers = [
            name for name, own in (("nats", self.settings.nats_url), ("postgres", self.settings.database_url), ("s3", self.settings.s3_endpoint)) if not own
        ]
        monitor = ["nats_monitor"] if "nats" in servers else []
        return [*servers, *monitor, *(name for name in NAMES if name != GATEWAY or self.settings.port == 0)]

    def _build(self) -> list[Part]:
        parts: list[Part] = []
        secrets, ports, path = self.home.secrets(), self.home.ports, self.home.path
        if "nats" in ports:
            program = nats_program(self.settings)
            self._nats = Nats(
                name="nats",
                program=program,
                folder=path / "nats",
                port=ports["nats"],
                monitor_port=ports["nats_monitor"],
                passwords=secrets.nats,
                issuer=Issuer(secrets.nats_issuer).public,
            )
            parts.append(self._nats)
        if "postgres" in ports:
            self._postgres = Postgres(
                programs=postgres_programs(self.settings),
                folder=path / "postgres",
                port=ports["postgres"],
                password=secrets.postgres,
                superuser_password=secrets.postgres_superuser,
            )
            parts.append(self._postgres)
        if "s3" in ports:
            keys = {"access_key": secrets.s3_access_key, "secret_key": secrets.s3_secret_key}
            server = S3(program=rclone_program(self.settings), folder=path / "s3", bucket=self.settings.s3_bucket, port=ports["s3"], **keys)
            self._store = Store(endpoint=f"http://{server.address}", bucket=self.settings.s3_bucket, root=path / "s3", **keys)
            parts.append(server)
        return parts

    def _furnish(self) -> None:
        """A bus of the user's own is furnished by its operator."""
        if self._nats:
            _run(provision(self._nats.url("infra"), max_bytes=self._nats.facts_bytes))
            self._nats.keep_room()


class Cluster(Parts):
    """Several NATS servers that replicate every stream."""

    def __init__(self, home: Path | str, size: int = 3, settings: Settings | None = None) -> None:
        super().__init__(home)
        self.names = [f"nats-{number}" for number in range(1, size + 1)]
        self._settings = settings or Settings()
        self._nodes: list[Nats] = []

    def open(self) -> list[str]:
        self._enter()
        moved = self.home.choose_ports([f"{name}{purpose}" for name in self.names for purpose in ("", "_monitor", "_routes")])
        self.home.pids = dict.fromkeys(self.names)
        self.home.write_state()
        self._nodes = [self._node(name) for name in self.names]
        for node in self._nodes:
            self._add(node)
        return moved

    def nats_url(self, user: str) -> str:
        return ",".join(node.url(user) for node in self._nodes)

    def _node(self, name: str) -> Nats:
        secrets, ports = self.home.secrets(), self.home.ports
        others = tuple(ports[f"{other}_routes"] for other in self.names if other != name)
        return Nats(
            name=name,
            program=nats_program(self._settings),
            folder=self.home.path / name,
            port=ports[name],
            monitor_port=ports[f"{name}_monitor"],
            passwords=secrets.nats,
            issuer=Issuer(secrets.nats_issuer).public,
            routes=Routes(port=ports[f"{name}_routes"], password=secrets.nats_routes, others=others),
        )

    def _furnish(self) -> None:
        _run(provision(self.nats_url("infra"), replicas=len(self._nodes), max_bytes=min(node.facts_bytes for node in self._nodes)))
        for node in self._nodes:
            node.keep_room()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own, also where our caller is inside one."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()
