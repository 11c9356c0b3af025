"""A bus and an object store of their own, and the datasets service without its deliveries."""

from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client

from infra.embedded import Servers, Settings
from libs.events.log import EventLog
from libs.runtime import bus
from libs.storage import Storage
from services.datasets.handlers import Preparations
from tests.kit.preparing import replica, settings_of
from tests.kit.servers import ELSEWHERE, fresh_home


@pytest.fixture(scope="module")
def place() -> Iterator[Servers]:
    """A bus and an object store that these tests may kill."""
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
async def own_nc(place: Servers) -> AsyncIterator[Client]:
    """Connected as the service is, with its rights."""
    nc = await bus.connect(place.nats_url("datasets"), name="datasets")
    yield nc
    await nc.close()


@pytest.fixture
def own_log(own_nc: Client) -> EventLog:
    return EventLog(own_nc, source="/datasets")


@pytest.fixture
def service(place: Servers, own_log: EventLog, storage: Storage) -> Iterator[Preparations]:
    """What a replica does with a delivery, without the delivery."""
    yield from replica(place, own_log, storage)


@pytest.fixture
def another(place: Servers, own_log: EventLog, storage: Storage) -> Iterator[Preparations]:
    yield from replica(place, own_log, storage)
