"""Rows become parts: JSON lines of limited size, the same parts from the same rows, whoever cuts them."""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from libs.events.storable import NotStorable, why_not_storable

from .formats import Row

ROWS = 1_000
BYTES = 4_000_000


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a part. Who loads parts reads these names."""

    id: str
    row: int
    split: str
    format: str
    data: dict[str, Any]
    valid: bool
    reason: str
    message: str
    tokens: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    """From 1."""
    content: bytes
    rows: int
    refused: dict[str, int]

    @property
    def valid(self) -> int:
        return self.rows - sum(self.refused.values())


_encode = msgspec.json.Encoder().encode


class Packing:
    """Lines in their order, each with the reason why it is refused, if it is. What doesn't fill a part waits for more, or to be asked for."""

    def __init__(self, *, most_rows: int = ROWS, most_bytes: int = BYTES) -> None:
        self._most = (most_rows, most_bytes)
        self.made = 0
        """Parts."""
        self._empty()

    def pack(self, lines: Iterable[tuple[bytes, str]]) -> Iterator[Part]:
        most_rows, most_bytes = self._most
        for line, reason in lines:
            if self._count == most_rows or (self._count and len(self._content) + len(line) > most_bytes):
                yield self._part()
            self._content += line
            self._count += 1
            if reason:
                self._refused[reason] += 1

    def rest(self) -> Iterator[Part]:
        if self._count:
            yield self._part()

    def _part(self) -> Part:
        self.made += 1
        part = Part(number=self.made, content=bytes(self._content), rows=self._count, refused=dict(self._refused))
        self._empty()
        return part

    def _empty(self) -> None:
        self._content, self._refused, self._count = bytearray(), Counter[str](), 0


def cut(rows: Iterable[Row], *, job_id: str, most_rows: int = ROWS, most_bytes: int = BYTES) -> Iterator[Part]:
    namespace = uuid.UUID(job_id)
    packing = Packing(most_rows=most_rows, most_bytes=most_bytes)
    yield from packing.pack((_line(row, namespace), row.reason) for row in rows)
    yield from packing.rest()


def _line(row: Row, namespace: uuid.UUID) -> bytes:
    if row.reason and (why := why_not_storable(row.message)):
        raise NotStorable(f"The message about row {row.number}: {why}")
    line = Line(
        id=str(uuid.uuid5(namespace, str(row.number))),
        row=row.number,
        split=row.split,
        format=row.format,
        data=row.data,
        valid=not row.reason,
        reason=row.reason,
        message=row.message,
        tokens=row.tokens,
    )
    return _encode(line) + b"\n"
