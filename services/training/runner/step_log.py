"""The steps of a fit, of which many small ones are told together. In the child only."""

import math
from collections.abc import Callable
from typing import Any

from services.training.frames import Frame, Step
from services.training.runner import machine

MOST_LINES = 20_000
"""Besides the one at the end of each epoch."""


class StepLog:
    def __init__(self, tell: Callable[[Frame], None], device: str, *, total: int, per_epoch: int) -> None:
        self._tell = tell
        self._device = device
        self._per_epoch = per_epoch
        self._stride = math.ceil(total / MOST_LINES)
        self._untold = {"steps": 0.0, "loss": 0.0, "rows": 0.0, "seconds": 0.0}
        self.seconds = 0.0
        """Of all steps."""

    def add(self, step: int, *, loss: float, rate: float, rows: int, seconds: float) -> None:
        self.seconds += seconds
        for name, value in {"steps": 1.0, "loss": loss, "rows": rows, "seconds": seconds}.items():
            self._untold[name] += value
        if step % self._stride and step % self._per_epoch:
            return
        untold, self._untold = self._untold, dict.fromkeys(self._untold, 0.0)
        self._tell(
            Step(
                step=step,
                loss=untold["loss"] / untold["steps"],
                lr=rate,
                epoch=step / self._per_epoch,
                tokens=round(untold["rows"]),
                seconds=untold["seconds"],
                memory=machine.peak_memory(self._device),
            )
        )

    def state(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "untold": self._untold}

    def restore(self, state: dict[str, Any]) -> None:
        self.seconds, self._untold = state["seconds"], state["untold"]
