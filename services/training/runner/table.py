"""A table as the datasets service leaves it: typed columns of which one is to be predicted, divided into rows to learn from and rows held out. In the child only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from libs.events import Column, Fit
from services.training.features import Kind, Preparation, Target, Task, floats, learned, words

from .outcome import Failure

COLUMNS, TASK = "trainyard.columns", "trainyard.task"
"""Keys of the file's own metadata: what is known of each column, and what is asked of the target."""
MOST_CLASSES = 10_000
FEWEST_ROWS = 4

Values = Sequence[Any] | NDArray[Any]


class Table(NamedTuple):
    preparation: Preparation
    known: list[Column]
    """What is known of the features, in their order."""
    x: NDArray[np.float32]
    truth: NDArray[Any]
    """Numbers of classes, or the standardised target."""
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    notes: list[str]

    @property
    def target(self) -> Target:
        return self.preparation.target

    @property
    def classes(self) -> int:
        """0 where values are predicted."""
        return len(self.target.classes)


def read(path: Path, fit: Fit) -> Table:
    """The same rows are held out each time. Raises a Failure where there is nothing to learn."""
    columns, task = _known(path)
    frame = pl.read_parquet(path)
    target = next((column for column in columns if column.role == "target"), None)
    if target is None or target.name not in frame.columns:
        raise Failure("data", "The data set doesn't say which column is to be predicted. Upload it again and name its target.")
    features = [column for column in columns if column.role == "feature" and column.type not in ("text", "image") and column.name in frame.columns]
    if not features:
        raise Failure("data", "No column is left that could be learned from: all but the target are ignored.")
    rows, notes = frame.filter(pl.col(target.name).is_not_null()), []
    if rows.height < frame.height:
        notes.append(f"{frame.height - rows.height} rows have no {target.name} and were left out.")
    known, truth = _truth(target, _values(rows[target.name], target.type), task or _usual(target))
    if len(truth) < FEWEST_ROWS:
        raise Failure("data", f"There are {len(truth)} rows with a {target.name}: too few to learn from some and hold others out.")
    training, held_out = divided(truth, share=fit.validation_split, seed=fit.seed, classes=len(known.classes))
    if known.task == "regression":
        known, truth = _standardised(known, truth, training)
    values = {column.name: _values(rows[column.name], column.type) for column in features}
    preparation = learned(
        [(column.name, _kind(column)) for column in features],
        {name: _taken(column, training) for name, column in values.items()},
        target=known,
        missing="nan" if fit.model_type == "gradient_boosting" else "median",
    )
    return Table(preparation, features, preparation.encode(values, len(truth)), truth, training, held_out, notes)


def divided(truth: NDArray[Any], *, share: float, seed: int, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each class the same share is held out, but all of its rows are never; of values just any."""
    random = np.random.default_rng(seed)
    held_out: list[NDArray[np.int64]] = []
    for number in range(max(1, classes)):
        among = np.flatnonzero(truth == number) if classes else np.arange(len(truth))
        wanted = min(round(share * len(among)), len(among) - 1)
        held_out.append(random.permutation(among)[: max(0, wanted)])
    chosen = np.sort(np.concatenate(held_out))
    if not len(chosen):  # every class is small
        counts = np.bincount(truth, minlength=classes) if classes else np.array([len(truth)])
        among = np.flatnonzero(truth == counts.argmax()) if classes else np.arange(len(truth))
        chosen = random.permutation(among)[:1]
    return np.setdiff1d(np.arange(len(truth)), chosen), chosen


def _known(path: Path) -> tuple[list[Column], Task | None]:
    try:
        said = pl.read_parquet_metadata(path)
        columns = msgspec.json.decode(said[COLUMNS], type=list[Column])
        return columns, msgspec.convert(said.get(TASK), Task | None)
    except (KeyError, msgspec.MsgspecError) as error:
        raise Failure("data", "The prepared table doesn't say what its columns are. Upload the data set again.") from error


def _usual(target: Column) -> Task:
    return "classification" if target.type in ("category", "boolean", "text") else "regression"


def _kind(column: Column) -> Kind:
    assert column.type not in ("text", "image")
    return column.type


def _values(series: pl.Series, kind: str) -> Values:
    match kind:
        case "integer" | "numeric" | "boolean" if series.dtype.is_numeric() or series.dtype == pl.Boolean:
            return series.cast(pl.Float64).to_numpy()
        case "date" if series.dtype.is_temporal():
            if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone:
                series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            return series.cast(pl.Datetime("us")).to_numpy()
        case _:
            return series.to_list()


def _truth(column: Column, values: Values, task: Task) -> tuple[Target, NDArray[Any]]:
    if task == "regression":
        truth = floats(values, feature=column.name)
        if np.isnan(truth).any():
            raise Failure("data", f"Not every {column.name} is a number, and a regression needs one in every row.")
        return Target(name=column.name, task=task), truth
    said = words([bool(value) for value in values] if column.type == "boolean" else values)
    classes = sorted({word or "" for word in said}, key=_in_order)
    if len(classes) < 2:
        raise Failure("data", f"Every row has the same {column.name}: there is nothing to tell apart.")
    if len(classes) > MOST_CLASSES:
        raise Failure("data", f"{column.name} has {len(classes):,} different values; at most {MOST_CLASSES:,} can be told apart. Is it a regression?")
    numbers = {name: number for number, name in enumerate(classes)}
    return Target(name=column.name, task=task, classes=classes), np.array([numbers[word or ""] for word in said], dtype=np.int64)


def _in_order(word: str) -> tuple[bool, float, str]:
    """Numbers by size, before words."""
    try:
        return False, float(word), word
    except ValueError:
        return True, 0.0, word


def _standardised(target: Target, truth: NDArray[Any], training: NDArray[np.int64]) -> tuple[Target, NDArray[Any]]:
    mean, scale = float(truth[training].mean()), float(truth[training].std())
    if scale <= 0:
        raise Failure("data", f"Every row has the same {target.name}: there is nothing to tell apart.")
    return msgspec.structs.replace(target, mean=mean, scale=scale), ((truth - mean) / scale).astype(np.float32)


def _taken(values: Values, rows: NDArray[np.int64]) -> Values:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
