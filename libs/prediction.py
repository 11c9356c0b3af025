"""A prediction: what the gateway asks the training service about a model and some inputs, and what it answers."""

from typing import Annotated

import msgspec
from msgspec import Meta

from libs.events import Claim

SUBJECT = "predict"
INLINE = 512 * 1024
"""Bytes that go over the bus in one message; what is larger lies in the object store meanwhile."""
MOST_INPUTS = 1_000
"""In one question."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    model: Claim
    """Its ONNX file."""
    preparation: Claim
    """How an input becomes what that takes."""
    inputs: list[msgspec.Raw] = []
    """As they were sent, each JSON: a row by position or by name, or an image in base64."""
    elsewhere: Claim | None = None
    """They are there, as one JSON list."""
    files: list[Claim] = []
    """Images as they are. Then there is nothing else."""
    probabilities: bool = False
    """Of every class."""
    folder: str
    """Where an answer is stored that is too large for the bus; who asks removes it."""
    seconds: float
    """After which nobody waits for the answer any more."""
    again: bool = False
    """It was asked before, for all that who asks knows of somebody who is dead by now: whoever is at it says nothing to this."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    said: Annotated[str | None, Meta(description="The likeliest class; null for a regression")] = msgspec.field(name="class")
    confidence: Annotated[float | None, Meta(description="The probability of that class, as the model sees it; null for a regression")]
    value: Annotated[float | msgspec.UnsetType | None, Meta(description="What a regression predicts; a classification doesn't have it")] = msgspec.UNSET
    probabilities: Annotated[dict[str, float | None] | msgspec.UnsetType, Meta(description="Of every class, where they were asked for")] = msgspec.UNSET


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    """`input`, `model`, `too_large` (no memory would be enough), `storage`, `busy`, `late` or `service`; after the last four it may work another time."""
    message: str
    row: int = 0
    """Of an input, the first that is wrong."""
    at: str = ""
    """Where in it: `[2]` or `.age`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Predictions, a claim of the same in JSON, or a refusal."""

    predictions: list[Prediction] = []
    notes: list[str] = []
    """What was taken otherwise than it may have been meant."""
    elsewhere: Claim | None = None
    refusal: Refusal | None = None
