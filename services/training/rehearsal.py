"""A dry run, for whoever is about to train: examples rendered and counted as a run would, in a process that is given little and has no GPU."""

import asyncio
import logging
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.events import FineTune
from libs.rehearsal import SECONDS, SUBJECT, Answer, Question, Refusal
from libs.runtime.waiting import within
from libs.storage import Missing

from . import models
from .children import Child, Gone
from .frames import RunSpec
from .orders import ancestors
from .place import Place
from .transfer import Spoiled, fetch

log = logging.getLogger(__name__)

ENTRY = "services.training.runner.rehearsal:run"
QUESTION, WEIGHTS = "question.json", ".safetensors"
AT_ONCE = 2
"""Trainings go on beside them. Of one workspace one at a time: what takes forever holds up nobody else's."""
FAREWELL = 2.0


class Rehearsals:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of workspaces that ask now."""
        self._answering: set[asyncio.Task[None]] = set()

    async def listen(self, nc: Client) -> None:
        """One of all replicas answers."""
        await nc.subscribe(f"ask.{SUBJECT}", queue="training", cb=self._begin)

    async def run(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in self._answering:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)

    async def _begin(self, msg: Msg) -> None:
        task = asyncio.create_task(self._answer(msg))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, msg: Msg) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                question = msgspec.json.decode(msg.data, type=Question)
                async with self._turns.setdefault(question.workspace, asyncio.Lock()), self._turn:
                    said = await self._rehearsed(question.tuning, msg.data)
        except TimeoutError:
            said = _refused("service", f"The dry run has not come to its end within {SECONDS:g} seconds")
        except (Missing, Spoiled):
            said = _refused("model", "what one of the runs that it is made of left is not in the object store any more")
        except (Gone, OSError, msgspec.DecodeError) as error:
            log.warning("no dry run: %s", error)
            said = _refused("service", f"No dry run could be made ({type(error).__name__})")
        with suppress(nats.errors.Error, OSError):
            await msg.respond(said)

    async def _rehearsed(self, tuning: FineTune, asked: bytes) -> bytes:
        """The child reads the question where a run has its snapshot."""
        cache = self._place.models
        folder = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=self._place.runs))
        try:
            (folder / QUESTION).write_bytes(asked)
            await self._fetch(tuning, folder)
            spec = RunSpec(job_id="", attempt=0, folder=str(folder), snapshot=str(folder / QUESTION), tuning=tuning, cache=str(cache))
            offline = models.at_hand(tuning, cache)
            environ = {"CUDA_VISIBLE_DEVICES": ""} | (models.OFFLINE if offline else {})
            return await _said(await self._place.children.start(spec, entry=ENTRY, environ=environ, offline=offline))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _fetch(self, tuning: FineTune, folder: Path) -> None:
        """Of a base that was trained here all but the weights."""
        for name, claim in ancestors(tuning).items():
            if not name.endswith(WEIGHTS):
                (folder / name).parent.mkdir(exist_ok=True)
                await fetch(self._place.storage, claim, folder / name)


async def _said(child: Child) -> bytes:
    reader, writer = await asyncio.open_unix_connection(sock=child.sock)
    try:
        if said := await reader.read():
            return said
        await child.ended.wait()
        return _refused("service", f"The process of the dry run ended without a word (exit status {child.status})")
    finally:
        writer.close()
        child.signal(signal.SIGKILL)
        with suppress(TimeoutError):
            await within(FAREWELL, child.ended.wait())  # until then it may write into the folder that is about to be removed


def _refused(code: str, message: str) -> bytes:
    return msgspec.json.encode(Answer(refusal=Refusal(code=code, message=message)))
