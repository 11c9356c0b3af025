"""What the columns hold and what each is for, and the snapshot with those that something is learned from."""

import math
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, cast

import msgspec
import polars as pl

from libs.events import Column
from services.datasets.confined.frames import Described, Order, Prepared, Progress, Refusal, Say

from .source import group_rows, place
from .tally import Tally

BINS = 20
LISTED = 50
SHOWN = 200
"""Characters of a category."""
CLASSES = 1_000
"""Most of a target."""
FEW = 20
"""Different whole numbers of a target that may be classes; different texts that needn't come again."""
ESTIMATED_FROM = 10_000
"""Different numbers of a feature from which on they are estimated and not counted."""
GROUP_CELLS = 8_000_000
"""That are looked at together."""

_ID = re.compile(r"(?i:(?:.*[\W_])?(?:id|index|idx|row|no|nr|number|#)|unnamed.*|column_1)|.*[a-z](?:Id|ID)")

Kind = Literal["integer", "numeric", "category", "boolean", "date", "text", "image"]


class Draft(NamedTuple):
    """All columns, in a file of their own."""

    kinds: dict[int, str]
    tallies: dict[int, Tally]
    target: int
    rows: int
    kept: int
    refused: dict[str, int]


class Figures(NamedTuple):
    """Of numbers; of dates, in microseconds."""

    distinct: int
    minimum: float
    maximum: float
    mean: float | None
    deviation: float | None
    histogram: list[tuple[float, int]]
    whole: bool
    """There is nothing behind the point in any of them."""
    counts: list[tuple[str, int]]
    """Of each value, where there are few."""


def finish(draft: Draft, order: Order, say: Say, *, names: list[str], unreadable: dict[int, str], notes: list[str]) -> Prepared:
    if draft.kept < 2:
        raise Refusal("one_row", f"One row of the table can be used. To learn something takes more.{_left_out(draft)}")
    table = pl.scan_parquet(f"/dev/fd/{order.draft}", glob=False)
    figures = _all_figures(table, draft, names, say)
    target = _Target(draft, figures.get(draft.target), names[draft.target], order.dataset_type.strip().casefold())
    notes += target.notes
    columns: list[Column] = []
    for n, name in enumerate(names):
        if n in unreadable:
            columns.append(Column(index=n, name=name, type="text", role="ignored", reason=unreadable[n]))
        elif n == draft.target:
            columns.append(target.column(n))
        else:
            columns.append(_feature(n, name, draft, figures.get(n)))
    features = [column for column in columns if column.role == "feature"]
    if not features:
        raise Refusal(
            "no_features", f"There is nothing to tell {names[draft.target]!r} by. " + " ".join(f"{c.name!r}: {c.reason}" for c in columns[:5] if c.reason)
        )
    if ignored := [column for column in columns if column.role == "ignored"]:
        listed = ", ".join(repr(column.name) for column in ignored[:10])
        notes.append(f"{len(ignored)} of {len(columns)} columns are left out: {listed}{' and others' if len(ignored) > 10 else ''}. Each says why.")
    _write(table, order, columns, target)
    for column in columns:
        say(Described(column=column))
    return Prepared(
        contents="table",
        task=target.task,
        target=names[draft.target],
        rows=draft.rows,
        valid=draft.kept,
        classes=target.classes,
        refused=draft.refused,
        notes=notes,
    )


class _Target:
    def __init__(self, draft: Draft, figures: Figures | None, name: str, wanted: str) -> None:
        self._name = name
        self._figures = figures
        self._kept = draft.kept
        self._left_out = _left_out(draft)
        self._tally = draft.tallies[draft.target]
        self._kind = draft.kinds[draft.target]
        self.notes: list[str] = []
        self.whole = figures is not None and figures.whole
        self._distinct = figures.distinct if figures else self._tally.distinct
        self.task = wanted if wanted in ("classification", "regression") else self._inferred()
        if self.task == "classification":
            self._check_classes()
        else:
            self._check_numbers()
        self.classes = self._distinct if self.task == "classification" else 0

    def column(self, index: int) -> Column:
        if self.task == "classification":
            counts = self._figures.counts if self._figures else self._tally.values.most_common()
            return Column(index=index, name=self._name, type="category", role="target", distinct=self._distinct, categories=_listed(counts))
        assert self._figures
        return _numbers(index, self._name, "integer" if self._kind == "integer" else "numeric", self._figures, role="target")

    def _inferred(self) -> str:
        if self._figures is None or self._kind == "date":
            return "classification"
        few = self.whole and self._distinct <= FEW and self._distinct * 2 <= self._kept
        self.notes.append(f"It is a {'classification' if few else 'regression'}, going by the values of {self._name!r}.")
        return "classification" if few else "regression"

    def _check_classes(self) -> None:
        if self._distinct < 2:
            raise Refusal("one_class", f"The target {self._name!r} has one class. There must be two to tell them apart.{self._left_out}")
        if self._kind == "date" or self._distinct > CLASSES or (self._distinct > FEW and self._distinct * 2 > self._kept):
            raise Refusal(
                "too_many_classes",
                f"The target {self._name!r} has a class of its own for almost every row, more than {CLASSES:,}, or texts too long for classes. "
                "Is it another column, or a regression?",
            )
        counts = self._figures.counts if self._figures else self._tally.values.most_common()
        if once := [value for value, times in counts if times == 1]:
            self.notes.append(f"{len(once)} classes have a single row, {once[0][:50]!r} for one: too few to learn from and to check.")

    def _check_numbers(self) -> None:
        if self._figures is None or self._kind == "date":
            example = f", {next(iter(self._tally.values))[:50]!r} for one" if self._tally.values else ""
            holds = f"dates, {_date(self._figures.minimum)[:10]} for one" if self._figures else f"texts{example}"
            raise Refusal("target_not_numeric", f"A regression has numbers for a target, and {self._name!r} holds {holds}.")
        if self._distinct < 2:
            raise Refusal("one_value", f"The target {self._name!r} has the same value in every row.{self._left_out}")


def _left_out(draft: Draft) -> str:
    """Whoever is told that too little is left is told where the rest went."""
    if not draft.refused:
        return ""
    why = ", ".join(f"{reason} ({times:,})" for reason, times in sorted(draft.refused.items()))
    tokens = draft.tallies[draft.target].tokens
    told = ", ".join(f"{token!r} ({times:,})" for token, times in sorted(tokens.items(), key=lambda item: (-item[1], item[0]))[:5])
    return f" Rows left out: {why}.{f' Read as missing: {told}.' if told else ''}"


def _feature(n: int, name: str, draft: Draft, figures: Figures | None) -> Column:
    tally, kind = draft.tallies[n], draft.kinds[n]
    values = draft.kept - tally.missing
    if not values:
        return Column(index=n, name=name, type=cast("Kind", kind), role="ignored", reason="It has no values.", missing=tally.missing)
    if figures:
        constant = figures.distinct == 1
        counts_rows = kind == "integer" and _ID.fullmatch(name) and figures.distinct == draft.kept and figures.maximum - figures.minimum + 1 == draft.kept
        reason = "It has one value." if constant else "It numbers the rows." if counts_rows else ""
        column = _numbers(n, name, cast("Kind", kind), figures, role="ignored" if reason else "feature")
        return msgspec.structs.replace(column, missing=tally.missing, reason=reason)
    distinct = tally.distinct
    free = kind == "category" and (tally.wide or (distinct > FEW and distinct * 2 > values))
    reason = ""
    if free:
        reason = (
            "Almost every row has a text of its own, as names, ids and sentences are."
            if not tally.wide
            else "It has more different texts, or longer ones, than categories have."
        )
    elif distinct == 1 and not tally.missing:
        reason = "It has one value."
    return Column(
        index=n,
        name=name,
        type="text" if free else cast("Kind", kind),
        role="ignored" if reason else "feature",
        reason=reason,
        missing=tally.missing,
        distinct=distinct,
        categories=_listed(tally.values.most_common()) if not free else [],
    )


def _numbers(n: int, name: str, kind: Kind, figures: Figures, *, role: Literal["feature", "target", "ignored"]) -> Column:
    dates = kind == "date"
    return Column(
        index=n,
        name=name,
        type=kind,
        role=role,
        distinct=figures.distinct,
        minimum=_date(figures.minimum) if dates else figures.minimum,
        maximum=_date(figures.maximum) if dates else figures.maximum,
        mean=None if dates else figures.mean,
        deviation=None if dates else figures.deviation,
        histogram=[] if dates else figures.histogram,
    )


def _listed(counts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    return [(value[:SHOWN], times) for value, times in ordered[:LISTED]]


def _all_figures(table: pl.LazyFrame, draft: Draft, names: list[str], say: Say) -> dict[int, Figures]:
    wanted = [n for n, kind in draft.kinds.items() if kind in ("integer", "numeric", "date") and draft.tallies[n].missing < draft.kept]
    size = max(1, GROUP_CELLS // draft.kept)
    found: dict[int, Figures] = {}
    for start in range(0, len(wanted), size):
        group = wanted[start : start + size]
        frame = table.select([place(n) for n in group]).collect()
        found |= {
            n: _figures(frame[place(n)].drop_nulls(), with_counts=n == draft.target, exact=n == draft.target or _ID.fullmatch(names[n]) is not None)
            for n in group
        }
        say(Progress(done=0))
    return found


def _figures(values: pl.Series, *, with_counts: bool, exact: bool) -> Figures:
    dates = isinstance(values.dtype, pl.Datetime)
    values = values.cast(pl.Int64) if dates else values
    distinct = cast("int", values.approx_n_unique())
    if exact or distinct <= ESTIMATED_FROM:
        distinct = values.n_unique()
    minimum, maximum = float(cast("float", values.min())), float(cast("float", values.max()))
    mean, deviation = (_finite(values.mean()), _finite(values.std(ddof=0))) if not dates else (None, None)
    whole = values.dtype == pl.Int64 or bool((values == values.floor()).all())
    counts: list[tuple[str, int]] = []
    if with_counts and distinct <= CLASSES:
        counts = [(text, times) for text, times in class_names(values, whole=whole).value_counts(sort=True).iter_rows()]
    return Figures(
        distinct=distinct,
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        deviation=deviation,
        histogram=_histogram(values, minimum, maximum) if not dates else [],
        whole=whole,
        counts=counts,
    )


def class_names(values: pl.Series, *, whole: bool) -> pl.Series:
    return (values.cast(pl.Int64, strict=False) if whole else values).cast(pl.String)


def _histogram(values: pl.Series, minimum: float, maximum: float) -> list[tuple[float, int]]:
    width = (maximum - minimum) / BINS
    if not math.isfinite(width) or not width:
        return [(minimum, len(values))]
    counts = values.cast(pl.Float64).hist(bin_count=BINS, include_category=False)["count"].to_list()
    return [(minimum + n * width, times) for n, times in enumerate(counts)]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _date(microseconds: float) -> str:
    return (datetime(1970, 1, 1) + timedelta(microseconds=microseconds)).isoformat()  # noqa: DTZ001  # as the file has it


def _write(table: pl.LazyFrame, order: Order, columns: list[Column], target: _Target) -> None:
    kept = [column for column in columns if column.role != "ignored"]
    with open(order.snapshot, "wb", closefd=False) as snapshot:
        table.select(list(_selected(kept, target))).sink_parquet(snapshot, row_group_size=group_rows(len(kept)), metadata=_about(kept, target))


def _about(columns: list[Column], target: _Target) -> dict[str, str]:
    """In the file itself, for who trains on it: what each of its columns is, but for what people are shown of it."""
    plain = [msgspec.structs.replace(column, histogram=[], categories=[]) for column in columns]
    return {"trainyard.columns": msgspec.json.encode(plain).decode(), "trainyard.task": target.task}


def _selected(columns: list[Column], target: _Target) -> Iterator[pl.Expr]:
    for column in columns:
        values = pl.col(place(column.index))
        if column.role == "target" and target.task == "classification":
            values = (values.cast(pl.Int64, strict=False) if target.whole else values).cast(pl.String)
        elif column.role == "target":
            values = values.cast(pl.Float64)
        yield values.alias(column.name)
