"""From a row as people have it to the numbers that a model takes, and back: the same for who trains and who predicts. Needs numpy alone."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Kind = Literal["integer", "numeric", "category", "boolean", "date"]
Task = Literal["classification", "regression"]

MOST_CATEGORIES = 10_000
"""Of one feature; the rarer ones are treated alike."""
AT_LEAST = 2
"""Rows that a category must be in, so that what stands for all others has been seen too."""
FARTHEST = {"median": 10.0, "nan": 1e30}
"""Deviations from the mean: in a network one absurd value would drown all others, and to trees it makes no difference."""
PARTS = ("days", "month", "day", "weekday", "hour")
"""What becomes of a date."""
_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "on"), ("false", "f", "no", "n", "0", "off")
_WHOLE = re.compile(r"-?\d+\.0+")


class Unfit(ValueError):
    """A value that can't be what its column holds."""

    def __init__(self, feature: str, value: object, wanted: str) -> None:
        super().__init__(f"{feature}: {str(value)[:100]!r} is not {wanted}")
        self.feature = feature


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the table. A category's code is its place in the list, from 1: 0 is whatever is missing, or was never seen."""

    name: str
    type: Kind
    categories: list[str] = []
    medians: list[float] = []
    means: list[float] = []
    scales: list[float] = []
    """Of a date one for each of its parts, else one."""
    indicator: bool = False
    """Another number says whether the value is missing."""

    def numbers(self, values: Sequence[Any] | NDArray[Any]) -> Numbers:
        """One column, or one for each part; NaN where it is missing."""
        match self.type:
            case "integer" | "numeric":
                return floats(values, feature=self.name).reshape(-1, 1)
            case "boolean":
                return truths(values, feature=self.name).reshape(-1, 1)
            case "date":
                return date_parts(values, feature=self.name)
            case "category":
                known: dict[str | None, float] = {word: float(code) for code, word in enumerate(self.categories, 1)}
                return np.array([known.get(said, 0.0) for said in words(values)], dtype=np.float64).reshape(-1, 1)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    task: Task
    classes: list[str] = []
    """The model's outputs are the probabilities of these."""
    mean: float = 0.0
    scale: float = 1.0
    """The model's output times this, plus the mean, is the value."""


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """What `preprocess.json` holds: all that is needed to get from a row to the model's input `x`, and from its output `y` to an answer.

    `x` is float32 of [rows, width]: numbers first (less their mean, by their scale), then an indicator for each feature that has one, then codes of categories.
    """

    version: int = 1
    features: list[Feature]
    target: Target
    missing: Literal["median", "nan"]
    """What stands for a missing number."""
    farthest: float
    """Numbers beyond it are cut off."""

    @property
    def measured(self) -> list[Feature]:
        return [feature for feature in self.features if feature.type != "category"]

    @property
    def named(self) -> list[Feature]:
        return [feature for feature in self.features if feature.type == "category"]

    @property
    def codes(self) -> list[int]:
        """How many codes each category has."""
        return [len(feature.categories) + 1 for feature in self.named]

    @property
    def columns(self) -> list[str]:
        """The feature that each column of `x` comes from."""
        numbers = [feature.name for feature in self.measured for _ in feature.means]
        return numbers + [feature.name for feature in self.measured if feature.indicator] + [feature.name for feature in self.named]

    @property
    def width(self) -> int:
        return len(self.columns)

    def encode(self, table: Mapping[str, Sequence[Any] | NDArray[Any]], rows: int) -> NDArray[np.float32]:
        """`table` by column. Raises Unfit."""
        blocks: list[NDArray[Any]] = []
        indicators: list[NDArray[Any]] = []
        for feature in self.measured:
            found = feature.numbers(table[feature.name])
            gone = np.isnan(found)
            if self.missing == "median":
                found = np.where(gone, np.array(feature.medians), found)
            with np.errstate(over="ignore"):
                found = (found - np.array(feature.means)) / np.array(feature.scales)
            blocks.append(np.clip(found, -self.farthest, self.farthest))
            if feature.indicator:
                indicators.append(gone[:, :1])
        codes = [feature.numbers(table[feature.name]) for feature in self.named]
        empty = np.zeros((rows, 0))
        return np.concatenate([empty, *blocks, *indicators, *codes], axis=1).astype(np.float32)

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Rows by name, as JSON has them; what a row leaves out is missing. Raises Unfit."""
        return self.encode({feature.name: [row.get(feature.name) for row in rows] for feature in self.features}, len(rows))

    def decode(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        """What the model's output says of each row."""
        target = self.target
        if target.task == "regression":
            return [{"prediction": float(value) * target.scale + target.mean} for value in output.reshape(len(output), -1)[:, 0]]
        best = output.argmax(axis=1)
        return [
            {
                "prediction": target.classes[winner],
                "confidence": float(row[winner]),
                "probabilities": {name: float(share) for name, share in zip(target.classes, row, strict=True)},
            }
            for winner, row in zip(best, output, strict=True)
        ]


def learned(
    columns: Iterable[tuple[str, Kind]], table: Mapping[str, Sequence[Any] | NDArray[Any]], *, target: Target, missing: Literal["median", "nan"]
) -> Preparation:
    """What has to be known of each feature, told by these rows alone."""
    features = [_learned(name, kind, table[name], missing=missing) for name, kind in columns]
    return Preparation(features=features, target=target, missing=missing, farthest=FARTHEST[missing])


def _learned(name: str, kind: Kind, values: Sequence[Any] | NDArray[Any], *, missing: Literal["median", "nan"]) -> Feature:
    if kind == "category":
        counted = Counter(word for word in words(values) if word is not None)
        commonest = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST_CATEGORIES]
        return Feature(name=name, type=kind, categories=[word for word, count in commonest if count >= AT_LEAST])
    found = Feature(name=name, type=kind).numbers(values)
    gone = np.isnan(found[:, 0])
    known = found[~gone]
    if not len(known):
        known = np.zeros((1, found.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        means, spread = known.mean(axis=0), known.std(axis=0)
    return Feature(
        name=name,
        type=kind,
        medians=np.median(known, axis=0).tolist(),
        means=[mean if math.isfinite(mean) else 0.0 for mean in means.tolist()],
        scales=[size if size > 0 and math.isfinite(size) else 1.0 for size in spread.tolist()],
        indicator=missing == "median" and bool(gone.any()),
    )


def floats(values: Sequence[Any] | NDArray[Any], *, feature: str) -> Numbers:
    """What is no number, and what is without end, is missing."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        found = values.astype(np.float64)
    else:
        found = np.array([_float(value, feature) for value in values], dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _float(value: Any, feature: str) -> float:
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(feature, value, "a number") from None


def truths(values: Sequence[Any] | NDArray[Any], *, feature: str) -> Numbers:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fb":
        return values.astype(np.float64)
    return np.array([_truth(value, feature) for value in values], dtype=np.float64)


def _truth(value: Any, feature: str) -> float:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    said = _word(value).strip().lower()
    if said in _TRUE:
        return 1.0
    if said in _FALSE:
        return 0.0
    raise Unfit(feature, value, "true or false")


def date_parts(values: Sequence[Any] | NDArray[Any], *, feature: str) -> Numbers:
    """Days since 1970 with their fraction, month, day, weekday from Monday, hour."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        moments = values.astype("datetime64[us]")
    else:
        moments = np.array([_moment(value, feature) for value in values], dtype="datetime64[us]")
    days, months = moments.astype("datetime64[D]"), moments.astype("datetime64[M]")
    past = (moments - days).astype(np.float64) / 86_400e6
    number = days.astype(np.float64)
    parts = [number + past, months.astype(np.float64) % 12 + 1, (days - months.astype("datetime64[D]")).astype(np.float64) + 1, (number + 3) % 7, past * 24]
    found = np.stack(parts, axis=1)
    found[np.isnat(moments)] = np.nan
    return found


def _moment(value: Any, feature: str) -> Any:
    if value is None or value == "":
        return None
    try:
        read = datetime.fromisoformat(value.strip()) if isinstance(value, str) else value
        if isinstance(read, datetime) and read.tzinfo:
            read = read.astimezone(UTC).replace(tzinfo=None)
        if not isinstance(read, date):
            raise Unfit(feature, value, "a date (2026-01-31, or with a time behind it)")
        return np.datetime64(read, "us")
    except (ValueError, OverflowError):
        raise Unfit(feature, value, "a date (2026-01-31, or with a time behind it)") from None


def words(values: Iterable[Any]) -> list[str | None]:
    """Categories by name, without blanks around it, as they are read from a table; 1, 1.0 and "1" are one."""
    return [None if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else _word(value) for value in values]


def _word(value: Any) -> str:
    match value:
        case str():
            return value.strip()
        case bool() | np.bool_():
            return "true" if bool(value) else "false"
        case _:
            said = str(value)
            return said.partition(".")[0] if _WHOLE.fullmatch(said) else said
