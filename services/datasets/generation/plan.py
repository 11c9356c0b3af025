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

    def _part_ways(self, before: Place, after: Place, shared: int) -> None:
        if before.held_out:
            after.start = shared
        else:
            before.end = len(self._before) - shared


def plan(places: Sequence[Place], spec: GenerateSpec) -> list[Task]:
    """As many examples as are wanted, if the chunks allow it, from chunks evenly spread over each document."""
    wanted = spec.num_examples or (PREVIEW if spec.preview else FULL)
    most = min(wanted, len(places) * spec.examples_per_chunk)
    chosen = _spread(places, _chunks_for(most, len(places), spec))
    tasks: list[Task] = []
    row = 1
    for n, place in enumerate(chosen):
        examples = most // len(chosen) + (n < most % len(chosen))
        split = "preview" if spec.preview else "eval" if place.held_out else "train"
        tasks.append(Task(number=n + 1, place=place, examples=examples, first_row=row, split=split))
        row += examples
    return tasks


def overlap(first: str, second: str) -> int:
    """Characters at the end of the first that are the beginning of the second."""
    at = first.find(second[:ANCHOR], max(0, len(first) - len(second))) if len(second) >= ANCHOR else -1
    while at >= 0:
        if second.startswith(first[at:]):
            return len(first) - at
        at = first.find(second[:ANCHOR], at + 1)
    return 0


def _chunks_for(examples: int, chunks: int, spec: GenerateSpec) -> int:
    """A preview sees as many chunks as it can; else each chunk that is asked gives all that it may."""
    return min(examples, chunks) if spec.preview else -(-examples // spec.examples_per_chunk)


def _spread(places: Sequence[Place], count: int) -> list[Place]:
    """In their order, and from each document some, while there are enough."""
    documents = [list(group) for _, group in groupby(places, key=lambda place: place.file_id)]
    if count < len(documents):
        return [document[len(document) // 2] for document in _evenly(documents, count)]
    shares = [1] * len(documents)
    exact = [(count - len(documents)) * (len(document) - 1) / max(1, len(places) - len(documents)) for document in documents]
    shares = [share + int(more) for share, more in zip(shares, exact, strict=True)]
    for n in sorted(range(len(documents)), key=lambda n: (int(exact[n]) - exact[n], n))[: count - sum(shares)]:
        shares[n] += 1
    return [place for document, share in zip(documents, shares, strict=True) for place in _evenly(document, share)]


def _evenly(things: Sequence[T], count: int) -> list[T]:
    return [things[(2 * n + 1) * len(things) // (2 * count)] for n in range(count)]


def _share(content: str) -> float:
    """Where the text falls between 0 and 1: the same place in any file, in any job."""
    return int.from_bytes(blake2b(" ".join(content.split()).encode("utf-8", "replace"), digest_size=6).digest()) / 2**48
