"""How fast work goes, and when it will be done: whoever does the work measures it, whoever is asked reckons with that."""

import math
from collections import deque

import msgspec

PATIENCE = 30.0
"""Seconds without a step forward that say nothing yet."""
LONGEST_PATIENCE = 300.0
STEPS = 4
"""Steps that may fail to come, where each takes longer than that."""
NEWEST = 0.5
"""The share of the time worked that counts: a change of speed is seen soon, and what comes at intervals, as evaluations do, is in it."""
POINTS = 128


class Speed(msgspec.Struct, frozen=True):
    """`made` of what there is to do took `seconds`. Nothing made: the speed isn't known."""

    made: int = 0
    seconds: float = 0.0


UNKNOWN = Speed()


class Pace:
    """Of one process at its work. What it didn't do itself, and stretches in which nothing came about, are no part of it."""

    def __init__(self) -> None:
        self._points = deque[tuple[float, int]]()
        self._since = 0.0

    def note(self, done: int, *, at: float) -> None:
        if self._points and done == self._points[-1][1]:
            return
        if self._points and (done < self._points[-1][1] or self._stood_still(at)):
            self._points.clear()
        if not self._points:
            self._since = at
        window = max(PATIENCE, (at - self._since) * NEWEST)
        if len(self._points) > 1 and at - self._points[-2][0] < 2 * window / POINTS:
            self._points.pop()
        self._points.append((at, done))
        while len(self._points) > 2 and self._points[1][0] <= at - window:
            self._points.popleft()

    @property
    def speed(self) -> Speed:
        if len(self._points) < 2:
            return UNKNOWN
        (since, before), (until, done) = self._points[0], self._points[-1]
        return Speed(made=done - before, seconds=round(until - since, 3))

    def _stood_still(self, at: float) -> bool:
        return len(self._points) > 1 and at - self._points[-1][0] > patience(self.speed)


def patience(speed: Speed) -> float:
    """Seconds without a step forward after which nobody knows when the work will be done."""
    step = speed.seconds / speed.made if speed.made > 0 else 0.0
    return max(PATIENCE, min(LONGEST_PATIENCE, speed.seconds / 2), STEPS * step)


def eta_seconds(left: int, speed: Speed, *, since: float) -> int | None:
    """Seconds until what was left is done, `since` seconds after that was said. None where nothing is known: before there is a speed, when the
    work stands still, and when all that is counted is done."""
    if left <= 0 or speed.made <= 0 or speed.seconds <= 0 or since > patience(speed):
        return None
    whole = left * speed.seconds / speed.made
    return max(1, math.ceil(whole - max(0.0, since)))
