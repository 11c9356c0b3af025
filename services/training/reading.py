"""Rows as clients send them become what a model takes: the same numbers as in training, but each value is looked at, and one row costs microseconds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from libs.prediction import Prediction

from . import features
from .features import Feature, Preparation, Target, Unfit

MOST_NOTES = 10
DIGITS = 6
"""Of a probability: float32 knows no more of it."""
_LARGEST = float(np.finfo(np.float32).max)

Value = float | int | str | bool | None
_row = msgspec.json.Decoder(list[Value] | dict[str, Value])
_numbers = msgspec.json.Decoder(list[float])
_anything = msgspec.json.Decoder()


class Wrong(Exception):
    """An input that the model can't be given. `at` is where in it: `[2]` or `.age`."""

    def __init__(self, row: int, at: str, message: str) -> None:
        super().__init__(message)
        self.row = row
        self.at = at


class Rows:
    """That were asked for together, as numbers and codes."""

    __slots__ = ("codes", "notes", "numbers")

    def __init__(self) -> None:
        self.numbers: list[list[float]] = []
        self.codes: list[list[float]] = []
        self.notes: dict[str, None] = {}
        """What was taken otherwise than it may have been meant, each once."""


class Reader:
    """Of the rows of one table."""

    def __init__(self, preparation: Preparation) -> None:
        self.target = preparation.target
        self._names = [feature.name for feature in preparation.features]
        self._known = frozenset(self._names)
        place = {name: n for n, name in enumerate(self._names)}
        measured = preparation.measured
        self._measured = [(place[feature.name], _reads(feature), feature.type == "date") for feature in measured]
        self._named = [(place[feature.name], _Categories(feature)) for feature in preparation.named]
        self._medians = np.array([value for feature in measured for value in feature.medians]) if preparation.missing == "median" else None
        self._means = np.array([value for feature in measured for value in feature.means])
        self._scales = np.array([value for feature in measured for value in feature.scales])
        self._farthest = preparation.farthest or _LARGEST
        first = np.cumsum([0, *(len(feature.means) for feature in measured)])
        self._indicated = [int(first[n]) for n, feature in enumerate(measured) if feature.indicator]
        self._all_numbers = all(feature.type in ("integer", "numeric") for feature in preparation.features)
        self.width = preparation.width

    def read(self, inputs: Sequence[msgspec.Raw]) -> Rows:
        """Raises Wrong."""
        rows = Rows()
        for row, raw in enumerate(inputs):
            if self._all_numbers and (known := self._just_numbers(raw)) is not None:
                rows.numbers.append(known)
            else:
                self._read(row, raw, rows)
        return rows

    def _just_numbers(self, raw: msgspec.Raw) -> list[float] | None:
        """What most rows are, in a tenth of the time."""
        try:
            found = _numbers.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return found if len(found) == len(self._names) else None

    def _read(self, row: int, raw: msgspec.Raw, rows: Rows) -> None:
        given = _decoded(row, raw)
        values = given if isinstance(given, list) else self._by_place(row, given)
        if len(values) != len(self._names):
            raise Wrong(row, "", f"{len(values)} values came where {len(self._names)} are expected: {_listed(self._names)}")
        place = 0
        try:
            line: list[float] = []
            for place, read, is_date in self._measured:
                if is_date:
                    line += read(values[place])
                else:
                    line.append(read(values[place]))
            rows.numbers.append(line)
            if self._named:
                line = []
                for place, categories in self._named:
                    line.append(code := categories(value := values[place]))
                    if not code and value not in (None, "") and len(rows.notes) < MOST_NOTES:
                        note = f"{self._names[place]}: {str(value)[:100]!r} is none of the values that the model has learned from; it counts as unknown"
                        rows.notes[note] = None
                rows.codes.append(line)
        except Unfit as error:
            at = f"[{place}]" if isinstance(given, list) else f".{self._names[place]}"
            raise Wrong(row, at, str(error)) from None

    def _by_place(self, row: int, given: dict[str, Value]) -> list[Value]:
        if given.keys() != self._known:
            missing = [name for name in self._names if name not in given]
            unknown = [name for name in given if name not in self._known]
            if missing:
                but = f", and there is no feature {unknown[0][:100]!r}" if unknown else ""
                raise Wrong(row, f".{missing[0]}", f"{missing[0]} is missing{but}: send null where it isn't known")
            raise Wrong(row, f".{unknown[0][:100]}", f"There is no feature {unknown[0][:100]!r}, only {_listed(self._names)}")
        return [given[name] for name in self._names]

    def scaled(self, together: Sequence[Rows]) -> NDArray[np.float32]:
        """What the model takes, of all of them in one."""
        found = np.array([line for rows in together for line in rows.numbers], dtype=np.float64)
        codes = [line for rows in together for line in rows.codes]
        indicators = None
        if self._indicated or (found.size and math.isnan(found.min())):
            gone = np.isnan(found)
            indicators = gone[:, self._indicated] if self._indicated else None
            if self._medians is not None:
                found = np.where(gone, self._medians, found)
        found -= self._means
        found /= self._scales
        np.minimum(found, self._farthest, out=found)
        np.maximum(found, -self._farthest, out=found)
        if indicators is None and not codes:
            return found.astype(np.float32)
        blocks = [found, *([] if indicators is None else [indicators]), *([np.array(codes)] if codes else [])]
        return np.concatenate(blocks, axis=1).astype(np.float32)


def said(target: Target, output: NDArray[Any], *, probabilities: bool) -> list[Prediction]:
    """What the model's output says of each row."""
    if target.task == "regression":
        values = output.reshape(len(output), -1)[:, 0].astype(np.float64) * target.scale + target.mean
        return [Prediction(said=None, confidence=None, value=value if math.isfinite(value) else None) for value in values.tolist()]
    rows = output.tolist()
    best = [row.index(max(row)) for row in rows]
    if not probabilities:
        return [Prediction(said=target.classes[winner], confidence=_share(row[winner])) for winner, row in zip(best, rows, strict=True)]
    return [
        Prediction(said=target.classes[winner], confidence=_share(row[winner]), probabilities=dict(zip(target.classes, map(_share, row), strict=True)))
        for winner, row in zip(best, rows, strict=True)
    ]


def _share(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def _decoded(row: int, raw: msgspec.Raw) -> list[Value] | dict[str, Value]:
    try:
        return _row.decode(raw)
    except msgspec.ValidationError as error:
        raise Wrong(row, *_misfit(raw, error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Wrong(row, "", "it is not valid JSON") from None


def _misfit(raw: msgspec.Raw, error: msgspec.ValidationError) -> tuple[str, str]:
    """Where, and in words for who sent it."""
    problem, _, path = str(error).partition(" - at `$")
    place = path.rstrip("`")
    if problem == "Number out of range":
        return place, "it is a number without end, or too large for any"
    try:
        given = _anything.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", "it is not valid JSON"
    if not isinstance(given, list | dict):
        return "", "a row is a list of values in the features' order, or an object with a value for each by its name"
    if isinstance(given, dict):
        name = next((name for name, value in given.items() if isinstance(value, list | dict)), "")
        place = f".{name[:100]}" if name else ""
    return place, "a value is a number, a text, true, false or null"


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20:,} more"


def _reads(feature: Feature) -> Callable[[Any], Any]:
    name = feature.name

    def number(value: Any) -> float:
        kind = type(value)
        if kind is float:
            return value
        if kind is int:
            try:
                return float(value)
            except OverflowError:
                raise Unfit(name, value, "a number that fits") from None
        if value is None:
            return math.nan
        raise Unfit(name, value, "a number; send null where it isn't known")

    def truth(value: Any) -> float:
        return features.truths([value], feature=name)[0]

    def parts(value: Any) -> list[float]:
        return features.date_parts([value], feature=name)[0].tolist()

    match feature.type:
        case "date":
            return parts
        case "boolean":
            return truth
        case _:
            return number


class _Categories:
    """The code of a value of one feature; 0 for what is missing or unknown."""

    def __init__(self, feature: Feature) -> None:
        self._codes = {word: float(code) for code, word in enumerate(feature.categories, 1)}

    def __call__(self, value: Any) -> float:
        word = value.strip() if isinstance(value, str) else features.words([value])[0]
        return self._codes.get(word, 0.0) if word else 0.0
