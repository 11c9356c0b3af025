"""The servers, once per session, and what nearly every test with a log needs."""

import os
from collections.abc import AsyncIterator, Generator, Iterator
from uuid import uuid4

import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import Origin
from libs.events.log import EventLog
from libs.runtime import bus
from tests.kit.servers import all_servers
from tests.kit.turns import turn


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Outside of the test's time limit: nobody waits for a turn at the expense of a test."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    assert item.config.cache
    with turn(item.config.cache.mkdir("turns"), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """NATS, PostgreSQL and the object store. A test that kills one of them starts its own (tests.kit.servers)."""
    with all_servers() as servers:
        yield servers


@pytest.fixture(scope="session")
async def infra_nc(servers: Servers) -> AsyncIterator[Client]:
    """A connection of the user `infra`, who may do everything."""
    nc = await bus.connect(servers.nats_url("infra"), name="infra")
    yield nc
    await nc.close()


@pytest.fixture
def tenant() -> str:
    """A workspace of the test's own. There is one log for all tests: this keeps them apart in it."""
    return f"t-{uuid4().hex[:12]}"


@pytest.fixture
def origin(tenant: str) -> Origin:
    return Origin(tenant=tenant, actor="user-1")


@pytest.fixture
def log(infra_nc: Client) -> EventLog:
    return EventLog(infra_nc, source="/tests")
