"""What the process that reads a document says: blocks of text, how far it is, and at its end what is to be known or why there is nothing."""

import re
from collections.abc import Iterator
from typing import IO

import msgspec

from services.datasets.frames import OUT_OF_BOUNDS, PREFIX, Refusal, Refused, packed, size_of

__all__ = ["OUT_OF_BOUNDS", "Block", "End", "Found", "Limits", "Order", "Path", "Progress", "Refusal", "Refused", "divided", "packed", "storable", "written"]

LONGEST = 16 * 1024
"""Characters of a block; what is longer comes in several."""
DEEPEST = 6
"""Headings in a path."""
LONGEST_HEADING = 200

_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1f\x7f-\x9f]")
_BLANKS = re.compile(r"[ \t\u00a0]{64,}")
_NEWLINES = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one document."""

    pages: int = 5_000
    text: int = 100_000_000
    """Characters that may come out of it."""
    unpacked: int = 256 * 1024 * 1024
    """Bytes of all that is packed in it."""
    memory: int = 1024**3
    """Bytes of address space."""
    cpu_seconds: int = 900
    silence: float = 90.0
    """Seconds without a word, of a page that takes for ever for one."""
    seconds: float = 1_800.0
    """Spent on waiting for it altogether."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with."""

    parent: int
    mime_type: str
    limits: Limits


class Block(msgspec.Struct, frozen=True, kw_only=True, tag=0, array_like=True, gc=False):
    """Some text that belongs together."""

    text: str
    before: str = "\n\n"
    """What divides it from the block before; empty where it goes on with it."""
    page: int | None = None
    """From 1, where the document has pages."""
    headings: tuple[str, ...] = ()
    """What it stands under, from the outermost. A heading stands under itself."""
    is_heading: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=1, array_like=True, gc=False):
    done: int
    total: int


class End(msgspec.Struct, frozen=True, kw_only=True, tag=2, array_like=True, gc=False):
    """All of it was read."""

    notes: tuple[str, ...] = ()


Found = Block | Progress | End
Frame = Block | Progress | End | Refused

_decode = msgspec.msgpack.Decoder(Frame).decode


def unpacked(body: bytes) -> Frame:
    return _decode(body)


def written(file: IO[bytes]) -> Iterator[Block]:
    """The blocks in a file of frames."""
    while prefix := file.read(PREFIX):
        block = _decode(file.read(size_of(prefix)))
        assert isinstance(block, Block)
        yield block


def storable(text: str) -> str:
    """Without what can't be stored or would only be in the way: NUL and half characters are shown as unreadable, line ends are all the same."""
    text = _NEWLINES.sub("\n", text.replace("\0", "\ufffd"))
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves that belong together become one character
    return _BLANKS.sub(" " * 63, _CONTROL.sub("", text))


def divided(text: str, *, before: str = "\n\n", page: int | None = None, headings: tuple[str, ...] = ()) -> Iterator[Block]:
    """Blocks of at most LONGEST characters, cut at a blank where there is one."""
    while text:
        cut = len(text)
        if cut > LONGEST:
            blank = max(text.rfind("\n", LONGEST // 2, LONGEST), text.rfind(" ", LONGEST // 2, LONGEST))
            cut = blank if blank > 0 else LONGEST
        yield Block(text=text[:cut], before=before, page=page, headings=headings)
        text, before = text[cut:], ""


class Path:
    """The headings that hold now."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def enter(self, level: int, title: str) -> tuple[str, ...]:
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        if title := " ".join(title.split())[:LONGEST_HEADING]:
            self._open.append((level, title))
        return self.now

    @property
    def now(self) -> tuple[str, ...]:
        return tuple(title for _, title in self._open[-DEEPEST:])
