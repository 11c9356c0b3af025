"""Questions about a table's model that come at once are answered in one run of it: 32 rows take it little longer than one."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import nats.errors
from nats.aio.msg import Msg

from libs.prediction import Answer, Question, Refusal

from .reading import Rows, Wrong
from .sessions import Loaded

log = logging.getLogger(__name__)

QUICK = 0.0005
"""Seconds that a question may take of the process that everything else goes on in: to hand a row to a thread and back costs more than most models."""
FEW = 8
"""Rows of such a question."""
HELD = 0.002
"""Seconds for which the process is held at once, as far as the model is concerned."""
MOST_ROWS = 64
"""In one run: what it saves grows no more."""

Inputs = Sequence[msgspec.Raw]


def is_quick(loaded: Loaded, question: Question) -> bool:
    return loaded.reader is not None and 0 < len(question.inputs) <= FEW and len(question.inputs) * loaded.seconds <= QUICK


class Together:
    """Quick questions. They wait for no others: those that are there already go along."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Loaded, bool], deque[tuple[Msg, Inputs]]] = {}
        self._some = asyncio.Event()
        self.count = 0

    def add(self, msg: Msg, loaded: Loaded, question: Question) -> None:
        self._waiting.setdefault((loaded, question.probabilities), deque()).append((msg, question.inputs))
        self.count += 1
        self._some.set()

    async def run(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                await self._answer(*self._next())
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Whoever waits still is told to ask another one."""
        while self._waiting:
            _, _, asked = self._next()
            for msg, _ in asked:
                await respond(msg, BUSY)

    def _next(self) -> tuple[Loaded, bool, list[tuple[Msg, Inputs]]]:
        """The models take turns."""
        loaded, probabilities = key = next(iter(self._waiting))
        waiting = self._waiting.pop(key)
        rows, most = 0, min(MOST_ROWS, HELD / loaded.seconds)
        asked: list[tuple[Msg, Inputs]] = []
        while waiting and (not asked or rows + len(waiting[0][1]) <= most):
            asked.append(waiting.popleft())
            rows += len(asked[-1][1])
        if waiting:
            self._waiting[key] = waiting
        self.count -= len(asked)
        return loaded, probabilities, asked

    async def _answer(self, loaded: Loaded, probabilities: bool, asked: list[tuple[Msg, Inputs]]) -> None:
        try:
            said = answers(loaded, [inputs for _, inputs in asked], probabilities=probabilities)
        except Exception:
            log.exception("no prediction")
            said = [BROKEN] * len(asked)
        for (msg, _), answer in zip(asked, said, strict=True):
            await respond(msg, answer)


def answers(loaded: Loaded, asked: Sequence[Inputs], *, probabilities: bool) -> list[bytes]:
    """One each. Who asks wrongly is told so, and the others are answered."""
    assert loaded.reader
    read = [_read(loaded, inputs) for inputs in asked]
    good = [rows for rows in read if isinstance(rows, Rows) and rows.numbers]
    predictions = loaded.answer(loaded.reader.scaled(good), probabilities=probabilities) if good else []
    said: list[bytes] = []
    first = 0
    for rows in read:
        if isinstance(rows, Wrong):
            said.append(wrong(rows))
            continue
        after = first + len(rows.numbers)
        said.append(encode(Answer(predictions=predictions[first:after], notes=list(rows.notes))))
        first = after
    return said


def _read(loaded: Loaded, inputs: Inputs) -> Rows | Wrong:
    assert loaded.reader
    try:
        return loaded.reader.read(inputs)
    except Wrong as error:
        return error


def wrong(error: Wrong) -> bytes:
    return encode(Answer(refusal=Refusal(code="input", message=str(error), row=error.row, at=error.at)))


def refused(code: str, message: str) -> bytes:
    return encode(Answer(refusal=Refusal(code=code, message=message)))


async def respond(msg: Msg, said: bytes) -> None:
    with suppress(nats.errors.Error, OSError):
        await msg.respond(said)


encode = msgspec.json.Encoder().encode
BUSY = refused("busy", "Too many predictions are asked for at once")
BROKEN = refused("service", "An unexpected error occurred")
