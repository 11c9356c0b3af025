"""A dry run: what the gateway asks the training service about a fine-tune that nobody has started, and what it answers."""

import msgspec

from libs.events import FineTune

SUBJECT = "rehearsal"
SECONDS = 30.0
"""For an answer, waiting for one's turn included. Who asks has a little more patience."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """An example as a snapshot has it."""

    id: str
    split: str
    format: str
    data: msgspec.Raw


class Question(msgspec.Struct, frozen=True, kw_only=True):
    tuning: FineTune
    rows: list[Line]
    """A sample of what would be trained on."""
    of: int
    """How many there are in all."""
    shown: Line | None = None
    """To be shown; otherwise some of the rows are."""
    workspace: str = ""
    """Of who asks: each has one turn at a time."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How a number is distributed over the examples that were looked at. Each is the number of one of them: percentiles by nearest rank."""

    min: int
    p5: int
    p50: int
    p95: int
    p99: int
    max: int


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    trained: bool
    """Whether the model learns to say this; what it doesn't, it only reads."""
    cut: bool = False
    """Beyond max_seq_length: the model doesn't even see it."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """An example as the model is given it. Its segments, one behind another, are the text."""

    id: str
    split: str
    segments: list[Segment]
    tokens: int
    trainable_tokens: int
    complete: bool = True
    """False: only the beginning of a very long text is here."""
    problem: str = ""
    """Why nothing can be learned from it."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Of the whole data set, as far as the sample tells."""

    exact: bool
    """All examples were looked at."""
    rows: int
    """That are learned from."""
    tokens_per_epoch: int
    rows_per_step: int
    steps_per_epoch: int
    total_steps: int
    """Unless early stopping ends it before."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    sampled: int
    of: int
    max_seq_length: int
    """That counts: no more than the model has positions for."""
    tokens: Spread
    """Of whole examples, before any is cut."""
    trainable_tokens: Spread
    """That the model learns to say, behind the cut."""
    trainable_share: float
    """Of all tokens that the model sees."""
    rows_cut: int
    """Of the sample, for being longer than max_seq_length."""
    rows_left_out: int
    """Of the sample, for want of a token to learn from, or because the chat template refuses them."""
    estimate: Estimate
    examples: list[Shown]
    """The one that was asked for; otherwise a shortest, a middling and a longest one."""
    warnings: list[str]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    """`data`, `model`, `hub` (it can't be reached) or `service` (another time it may work)."""
    message: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two."""

    seen: Seen | None = None
    refusal: Refusal | None = None
