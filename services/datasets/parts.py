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


def cut(rows: Iterable[Row], *, job_id: str, most_rows: int = ROWS, most_bytes: int = BYTES) -> Iterator[Part]:
    namespace = uuid.UUID(job_id)
    number, content, refused, count = 1, bytearray(), Counter[str](), 0
    for row in rows:
        line = _line(row, namespace)
        if count == most_rows or (count and len(content) + len(line) > most_bytes):
            yield Part(number=number, content=bytes(content), rows=count, refused=dict(refused))
            number, content, refused, count = number + 1, bytearray(), Counter[str](), 0
        content += line
        count += 1
        if row.reason:
            refused[row.reason] += 1
    if count:
        yield Part(number=number, content=bytes(content), rows=count, refused=dict(refused))


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
