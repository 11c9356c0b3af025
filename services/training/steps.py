"""The log of every step: a file that is stored with each checkpoint, and small batches for whoever looks on."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from .frames import Step
from .telling import speed

MOST = 1_000
"""Steps in one batch."""

_encoder = msgspec.json.Encoder()


class Line(msgspec.Struct, frozen=True, kw_only=True):
    step: int
    attempt: int
    train_loss: float | None
    learning_rate: float | None
    epoch: float | None
    tokens: int
    grad_norm: float | None
    tokens_per_second: float


class _Numbered(msgspec.Struct):
    step: int


class StepLog:
    """Goes on behind what lies at `path` already."""

    def __init__(self, path: Path, *, attempt: int) -> None:
        self.last: Step | None = None
        """The last one that this attempt has done."""
        self._path = path
        self._attempt = attempt
        self._file = path.open("ab")
        self._unwritten: list[bytes] = []
        self._unsent: list[bytes] = []

    def add(self, frame: Step) -> None:
        line = _encoder.encode(
            Line(
                step=frame.step,
                attempt=self._attempt,
                train_loss=frame.loss,
                learning_rate=frame.lr,
                epoch=frame.epoch,
                tokens=frame.tokens,
                grad_norm=frame.grad_norm,
                tokens_per_second=speed(frame),
            )
        )
        self._unwritten.append(line)
        self._unsent.append(line)
        self.last = frame

    def newest(self) -> Step | None:
        """Also of an attempt that had nothing left to do: whoever did the last step may have ended before it was told."""
        if self.last:
            return self.last
        with self._path.open("rb") as lines:
            return next((_read(line) for line in deque(lines, maxlen=1)), None)

    def size(self) -> int:
        """Bytes up to the last step that came."""
        if self._unwritten:
            self._file.write(b"\n".join(self._unwritten) + b"\n")
            self._file.flush()
            self._unwritten.clear()
        return self._file.tell()

    async def send(self, publish: Callable[[bytes], Awaitable[None]]) -> int:
        """To whoever looks on; what can't be sent is lost. How many steps there were."""
        self.size()
        lines, self._unsent = self._unsent, []
        for start in range(0, len(lines), MOST):
            await publish(b'{"attempt":%d,"steps":[%b]}' % (self._attempt, b",".join(lines[start : start + MOST])))
        return len(lines)

    def close(self) -> None:
        self.size()
        self._file.close()


def _read(line: bytes) -> Step:
    """As it came, but for the time that it took."""
    read = msgspec.json.decode(line, type=Line)
    return Step(
        step=read.step,
        loss=_number(read.train_loss),
        lr=_number(read.learning_rate),
        epoch=_number(read.epoch),
        tokens=read.tokens,
        grad_norm=read.grad_norm,
        seconds=read.tokens / read.tokens_per_second if read.tokens_per_second else 0.0,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def cut(path: Path, *, step: int) -> None:
    """Down to this step: those behind it are done again."""
    numbered = msgspec.json.Decoder(_Numbered)
    rest = path.with_suffix(".cut")
    with path.open("rb") as lines, rest.open("wb") as kept:
        kept.writelines(line for line in lines if line.endswith(b"\n") and numbered.decode(line).step <= step)
    rest.replace(path)
