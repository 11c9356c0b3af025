"""Waiting on facts, never on time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sized
from typing import TypeVar, cast

T = TypeVar("T")


async def eventually(look: Callable[[], T | Awaitable[T]], *, of: int | None = None, patience: float = 10.0) -> T:
    """What `look` sees once that is something, or has `of` parts; an AssertionError with the last look when it never is."""
    deadline = time.monotonic() + patience
    while True:
        seen = look()
        value = cast("T", await seen if inspect.isawaitable(seen) else seen)
        if value if of is None else len(cast("Sized", value)) >= of:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {patience:.0f} s; the last look saw {value!r}")
        await asyncio.sleep(0.01)
