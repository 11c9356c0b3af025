"""One server, or a cluster of three, that these tests may kill."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kit.buses import Bus, own_bus


@pytest.fixture(scope="session", params=["alone", "cluster"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with own_bus(request.param) as bus:
        yield bus


@pytest.fixture(autouse=True)
def swept(request: pytest.FixtureRequest) -> Iterator[None]:
    """What nats-py leaves unclosed is collected while the test that expects it lasts."""
    yield
    if "bus" in request.fixturenames:
        gc.collect()
