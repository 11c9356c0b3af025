"""The process that reads a data set, seen from the service: it is started, listened to, and ends with this one."""

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

from .frames import OUT_OF_BOUNDS, PREFIX, Described, Frame, Limits, Order, Prepared, Progress, Refusal, Refused, size_of, unpacked

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[3]
COMMAND = ("-P", "-W", "ignore", "-m", "services.datasets.confined.child")
PIECE = 256 * 1024
THREADS = {"POLARS_MAX_THREADS": str(min(4, os.cpu_count() or 1)), "POLARS_ASYNC_THREAD_COUNT": "2", "MALLOC_ARENA_MAX": "4"}
"""Each thread reserves memory, and there must be enough for all of them on a machine with many cores."""


class Broken(Exception):
    """The process came to no end, and no file is to blame. Tried again, as any fault of the platform."""


async def read(
    file: IO[bytes], draft: IO[bytes], snapshot: IO[bytes], *, dataset_type: str, target: str, limits: Limits, heard: Callable[[Progress | Described], None]
) -> Prepared:
    """What was made of the file is in `snapshot` afterwards. Or a Refusal, and then nothing of it counts."""
    file.seek(0)
    order = Order(parent=os.getpid(), draft=draft.fileno(), snapshot=snapshot.fileno(), dataset_type=dataset_type, target=target, limits=limits)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *COMMAND, msgspec.json.encode(order).decode()),
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(order.draft, order.snapshot),
        env=environ(),
        cwd="/",
    )
    try:
        assert process.stdout
        return await _listen(process.stdout, limits=limits, heard=heard)
    except _Hung:
        log.warning("a data set took too long to read and was refused")
        raise _out_of_bounds() from None
    except _Silent:
        raise _blamed(await process.wait()) from None
    except msgspec.MsgspecError as error:
        raise Broken(f"the process that reads data sets said what nobody understands: {error}") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Hung(Exception):
    """It takes too long."""


class _Silent(Exception):
    """It ended without a last word."""


async def _listen(stdout: asyncio.StreamReader, *, limits: Limits, heard: Callable[[Progress | Described], None]) -> Prepared:
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
        for frame in _frames(held):
            match frame:
                case Prepared():
                    return frame
                case Refused(code=code, message=message):
                    raise Refusal(code, message)
                case Progress() | Described():
                    heard(frame)


def _frames(held: bytearray) -> Iterator[Frame]:
    """Those that are whole are taken out."""
    start = 0
    while len(held) - start >= PREFIX:
        end = start + PREFIX + size_of(held[start : start + PREFIX])
        if end > len(held):
            break
        yield unpacked(bytes(held[start + PREFIX : end]))
        start = end
    del held[:start]


def _blamed(status: int) -> Exception:
    if status in (OUT_OF_BOUNDS, -signal.SIGXCPU, -signal.SIGXFSZ, -signal.SIGKILL, -signal.SIGABRT):  # the last: what isn't Python and gets no memory
        return _out_of_bounds()
    if status < 0:
        return Refusal("damaged", "The file is damaged in a way that brings its reader down. Save it anew and upload that.")
    return Broken(f"the process that reads data sets ended with {status}")


def _out_of_bounds() -> Refusal:
    return Refusal("out_of_bounds", "To read the file takes more memory, disk or time than one may use. Divide it, or save it in a simpler form.")


def environ() -> dict[str, str]:
    """Nothing that the service was given goes along."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        **THREADS,
    }
