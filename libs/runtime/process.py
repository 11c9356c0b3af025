"""A process from its first line to its last: settings, event loop, signals, an end that leaves nothing behind."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import uvloop

from libs import telemetry
from libs.config import Refused, Service, load
from libs.events.log import Misconfigured
from libs.runtime.waiting import Stopped

S = TypeVar("S", bound=Service)
log = logging.getLogger(__name__)

REFUSED = 78
"""Exit status for "mend the settings first" (EX_CONFIG): no use in starting again."""


GRACE = 4.5
"""Seconds for `main` to end once asked; then it is cut short."""


def run(service: str, kind: type[S], main: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    """`main` gets the settings and an event that is set when the process is asked to end."""
    status = 0
    try:
        settings = load(kind)
        telemetry.start(service, settings)
        _look_for_garbage_less()
        uvloop.run(_until_stopped(main, settings))
    except (Refused, Misconfigured) as refusal:
        sys.stderr.write(f"{service}: {refusal}\n")
        status = REFUSED
    telemetry.stop()
    _leave(status)


async def _until_stopped(main: Callable[[S, asyncio.Event], Awaitable[None]], settings: S) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work, asked = asyncio.ensure_future(main(settings, stop)), asyncio.ensure_future(stop.wait())
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    await asyncio.wait({work}, timeout=GRACE)
    if not work.done():
        log.warning("cut short: not ended %g s after it was asked to", GRACE)
        work.cancel()
    with suppress(Stopped, asyncio.CancelledError):
        await work
    log.info("stopped")


def _look_for_garbage_less() -> None:
    """What was imported stays anyway, and facts make no circles: looking for some took a sixth of a replay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _leave(status: int) -> None:
    """Threads that wait for a server which doesn't answer would hold up the interpreter's end until their time-outs."""
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        sys.exit(status)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)
