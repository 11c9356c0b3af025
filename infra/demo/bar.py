"""A line that shows how a run goes: redrawn in a terminal, now and then a new one elsewhere."""

import sys
import time
from collections.abc import Callable

WIDTH = 24
QUIET = 5.0
"""Seconds between two lines where nobody watches."""


class Bar:
    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._started = time.monotonic()
        self._shown = 0.0
        self._speed: tuple[float, float | None] = (0.0, None)
        self._first = 0

    def show(self, *, step: int, total: int, loss: float, speed: Callable[[], float | None]) -> None:
        """`speed` costs a call, so it is asked at most once a second, and never for a line that isn't drawn."""
        now = time.monotonic()
        self._first = self._first or step
        last = step >= total > 0
        if not last and now - self._shown < (0.1 if self._terminal else QUIET):
            return
        self._shown = now
        if last or now - self._speed[0] > 1:
            self._speed = (now, speed())
        done = WIDTH * step // total if total else 0
        words = [f"  {'█' * done}{'░' * (WIDTH - done)} {step}/{total or '?'}  loss {loss:.3f}"]
        words += [f"{self._speed[1]:,.0f} tokens/s"] if self._speed[1] else []
        words += [f"{_left(now - self._started, step - self._first, total - step)} left"] if step > self._first and not last and total else []
        line = "  ".join(words)
        sys.stdout.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stdout.flush()

    def end(self) -> None:
        if self._terminal:
            sys.stdout.write("\n")


def _left(taken: float, steps: int, more: int) -> str:
    seconds = round(taken / steps * more)
    return f"{seconds // 60}:{seconds % 60:02}"
