"""From bytes to rows: read, told, checked, and none of them lost."""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

import msgspec

from libs.rows import KINDS, Unusable, checked, count_tokens

from .json_document import read_document
from .json_lines import read_lines
from .prose import read_text
from .row import Found, Row, refused
from .table import read_table

READERS: dict[str, Callable[[Iterable[bytes]], Iterator[Found]]] = {
    "application/json": read_document,
    "application/jsonl": read_lines,
    "text/csv": read_table,
    "text/plain": read_text,
}

_encode = msgspec.json.Encoder(order="deterministic").encode


def rows(chunks: Iterable[bytes], *, mime_type: str, eval_share: float) -> Iterator[Row]:
    """The same bytes give the same rows, however they are divided. What `mime_type` names is what the content is, as `sniff` tells it."""
    read = READERS.get(mime_type.partition(";")[0].strip().lower())
    if read is None:
        yield refused(1, b"", Unusable("unknown_format", f"Rows can't be read out of {mime_type[:100]!a}; understood are {', '.join(READERS)}."))
        return
    seen: dict[bytes, int] = {}
    for number, raw, value in read(chunks):
        try:
            yield _usable(number, value, seen=seen, eval_share=eval_share)
        except Unusable as why:
            yield refused(number, raw, why)


def _usable(number: int, value: object, *, seen: dict[bytes, int], eval_share: float) -> Row:
    if isinstance(value, Unusable):
        raise value
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"The row is {KINDS[type(value)]}, not an object with named fields.")
    usable = checked(value)
    digest = blake2b(_encode(usable.content), digest_size=16).digest()
    if (earlier := seen.setdefault(digest, number)) != number:
        raise Unusable("duplicate", f"The content is the same as that of row {earlier}.")
    split = "eval" if _share(digest) < eval_share else "train"
    return Row(number=number, format=usable.format, data=usable.data, tokens=count_tokens(usable.content), split=split)


def _share(digest: bytes) -> float:
    """Where the content falls between 0 and 1: the same place in any file, in any order."""
    return int.from_bytes(digest[:6]) / 2**48
