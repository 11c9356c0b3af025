"""A data set read by a process of its own."""

import os
from collections.abc import Callable
from contextlib import aclosing
from typing import IO

from services.datasets.apart import Broken, nothing_of_ours, said

from .frames import Described, Limits, Order, Prepared, Progress, unpacked

__all__ = ["Broken", "environ", "read"]

COMMAND = ("-P", "-W", "ignore", "-m", "services.datasets.confined.child")
THREADS = {"POLARS_MAX_THREADS": str(min(4, os.cpu_count() or 1)), "POLARS_ASYNC_THREAD_COUNT": "2", "MALLOC_ARENA_MAX": "4"}
"""Each thread reserves memory, and there must be enough for all of them on a machine with many cores."""


async def read(
    file: IO[bytes], draft: IO[bytes], snapshot: IO[bytes], *, dataset_type: str, target: str, limits: Limits, heard: Callable[[Progress | Described], None]
) -> Prepared:
    """What was made of the file is in `snapshot` afterwards. Or a Refusal, and then nothing of it counts."""
    order = Order(parent=os.getpid(), draft=draft.fileno(), snapshot=snapshot.fileno(), dataset_type=dataset_type, target=target, limits=limits)
    given = (order.draft, order.snapshot)
    async with aclosing(said(COMMAND, order, file, what="file", bounds=limits, decode=unpacked, given=given, environ=THREADS)) as frames:
        async for _, frame in frames:
            match frame:
                case Prepared():
                    return frame
                case Progress() | Described():
                    heard(frame)
                case _:
                    continue
    raise Broken("the process that reads a file ended without a word")


def environ() -> dict[str, str]:
    return nothing_of_ours() | THREADS
