"""A bus and an object store that these tests may kill, and one service that they share."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers, Settings
from libs.events.log import EventLog
from libs.runtime import bus
from libs.storage import Storage
from tests.kit.servers import ELSEWHERE, fresh_home, revive
from tests.kit.training import Job, service, settings_of


@pytest.fixture(scope="module")
def place() -> Iterator[Servers]:
    with fresh_home() as home, Servers(home, Settings(database_url=ELSEWHERE)) as servers:
        yield servers


@pytest.fixture(scope="module")
async def nc(place: Servers) -> AsyncIterator[Client]:
    nc = await bus.connect(place.nats_url("infra"), name="infra")
    yield nc
    await nc.close()


@pytest.fixture
def log(nc: Client) -> EventLog:
    return EventLog(nc, source="/tests")


@pytest.fixture(scope="module")
def storage(place: Servers) -> Iterator[Storage]:
    storage = Storage(settings_of(place))
    yield storage
    storage.close()


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
