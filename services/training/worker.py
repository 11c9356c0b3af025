"""The workers of a service: each pulls one lease after the other, and what it has in hand can be cancelled, or given back."""

import asyncio
import logging

from nats.aio.client import Client
from nats.aio.msg import Msg

from .leases import Lease, Leases
from .place import Place, Slot
from .run import Run

log = logging.getLogger(__name__)

CANCELS = "feed.*.job.cancel_requested.*"


class Workers:
    def __init__(self, place: Place, leases: Leases, slots: list[Slot]) -> None:
        self._place = place
        self._leases = leases
        self._slots = slots
        self._in_hand: dict[tuple[str, str], Run] = {}

    async def listen(self, nc: Client) -> None:
        """Cancels go to every replica: a shared durable would give each of them some."""
        await nc.subscribe(CANCELS, cb=self._cancel)

    async def run(self) -> None:
        """Until cancelled; then what is in hand is given back."""
        pulling = [asyncio.create_task(self._pull(slot)) for slot in self._slots]
        try:
            await asyncio.gather(*pulling)
        finally:
            for task in pulling:
                task.cancel()
            await asyncio.gather(*pulling, return_exceptions=True)

    async def _pull(self, slot: Slot) -> None:
        async with self._leases.pulling() as line:
            while True:
                await self._place.children.warm()
                await self._work(await line.take(), slot)

    async def _work(self, lease: Lease, slot: Slot) -> None:
        job = (lease.tenant, lease.job_id)
        if job in self._in_hand:
            return  # another worker of ours is slow to say that it lives; its next sign of life is for this delivery too
        run = Run(lease, place=self._place, slot=slot)
        self._in_hand[job] = run
        working = asyncio.create_task(run.work())
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            run.signals.ask_stop()
            await asyncio.wait({working}, timeout=self._place.timing.farewell)
            working.cancel()
            raise
        except Exception:
            log.exception("a run broke down", extra={"job": lease.job_id})  # its lease comes again
        finally:
            await asyncio.gather(working, return_exceptions=True)
            del self._in_hand[job]

    async def _cancel(self, msg: Msg) -> None:
        _, tenant, *_, job_id = msg.subject.split(".")
        if run := self._in_hand.get((tenant, job_id)):
            run.signals.ask_cancel()
