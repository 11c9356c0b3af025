"""Documents side by side in one row, without padding, each with its borders."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .examples import Example


def packed(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indexes of documents by bin: the longest first, each into the fullest bin that has room. One that is longer than a bin has its own."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        place = bisect_left(room, (length, -1))
        if place < len(room):
            left, number = room.pop(place)
            bins[number].append(index)
        else:
            left, number = capacity, len(bins)
            bins.append([index])
        if left > length:
            insort(room, (left - length, number))
    return bins


class Batch(NamedTuple):
    """What goes through the model at once: T tokens of n documents, of which S are learned."""

    ids: Tensor
    """(1, T)"""
    positions: Tensor
    """(1, T), from 0 in each document."""
    borders: Tensor
    """(n + 1), int32: where each document begins, and T."""
    longest: int
    before: Tensor
    """(S): the places from which the learned tokens are foretold."""
    labels: Tensor
    """(S)"""

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @property
    def documents(self) -> int:
        return len(self.borders) - 1


def batch(documents: Sequence[Example], device: torch.device) -> Batch:
    lengths = [len(document.ids) for document in documents]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    ids = torch.cat([document.ids for document in documents]).long()
    learned = torch.cat([document.learned + start for document, start in zip(documents, starts, strict=False)]).long()
    counted = torch.arange(max(lengths))
    return Batch(
        ids=ids[None].to(device),
        positions=torch.cat([counted[:length] for length in lengths])[None].to(device),
        borders=torch.tensor(starts, dtype=torch.int32).to(device),
        longest=max(lengths),
        before=(learned - 1).to(device),
        labels=ids[learned].to(device),
    )
