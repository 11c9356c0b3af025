"""An example before it is a row: what is asked and what is answered, whoever wrote it."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from .language import words

FORMATS: Mapping[str, str] = {"qa": "question_answer", "instruction": "alpaca", "summarization": "alpaca", "summarisation": "alpaca", "chat": "messages"}


class Turn(msgspec.Struct, frozen=True):
    asked: str
    answered: str


class Example(msgspec.Struct, frozen=True, kw_only=True):
    turns: list[Turn]
    """One, but in a chat."""
    input: str = ""

    @property
    def asked(self) -> str:
        return "\n".join(turn.asked for turn in self.turns)

    @property
    def answered(self) -> str:
        return "\n".join(turn.answered for turn in self.turns)

    def data(self, task_type: str) -> dict[str, Any]:
        """In the canonical form of its format."""
        if task_type == "chat":
            return {"messages": [message for turn in self.turns for message in _messages(turn)]}
        (turn,) = self.turns
        return {"instruction": turn.asked, "input": self.input, "output": turn.answered}

    @property
    def key(self) -> bytes:
        """The same for what asks the same, however it is written."""
        return blake2b(" ".join([*words(self.asked), "\n", *words(self.input)]).encode("utf-8", "replace"), digest_size=12).digest()


def of(data: Mapping[str, Any]) -> Example:
    """The example that canonical data was written from."""
    if "messages" in data:
        said = [message["content"] for message in data["messages"]]
        return Example(turns=[Turn(asked, answered) for asked, answered in zip(said[::2], said[1::2], strict=True)])
    return Example(turns=[Turn(data["instruction"], data["output"])], input=data["input"])


def single(asked: str, answered: str, *, input: str = "") -> Example:
    return Example(turns=[Turn(asked, answered)], input=input)


def _messages(turn: Turn) -> list[dict[str, str]]:
    return [{"role": "user", "content": turn.asked}, {"role": "assistant", "content": turn.answered}]
