"""Waiting for work, but not longer than wanted."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Asked to end before the work was done."""


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What `work` gives, or a TimeoutError. A cancellation that comes together with it is heeded; asyncio.wait_for loses it before Python 3.12, and a loop around it never ends."""
    async with asyncio.timeout(seconds):
        return await work


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled, and Stopped raised, as soon as the event is set."""
    if event.is_set():
        work.close()
        raise Stopped
    task, flag = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, flag}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Stopped
    finally:
        task.cancel()
        flag.cancel()
        await asyncio.gather(task, flag, return_exceptions=True)
