"""The process: what it listens to, and its orderly end."""

import asyncio

from libs.config import Service
from libs.events import JobCreated, TrainingCompleted
from libs.runtime.broker import ACK_WAIT, broker, react
from libs.runtime.member import member
from libs.runtime.waiting import unless
from services.export.handlers import Exports

WORKERS = 2


async def serve(settings: Service, stop: asyncio.Event, *, ack_wait: float = ACK_WAIT) -> None:
    async with member("export", settings, stop) as me:
        exports = Exports(me.log, me.storage)
        await exports.listen(me.nc)
        reactions = broker(settings.nats_url, name="export")
        react(reactions, JobCreated, durable="export-export", to=exports.export, give_up=exports.give_up, workers=WORKERS, ack_wait=ack_wait)
        react(
            reactions, TrainingCompleted, durable="export-merged", to=exports.export_merged, give_up=exports.give_up_merged, workers=WORKERS, ack_wait=ack_wait
        )
        me.checks["reactions"] = reactions.check
        try:
            await unless(stop, reactions.start())
            await stop.wait()
        finally:
            await reactions.stop()
