"""Where a fact lies in the log, and the one guard that its aggregate has."""

import re

import msgspec

from .envelope import Event

SECRET_CATEGORIES = frozenset({"bus", "user", "webhook"})
"""Categories whose facts hold secrets: same stream, but never republished to the live feed."""
PRIVATE_CATEGORIES = SECRET_CATEGORIES | {"credit", "quota"}
"""Categories that nobody who listens is told of."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""Of limited length: the server hangs up for good on a client whose line is over 4 KiB."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An aggregate: everything that happened to it lies under `guard`, in order."""

    tenant: str
    category: str
    key: tuple[str, ...]

    def __post_init__(self) -> None:
        for token in (self.tenant, self.category, *self.key):
            _check(token)

    @property
    def guard(self) -> str:
        """The ONLY subject that expectations may name: other strings would break the guard on a cluster."""
        return self.under("*")

    def under(self, name: str) -> str:
        return ".".join((_root(self.category), self.tenant, self.category, name, *self.key))


class Subject(msgspec.Struct, frozen=True):
    """A subject taken apart again."""

    tenant: str
    category: str
    name: str
    key: tuple[str, ...]


def address(tenant: str, event: Event) -> Address:
    category, _ = kind(event).split(".", 1)
    return Address(tenant=home(event) or tenant, category=category, key=tuple(getattr(event, field) for field in event.KEY))


def home(event: Event) -> str:
    """The workspace that an event belongs to by itself; empty when it is the one of who caused it."""
    return getattr(event, event.HOME) if event.HOME else event.TENANT


def subject(tenant: str, event: Event) -> str:
    return address(tenant, event).under(kind(event).split(".", 1)[1])


def kind(event: Event | type[Event]) -> str:
    """The type on the wire: `job.created`."""
    return str(event.__struct_config__.tag)


def parse(text: str) -> Subject:
    _, tenant, category, name, *key = text.split(".")
    return Subject(tenant, category, name, tuple(key))


def is_private(subject: str) -> bool:
    """Whether nobody who listens is told of it."""
    return parse(subject).category in PRIVATE_CATEGORIES


def story(tenant: str, job_id: str) -> str:
    """All facts of a job, whoever wrote them: its stages use its id."""
    return f"ev.{_check(tenant)}.*.*.{_check(job_id)}"


def _check(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token[:200]!r} can't be part of a subject: up to 200 letters, digits, _ and - only")
    return token


def _root(category: str) -> str:
    return "sec" if category in SECRET_CATEGORIES else "ev"
