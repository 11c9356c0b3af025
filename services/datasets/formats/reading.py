"""From bytes to rows: read, told, checked, and none of them lost."""

import re
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from libs.events.storable import why_not_storable

from .json_document import read_document
from .json_lines import read_lines
from .prose import read_text
from .row import KINDS, Found, Row, Unusable, refused
from .shapes import canonical
from .table import read_table

MAX_META = 4 * 1024

READERS: dict[str, Callable[[Iterable[bytes]], Iterator[Found]]] = {
    "application/json": read_document,
    "application/jsonl": read_lines,
    "text/csv": read_table,
    "text/plain": read_text,
}

_encode = msgspec.json.Encoder(order="deterministic").encode
_TOKEN = re.compile(r"\w+|[^\w\s]")


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
    name, content, meta = canonical(value)
    data = {**content, "meta": meta} if meta else content
    _check(data, meta)
    digest = blake2b(_encode(content), digest_size=16).digest()
    if (earlier := seen.setdefault(digest, number)) != number:
        raise Unusable("duplicate", f"The content is the same as that of row {earlier}.")
    return Row(number=number, format=name, data=data, tokens=count_tokens(content), split="eval" if _share(digest) < eval_share else "train")


def _check(data: dict[str, Any], meta: dict[str, Any]) -> None:
    if why := why_not_storable(data):
        raise Unusable("not_storable", f"{why}.")
    if meta and len(_encode(meta)) > MAX_META:
        raise Unusable("row_too_large", f"'meta', which keeps the fields that are not part of the format, is larger than {MAX_META // 1024} KiB.")


def _share(digest: bytes) -> float:
    """Where the content falls between 0 and 1: the same place in any file, in any order."""
    return int.from_bytes(digest[:6]) / 2**48


def count_tokens(content: dict[str, Any]) -> int:
    """An estimate, until the tokenizer of a base model is known."""
    return len(_TOKEN.findall("\n".join(_texts(content))))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "role":
                yield from _texts(item)
