"""Examples in the forms that other tools read, and that come back as the same examples when they are uploaded."""

import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from libs.rows import QUOTED

Data = dict[str, Any]

INSTRUCTIONS = frozenset(("alpaca", "prompt_completion", "question_answer"))
CHATS = frozenset(("messages", "sharegpt"))
ALL = INSTRUCTIONS | CHATS | {"preference", "text"}
SPEAKERS = {"user": "human", "assistant": "gpt"}
COLUMNS: list[tuple[frozenset[str], tuple[str, ...]]] = [
    (INSTRUCTIONS, ("instruction", "input", "output", "system", "history")),
    (CHATS, ("messages",)),
    (frozenset(("preference",)), ("prompt", "chosen", "rejected")),
    (frozenset(("text",)), ("text",)),
]
"""Of a CSV with examples of these formats."""

_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Telling(NamedTuple):
    """A way to write examples down."""

    able: frozenset[str]
    """Formats of examples that can be told so."""
    exact: frozenset[str]
    """Those that come back as they went; the others come back as conversations that train the same."""
    tell: Callable[[msgspec.Raw], bytes]
    suffix: str
    head: bytes = b""
    columns: tuple[str, ...] = ()
    """Of a table that somebody else makes of these lines."""


def telling(form: str, counts: Mapping[str, int]) -> Telling:
    """The one that a form stands for; for CSV and Parquet the one that suits the most of these examples."""
    if form in LINES:
        return LINES[form]
    told, columns = max(COLUMNS, key=lambda table: sum(counts.get(format, 0) for format in table[0]))
    if form == "parquet":
        return Telling(told, told, _as_it_is, ".parquet", columns=(*columns, "meta"))
    return Telling(told, told, lambda raw: _record(_cells(_decode(raw), columns)), ".csv", head=_record([*columns, "meta", QUOTED]))


def _as_it_is(raw: msgspec.Raw) -> bytes:
    line = bytes(raw)
    return (_encode(_decode(line)) if b"\n" in line else line) + b"\n"


def _messages(raw: msgspec.Raw) -> bytes:
    return _encode(_conversation(_decode(raw))) + b"\n"


def _sharegpt(raw: msgspec.Raw) -> bytes:
    data = _conversation(_decode(raw))
    return _encode({"conversations": [_turn(**message) for message in data.pop("messages")], **data}) + b"\n"


LINES = {
    "jsonl": Telling(ALL, ALL, _as_it_is, ".jsonl"),
    "alpaca": Telling(INSTRUCTIONS, INSTRUCTIONS, _as_it_is, "-alpaca.jsonl"),
    "messages": Telling(INSTRUCTIONS | CHATS, CHATS, _messages, "-messages.jsonl"),
    "sharegpt": Telling(INSTRUCTIONS | CHATS, CHATS, _sharegpt, "-sharegpt.jsonl"),
}


def _conversation(data: Data) -> Data:
    """As a training renders it."""
    if "messages" in data:
        return data
    messages = [{"role": "system", "content": data["system"]}] if data.get("system") else []
    for asked, answered in data.get("history") or ():
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": "\n\n".join(text for text in (data["instruction"], data.get("input")) if text)})
    messages.append({"role": "assistant", "content": data["output"]})
    return {"messages": messages} | ({"meta": data["meta"]} if "meta" in data else {})


def _turn(role: str, content: str, **others: Any) -> Data:
    if not others.keys().isdisjoint(("from", "value")):
        return {"role": role, "content": content, **others}  # read just as well
    return {"from": SPEAKERS.get(role, role), "value": content, **others}


def _cells(data: Data, columns: tuple[str, ...]) -> list[str]:
    cells = [_cell(data.get(column)) for column in (*columns, "meta")]
    quoted = [_is_formula(cell) for cell in cells]
    shown = [f"'{cell}" if risky else cell for cell, risky in zip(cells, quoted, strict=True)]
    return [*shown, " ".join(column for column, risky in zip(columns, quoted, strict=False) if risky)]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else _encode(value).decode()


def _is_formula(cell: str) -> bool:
    """To a spreadsheet; a number is none."""
    return _FORMULA.match(cell) is not None and not _NUMBER.fullmatch(cell)


def _record(cells: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()
