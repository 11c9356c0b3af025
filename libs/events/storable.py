"""What a view can't hold must not become a fact: one check for events and for the rows of parts."""

import math
from typing import Any, cast

DEEPEST = 64
_INT8 = 2**63


class NotStorable(ValueError):
    """The value holds something that PostgreSQL or JSON can't carry."""


def why_not_storable(value: Any, *, path: str = "", depth: int = 0) -> str:
    """Empty when the value (JSON builtins) can be stored, else the reason, with the place."""
    match value:
        case str():
            return _why_not_text(value, path)
        case bool() | None:
            return ""
        case int():
            return "" if -_INT8 <= value < _INT8 else f"{_at(path)} is an integer beyond 64 bits"
        case float():
            return "" if math.isfinite(value) else f"{_at(path)} is not a finite number"
        case dict() | list() | tuple() if depth >= DEEPEST:
            return f"{_at(path)} is nested deeper than {DEEPEST} levels"
        case dict():
            for key, item in cast("dict[Any, Any]", value).items():
                if not isinstance(key, str):
                    return f"{_at(path)} has a key that is not text"
                if why := _why_not_text(key, path) or why_not_storable(item, path=_join(path, key), depth=depth + 1):
                    return why
            return ""
        case list() | tuple():
            for n, item in enumerate(cast("list[Any]", value)):
                if why := why_not_storable(item, path=f"{path}[{n}]", depth=depth + 1):
                    return why
            return ""
        case _:
            return f"{_at(path)} is of a type that JSON doesn't have"


def _why_not_text(text: str, path: str) -> str:
    if "\0" in text:
        return f"{_at(path)} contains the character NUL"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{_at(path)} contains half a character (a lone surrogate)"
    return ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _at(path: str) -> str:
    return f"'{path[:100]}'" if path else "The value"
