"""What is told to end ends, also when the answer that it waits for comes in the same moment."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.embedded import Servers
from libs.events.log import EventLog
from tests.kit.eventually import eventually


class Held(Client):
    """A connection whose answers wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.held: list[asyncio.Future[None]] = []

    async def request(self, *args: object, **options: object) -> Msg:
        answer = await super().request(*args, **options)  # pyright: ignore[reportArgumentType]
        if self.holding:
            self.held.append(asyncio.get_running_loop().create_future())
            await asyncio.wait_for(self.held[-1], 10)  # as nats-py waits for the answer
        return answer


@pytest.fixture
async def nc(servers: Servers) -> AsyncIterator[Held]:
    nc = Held()
    await nc.connect(servers.nats_url("infra"), inbox_prefix="_INBOX_infra")
    yield nc
    await nc.close()


async def _ignore(_: object) -> None:
    return


async def test_a_following_that_is_closed_while_it_heals_ends(nc: Held):
    following = await EventLog(nc, source="/tests").follow(after=0, deliver=_ignore)
    nc.holding = True
    following._broken = True  # pyright: ignore[reportPrivateUsage]  # as after an outage
    await eventually(lambda: nc.held)

    nc.holding = False
    nc.held[0].set_result(None)
    await asyncio.wait_for(following.close(), 2)


async def test_a_reader_that_is_cancelled_when_its_answer_comes_is_cancelled(nc: Held):
    nc.holding = True
    asking = asyncio.create_task(EventLog(nc, source="/tests").position())
    await eventually(lambda: nc.held)

    nc.held[0].set_result(None)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
