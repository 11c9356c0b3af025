"""WORK: one message per job that a worker may take, held by signs of life, given back or done with."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

log = logging.getLogger(__name__)

STREAM = "WORK"
DURABLE = "gpu"
SUBJECTS = "work.gpu.>"
ACK_WAIT = 10.0
"""Seconds after which the job of a worker that was killed or paused is given to another."""
_PULL = 5.0
"""Seconds that a worker's request stands: a restarted server doesn't know it."""
_PATIENCE = 1.0
_HAS_ONE = 10077


class Unreachable(Exception):
    """The bus doesn't say."""


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    idle: int
    """Workers that wait for a lease, of all replicas."""
    on_offer: int
    """Leases that wait for a worker."""

    @property
    def room(self) -> int:
        """One more than can be taken at once lies ready: who becomes idle doesn't wait for us."""
        return self.idle + 1 - self.on_offer


class Lease:
    def __init__(self, msg: Msg) -> None:
        _, _, self.tenant, self.job_id = msg.subject.split(".")
        self._msg = msg

    async def beat(self) -> None:
        with suppress(nats.errors.Error, OSError):
            await self._msg.in_progress()

    async def done(self) -> None:
        """If that gets lost, the job comes again, and who reads its story finds it ended."""
        for _ in range(3):
            with suppress(nats.errors.Error, TimeoutError, OSError):
                await self._msg.ack_sync(timeout=_PATIENCE)
                return

    async def give_back(self) -> None:
        with suppress(nats.errors.Error, OSError):
            await self._msg.nak()


class Leases:
    def __init__(self, nc: Client, *, ack_wait: float = ACK_WAIT) -> None:
        self._nc = nc
        self._ack_wait = ack_wait

    async def provide(self) -> None:
        """The durable that all workers pull from. Deliveries don't count as tries: a lease comes again after outages and hand-overs too."""
        config = ConsumerConfig(
            durable_name=DURABLE,
            filter_subject=SUBJECTS,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait,
            max_deliver=-1,
            deliver_policy=DeliverPolicy.ALL,
        )
        await self._nc.jetstream(timeout=_PATIENCE).add_consumer(STREAM, config=config)

    async def offer(self, tenant: str, job_id: str) -> bool:
        """False when it is on offer or held already."""
        answer = await self._ask(f"work.gpu.{tenant}.{job_id}")
        error = answer.get("error")
        if error and error.get("err_code") != _HAS_ONE:
            raise Unreachable(error.get("description", ""))
        return not error

    async def demand(self) -> Demand:
        answer = await self._ask(f"$JS.API.CONSUMER.INFO.{STREAM}.{DURABLE}")
        if error := answer.get("error"):
            raise Unreachable(error.get("description", ""))
        return Demand(idle=answer.get("num_waiting", 0), on_offer=answer.get("num_pending", 0))

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator["Pull"]:
        """One worker's place in the line."""
        pull = Pull(self._nc, self.provide)
        await pull.open()
        try:
            yield pull
        finally:
            await pull.close()

    async def _ask(self, subject: str) -> dict[str, Any]:
        try:
            return json.loads((await self._nc.request(subject, b"", timeout=_PATIENCE)).data)
        except (nats.errors.Error, OSError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error


class Pull:
    """Not nats-py's: a lease that arrives when nobody waits for it any more goes back at once."""

    def __init__(self, nc: Client, provide: Any) -> None:
        self._nc = nc
        self._provide = provide
        self._inbox = nc.new_inbox()
        self._awaited: asyncio.Future[Msg] | None = None

    async def open(self) -> None:
        self._subscription = await self._nc.subscribe(self._inbox, cb=self._hear)

    async def close(self) -> None:
        with suppress(nats.errors.Error, OSError):
            await self._subscription.unsubscribe()

    async def take(self) -> Lease:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PULL + _PATIENCE):
                    msg = await self._request()
                match (msg.headers or {}).get("Status"):
                    case None:
                        return Lease(msg)
                    case "503" | "409":
                        await self._mend()
                    case _:
                        continue

    async def _request(self) -> Msg:
        awaited = self._awaited = asyncio.get_running_loop().create_future()
        request = {"batch": 1, "expires": int(_PULL * 1e9)}
        try:
            await self._nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}", json.dumps(request).encode(), reply=self._inbox)
            return await asyncio.shield(awaited)
        except (nats.errors.Error, OSError):
            await asyncio.sleep(1)
            raise TimeoutError from None
        except asyncio.CancelledError:
            if awaited.done() and not (awaited.result().headers or {}).get("Status"):
                await Lease(awaited.result()).give_back()
            raise
        finally:
            self._awaited = None

    async def _mend(self) -> None:
        """Somebody deleted the durable, or the server has just lost sight of it."""
        await asyncio.sleep(0.5)
        try:
            await self._provide()
        except (nats.errors.Error, nats.js.errors.APIError, TimeoutError, OSError) as error:
            log.warning("the line for leases: %s", str(error) or type(error).__name__)

    async def _hear(self, msg: Msg) -> None:
        if self._awaited and not self._awaited.done():
            self._awaited.set_result(msg)
        elif not (msg.headers or {}).get("Status"):
            await Lease(msg).give_back()
