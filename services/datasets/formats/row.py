"""What comes out of a file, and how a row of it is refused."""

from typing import Any

import msgspec

from libs.rows import Unusable

MAX_ROW = 256 * 1024
MAX_RAW = 2_000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`data` is canonical, or `{"raw": …}` when the row is refused; both can be stored."""

    number: int
    """From 1: the line (JSON lines, text), the element (JSON) or the data record (CSV)."""
    format: str
    data: dict[str, Any]
    reason: str = ""
    """Empty: usable. Else a stable code, which `message` puts into words."""
    message: str = ""
    tokens: int = 0
    split: str = "train"


Found = tuple[int, bytes, object]
"""A row's number, its bytes as uploaded (the beginning will do when it is refused) and its value: JSON builtins or an Unusable."""


def too_large() -> Unusable:
    return Unusable("row_too_large", f"The row is larger than {MAX_ROW // 1024} KiB.")


def not_utf8() -> Unusable:
    return Unusable("encoding_invalid", "The row is not valid UTF-8; save the file as UTF-8 and upload it again.")


def refused(number: int, raw: bytes, why: Unusable) -> Row:
    """NUL, the one character of decoded text that can't be stored, is shown by its picture."""
    shown = raw[: MAX_RAW * 4].decode("utf-8", "replace")[:MAX_RAW].replace("\0", "\u2400")
    return Row(number=number, format="", data={"raw": shown}, reason=why.code, message=why.message)
