"""A stranger's file read by a process of its own, as the service sees it: started with nothing of ours, listened to, and ended with this one."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol, TypeVar

import msgspec

from .frames import OUT_OF_BOUNDS, PREFIX, Refusal, Refused, size_of

F = TypeVar("F")

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
PIECE = 256 * 1024


class Bounds(Protocol):
    @property
    def silence(self) -> float:
        """Seconds without a word."""
        ...

    @property
    def seconds(self) -> float: ...


class Broken(Exception):
    """The process came to no end, and no file is to blame. Tried again, as any fault of the platform."""


async def said(
    command: Sequence[str],
    order: msgspec.Struct,
    file: IO[bytes],
    *,
    what: str,
    bounds: Bounds,
    decode: Callable[[bytes], F],
    given: Sequence[int] = (),
    environ: Mapping[str, str] | None = None,
) -> AsyncGenerator[tuple[bytes, F], None]:
    """Each frame as it came and decoded. Whoever has heard its last word closes this, and the process ends. `given`: descriptors that it may use."""
    file.seek(0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, msgspec.json.encode(order).decode()),
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=tuple(given),
        env=nothing_of_ours() | dict(environ or {}),
        cwd="/",
    )
    try:
        assert process.stdout
        clock, waited = asyncio.get_running_loop().time, 0.0
        held = bytearray()
        while True:
            since = clock()
            async with asyncio.timeout(min(bounds.silence, bounds.seconds - waited)):
                piece = await process.stdout.read(PIECE)
            waited += clock() - since
            if not piece:
                raise _blamed(await process.wait(), what)
            held += piece
            for raw in _whole(held):
                frame = decode(raw[PREFIX:])
                if isinstance(frame, Refused):
                    raise Refusal(frame.code, frame.message)
                yield raw, frame
    except TimeoutError:
        log.warning("a %s took too long to read and was refused", what)
        raise _out_of_bounds(what) from None
    except msgspec.MsgspecError as error:
        raise Broken(f"the process that reads a {what} said what nobody understands: {error}") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def nothing_of_ours() -> dict[str, str]:
    """The environment of such a process."""
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


def _whole(held: bytearray) -> list[bytes]:
    """The frames that have come to their end are taken out."""
    frames: list[bytes] = []
    start = 0
    while len(held) - start >= PREFIX:
        end = start + PREFIX + size_of(held[start : start + PREFIX])
        if end > len(held):
            break
        frames.append(bytes(held[start:end]))
        start = end
    del held[:start]
    return frames


def _blamed(status: int, what: str) -> Exception:
    if status in (OUT_OF_BOUNDS, -signal.SIGXCPU, -signal.SIGXFSZ, -signal.SIGKILL, -signal.SIGABRT):  # the last: what isn't Python and gets no memory
        return _out_of_bounds(what)
    if status < 0:
        return Refusal("damaged", f"The {what} is damaged in a way that brings its reader down. Save it anew and upload that.")
    return Broken(f"the process that reads a {what} ended with {status}")


def _out_of_bounds(what: str) -> Refusal:
    return Refusal("out_of_bounds", f"To read the {what} takes more memory, disk or time than one may use. Divide it, or save it in a simpler form.")
