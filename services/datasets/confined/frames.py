"""What the process that reads a data set is told, and what it says: how far it is, each column, and at its end what it made or why it made nothing."""

from collections.abc import Callable

import msgspec

from libs.events import Column
from services.datasets.frames import OUT_OF_BOUNDS, Refusal, Refused, packed

__all__ = ["OUT_OF_BOUNDS", "Described", "Frame", "Limits", "Order", "Prepared", "Progress", "Refusal", "Refused", "Say", "packed", "unpacked"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one data set."""

    columns: int = 10_000
    rows: int = 20_000_000
    images: int = 100_000
    unpacked: int = 32 * 1024**3
    """Bytes of all that is packed in a ZIP; images go by one at a time."""
    written: int = 16 * 1024**3
    """Bytes of one file that is written: a table of columns is rarely larger than what it was read from."""
    memory: int = 2 * 1024**3
    """Bytes of its own. A batch of a table takes some 100 MiB, an image of the most pixels 400."""
    address_space: int = 4 * 1024**3
    """The library that reads tables reserves much more than it uses, and hangs where it can't."""
    cpu_seconds: int = 7_200
    silence: float = 120.0
    """Seconds without a word, of an image that takes for ever for one."""
    seconds: float = 14_400.0
    """Spent on waiting for it altogether."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with."""

    parent: int
    draft: int
    """The descriptor of an empty file that it may use as it likes."""
    snapshot: int
    """The descriptor of the empty file that it makes its result in."""
    dataset_type: str = ""
    target: str = ""
    limits: Limits = Limits()


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=0, array_like=True, gc=False):
    """Bytes of the file."""

    done: int


class Described(msgspec.Struct, frozen=True, kw_only=True, tag=1, array_like=True, gc=False):
    column: Column


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag=2, array_like=True, gc=False):
    """The snapshot is made, and all columns are described."""

    contents: str
    task: str
    target: str
    rows: int
    valid: int
    classes: int
    refused: dict[str, int]
    notes: list[str]


Frame = Progress | Described | Prepared | Refused
Say = Callable[[Frame], None]

_decode = msgspec.msgpack.Decoder(Frame).decode


def unpacked(body: bytes) -> Frame:
    return _decode(body)
