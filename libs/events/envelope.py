"""What every fact has in common: where it belongs, and the CloudEvents envelope it travels in."""

from datetime import datetime
from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type"):
    """A fact. Fields may be added with a default; none is ever renamed, retyped or removed."""

    KEY: ClassVar[tuple[str, ...]]
    """Names of the fields that identify the aggregate; a parent comes before the id."""
    FOUNDS: ClassVar[bool] = False
    """Whether it is the first fact of its aggregate, and so must find none before it."""
    TENANT: ClassVar[str] = ""
    """The one workspace where all of its kind belong, when that isn't the workspace of who caused it."""
    HOME: ClassVar[str] = ""
    """Name of the field that holds the workspace it belongs to, when that isn't the workspace of who caused it."""
    SCHEMA: ClassVar[int] = 1
    """Number of the shape. A new shape gets a new number and an upcaster (upcast.py)."""


class Claim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Data too large for an event: it lies in the object store, and the event carries this."""

    key: str
    sha256: str
    size: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf, and because of what, facts are appended."""

    tenant: str
    actor: str = ""
    correlation: str = ""
    causation: str = ""
    traceparent: str = ""


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """CloudEvents 1.0, structured mode. The same bytes are the log's, the live feed's and a webhook's."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    dataschema: str
    tenant: str
    actor: str = ""
    correlationid: str = ""
    causationid: str = ""
    traceparent: str = ""
    data: msgspec.Raw


class Recorded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A fact in the log. `event` is None when this version doesn't know its type."""

    event: Event | None
    envelope: CloudEvent
    seq: int
    subject: str

    @property
    def id(self) -> str:
        return self.envelope.id

    @property
    def tenant(self) -> str:
        return self.envelope.tenant

    @property
    def at(self) -> datetime:
        return self.envelope.time
