"""The process: what it listens to, what it keeps going, and its orderly end."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors

from libs.config import Training
from libs.runtime.member import member, starting
from libs.runtime.waiting import Stopped, unless

from .children import ENTRY, PRELOAD, Children, frugal
from .folders import workplace
from .hardware import Hardware, threads_each
from .leases import Leases
from .place import Place, Timing
from .predict import Predictions
from .rehearsal import Rehearsals
from .scheduler import Scheduler
from .worker import Workers

log = logging.getLogger(__name__)


async def serve(settings: Training, stop: asyncio.Event, *, timing: Timing | None = None, entry: str = ENTRY, preload: Sequence[str] = PRELOAD) -> None:
    """`entry` is what a child calls, and `preload` what is imported before it is forked."""
    timing = timing or Timing()
    hub = {"HF_ENDPOINT": settings.hf_endpoint, "HF_TOKEN": settings.hf_token}
    children = Children(entry=entry, preload=preload, environ=frugal(threads_each(settings.threads, settings.workers or 1)) | hub)
    children.open()  # warm by the time that somebody wants to train
    try:
        with workplace(_folder(settings.runs_folder)) as runs:
            async with member("training", settings, stop) as me:
                me.checks.update(children=children.check, questions=starting)
                leases = Leases(me.nc, ack_wait=timing.ack_wait)
                await unless(stop, _provided(leases))
                hardware = Hardware(children)
                await hardware.listen(me.nc)
                models = _folder(settings.models_folder)
                place = Place(nc=me.nc, log=me.log, storage=me.storage, children=children, runs=runs, models=models, timing=timing)
                workers = Workers(place, leases, await unless(stop, hardware.slots(settings.workers, settings.threads)))
                rehearsals, predictions = Rehearsals(place), Predictions(place, settings)
                for one in (workers, rehearsals, predictions):
                    await one.listen(me.nc)
                await me.nc.flush()
                del me.checks["questions"]
                await _until(stop, Scheduler(me.log, leases).run(), workers.run(), rehearsals.run(), predictions.run())
    finally:
        await children.close()


def _folder(setting: str) -> Path:
    folder = Path(setting).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _until(stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await unless(stop, _first(tasks))
    except Stopped:
        return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(tasks: list[asyncio.Task[None]]) -> None:
    """None of them ends by itself unless it breaks down: then the process does, and its supervisor starts another."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _provided(leases: Leases) -> None:
    while True:
        try:
            return await leases.provide()
        except (nats.errors.Error, nats.js.errors.APIError, OSError) as error:
            log.warning("waiting for the line of leases: %s", str(error) or type(error).__name__)
            await asyncio.sleep(0.5)
