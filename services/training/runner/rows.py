"""The rows of a snapshot as what a language model learns from: conversations, or plain text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from .outcome import Failure

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]

SPEAKERS = {
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool"),
}
"""What older data sets call those that templates know: a template would leave their turns out without a word."""


class _Line(msgspec.Struct, frozen=True):
    split: str
    data: dict[str, Any]
    id: str = ""
    format: str = ""


class Row(msgspec.Struct, frozen=True):
    split: str
    content: Messages | str
    tools: Tools | None = None
    """What the assistant of this conversation may call."""
    id: str = ""


def read(snapshot: Path) -> list[Row]:
    decode = msgspec.json.Decoder(_Line).decode
    with snapshot.open("rb") as lines:
        return [Row(split=line.split, content=_content(line), tools=_tools(line.data.get("meta")), id=line.id) for line in map(decode, lines)]


def _content(line: _Line) -> Messages | str:
    """Told by what is there, as the formats of the datasets service leave it."""
    match line.data:
        case {"messages": list(messages)}:
            return [{**message, "role": SPEAKERS.get(message["role"], message["role"])} for message in messages]
        case {"instruction": _, "output": _}:
            return list(_instruction(line.data))
        case {"prompt": str(prompt), "chosen": str(chosen)}:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}]
        case {"text": str(text)}:
            return text
    raise Failure("data", f"Rows of the format {line.format or 'unknown'!r} can't be learned from; the snapshot has one with the id {line.id!r}.")


def _tools(meta: Any) -> Tools | None:
    """A list, or one that was written into a string."""
    try:
        match meta:
            case {"tools": str(text)}:
                return msgspec.json.decode(text, type=Tools)
            case {"tools": tools}:
                return msgspec.convert(tools, Tools)
            case _:
                return None
    except (msgspec.DecodeError, RecursionError):  # some other thing by that name
        return None


def _instruction(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if system := data.get("system"):
        yield {"role": "system", "content": system}
    for asked, answered in data.get("history") or ():
        yield {"role": "user", "content": asked}
        yield {"role": "assistant", "content": answered}
    yield {"role": "user", "content": "\n\n".join(text for text in (data["instruction"], data.get("input")) if text)}
    yield {"role": "assistant", "content": data["output"]}
