"""How good predictions are: of classes and of values. Imported in the child only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-12
PER_CLASS = ("precision", "recall", "f1_score")


def confusion(truth: NDArray[Any], said: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Rows are what it is, columns what was said."""
    return np.bincount(truth * classes + said, minlength=classes * classes).reshape(classes, classes)


def by_class(table: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    right = table.diagonal().astype(np.float64)
    precision, recall = right / np.maximum(table.sum(axis=0), 1), right / np.maximum(table.sum(axis=1), 1)
    return {"precision": precision, "recall": recall, "f1_score": 2 * precision * recall / np.maximum(precision + recall, FLOOR)}


def of_classes(truth: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> dict[str, float]:
    """Precision, recall and F1 are means over the classes that there are, each class counting alike."""
    classes = probabilities.shape[1]
    table = confusion(truth, np.ascontiguousarray(probabilities).argmax(axis=1), classes)
    present = table.sum(axis=1) > 0
    among = max(1, np.count_nonzero(present))
    means = {name: float(values[present].sum() / among) for name, values in by_class(table).items()}
    return {"loss": cross_entropy(truth, probabilities, weights), "accuracy": float(table.diagonal().sum() / len(truth)), **means}


def of_learned(truth: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> dict[str, float]:
    """What is told of rows that were learned from: it must cost little."""
    right = np.count_nonzero(np.ascontiguousarray(probabilities).argmax(axis=1) == truth)
    return {"loss": cross_entropy(truth, probabilities, weights), "accuracy": float(right / len(truth))}


def cross_entropy(truth: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    each = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth].astype(np.float64), FLOOR))
    return float(each.mean()) if weights is None else float(np.average(each, weights=weights[truth]))


def of_values(truth: NDArray[Any], said: NDArray[Any], *, scale: float) -> dict[str, float]:
    """`loss` is of the standardised target; the others are in its own unit."""
    away = said.astype(np.float64) - truth.astype(np.float64)
    square = float(np.mean(away**2))
    spread = float(np.var(truth.astype(np.float64)))
    return {"loss": square, "mae": float(np.mean(np.abs(away))) * scale, "rmse": square**0.5 * scale, "r2": 1 - square / max(spread, FLOOR)}
