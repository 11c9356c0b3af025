"""The process: what it listens to, and its orderly end."""

import asyncio

from libs.config import Datasets
from libs.events import JobCreated
from libs.runtime.broker import ACK_WAIT, broker, react
from libs.runtime.member import member
from libs.runtime.waiting import unless
from services.datasets.generation.endpoint import opened
from services.datasets.handlers import Preparations

WORKERS = 4


async def serve(settings: Datasets, stop: asyncio.Event, *, ack_wait: float = ACK_WAIT) -> None:
    async with member("datasets", settings, stop) as me, opened(settings) as endpoint:
        preparations = Preparations(me.log, me.storage, workers=WORKERS, settings=settings, endpoint=endpoint)
        await preparations.listen(me.nc)
        reactions = broker(settings.nats_url, name="datasets")
        react(reactions, JobCreated, durable="datasets-preparation", to=preparations.prepare, give_up=preparations.give_up, workers=WORKERS, ack_wait=ack_wait)
        me.checks["reactions"] = reactions.check
        try:
            await unless(stop, reactions.start())
            await stop.wait()
        finally:
            await reactions.stop()
            preparations.close()
