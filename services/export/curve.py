"""The loss curve: a step log of any length becomes at most a thousand points, and these become a picture."""

import math
from collections.abc import Iterable, Sequence

import msgspec

MOST = 1000


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the step log, as far as a curve needs it."""

    step: int
    train_loss: float | None = None
    learning_rate: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of the steps since the point before."""

    step: int
    train_loss: float
    learning_rate: float | None = None


class _Pile(msgspec.Struct):
    step: int
    loss: float
    rate: float | None
    count: int


class Curve:
    """Takes one step after the other; whenever too many points have come together, each two become one."""

    def __init__(self, most: int = MOST) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.every = 1
        """Steps that a point stands for."""
        self._most = most
        self._piles: list[_Pile] = []

    def add(self, step: Step) -> None:
        if step.train_loss is None:
            return
        self.first = step.train_loss if self.first is None else self.first
        self.last = step.train_loss
        if self._piles and self._piles[-1].count < self.every:
            _merge(self._piles[-1], _Pile(step.step, step.train_loss, step.learning_rate, 1))
            return
        if len(self._piles) == self._most:
            self._halve()
        self._piles.append(_Pile(step.step, step.train_loss, step.learning_rate, 1))

    @property
    def points(self) -> list[Point]:
        return [Point(step=pile.step, train_loss=pile.loss / pile.count, learning_rate=pile.rate) for pile in self._piles]

    def _halve(self) -> None:
        for left, right in zip(self._piles[::2], self._piles[1::2], strict=True):
            _merge(left, right)
        self._piles = self._piles[::2]
        self.every *= 2


def _merge(into: _Pile, other: _Pile) -> None:
    into.step, into.loss, into.rate, into.count = other.step, into.loss + other.loss, other.rate, into.count + other.count


# The picture

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
_STYLE = """
.panel{fill:#fff;stroke:#d0d7de}.grid{stroke:#e4e8ec}.axis{stroke:#57606a}.words{fill:#24292f;font:12px system-ui,sans-serif}
.train{stroke:#0969da;fill:none;stroke-width:1.5}.eval{stroke:#bc4c00;fill:none;stroke-width:2}.dot{fill:#bc4c00}
@media (prefers-color-scheme:dark){.panel{fill:#0d1117;stroke:#30363d}.grid{stroke:#262c34}.axis{stroke:#9198a1}.words{fill:#e6edf3}
.train{stroke:#58a6ff}.eval{stroke:#f0883e}.dot{fill:#f0883e}}
"""


def svg(train: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float]]) -> str:
    """Points are (step, loss). It brings its own background, so that it can be read on any page."""
    every = [*train, *held_out]
    steps = _ticks(0, max((step for step, _ in every), default=1))
    losses = _ticks(min((loss for _, loss in every), default=0), max((loss for _, loss in every), default=1))

    def x(step: float) -> float:
        return LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - losses[0]) / (losses[-1] - losses[0]) * (HEIGHT - TOP - BOTTOM)

    def line(points: Iterable[tuple[float, float]], name: str) -> str:
        return f'<polyline class="{name}" points="{" ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)}"/>'

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>Loss by step</title><style>{_STYLE}</style>",
        f'<rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"/>',
    ]
    for loss in losses:
        drawn.append(f'<line class="grid" x1="{LEFT}" y1="{y(loss):.1f}" x2="{WIDTH - RIGHT}" y2="{y(loss):.1f}"/>')
        drawn.append(f'<text class="words" text-anchor="end" x="{LEFT - 8}" y="{y(loss) + 4:.1f}">{loss:.6g}</text>')
    for step in steps:
        drawn.append(f'<line class="axis" x1="{x(step):.1f}" y1="{HEIGHT - BOTTOM}" x2="{x(step):.1f}" y2="{HEIGHT - BOTTOM + 5}"/>')
        drawn.append(f'<text class="words" text-anchor="middle" x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 20}">{step:,.6g}</text>')
    drawn += [
        f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        f'<text class="words" text-anchor="middle" x="{(WIDTH + LEFT - RIGHT) / 2:.0f}" y="{HEIGHT - 10}">step</text>',
        f'<text class="words" x="{LEFT - 44}" y="{TOP - 16}">loss</text>',
        line(train, "train"),
        line(held_out, "eval"),
        *(f'<circle class="dot" cx="{x(step):.1f}" cy="{y(loss):.1f}" r="3"/>' for step, loss in held_out),
        *_legend(bool(train), bool(held_out)),
        "</svg>\n",
    ]
    return "\n".join(drawn)


def _legend(train: bool, held_out: bool) -> list[str]:
    shown = [(name, words) for name, words, there in (("train", "training", train), ("eval", "held-out rows", held_out)) if there]
    drawn: list[str] = []
    for n, (name, words) in enumerate(shown):
        at = WIDTH - RIGHT - 130 * (len(shown) - n)
        drawn.append(f'<line class="{name}" x1="{at}" y1="{TOP - 20}" x2="{at + 24}" y2="{TOP - 20}"/>')
        drawn.append(f'<text class="words" x="{at + 30}" y="{TOP - 16}">{words}</text>')
    return drawn


def _ticks(least: float, most: float, *, about: int = 5) -> list[float]:
    """Round numbers around both."""
    span = most - least or abs(most) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    width = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= span / about)
    first, last = math.floor(least / width), math.ceil(most / width)
    return [round(n * width, 12) for n in range(first, max(last, first + 1) + 1)]
