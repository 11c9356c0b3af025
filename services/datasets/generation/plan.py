"""Which examples are to be made of which chunks, before the first of them is: whoever makes the plan again makes the same."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from libs.events import GenerateSpec

T = TypeVar("T")

PREVIEW, FULL = 10, 2_000
"""Examples, where nobody says how many."""
ANCHOR = 12
"""Characters that two chunks must share at their border for an overlap."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a chunk job's parts, as far as it matters here."""

    id: str
    file_id: str
    index: int
    content: str
    metadata: dict[str, Any] = {}


class Place(msgspec.Struct, kw_only=True, gc=False):
    """Where a chunk lies, and which of its text examples may be made of."""

    part: int
    """Of the chunk job's parts, from 0."""
    line: int
    file_id: str
    held_out: bool
    start: int = 0
    end: int | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The examples that are made of one chunk."""

    number: int
    """From 1; that of the part that holds them."""
    place: Place
    examples: int
    first_row: int
    split: str


class Survey:
    """The places of all chunks, in their order.

    Neighbours overlap. What a chunk that is held out shares with one that isn't belongs to the former alone: nothing is learned from it.
    """

    def __init__(self, *, train_share: float) -> None:
        self.places: list[Place] = []
        self._train_share = train_share
        self._before = ""
        self._parts = 0

    def add(self, chunks: Iterable[Chunk]) -> None:
        """The next part."""
        for line, chunk in enumerate(chunks):
            place = Place(part=self._parts, line=line, file_id=chunk.file_id, held_out=_share(chunk.content) >= self._train_share)
            if self.places and self.places[-1].file_id == place.file_id and self.places[-1].held_out != place.held_out:
                self._part_ways(self.places[-1], place, overlap(self._before, chunk.content))
            self.places.append(place)
            self._before = chunk.content
        self._parts += 1
