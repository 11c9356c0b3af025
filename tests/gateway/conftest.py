"""One gateway for all tests that only talk to it; a test that ends or starves one has its own servers."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from infra.embedded import Process, Servers
from tests.kit.gateway import client, running
from tests.kit.people import JWT
from tests.kit.servers import all_servers


@pytest.fixture(scope="session")
def gateway(servers: Servers) -> Iterator[Process]:
    with running(servers) as process:
        yield process


@pytest.fixture(scope="session")
async def api(gateway: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(gateway) as api:
        yield api


@pytest.fixture(scope="session")
def guarded(servers: Servers) -> Iterator[Process]:
    """One that asks for tokens."""
    with running(servers, label="gateway-jwt", environ=JWT) as process:
        yield process


@pytest.fixture(scope="session")
async def door(guarded: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(guarded) as api:
        yield api


@pytest.fixture(scope="module")
def mortal() -> Iterator[Servers]:
    """Servers that a test may kill; it leaves them running."""
    with all_servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def its_gateway(mortal: Servers) -> Iterator[Process]:
    with running(mortal) as process:
        yield process
