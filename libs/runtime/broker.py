"""How services react to facts: FastStream with our rules for acknowledging, retrying, giving up and giving back."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import nats.errors
import nats.js.errors
from fast_depends.msgspec import MsgSpecSerializer
from faststream import AckPolicy, BaseMiddleware
from faststream.nats import ConsumerConfig, JStream, NatsBroker, NatsMessage, PullSub
from nats.js.api import AckPolicy as Ack
from nats.js.api import DeliverPolicy

from libs import telemetry
from libs.events import Event, Recorded, Unreadable, decode, kind
from libs.events.log import STREAM, Conflict, Full, Unavailable
from libs.runtime import bus
from libs.storage import StorageDown

log = logging.getLogger(__name__)

OUTAGES = (StorageDown, Unavailable, Full, Conflict, nats.errors.Error, OSError, TimeoutError)
"""Not the work's fault: tried again without limit."""
TRIES = 5
"""Failures of the work itself, after which its owner writes `failed`."""
ACK_WAIT = 20.0
"""Seconds after which the work of a replica that was killed or paused is given to another."""
PULL = 2.0
"""Seconds that a request for a fact stands: a restarted server doesn't know it, and nobody hears anything until the next."""
MEND = 5.0

Handler = Callable[[Recorded], Awaitable[None]]
GiveUp = Callable[[Recorded, Exception], Awaitable[None]]


class HandedOver(Exception):
    """Raised by a handler that finds another replica at its work: the fact is that one's now, to acknowledge or to give back."""


class Later(Exception):
    """Raised by a handler that waits for something: `until` goes on in its place and occupies no worker, and at its end the fact comes again."""

    def __init__(self, until: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.until = until


class _GivenBack(Exception):
    """Somebody goes on with it at once: this process ends, or what was waited for is there."""


class _Aside(Exception):
    """Answered later, by whoever waits."""


class Broker(NatsBroker):
    """FastStream's, but outages at its start are waited out, what keeps facts from coming in is mended, and work in hand is given back at its end."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.in_hand: set[asyncio.Task[Any]] = set()
        self.durables: dict[str, ConsumerConfig] = {}
        self.inbox_prefix: bytes = settings["inbox_prefix"] + b"."  # each subscriber would take FastStream's default, which our users may not hear
        self.stopping = False
        self._mending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        while True:
            try:
                await self._provide()
                await super().start()
            except OUTAGES as error:
                log.warning("reactions wait for the bus: %s", str(error) or type(error).__name__)
                await asyncio.sleep(1)
            else:
                self._mending = asyncio.create_task(self._mend())
                return

    async def stop(self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None) -> None:
        """What is in hand goes back at once, for another replica or the next start to go on with."""
        self.stopping = True
        if self._mending:
            self._mending.cancel()
        with suppress(nats.errors.Error):
            await self._turn_away()
        for task in self.in_hand:
            task.cancel()
        if self.in_hand:
            await asyncio.wait(self.in_hand, timeout=3)
        with suppress(nats.errors.Error):
            await super().stop(exc_type, exc_val, exc_tb)

    async def check(self) -> str:
        """What keeps facts from coming in, or nothing."""
        if self._connection is None or not self._connection.is_connected:
            return "not connected"
        dead = len(self._dead())
        return f"{dead} of {len(self.subscribers)} workers don't listen" if dead else ""

    async def _turn_away(self) -> None:
        """Nothing more comes in: what is given back would come to an idle worker of ours."""
        subscribers: list[Any] = list(self.subscribers)
        for subscriber in subscribers:
            subscriber.running = False
            if subscription := subscriber.subscription:
                subscriber.subscription = None
                await subscription.unsubscribe()

    async def _provide(self) -> None:
        """Durables are made, or brought to what this version asks for: FastStream takes those that are there as they are."""
        jetstream = (await self.connect()).jetstream()
        for config in self.durables.values():
            await jetstream.add_consumer(STREAM, config=config)

    async def _lost(self) -> bool:
        jetstream = (await self.connect()).jetstream()
        try:
            for name in self.durables:
                await jetstream.consumer_info(STREAM, name)
        except nats.js.errors.NotFoundError:
            return True
        return False

    async def _mend(self) -> None:
        """FastStream pulls on for ever from a durable that is gone, and a pull that somebody cancelled stays so."""
        while True:
            await asyncio.sleep(MEND)
            try:
                if await self._lost():
                    log.error("somebody deleted a durable: it is made anew, and hears all facts of its type again")
                    await self._provide()
                for subscriber in self._dead():
                    log.error("a worker didn't listen any more; it does again")
                    await subscriber.stop()
                    await subscriber.start()
            except OUTAGES as error:
                log.warning("reactions: %s", str(error) or type(error).__name__)

    def _dead(self) -> list[Any]:
        subscribers: list[Any] = list(self.subscribers)
        return [subscriber for subscriber in subscribers if all(task.done() for task in subscriber.tasks)]


def broker(url: str, *, name: str) -> Broker:
    settings = bus.options(url, name=f"{name}-reactions")
    its_log = log.getChild("faststream")
    its_log.setLevel(logging.WARNING)  # what the bus forbids is said there, and nowhere else
    return Broker(settings.pop("servers"), serializer=MsgSpecSerializer(), middlewares=(Acknowledge,), logger=its_log, graceful_timeout=None, **settings)


def react(broker: Broker, event: type[Event], *, durable: str, to: Handler, give_up: GiveUp, workers: int = 1, ack_wait: float = ACK_WAIT) -> None:
    """Every fact of this type, at least once, in up to `workers` at the same time, for all replicas together each only once at a time.

    One pull subscription per worker: a single one with several workers fetches ahead of them and lets leases run out.
    """
    category, name = kind(event).split(".", 1)
    subject = f"ev.*.{category}.{name}.*"
    config = ConsumerConfig(
        name=durable,
        durable_name=durable,
        filter_subject=subject,
        ack_policy=Ack.EXPLICIT,
        ack_wait=ack_wait,
        max_deliver=-1,
        max_ack_pending=1000,
        deliver_policy=DeliverPolicy.ALL,
    )
    broker.durables[durable] = config
    failures: Counter[int] = Counter()

    async def do(msg: NatsMessage, work: Handler) -> None:
        await _handle(msg, to=work, give_up=give_up, failures=failures, beat=ack_wait / 4)

    async def wait(msg: NatsMessage, until: Callable[[], Awaitable[None]]) -> None:
        await do(msg, lambda _: until())
        raise _GivenBack

    async def aside(msg: NatsMessage, until: Callable[[], Awaitable[None]]) -> None:
        with suppress(nats.errors.Error):
            await _acknowledged(wait(msg, until), msg)

    async def handle(body: bytes, msg: NatsMessage) -> None:
        task = asyncio.current_task()
        assert task
        broker.in_hand.add(task)
        try:
            await do(msg, to)
        except Later as later:
            waiting = asyncio.create_task(aside(msg, later.until))
            broker.in_hand.add(waiting)
            waiting.add_done_callback(broker.in_hand.discard)
            raise _Aside from None
        except asyncio.CancelledError:
            if broker.stopping:
                raise _GivenBack from None
            raise
        finally:
            broker.in_hand.discard(task)

    for _ in range(workers):
        broker.subscriber(
            subject,
            stream=JStream(STREAM, declare=False),
            durable=durable,
            config=config,
            pull_sub=PullSub(batch_size=1, timeout=PULL),
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
            inbox_prefix=broker.inbox_prefix,
        )(handle)


async def _handle(msg: NatsMessage, *, to: Handler, give_up: GiveUp, failures: Counter[int], beat: float) -> None:
    """Deliveries don't count as tries: a fact comes again after outages and hand-overs too."""
    recorded = decode(msg.body, seq=msg.raw_message.metadata.sequence.stream, subject=msg.raw_message.subject)
    if recorded.event is None:
        raise Unreadable(f"fact {recorded.seq} ({recorded.envelope.dataschema}) is for a newer version of this service")
    with telemetry.span(f"react {recorded.envelope.type}", kind=telemetry.SpanKind.CONSUMER, parent=recorded.envelope.traceparent):
        heart = asyncio.create_task(_beat(msg, every=beat))
        try:
            await to(recorded)
        except (*OUTAGES, HandedOver, Later):
            raise
        except Exception as error:
            failures[recorded.seq] += 1
            if failures[recorded.seq] < TRIES:
                raise
            log.exception("gave up", extra={"fact": recorded.id, "event": recorded.envelope.type})
            await give_up(recorded, error)
        finally:
            heart.cancel()
    failures.pop(recorded.seq, None)


async def _beat(msg: NatsMessage, *, every: float) -> None:
    """Long work keeps its lease as long as its process lives."""
    while True:
        await asyncio.sleep(every)
        with suppress(nats.errors.Error):
            await msg.in_progress()


class Acknowledge(BaseMiddleware):
    """Done: acknowledged. Failed: again, later each time (FastStream's own NACK_ON_ERROR retries within milliseconds)."""

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
        return await _acknowledged(call_next(msg), msg)


async def _acknowledged(work: Awaitable[Any], msg: Any) -> Any:
    try:
        answer = await work
    except asyncio.CancelledError:
        await msg.nack()
        raise
    except _GivenBack:
        await msg.nack()
        return None
    except _Aside:
        return None
    except HandedOver as other:
        log.info("handed over: %s", other)
        return None
    except Exception as error:
        tries = msg.raw_message.metadata.num_delivered or 1
        delay = min(30.0, 0.2 * 2 ** min(tries - 1, 8))
        log.warning("retried in %.1f s: %s", delay, error or type(error).__name__, exc_info=not isinstance(error, OUTAGES))
        await msg.nack(delay=delay)
        return None
    await msg.ack()
    return answer


async def _undecoded(msg: NatsMessage) -> bytes:
    return msg.body
