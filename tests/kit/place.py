"""One service without the others: a bus and an object store that its tests may kill, what they look with, and the service as a process. A folder's conftest names the fixtures that it takes."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers, Settings
from infra.embedded import services as embedded
from infra.embedded.process import Command
from libs import config
from libs.events.log import EventLog
from libs.runtime import bus
from libs.storage import Storage
from tests.kit.gateway import own_port
from tests.kit.servers import ELSEWHERE, fresh_home, storage_of


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
    storage = storage_of(place)
    yield storage
    storage.close()


@pytest.fixture(scope="module")
async def own_nc(place: Servers, whose: str) -> AsyncIterator[Client]:
    """Connected as the service is that the folder's fixture `whose` names, with its rights."""
    nc = await bus.connect(place.nats_url(whose), name=whose)
    yield nc
    await nc.close()


@pytest.fixture
def own_log(own_nc: Client, whose: str) -> EventLog:
    return EventLog(own_nc, source=f"/{whose}")


class Impatient(embedded.Service):
    """`python -m services.<name>`, but what a killed or paused replica had in hand is delivered again after 2 s instead of 20."""

    def __init__(self, *, settings: type[config.Service], **about: Any) -> None:
        super().__init__(**about)
        self._settings = settings.__name__

    def command(self) -> Command:
        code = (
            f"from functools import partial; from libs.config import {self._settings}; from libs.runtime import process; "
            f"from services.{self._service}.app import serve; process.run('{self._service}', {self._settings}, partial(serve, ack_wait=2.0))"
        )
        there = super().command()
        return Command([*there.argv[:2], "-c", code], environ=there.environ)


@contextmanager
def one_service(place: Servers, name: str, *, settings: type[config.Service] = config.Service, label: str = "") -> Iterator[Process]:
    """Not started yet; killed at the end, whatever became of it."""
    port = own_port(place, label or name)
    part = Impatient(name=name, label=label or name, host="127.0.0.1", port=port, environ=place.environ(name, port=port), settings=settings)
    with killed_at_the_end(Process(part, place.home)) as process:
        yield process


@contextmanager
def killed_at_the_end(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.kill()
