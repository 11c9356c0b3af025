"""What a language model answered, read with patience: fences, talk around it and a missing end are forgiven, wrong fields are not."""

from contextlib import suppress
from typing import Any

import msgspec

from .checks import Wrong
from .example import Example, Turn, single

LONGEST = 200_000
"""Characters that are looked at."""
MOST = 200
"""Elements."""
DEEPEST = 8
"""Brackets without an end, inside of which more is looked for."""

_THOUGHTS = ("</think>", "</thinking>")
"""Behind the last of these stands what a model says after it has thought."""
_LISTS = ("examples", "data", "items", "questions", "results", "conversations", "dialogues")
_TURNS = ("messages", "conversation", "conversations", "turns", "dialogue")
_ASKED = ("question", "instruction", "prompt", "q", "task", "consigne")
_ANSWERED = ("answer", "output", "response", "completion", "summary", "a", "result", "réponse", "résumé")
_USER, _ASSISTANT = ("user", "human", "utilisateur"), ("assistant", "gpt", "bot", "model")


def read(answer: str, *, task_type: str, text: str) -> list[Example | Wrong]:
    """Each element that the answer has, usable or with what is wrong with it; json_invalid alone where there is none."""
    elements = _elements(answer)
    if not elements:
        return [Wrong("json_invalid", "The model's answer holds no JSON object.", raw=answer)]
    return [_example(element, task_type, text) for element in elements[:MOST]]


def _elements(answer: str) -> list[Any]:
    for end in _THOUGHTS:
        answer = answer.rpartition(end)[2]
    found = _values(answer[:LONGEST])
    elements: list[Any] = []
    for value in found:
        inner = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), None) if isinstance(value, dict) else value
        if isinstance(value, dict) and _is_example(value):
            elements.append(value)
        elif isinstance(inner, list):
            elements += inner
        elif value:
            elements.append(value)
    return elements


def _is_example(value: dict[str, Any]) -> bool:
    return any(name in value for name in (*_ASKED, *_ANSWERED)) or _is_chat(value)


def _is_chat(value: dict[str, Any]) -> bool:
    turns = next((value[name] for name in _TURNS if name in value), None)
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and {"role", "from", "content", "value"} & turn.keys() for turn in turns)


def _values(text: str) -> list[Any]:
    """All outermost objects and lists, and where one never ends those inside it."""
    found: list[Any] = []
    at = unclosed = 0
    while len(found) < MOST and unclosed < DEEPEST and (start := _next(text, at)) >= 0:
        at = start + 1
        end = _end(text, start)
        unclosed += end == 0
        with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            found.append(msgspec.json.decode(text[start:end].encode("utf-8", "replace")))
            at = end
    return [value for value in found if isinstance(value, dict | list)]


def _next(text: str, at: int) -> int:
    places = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
    return min(places, default=-1)


def _end(text: str, start: int) -> int:
    """Behind the bracket that closes the one at the start; 0 where none does."""
    depth, quoted, n = 0, False, start
    while n < len(text):
        character = text[n]
        if quoted:
            if character == "\\":
                n += 1
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return n + 1
        n += 1
    return 0


def _example(element: Any, task_type: str, text: str) -> Example | Wrong:
    raw = msgspec.json.encode(element).decode()
    if not isinstance(element, dict):
        return Wrong("json_invalid", "The example is not a JSON object.", raw=raw)
    if task_type == "chat":
        return _chat(element, raw)
    asked, answered = _field(element, _ASKED), _field(element, _ANSWERED)
    for value, name in ((asked, _ASKED[0] if task_type == "qa" else _ASKED[1]), (answered, _ANSWERED[0] if task_type == "qa" else _ANSWERED[1])):
        if value is None:
            return Wrong("field_missing", f"'{name}' is missing or is not text.", raw=raw)
    assert asked is not None
    assert answered is not None
    return single(asked.strip(), answered.strip(), input=text if task_type in ("summarization", "summarisation") else _field(element, ("input",)) or "")


def _chat(element: dict[str, Any], raw: str) -> Example | Wrong:
    turns = next((element[name] for name in _TURNS if isinstance(element.get(name), list)), None)
    if turns is None:
        return Wrong("field_missing", "'messages' is missing or is not a list.", raw=raw)
    said: list[tuple[str, str]] = []
    for turn in turns[:MOST]:
        role = _field(turn, ("role", "from")) if isinstance(turn, dict) else None
        content = _field(turn, ("content", "value")) if isinstance(turn, dict) else None
        if role is None or content is None:
            return Wrong("field_missing", "A turn has no role or no content.", raw=raw)
        if role.lower() != "system":
            said.append((role.lower(), content.strip()))
    if not said or len(said) % 2 or any(role not in (_ASSISTANT if n % 2 else _USER) for n, (role, _) in enumerate(said)):
        return Wrong("field_missing", "The turns are not user and assistant by turns, beginning with the user.", raw=raw)
    return Example(turns=[Turn(asked, answered) for (_, asked), (_, answered) in zip(said[::2], said[1::2], strict=True)])


def _field(element: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Numbers are as good as text: 1984 is an answer."""
    for name in names:
        value = element.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return "\n".join(f"- {item}" for item in value)
    return None
