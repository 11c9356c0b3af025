"""How a fit goes on from epoch to epoch: what each came to, which was the best, and when there is nothing more to hope for. In the child only."""

import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from libs.events import MEASURED, Fit
from services.training.features import Task

from .outcome import Failure

TOLD = 200
"""Epochs that are each told; of as many again every second, of twice as many every fourth, and so on: a log is no place for 10,000 of them."""
HISTORY = "history.json"
"""The file that has all of them."""
HIGHER = ("val_accuracy", "val_f1", "val_r2")
NAMES = {"val_f1": "val_f1_score"}

Metrics = dict[str, float]


class Course:
    def __init__(self, fit: Fit, task: Task) -> None:
        if fit.monitor not in MEASURED[task]:
            raise Failure("monitor_unfit", f"{fit.monitor} is not measured in a {task}: early stopping can go by {', '.join(MEASURED[task])}.")
        self.epoch = 0
        """The last one that is done."""
        self.worse = 0
        """Epochs since the best."""
        self.best = 0
        self.metrics: Metrics = {}
        """Of the best epoch."""
        self.history: dict[str, list[float]] = {}
        """Of every epoch, in their order."""
        self._fit = fit

    def note(self, metrics: Metrics) -> bool:
        """Of the next epoch; whether it is the best so far."""
        self.epoch += 1
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        if not self.best or self._rank(metrics) < self._rank(self.metrics):
            self.best, self.worse, self.metrics = self.epoch, 0, metrics
            return True
        self.worse += 1
        return False

    @property
    def over(self) -> bool:
        return self.epoch >= self._fit.epochs or (self._fit.patience > 0 and self.worse >= self._fit.patience)

    @property
    def ended_early(self) -> bool:
        return self.over and self.epoch < self._fit.epochs

    @property
    def to_be_told(self) -> bool:
        """The last one always is."""
        return self.over or told(self.epoch)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "worse": self.worse, "best": self.best, "metrics": self.metrics, "history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.worse, self.best, self.metrics = state["epoch"], state["worse"], state["best"], state["metrics"]
        self.history = state["history"]

    def write(self, folder: Path) -> None:
        Path(folder, HISTORY).write_bytes(msgspec.json.encode(self.history))

    def _rank(self, metrics: Metrics) -> float:
        value = metrics[NAMES.get(self._fit.monitor, self._fit.monitor)]
        if not math.isfinite(value):
            return math.inf
        return -value if self._fit.monitor in HIGHER else value


def told(epoch: int) -> bool:
    return epoch <= TOLD or epoch % 2 ** math.ceil(math.log2(epoch / TOLD)) == 0


def optimizer(fit: Fit, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = fit.learning_rate, fit.weight_decay
    match fit.optimizer:
        case "adam":
            return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(model.parameters(), lr=rate, momentum=fit.momentum, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(model.parameters(), lr=rate, momentum=fit.momentum, weight_decay=decay)


def rate(fit: Fit, done: int, total: int) -> float:
    """After so many of all steps. `step`: a tenth after each third of them."""
    match fit.scheduler:
        case "constant":
            return fit.learning_rate
        case "cosine":
            return fit.learning_rate * 0.5 * (1 + math.cos(math.pi * done / total))
        case "linear":
            return fit.learning_rate * (1 - done / total)
        case "step":
            return fit.learning_rate * 0.1 ** (3 * done // total)
