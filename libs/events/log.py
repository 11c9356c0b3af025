"""The log of truth: guarded appends to JetStream, and every way of reading it. The only file here that imports nats."""

import asyncio
import base64
import json
import os
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError

from . import catalog
from .envelope import CloudEvent, Event, Origin, Recorded
from .subjects import Address, address, kind

STREAM = "EV"
REQUIRED = {
    "retention": "limits",
    "storage": "file",
    "discard": "new",
    "max_age": 0,
    "max_msgs_per_subject": -1,
    "allow_atomic": True,
    "allow_direct": True,
    "deny_delete": True,
}
"""Without these the stream is no event store: it would drop facts, or let them be changed."""

_WRONG_LAST_SEQUENCE = 10071
_BATCH_HAS_DUPLICATE = 10201
_AGAIN = {10164, 10158, 10176, 10210}
"""Another append under the same guard or id is on its way; a batch lost a part; too many batches at once."""
_FULL = {10077, 10023, 10047}
_NO_MESSAGE = 10037
_PATIENCE = 1.0
"""Seconds for one request: a lost one is asked again, and read back first."""
_PAGE = 500
_HEARTBEAT = 0.5
"""Seconds between signs of life of what is followed."""


class Conflict(Exception):
    """Someone else appended under this guard first. Read again, decide again."""


class Unavailable(Exception):
    """The log didn't answer in time. Whether the facts are in it is not known."""


class Full(Exception):
    """The log has no room left: nothing was written, and nothing will be until there is."""


class Forbidden(Exception):
    """This user of the bus may not write such facts: nothing was written."""


class Misconfigured(Exception):
    """The stream is not there or is not the event store that the facts rely on."""


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of ONE aggregate, to stand right after its fact `after` (0: it must not exist yet)."""

    events: Sequence[Event]
    after: int
    nth: int | None = None
    """With it and an origin that has a causation, the ids are derived: the same reaction writes the same fact."""


class EventLog:
    def __init__(
        self,
        nc: Client,
        *,
        source: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        entropy: Callable[[int], bytes] = os.urandom,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._nc = nc
        self._source = source
        self._now = now
        self._entropy = entropy
        self._jitter = jitter

    async def append(self, writes: Sequence[Write], *, origin: Origin, budget: float = 5.0) -> list[Recorded]:
        """All of it or nothing, in one atomic step; several aggregates each keep their own guard.

        Raises Conflict when a guard has moved. After any doubtful answer the log itself is asked whether the
        facts are in it: a single server checks the guard before the dedupe id, a cluster the other way round.
        """
        letters = [self._letter(event, nth, write, origin) for write in writes for nth, event in enumerate(write.events)]
        deadline = time.monotonic() + budget
        while True:
            try:
                last = await self._send(letters)
                return [letter.recorded(last - len(letters) + n + 1) for n, letter in enumerate(letters)]
            except _Doubt as doubt:
                if found := await self._read_back(letters[0], 0 if doubt.written else letters[0].after, deadline):
                    return [letter.recorded(found + n) for n, letter in enumerate(letters)]
                if doubt.verdict:
                    raise doubt.verdict from doubt
                if time.monotonic() >= deadline:
                    raise Unavailable("The event log does not answer") from doubt
                await asyncio.sleep(0.01 + 0.04 * self._jitter())

    async def read(self, where: Address | str, *, after: int = 0) -> list[Recorded]:
        """What happened to an aggregate (or under any subject filter) after a position, oldest first."""
        pattern = where.guard if isinstance(where, Address) else where
        return [recorded async for recorded in self.scan(pattern, after=after)]

    async def scan(self, pattern: str, *, after: int = 0) -> AsyncIterator[Recorded]:
        async for raw in self.scan_raw(pattern, after=after):
            yield catalog.decode(raw.data, seq=raw.seq, subject=raw.subject)

    async def scan_raw(self, pattern: str, *, after: int = 0, page: int = _PAGE) -> AsyncGenerator["RawFact", None]:
        """Pages through the log by direct gets: no consumer on the server, any number of readers."""
        more = True
        while more:
            facts, more = await read_page(self._nc, STREAM, pattern, start=after + 1, most=min(page, _PAGE))
            for raw in facts:
                after = raw.seq
                yield raw

    async def next_position(self, pattern: str, *, after: int) -> int:
        """Where the next fact under a filter lies; 0 when the server that was asked has none yet. One that has it has all before it."""
        facts, _ = await read_page(self._nc, STREAM, pattern, start=after + 1, most=1)
        return facts[0].seq if facts else 0

    async def scan_to(self, pattern: str, *, last: int, after: int = 0, page: int = _PAGE) -> AsyncGenerator["RawFact", None]:
        """All facts under a filter up to a position. None is missing: the leader is asked whether the replicas that were read had them all."""
        while True:
            async for raw in self.scan_raw(pattern, after=after, page=page):
                if raw.seq > last:
                    return
                after = raw.seq
                yield raw
            answer = await self._ask(f"$JS.API.STREAM.MSG.GET.{STREAM}", json.dumps({"seq": after + 1, "next_by_subj": pattern}).encode())
            if "error" in answer and answer["error"].get("err_code") != _NO_MESSAGE:
                raise Unavailable(answer["error"].get("description", ""))
            if "error" in answer or int(answer["message"]["seq"]) > last:
                return
            await asyncio.sleep(0.05)

    async def follow(self, *, after: int, deliver: Callable[["RawFact"], Awaitable[None]], pattern: str | Sequence[str] = ">") -> "Following":
        """Every fact after a position, once and in order, until closed; heals by itself after outages.

        One at a time: the next waits until `deliver` is done, and comes again when it raised.
        """
        following = Following(self._nc, self._ask, pattern=pattern, after=after, deliver=deliver)
        await following.begin()
        return following

    async def position(self) -> "Position":
        """Where the log ends now, and how full it is."""
        info = await self._info()
        return Position(
            last=info["state"]["last_seq"],
            created=info["created"],
            bytes=info["state"]["bytes"],
            max_bytes=max(0, info["config"].get("max_bytes", 0)),
        )

    async def check(self) -> None:
        """Refuses to go on with a stream that would lose or change facts. Only `infra` makes or mends streams."""
        config = (await self._info())["config"]
        wrong = [f"{name} is {config.get(name)!r}, must be {value!r}" for name, value in REQUIRED.items() if config.get(name, 0) != value]
        if wrong:
            raise Misconfigured(f"Stream {STREAM}: {'; '.join(wrong)}. Run `python -m infra.nats.provision`.")

    async def _info(self) -> dict[str, Any]:
        answer = await self._ask(f"$JS.API.STREAM.INFO.{STREAM}", b"")
        if "error" not in answer:
            return answer
        reason = f"Stream {STREAM}: {answer['error'].get('description')}"
        if answer["error"].get("code") == 404:
            raise Misconfigured(f"{reason}. Run `python -m infra.nats.provision`.")
        raise Unavailable(reason)

    def _letter(self, event: Event, nth: int, write: Write, origin: Origin) -> "_Letter":
        at = self._now()
        where = address(origin.tenant, event)
        subject = where.under(kind(event).split(".", 1)[1])
        if write.nth is not None and origin.causation:
            id = str(uuid.uuid5(uuid.UUID(origin.causation), f"{subject}/{write.nth + nth}"))
        else:
            id = catalog.uuid7(int(at.timestamp() * 1000), self._entropy(10))
        envelope = catalog.envelope(event, origin=origin, source=self._source, id=id, at=at)
        return _Letter(event=event, envelope=envelope, subject=subject, guard=where.guard, after=write.after, body=catalog.encode(envelope))

    async def _send(self, letters: list["_Letter"]) -> int:
        """The last sequence, or _Doubt."""
        try:
            if len(letters) == 1:
                answer = await self._request(letters[0].subject, letters[0].body, letters[0].headers)
            else:
                answer = await self._send_batch(letters)
        except (nats.errors.Error, OSError) as error:
            raise _Doubt(str(error) or type(error).__name__, verdict=self._forbidden(letters)) from error
        ack = json.loads(answer.data)
        if "error" not in ack:
            return int(ack["seq"])
        code, reason = ack["error"].get("err_code", 0), ack["error"].get("description", "")
        if code == _WRONG_LAST_SEQUENCE:
            raise _Doubt(reason, verdict=Conflict(", ".join(dict.fromkeys(letter.guard for letter in letters))))
        if code in _FULL:
            raise _Doubt(reason, verdict=Full(reason))
        if code == _BATCH_HAS_DUPLICATE:
            raise _Doubt(reason, written=True)
        if code in _AGAIN or ack["error"].get("code", 0) >= 500:
            raise _Doubt(reason, verdict=self._forbidden(letters))
        raise _Doubt(reason, verdict=APIError.from_error(ack["error"]))

    async def _send_batch(self, letters: list["_Letter"]) -> Msg:
        batch = uuid.uuid4().hex
        for n, letter in enumerate(letters, 1):
            headers = {**letter.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n)}
            if n < len(letters):
                await self._nc.publish(letter.subject, letter.body, headers=headers)
                continue
            headers["Nats-Batch-Commit"] = "1"
            return await self._request(letter.subject, letter.body, headers)
        raise AssertionError("a batch has at least two letters")

    def _forbidden(self, letters: list["_Letter"]) -> Forbidden | None:
        """The server doesn't answer what it forbids, it tells the connection: to the sender that looks like an outage."""
        told = str(self._nc.last_error or "").lower()
        if "permissions violation" in told and any(f'"{letter.subject.lower()}"' in told for letter in letters):
            return Forbidden(told)
        return None

    async def _read_back(self, letter: "_Letter", after: int, deadline: float) -> int:
        """The sequence under which this very fact is in the log, else 0. Asks the leader: replicas may lag."""
        seq = after + 1
        while True:
            try:
                answer = await self._ask(f"$JS.API.STREAM.MSG.GET.{STREAM}", json.dumps({"seq": seq, "next_by_subj": letter.guard}).encode())
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0.05)
                continue
            if "error" in answer:
                if answer["error"].get("err_code") == _NO_MESSAGE:
                    return 0
                if time.monotonic() >= deadline:
                    raise Unavailable(answer["error"].get("description", ""))
                await asyncio.sleep(0.05)
                continue
            found = answer["message"]
            if msgspec.json.decode(base64.b64decode(found["data"]), type=_Identity).id == letter.envelope.id:
                return int(found["seq"])
            seq = int(found["seq"]) + 1

    async def _ask(self, subject: str, body: bytes) -> dict[str, Any]:
        try:
            return json.loads((await self._request(subject, body)).data)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable("The event log does not answer") from error

    async def _request(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> Msg:
        answer = await self._nc.request(subject, body, timeout=_PATIENCE, headers=headers)
        _heed_cancellation()
        return answer


async def read_page(nc: Client, stream: str, pattern: str, *, start: int, most: int) -> tuple[list["RawFact"], bool]:
    """The next messages under a filter by one batched direct get, and whether there are more."""
    page: list[RawFact] = []
    end: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def collect(msg: Msg) -> None:
        headers = msg.headers or {}
        if "Status" not in headers:
            page.append(RawFact(seq=int(headers["Nats-Sequence"]), subject=headers["Nats-Subject"], data=msg.data))
        elif not end.done():
            end.set_result(headers)

    await _connected(nc)
    inbox = nc.new_inbox()
    try:
        subscription = await nc.subscribe(inbox, cb=collect)  # pyright: ignore[reportUnknownMemberType]
        request = {"seq": start, "batch": most, "next_by_subj": pattern}
        await nc.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        try:
            async with asyncio.timeout(2 * _PATIENCE):
                headers = await end
        finally:
            await _quietly(subscription.unsubscribe())
        _heed_cancellation()
    except (nats.errors.Error, OSError) as error:
        raise Unavailable("The event log does not answer") from error
    match headers["Status"]:
        case "204":
            return page, int(headers.get("Nats-Num-Pending", 0)) > 0
        case "404":
            return page, False
        case status:
            raise Unavailable(f"The event log answered {status} {headers.get('Description', '')}")


class RawFact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A fact as the log holds it, not yet decoded."""

    seq: int
    subject: str
    data: bytes


class Position(msgspec.Struct, frozen=True, kw_only=True):
    last: int
    created: str
    bytes: int
    max_bytes: int

    @property
    def fill(self) -> float:
        return self.bytes / self.max_bytes if self.max_bytes else 0.0


class Following:
    """A running `follow`: a push consumer, made anew behind the last delivered fact whenever it falls silent or skips one.

    Not nats-py's ordered consumer: that one reads on while its reader is busy, and drops facts once 256 MiB have piled up.
    """

    def __init__(
        self,
        nc: Client,
        ask: Callable[[str, bytes], Awaitable[dict[str, Any]]],
        *,
        pattern: str | Sequence[str],
        after: int,
        deliver: Callable[[RawFact], Awaitable[None]],
    ) -> None:
        self._nc = nc
        self._ask = ask
        self._pattern = pattern
        self._last = after
        self._deliver = deliver
        self._next: int = 1
        self._heard = time.monotonic()
        self._busy = False
        self._broken = False

    async def begin(self) -> None:
        await self._consume()
        self._watch = asyncio.create_task(self._heal())

    async def close(self) -> None:
        self._watch.cancel()
        try:
            await asyncio.gather(self._watch, return_exceptions=True)
        finally:
            await _quietly(self._subscription.unsubscribe())

    async def _consume(self) -> None:
        await _connected(self._nc)
        inbox = self._nc.new_inbox()
        self._next, self._broken, self._heard = 1, False, time.monotonic()
        self._subscription = await self._nc.subscribe(inbox, cb=self._hear)  # pyright: ignore[reportUnknownMemberType]
        config = {
            "deliver_subject": inbox,
            **({"filter_subject": self._pattern} if isinstance(self._pattern, str) else {"filter_subjects": list(self._pattern)}),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._last + 1,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
            "num_replicas": 1,
            "mem_storage": True,
        }
        try:
            answer = await self._ask(f"$JS.API.CONSUMER.CREATE.{STREAM}", json.dumps({"stream_name": STREAM, "config": config}).encode())
            if "error" in answer:
                raise Unavailable(f"Stream {STREAM} can't be followed: {answer['error'].get('description')}")
        except BaseException:  # also when cancelled: nobody else knows of this subscription yet
            await _quietly(self._subscription.unsubscribe())
            raise

    async def _hear(self, msg: Msg) -> None:
        self._heard = time.monotonic()
        if not msg.reply.startswith("$JS.ACK."):
            # The server sends on only what fits between two of these answers: they must wait their turn behind the facts.
            if held_back := msg.reply or (msg.headers or {}).get("Nats-Consumer-Stalled"):
                await self._nc.publish(held_back)
            return
        seq, number = _positions(msg.reply)
        if self._broken or number != self._next:
            self._broken = True
            return
        self._broken = self._busy = True
        try:
            await self._deliver(RawFact(seq=seq, subject=msg.subject, data=msg.data))
            self._last, self._next, self._broken = seq, number + 1, False
        finally:
            self._busy, self._heard = False, time.monotonic()

    async def _heal(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT / 2)
            if self._busy or not (self._broken or time.monotonic() - self._heard > 3 * _HEARTBEAT):
                continue
            await _quietly(self._subscription.unsubscribe())
            try:
                await self._consume()
            except (Unavailable, nats.errors.Error, OSError):
                self._broken = True


class _Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One fact on its way into the log."""

    event: Event
    envelope: CloudEvent
    subject: str
    guard: str
    after: int
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Nats-Msg-Id": self.envelope.id,
            "Nats-Expected-Last-Subject-Sequence": str(self.after),
            "Nats-Expected-Last-Subject-Sequence-Subject": self.guard,
        }

    def recorded(self, seq: int) -> Recorded:
        return Recorded(event=self.event, envelope=self.envelope, seq=seq, subject=self.subject)


class _Identity(msgspec.Struct):
    id: str


class _Doubt(Exception):
    """No plain yes. What the answer means counts only once the log has been asked: it may be about our own earlier try."""

    def __init__(self, reason: str, *, verdict: Exception | None = None, written: bool = False) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.written = written


def _positions(reply: str) -> tuple[int, int]:
    """In the stream and in the consumer, from `$JS.ACK.<stream>.<consumer>.<delivered>.<stream>.<consumer>…`; its longer form has domain and account in front."""
    tokens = reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    return int(tokens[at]), int(tokens[at + 1])


def _heed_cancellation() -> None:
    """Before Python 3.12 asyncio.wait_for, with which nats-py waits too, forgets a cancellation that comes together with the answer."""
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError


async def _connected(nc: Client) -> None:
    """While nats-py reconnects it keeps subscriptions for later, but not their ends: the server would hold them, and consumers for them, until the next outage."""
    deadline = time.monotonic() + _PATIENCE
    while nc.is_reconnecting:
        if time.monotonic() >= deadline:
            raise Unavailable("The event log does not answer")
        await asyncio.sleep(0.02)


async def _quietly(closing: Awaitable[None]) -> None:
    """Closing what the other side may have closed already is not worth an error."""
    try:
        await closing
    except (nats.errors.Error, OSError):
        return
