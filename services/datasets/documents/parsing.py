"""A document read by a process of its own: little memory, little time, no network, no secrets, and it ends with this one."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from .blocks import OUT_OF_BOUNDS, PREFIX, Block, End, Frame, Limits, Order, Progress, Refusal, Refused, size_of, unpacked

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[3]
COMMAND = ("-P", "-W", "ignore", "-m", "services.datasets.documents.child")
PIECE = 256 * 1024


class Broken(Exception):
    """The process came to no end, and no document is to blame. Tried again, as any fault of the platform."""


async def parse(file: IO[bytes], spool: IO[bytes], *, mime_type: str, limits: Limits, heard: Callable[[Progress], None]) -> tuple[str, ...]:
    """Its blocks are in `spool` afterwards, for `blocks.written`; what else is to be known of them is the answer. Or a Refusal, and then none of them counts."""
    file.seek(0)
    order = Order(parent=os.getpid(), mime_type=mime_type, limits=limits)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *COMMAND, msgspec.json.encode(order).decode()),
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        env=_environ(),
        cwd="/",
    )
    try:
        assert process.stdout
        return await _listen(process.stdout, spool, limits=limits, heard=heard)
    except _Hung:
        log.warning("a document took too long to read and was refused", extra={"mime_type": mime_type})
        raise _out_of_bounds() from None
    except _Silent:
        raise _blamed(await process.wait()) from None
    except msgspec.MsgspecError as error:
        raise Broken(f"the process that reads documents said what nobody understands: {error}") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Hung(Exception):
    """It takes too long."""


class _Silent(Exception):
    """It ended without a last word."""


async def _listen(stdout: asyncio.StreamReader, spool: IO[bytes], *, limits: Limits, heard: Callable[[Progress], None]) -> tuple[str, ...]:
    clock, waited = asyncio.get_running_loop().time, 0.0
    held = bytearray()
    while True:
        since = clock()
        try:
            async with asyncio.timeout(min(limits.silence, limits.seconds - waited)):
                piece = await stdout.read(PIECE)
        except TimeoutError:
            raise _Hung from None
        waited += clock() - since
        if not piece:
            raise _Silent
        held += piece
        for raw, frame in _frames(held):
            match frame:
                case Block():
                    spool.write(raw)
                case Progress():
                    heard(frame)
                case End(notes=notes):
                    return notes
                case Refused(code=code, message=message):
                    raise Refusal(code, message)


def _frames(held: bytearray) -> Iterator[tuple[bytes, Frame]]:
    """Those that are whole are taken out."""
    start = 0
    while len(held) - start >= PREFIX:
        end = start + PREFIX + size_of(held[start : start + PREFIX])
        if end > len(held):
            break
        raw = bytes(held[start:end])
        yield raw, unpacked(raw[PREFIX:])
        start = end
    del held[:start]


def _blamed(status: int) -> Exception:
    if status in (OUT_OF_BOUNDS, -signal.SIGXCPU, -signal.SIGKILL, -signal.SIGABRT):
        return _out_of_bounds()
    if status < 0:
        return Refusal("damaged", "The document is damaged in a way that brings its reader down. Save it anew and upload that.")
    return Broken(f"the process that reads documents ended with {status}")


def _out_of_bounds() -> Refusal:
    return Refusal("out_of_bounds", "To read the document takes more memory or time than one may use. Divide it, or save it in a simpler form.")


def _environ() -> dict[str, str]:
    """Nothing that the service was given goes along."""
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
