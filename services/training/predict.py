"""Predictions: onnxruntime in this process, for models that runs of this platform left in the object store."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.config import Training
from libs.events import Claim
from libs.prediction import INLINE, SUBJECT, Answer, Prediction, Question
from libs.storage import Missing, StorageDown

from .eyes import Blind, Eyes
from .images import Preparation
from .place import Place
from .reading import Wrong
from .sessions import Loaded, Sessions, TooLarge, Unusable
from .together import BROKEN, BUSY, Together, answers, encode, is_quick, refused, respond, wrong
from .transfer import Spoiled

log = logging.getLogger(__name__)

MOST_WAITING = 128
"""Questions that are being answered or wait for it; the next ones are told to come back."""
MOST_QUICK = 1_000
"""Of those that are answered as they come."""
FEW = 8
"""Images that are looked at together."""
LARGEST = 64 * 1024 * 1024
"""Bytes of inputs in the object store."""
MB = 1024 * 1024

T = TypeVar("T")


class Predictions:
    def __init__(self, place: Place, settings: Training) -> None:
        self._storage = place.storage
        self._eyes = Eyes()
        self.sessions = Sessions(place.storage, budget=settings.predict_memory_mb * MB)
        self._threads = ThreadPoolExecutor(settings.predict_threads, thread_name_prefix="predict")
        self._together = Together()
        self._answering: dict[asyncio.Task[None], str] = {}
        """And the question's folder, which tells it from all others."""

    async def listen(self, nc: Client) -> None:
        """One of all replicas answers."""
        self._questions = await nc.subscribe(f"ask.{SUBJECT}", queue="training", cb=self._begin)

    async def run(self) -> None:
        try:
            await self._together.run()
        finally:
            with suppress(nats.errors.Error, OSError):
                await self._questions.unsubscribe()
            await self._together.close()
            for task in self._answering:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)
            await self.sessions.close()
            await self._eyes.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, msg: Msg) -> None:
        try:
            question = _question(msg.data)
        except _Strange as error:
            await respond(msg, refused("service", str(error)))
            return
        loaded = self.sessions.ready(question.model, question.preparation)
        if loaded and is_quick(loaded, question):
            if self._together.count < MOST_QUICK:
                self._together.add(msg, loaded, question)
                return
        elif question.again and question.folder in self._answering.values():
            return
        elif len(self._answering) < MOST_WAITING:
            task = asyncio.create_task(self._answer(msg, question))
            self._answering[task] = question.folder
            task.add_done_callback(self._answering.pop)
            return
        await respond(msg, BUSY)

    async def _answer(self, msg: Msg, question: Question) -> None:
        try:
            async with asyncio.timeout(question.seconds):
                said = await self._found(question)
        except Wrong as error:
            said = wrong(error)
        except TimeoutError:
            said = refused("late", f"It takes longer than {question.seconds:g} seconds")
        except (Missing, Spoiled):
            said = refused("model", "a file of it is not in the object store any more as it was stored")
        except Unusable as error:
            log.warning("a model that can't predict: %s", error, extra={"key": question.model.key})
            said = refused("model", str(error))
        except TooLarge as error:
            said = refused("too_large", str(error))
        except Blind as error:
            log.warning("%s", error)
            said = refused("busy", "No process is there yet to decode images")
        except StorageDown as error:
            log.warning("the object store is away: %s", error)
            said = refused("storage", "the object store does not answer")
        except asyncio.CancelledError:
            await respond(msg, BUSY)  # this process ends, another may be there
            raise
        except Exception:
            log.exception("no prediction")
            said = BROKEN
        await respond(msg, said)

    async def _found(self, question: Question) -> bytes:
        loaded = await self.sessions.get(question.model, question.preparation)
        inputs = await self._fetched(question.elsewhere) if question.elsewhere else question.inputs
        if loaded.look:
            said = encode(Answer(predictions=await self._of_images(loaded, loaded.look, inputs, question)))
        elif question.files:
            raise Wrong(0, "", "this model is of a table: send its rows as JSON")
        else:
            (said,) = await self._in_a_thread(partial(answers, loaded, [inputs], probabilities=question.probabilities))
        if len(said) <= INLINE:
            return said
        return msgspec.json.encode(Answer(elsewhere=await self._storage.put(question.folder, said)))

    async def _of_images(self, loaded: Loaded, look: Preparation, inputs: list[msgspec.Raw], question: Question) -> list[Prediction]:
        found: list[Prediction] = []
        items: Sequence[msgspec.Raw | Claim] = question.files or inputs
        for first in range(0, len(items), FEW):
            some = [await self._storage.get(item) if isinstance(item, Claim) else bytes(item) for item in items[first : first + FEW]]
            try:
                pixels = await self._eyes.look(look, some, are_json=not question.files)
            except Wrong as error:
                raise Wrong(first + error.row, error.at, str(error)) from None
            found += await self._in_a_thread(lambda pixels=pixels: loaded.answer(look.scaled(pixels), probabilities=question.probabilities))
        return found

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _fetched(self, claim: Claim) -> list[msgspec.Raw]:
        if claim.size > LARGEST:
            raise _Strange(f"inputs of {claim.size} bytes")
        return msgspec.json.decode(await self._storage.get(claim), type=list[msgspec.Raw])


class _Strange(Exception):
    """A question that this version doesn't understand, or that nobody may ask."""


def _question(data: bytes) -> Question:
    try:
        question = msgspec.json.decode(data, type=Question)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _Strange(f"The question makes no sense: {error}") from error
    keys = [claim.key for claim in (question.model, question.preparation, question.elsewhere, *question.files) if claim]
    if not question.tenant or not all(key.startswith(f"{question.tenant}/") for key in (*keys, f"{question.folder}/")):
        raise _Strange("What is another workspace's is not to be had")
    return question
