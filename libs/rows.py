"""The kinds of rows that people have, told by their keys, and the canonical form of each: of uploads and of what people write into an example."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from libs.events.storable import why_not_storable

MAX_META = 4 * 1024
REFUSED_BY_PERSON = "refused_by_person"
"""The reason of a row that somebody doesn't want, among those that the checks have."""
QUOTED = "_quoted"
"""A column of the CSVs that are downloaded: the names of those whose cell has an apostrophe in front, so that no spreadsheet takes it for a formula."""

Fields = dict[str, Any]

KINDS: dict[type, str] = {str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}

_encode = msgspec.json.Encoder(order="deterministic").encode
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Unusable(Exception):
    """Why a row can't be used. Readers hand it on in the row's place, because the rows after it go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Usable(NamedTuple):
    """A row that can be learned from. Two with the same `content` are the same, whatever else came with them."""

    format: str
    content: Fields
    meta: Fields

    @property
    def data(self) -> Fields:
        return {**self.content, "meta": self.meta} if self.meta else self.content


def checked(row: Fields) -> Usable:
    """The row in its canonical form, or an Unusable."""
    usable = Usable(*canonical(row))
    if why := why_not_storable(usable.data):
        raise Unusable("not_storable", f"{why}.")
    if usable.meta and len(_encode(usable.meta)) > MAX_META:
        raise Unusable("row_too_large", f"'meta', which keeps the fields that are not part of the format, is larger than {MAX_META // 1024} KiB.")
    return usable


def count_tokens(content: Fields) -> int:
    """An estimate, until the tokenizer of a base model is known."""
    return len(_TOKEN.findall("\n".join(_texts(content))))


def canonical(row: Fields) -> tuple[str, Fields, Fields]:
    """The format's name, the canonical content, and what else the row held."""
    shape = _told(row)
    left = dict(row)
    content = shape.build(left)
    if len(left) == 1 and isinstance(left.get("meta"), dict):
        left = left["meta"]  # a row of ours comes back as it went
    return shape.name, content, left


class Shape(NamedTuple):
    name: str
    required: tuple[str, ...]
    build: Callable[[Fields], Fields]
    """Takes its fields out of the row; what it leaves is meta."""


def _told(row: Fields) -> Shape:
    """The first shape whose fields are all there, else the first that has some of them. A null is as good as absent if others tell."""
    given = row.keys() if None not in row.values() else {key for key, value in row.items() if value is not None}
    for shape, required, _ in _SHAPES:
        if required <= given:
            return shape
    for present in (given, row.keys()):
        for shape, _, hints in _SHAPES:
            if hints.isdisjoint(present):
                continue
            for field in shape.required:
                if field not in row:
                    raise Unusable("field_missing", f"'{field}' is missing; a row of the format {shape.name} has {_list(shape.required)}.")
            return shape
    raise Unusable("unknown_format", f"The row has {_seen(row)}; understood are {UNDERSTOOD}.")


def _preference(left: Fields) -> Fields:
    return {"prompt": _text(left, "prompt"), "chosen": _output(left, "chosen"), "rejected": _text(left, "rejected")}


def _messages(left: Fields) -> Fields:
    return _chat(left, "messages")


def _conversations(left: Fields) -> Fields:
    return _chat(left, "conversations")


def _alpaca(left: Fields) -> Fields:
    return _instruction(left, instruction="instruction", output="output", input=_optional(left, "input"))


def _prompt_completion(left: Fields) -> Fields:
    return _instruction(left, instruction="prompt", output="completion")


def _question_answer(left: Fields) -> Fields:
    return _instruction(left, instruction="question", output="answer")


def _plain(left: Fields) -> Fields:
    return {"text": _text(left, "text")}


_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **{role: role for role in ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation")},
}


def _chat(left: Fields, field: str) -> Fields:
    turns = left.pop(field)
    if not turns and (turns is None or isinstance(turns, list)):
        raise Unusable("field_empty", f"'{field}' is empty.")
    if not isinstance(turns, list):
        raise _wrong(field, turns, "a list of turns")
    messages = [_message(turn, f"{field}[{n}]") for n, turn in enumerate(turns)]
    if messages[0]["role"] != "system" and (system := _optional(left, "system")):
        messages.insert(0, {"role": "system", "content": system})
    if all(message["role"] != "assistant" for message in messages):
        raise Unusable("field_missing", f"'{field}' has no turn of the assistant, so there is nothing to learn from.")
    return {"messages": messages}


def _message(turn: Any, place: str) -> Fields:
    """Both vocabularies are read in either list; what else the turn holds, such as tool_calls, stays in it."""
    if not isinstance(turn, dict):
        raise _wrong(place, turn, "an object")
    speaker = "role" if "role" in turn else "from"
    said = "content" if "content" in turn else "value"
    role = _role(turn, speaker, place)
    others = {key: value for key, value in turn.items() if key not in (speaker, said) and value is not None}
    calls = role == "assistant" and bool(others.get("tool_calls") or others.get("function_call"))
    if said not in turn and not calls:
        raise Unusable("field_missing", f"'{place}.content' is missing.")
    content = "" if turn.get(said) is None else turn[said]
    if not isinstance(content, str):
        raise _wrong(f"{place}.{said}", content, "text")
    if _blank(content) and role == "user":
        raise Unusable("field_empty", f"'{place}.{said}' is empty.")
    if _blank(content) and role == "assistant" and not calls:
        raise _too_short(f"{place}.{said}")
    return {"role": role, "content": content, **others}


def _role(turn: Fields, field: str, place: str) -> str:
    if field not in turn:
        raise Unusable("field_missing", f"'{place}.role' is missing.")
    if not isinstance(turn[field], str):
        raise _wrong(f"{place}.{field}", turn[field], "text")
    role = _ROLES.get(turn[field].strip().lower())
    if role is None:
        raise Unusable("field_wrong_type", f"'{place}.{field}' is {_shown(turn[field])}; understood are {_list(tuple(_ROLES))}.")
    return role


def _instruction(left: Fields, *, instruction: str, output: str, input: str = "") -> Fields:
    content: Fields = {"instruction": _text(left, instruction), "input": input, "output": _output(left, output)}
    if system := _optional(left, "system"):
        content["system"] = system
    if history := left.pop("history", None):
        content["history"] = _history(history)
    return content


def _history(history: Any) -> list[list[str]]:
    if isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history):
        return history
    raise Unusable("field_wrong_type", "'history' must be a list of pairs of text: what was asked and what was answered.")


def _text(left: Fields, field: str) -> str:
    value = left.pop(field)
    if value is not None and not isinstance(value, str):
        raise _wrong(field, value, "text")
    if value is None or _blank(value):
        raise Unusable("field_empty", f"'{field}' is empty.")
    return value


def _output(left: Fields, field: str) -> str:
    if isinstance(left[field], str) and _blank(left[field]):
        raise _too_short(field)
    return _text(left, field)


def _optional(left: Fields, field: str) -> str:
    value = left.pop(field, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(field, value, "text")
    return "" if value.isspace() else value


def _blank(value: str) -> bool:
    return not value or value.isspace()


def _too_short(field: str) -> Unusable:
    return Unusable("output_too_short", f"'{field}' has no character to learn from.")


def _wrong(field: str, value: Any, expected: str) -> Unusable:
    return Unusable("field_wrong_type", f"'{field}' is {KINDS[type(value)]}, but must be {expected}.")


def _seen(row: Fields) -> str:
    if not row:
        return "no keys"
    more = f" and {len(row) - 12} more" if len(row) > 12 else ""
    return f"the keys {_list(tuple(_shown(key) for key in list(row)[:12]))}{more}"


def _shown(key: str) -> str:
    """A name out of the file, fit to be part of a message that is stored."""
    return repr(key[:40].encode("utf-8", "replace").decode().replace("\0", "\u2400"))


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)


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


FORMATS = (
    Shape("preference", ("prompt", "chosen", "rejected"), _preference),
    Shape("messages", ("messages",), _messages),
    Shape("sharegpt", ("conversations",), _conversations),
    Shape("alpaca", ("instruction", "output"), _alpaca),
    Shape("prompt_completion", ("prompt", "completion"), _prompt_completion),
    Shape("question_answer", ("question", "answer"), _question_answer),
    Shape("text", ("text",), _plain),
)
UNDERSTOOD = "; ".join(f"{shape.name} ({_list(shape.required)})" for shape in FORMATS)

# A prompt alone hints at a completion, so it doesn't hint at a preference.
_SHAPES = [(shape, frozenset(shape.required), frozenset(shape.required) - ({"prompt"} if shape.name == "preference" else set())) for shape in FORMATS]
