"""A training service that the tests of a module share, on a bus and an object store of its own."""

from collections.abc import AsyncIterator, Callable

import pytest

from infra.embedded import Process, Servers
from libs.events.log import EventLog
from libs.storage import Storage
from tests.kit.place import log, nc, place, storage
from tests.kit.servers import revive
from tests.kit.training import Job, service

__all__ = ["log", "nc", "place", "storage"]


@pytest.fixture(scope="module")
async def training(place: Servers) -> AsyncIterator[Process]:
    """One service with two workers, for tests that leave it as it was."""
    with service(place, workers="2") as process:
        await revive(process)
        yield process


@pytest.fixture
def new_job(log: EventLog, storage: Storage, tenant: str) -> Callable[[], Job]:
    return lambda: Job(log, storage, tenant)


@pytest.fixture
def job(new_job: Callable[[], Job]) -> Job:
    return new_job()
