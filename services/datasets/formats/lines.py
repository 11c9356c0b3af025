"""Lines out of chunks: the same lines however the chunks fall, and never more than one row in memory."""

from collections.abc import Iterable, Iterator

from .row import MAX_ROW

KEPT = MAX_ROW + 3  # one byte too many and a CRLF: enough to see that a line is too long

BOM = b"\xef\xbb\xbf"


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each with its ending (LF, CRLF or CR), cut after `KEPT` bytes; a byte order mark is left out."""
    found = _lines(chunks)
    for first in found:
        yield first.removeprefix(BOM)
        break
    yield from found


def bare(line: bytes | bytearray) -> bytes | bytearray:
    """Without its ending."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held, after_cr = bytearray(), False
    for chunk in chunks:
        for piece in chunk.splitlines(keepends=True):
            if not held and piece.endswith(b"\n"):
                yield piece[:KEPT]
                continue
            if after_cr and piece != b"\n":
                yield bytes(held)
                held.clear()
            held += piece[: KEPT - len(held)]
            after_cr = piece.endswith(b"\r")
            if piece.endswith(b"\n"):
                yield bytes(held)
                held.clear()
    if held:
        yield bytes(held)
