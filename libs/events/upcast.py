"""How facts of an older shape are read: (type, schema number) -> the data of the next number."""

from collections.abc import Callable
from typing import Any

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCAST: dict[tuple[str, int], Upcaster] = {}
"""An entry stays for ever, with a golden file of each shape under tests/events/golden."""


def upcast(event_type: str, data: dict[str, Any], *, schema: int, current: int, steps: dict[tuple[str, int], Upcaster] = UPCAST) -> dict[str, Any]:
    for number in range(schema, current):
        data = steps[event_type, number](data)
    return data
