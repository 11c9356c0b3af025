"""Given some facts, when a command comes, then these facts or this refusal: the rules of the domain, read as sentences."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any, TypeVar

from libs.events import Event, Origin, Recorded
from libs.events.catalog import envelope, record

T = TypeVar("T")

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def recorded(events: Sequence[Event], *, after: int = 0, tenant: str = "local") -> list[Recorded]:
    """The events as the log would give them back, one a second."""
    return [
        record(
            event,
            envelope(event, origin=Origin(tenant=tenant), source="/tests", id=f"fact-{after + n}", at=BEGINNING + timedelta(seconds=after + n)),
            seq=after + n,
        )
        for n, event in enumerate(events, 1)
    ]


def given(evolve: Callable[[T | None, Recorded], T | None], *events: Event) -> Any:
    """The state after these events. Any: a test knows what it has given."""
    return reduce(evolve, recorded(events), None)
