"""What isn't in the log and has to be asked of whoever knows it now."""

from typing import Any, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client

PATIENCE = 3.0

T = TypeVar("T")


class NoAnswer(Exception):
    """Nobody is there who could answer, or not in time, or what he says makes no sense."""


class Questions:
    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def ask(self, subject: str, body: Any, *, answer: type[T], patience: float = PATIENCE) -> T:
        try:
            said = await self._nc.request(f"ask.{subject}", msgspec.json.encode(body), timeout=patience)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise NoAnswer(f"nobody answers ask.{subject}") from error
        try:
            return msgspec.json.decode(said.data, type=answer)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise NoAnswer(f"the answer to ask.{subject} makes no sense: {error}") from error
