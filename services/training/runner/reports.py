"""What is told of a fitted model, within what a fact can carry: long lists are cut, and it is said that they were. In the child only."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.training.features import Preparation

from . import measures

SCHEMA, IMPORTANCE, PER_CLASS, CLASSES = 12_000, 6_000, 8_000, 4_000
"""Bytes for each of the lists."""
MOST_CONFUSED = 40
"""Classes whose confusion is told as a table."""
LONGEST = 100
"""Characters of a name."""

Named = dict[str, Any]


class Cut:
    """Lists, as much of each as there is room for."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def down(self, items: Iterable[Any], room: int, *, what: str) -> list[Any]:
        kept: list[Any] = []
        every = list(items)
        for item in every:
            room -= len(msgspec.json.encode(item)) + 1
            if room < 0:
                self.notes.append(f"Of {len(every)} {what} the first {len(kept)} are told here.")
                break
            kept.append(item)
        return kept


def of_classes(truth: NDArray[Any], answer: NDArray[Any], classes: Sequence[str], cut: Cut) -> Named:
    """The largest class first where there are too many to tell of each."""
    table = measures.confusion(truth, answer.argmax(axis=1), len(classes))
    measured, support = measures.by_class(table), table.sum(axis=1)
    order = range(len(classes)) if len(classes) <= MOST_CONFUSED else np.argsort(-support, kind="stable").tolist()
    per_class = [
        {"class": _short(classes[n]), "support": int(support[n]), **{name: round(float(values[n]), 6) for name, values in measured.items()}} for n in order
    ]
    if unseen := [_short(classes[n]) for n in np.flatnonzero(support == 0).tolist()]:
        which = repr(unseen[0]) if len(unseen) == 1 else f"{len(unseen)} classes, {unseen[0]!r} for one"
        cut.notes.append(f"Nothing was held out of {which}: no val_ figure counts that. There are too few to learn from and to check.")
    few = len(classes) <= MOST_CONFUSED
    if not few:
        cut.notes.append(f"There are {len(classes)} classes: the confusion of more than {MOST_CONFUSED} is not told as a table.")
    return {
        "classes": cut.down([_short(name) for name in classes], CLASSES, what="classes"),
        "confusion_matrix": table.tolist() if few else None,
        "per_class": cut.down(per_class, PER_CLASS, what="classes"),
    }


def importance(found: dict[str, float], kind: str, cut: Cut) -> Named:
    """The most important first."""
    ordered = sorted(found.items(), key=lambda item: -item[1])
    told = [{"feature": _short(name), "importance": round(value, 6)} for name, value in ordered]
    return {"feature_importance": cut.down(told, IMPORTANCE, what="features"), "importance_by": kind}


def schema(preparation: Preparation, cut: Cut) -> list[Named]:
    told = []
    for feature in preparation.features:
        one: Named = {"name": _short(feature.name), "type": feature.type}
        if feature.type == "category":
            one |= {"categories": [_short(name) for name in feature.categories[:10]], "vocabulary": len(feature.categories)}
        told.append(one)
    return cut.down(told, SCHEMA, what="features")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
