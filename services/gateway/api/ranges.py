"""Which part of a download is wanted, and whether it is wanted at all (RFC 9110, 13 and 14)."""

import re
from collections.abc import Mapping

import msgspec

from services.gateway.api.problems import Refused

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE)


class Span(msgspec.Struct, frozen=True):
    """Bytes from `start` up to, not including, `stop`."""

    start: int
    stop: int


def known_already(headers: Mapping[str, str], etag: str) -> bool:
    given = headers.get("if-none-match", "")
    return given.strip() == "*" or etag in [one.strip().removeprefix("W/") for one in given.split(",")]


def wanted(headers: Mapping[str, str], *, size: int, etag: str) -> Span | None:
    """None: all of it, also when several ranges are asked for at once, or when an interrupted download began with other content."""
    found = _RANGE.fullmatch(headers.get("range", ""))
    if found is None or headers.get("if-range", etag).strip() != etag:
        return None
    first, last = found[1], found[2]
    if first:
        span = Span(int(first), min(int(last) + 1, size) if last else size)
        if last and int(last) < int(first):
            return None
    elif last:
        span = Span(max(0, size - int(last)), size)
    else:
        return None
    if span.start >= span.stop:
        raise Refused(416, f"There are only {size} bytes", code="range_not_satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return span
