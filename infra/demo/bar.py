"""A line that shows how a run goes: redrawn in a terminal, now and then a new one elsewhere."""

import sys
import time

WIDTH = 24
QUIET = 5.0
"""Seconds between two lines where nobody watches."""


class Bar:
    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._started = time.monotonic()
        self._shown = 0.0
        self._first = 0

    def show(self, *, step: int, total: int, loss: float | None, speed: float | None) -> None:
        now = time.monotonic()
        self._first = self._first or step
        last = step >= total
        if not last and now - self._shown < (0.1 if self._terminal else QUIET):
            return
        self._shown = now
        done = WIDTH * step // max(1, total)
        words = [f"  {'█' * done}{'░' * (WIDTH - done)} {step}/{total}"]
        words += [f"loss {loss:.3f}"] if loss is not None else []
        words += [f"{speed:,.0f} tokens/s"] if speed else []
        words += [f"{_left(now - self._started, step - self._first, total - step)} left"] if not last and step > self._first else []
        line = "  ".join(words)
        sys.stdout.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stdout.flush()

    def end(self) -> None:
        if self._terminal:
            sys.stdout.write("\n")


def _left(taken: float, steps: int, more: int) -> str:
    seconds = round(taken / steps * more)
    return f"{seconds // 60}:{seconds % 60:02}"
