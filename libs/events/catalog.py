"""All events there are, and how they are written and read."""

import uuid
from datetime import datetime
from types import ModuleType
from typing import Any

import msgspec

from . import bus, credits, datasets, examples, exports, jobs, models, names, preparation, projects, training, users, webhooks, workspaces
from .envelope import CloudEvent, Event, Origin, Recorded
from .storable import NotStorable, why_not_storable
from .subjects import address, home, kind, subject
from .upcast import upcast

FILES: tuple[ModuleType, ...] = (jobs, preparation, training, exports, projects, examples, datasets, models, users, names, workspaces, credits, webhooks, bus)
EVENTS: dict[str, type[Event]] = {
    kind(thing): thing for file in FILES for thing in vars(file).values() if isinstance(thing, type) and issubclass(thing, Event) and thing is not Event
}
LARGEST = 64 * 1024
"""Bytes of data an event may carry; more goes to the object store and the event carries a Claim."""

_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(CloudEvent)
_decoders = {name: msgspec.json.Decoder(event) for name, event in EVENTS.items()}
_schemas = {name: f"urn:trainyard:{name}:{event.SCHEMA}" for name, event in EVENTS.items()}


class Unreadable(Exception):
    """Not an event at all, or not of the shape its type promises."""


def envelope(event: Event, *, origin: Origin, source: str, id: str, at: datetime) -> CloudEvent:
    """Refuses what could be written but never be read or projected again."""
    if why := _why_not_storable(event):
        raise NotStorable(why)
    data = _encoder.encode(event)
    if len(data) > LARGEST:
        raise NotStorable(f"{kind(event)} would carry {len(data)} bytes; {LARGEST} are the most")
    return CloudEvent(
        specversion="1.0",
        id=id,
        source=source,
        type=kind(event),
        subject=_about(event),
        time=at,
        dataschema=_schemas[kind(event)],
        tenant=home(event) or origin.tenant,
        actor=origin.actor,
        correlationid=origin.correlation or id,
        causationid=origin.causation,
        traceparent=origin.traceparent,
        data=msgspec.Raw(data),
    )


def encode(envelope: CloudEvent) -> bytes:
    return _encoder.encode(envelope)


def decode(body: bytes, *, seq: int, subject: str) -> Recorded:
    try:
        envelope = _envelopes.decode(body)
        return Recorded(event=_event(envelope), envelope=envelope, seq=seq, subject=subject)
    except (msgspec.DecodeError, LookupError, ValueError, RecursionError) as error:
        raise Unreadable(f"fact {seq} on {subject}: {error}") from error


def record(event: Event, envelope: CloudEvent, *, seq: int) -> Recorded:
    return Recorded(event=event, envelope=envelope, seq=seq, subject=subject(envelope.tenant, event))


def uuid7(now_ms: int, entropy: bytes) -> str:
    """Ids that sort by the time they were made; `entropy` is 10 random bytes."""
    raw = bytearray(now_ms.to_bytes(6, "big") + entropy)
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return str(uuid.UUID(bytes=bytes(raw)))


def schema() -> dict[str, Any]:
    """JSON Schema of every event, by its class's name."""
    return msgspec.json.schema_components(EVENTS.values())[1]


def _event(envelope: CloudEvent) -> Event | None:
    if (decoder := _decoders.get(envelope.type)) is None:
        return None
    if envelope.dataschema == _schemas[envelope.type]:
        return decoder.decode(envelope.data)
    event = EVENTS[envelope.type]
    schema = int(envelope.dataschema.rsplit(":", 1)[1])
    if schema > event.SCHEMA:
        return None
    return msgspec.convert(upcast(envelope.type, msgspec.json.decode(envelope.data), schema=schema, current=event.SCHEMA), event)


def _why_not_storable(event: Event) -> str:
    try:
        return why_not_storable(msgspec.to_builtins(event))
    except RecursionError:
        return f"{kind(event)} is nested far too deep"


def _about(event: Event) -> str:
    where = address("-", event)
    return "/".join((where.category, *where.key))
