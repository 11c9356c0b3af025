"""Real servers for tests, as children of this process; to be started from the main thread."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.embedded import Cluster, Process, Servers, Settings
from libs.config import Service, load
from libs.storage import Storage
from tests.kit.eventually import eventually

ELSEWHERE = "not-needed"
MEMORY, ROOM = Path("/dev/shm"), 4 * 1024**3


@contextmanager
def fresh_home() -> Iterator[Path]:
    """Not pytest's tmp_path: PostgreSQL runs as a user of its own when we are root, and must be let through. In memory where there is room: no test cuts the power."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    folder = Path(tempfile.mkdtemp(prefix="trainyard-test-", dir=MEMORY if in_memory else None))
    try:
        folder.chmod(0o711)
        yield folder / "home"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def all_servers() -> Iterator[Servers]:
    with fresh_home() as home, Servers(home) as servers:
        yield servers


@contextmanager
def bus_alone() -> Iterator[Servers]:
    """One nats-server that a test may kill without anybody else noticing."""
    with fresh_home() as home, Servers(home, Settings(database_url=ELSEWHERE, s3_endpoint=ELSEWHERE)) as servers:
        yield servers


@contextmanager
def bus_cluster(size: int = 3) -> Iterator[Cluster]:
    with fresh_home() as home, Cluster(home, size) as cluster:
        yield cluster


def storage_of(servers: Servers) -> Storage:
    return Storage(load(Service, servers.environ("datasets", port=0)))


async def revive(process: Process) -> None:
    """Starts it without holding up the loop; again where it ends because what it needs is away, as its supervisor would."""
    process.spawn()
    await eventually(lambda: _up(process), patience=process.part.patience)


async def _up(process: Process) -> bool:
    if process.ended() is not None:
        await asyncio.sleep(0.2)
        process.spawn()
    return await asyncio.to_thread(process.ready)
