"""A document read by a process of its own: little memory, little time, no network, no secrets, and it ends with this one."""

import os
from collections.abc import Callable
from contextlib import aclosing
from typing import IO

from services.datasets.apart import Broken, said

from .blocks import Block, End, Limits, Order, Progress, unpacked

__all__ = ["Broken", "parse"]

COMMAND = ("-P", "-W", "ignore", "-m", "services.datasets.documents.child")


async def parse(file: IO[bytes], spool: IO[bytes], *, mime_type: str, limits: Limits, heard: Callable[[Progress], None]) -> tuple[str, ...]:
    """Its blocks are in `spool` afterwards, for `blocks.written`; what else is to be known of them is the answer. Or a Refusal, and then none of them counts."""
    order = Order(parent=os.getpid(), mime_type=mime_type, limits=limits)
    async with aclosing(said(COMMAND, order, file, what="document", bounds=limits, decode=unpacked)) as frames:
        async for raw, frame in frames:
            match frame:
                case Block():
                    spool.write(raw)
                case Progress():
                    heard(frame)
                case End(notes=notes):
                    return notes
                case _:
                    continue
    raise Broken("the process that reads a document ended without a word")
