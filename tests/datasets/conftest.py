"""The datasets service without its deliveries, on a bus and an object store of its own."""

from collections.abc import Iterator

import pytest

from infra.embedded import Servers
from libs.events.log import EventLog
from libs.storage import Storage
from services.datasets.handlers import Preparations
from tests.kit.place import log, nc, own_log, own_nc, place, storage
from tests.kit.preparing import replica

__all__ = ["log", "nc", "own_log", "own_nc", "place", "storage"]


@pytest.fixture(scope="module")
def whose() -> str:
    return "datasets"


@pytest.fixture
def service(place: Servers, own_log: EventLog, storage: Storage) -> Iterator[Preparations]:
    """What a replica does with a delivery, without the delivery."""
    yield from replica(place, own_log, storage)


@pytest.fixture
def another(place: Servers, own_log: EventLog, storage: Storage) -> Iterator[Preparations]:
    yield from replica(place, own_log, storage)
