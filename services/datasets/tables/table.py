"""From a table's texts to typed columns: read as its beginning suggests, and once more where a later value says otherwise."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO

import polars as pl
from polars.io.plugins import register_io_source

from libs.sniff import HEAD, sniff
from services.datasets.confined.frames import Order, Prepared, Progress, Refusal, Say

from . import readings
from .delimited import Delimited
from .parquet import Parquet
from .profile import Draft, finish
from .readings import Booleans, Dates, Reading, Texts
from .records import Records
from .source import Batch, Source, count, group_rows, place
from .tally import Tally

SAMPLE = 1_000
"""Rows whose texts suggest how a column is to be read."""
WITNESSES = 100
"""Values that a reading failed on and that the next has to account for, of one column and batch."""
TRIES = 5
"""A column that has to be understood anew more often is text."""
TOLERATED = 0.05
"""The share of a feature's values that may be something else than numbers or dates, and are then missing: a typing error makes no column useless."""
TARGETS = ("label", "target", "class", "y")
_KINDS: dict[type[pl.DataType], str] = {pl.Int64: "integer", pl.Float64: "numeric", pl.Boolean: "boolean", pl.Datetime: "date", pl.String: "category"}


def read(file: IO[bytes], order: Order, say: Say) -> Prepared:
    source = opened(file, order, say)
    table = Table(source, order, say)
    draft = table.draft()
    return finish(draft, order, say, names=source.names, unreadable=source.unreadable, notes=[*source.notes, *table.notes()])


def opened(file: IO[bytes], order: Order, say: Say) -> Source:
    limits = order.limits
    file.seek(0)
    head = file.read(HEAD)
    if head.startswith(b"PAR1"):
        return Parquet(file, most_columns=limits.columns, most_rows=limits.rows)
    if sniff(head) in ("application/json", "application/jsonl"):
        return Records(file, most_columns=limits.columns, say=say)
    return Delimited(file, most_columns=limits.columns)


class Table:
    """Each pass writes a draft; the one in which no reading fails is the last."""

    def __init__(self, source: Source, order: Order, say: Say) -> None:
        self._source = source
        self._order = order
        self._say = say
        self._indexes = [n for n in range(len(source.names)) if n not in source.unreadable]
        batches = source.batches()
        ahead: list[Batch] = []
        for batch in batches:
            ahead.append(batch)
            if batch.frame.height:
                break
        self._batches = chain(ahead, batches)
        self._sample = self._texts(ahead[-1].frame) if ahead else {}
        self._target_note = ""
        self._target = self._find_target()
        self._readings: dict[int, Reading] = {n: self._first_told(n) for n in self._sample}
        self._tries = Counter[int]()
        self._odd: dict[int, str] = {}
        """An example of the values that aren't what the others of a column are."""
        self._begin()

    def draft(self) -> Draft:
        self._pass()
        while self._failed or self._too_odd():
            self._batches = chain[Batch](self._source.batches())
            self._begin()
            self._pass()
        if not self._kept:
            raise self._no_rows()
        return Draft(
            kinds={n: self._kind(n) for n in self._indexes},
            tallies=self._tallies,
            target=self._target,
            rows=self._rows,
            kept=self._kept,
            refused=dict(self._refused),
        )

    def notes(self) -> list[str]:
        names = self._source.names
        tokens = Counter[str]()
        for tally in self._tallies.values():
            tokens.update(tally.tokens)
        infinite = {n: tally.infinite for n, tally in self._tallies.items() if tally.infinite and n != self._target}
        notes = [self._target_note] if self._target_note else []
        if tokens:
            told = ", ".join(f"{token!r} ({times:,})" for token, times in tokens.most_common(10))
            notes.append(f"Read as missing: {told}.")
        if infinite:
            told = ", ".join(f"{names[n]!r} ({times:,})" for n, times in list(infinite.items())[:10])
            notes.append(f"Infinite values were taken for missing ones: {told}.")
        for n, reading in self._readings.items():
            if odd := self._tallies[n].odd:
                notes.append(
                    f"{odd:,} values of {names[n]!r}, like {self._odd[n][:50]!r}, are none of the kind that the others are, and were taken for missing ones."
                )
            elif n in self._odd and isinstance(reading, Texts):
                notes.append(f"{names[n]!r} is read as text, because of values like {self._odd[n][:50]!r}.")
            elif isinstance(reading, Dates) and not reading.told:
                order = "day/month" if reading.day_first else "month/day"
                notes.append(f"The dates of {names[n]!r} don't tell day from month; they were read as {order}.")
        commas = [names[n] for n, reading in self._readings.items() if isinstance(reading, readings.CommaNumbers)]
        if commas:
            notes.append(f"Commas stand before the decimals of {', '.join(map(repr, commas[:10]))}{' and others' if len(commas) > 10 else ''}.")
        return notes

    def _begin(self) -> None:
        self._rows = self._kept = 0
        self._refused = Counter[str]()
        self._failed = False
        self._tallies = {n: Tally(counted=self._kind(n) in ("category", "boolean")) for n in self._indexes}

    def _pass(self) -> None:
        fault: list[BaseException] = []

        def frames(*_: object) -> Iterator[pl.DataFrame]:
            try:
                for batch in self._batches:
                    frame = self._typed(batch)
                    self._say(Progress(done=self._source.done // 2))  # the other half is for what comes after
                    if frame.height and not self._failed:
                        yield frame
            except BaseException as error:
                fault.append(error)
                raise

        schema = {place(n): self._dtype(n) for n in self._indexes}
        os.ftruncate(self._order.draft, 0)
        os.lseek(self._order.draft, 0, os.SEEK_SET)
        try:
            with open(self._order.draft, "wb", closefd=False) as draft:
                register_io_source(frames, schema=schema).sink_parquet(
                    draft, compression="uncompressed", statistics=False, row_group_size=group_rows(len(schema))
                )
        except pl.exceptions.PolarsError:
            if fault:
                raise fault[0] from None
            raise

    def _typed(self, batch: Batch) -> pl.DataFrame:
        """Its values, without the rows that have no target."""
        texts = batch.frame
        self._rows += texts.height + sum(batch.refused.values())
        if self._rows > self._order.limits.rows:
            raise Refusal(
                "too_many_rows", f"The table has more than {self._order.limits.rows:,} rows, which are the most. Divide it, or draw some of its rows."
            )
        self._refused.update(batch.refused)
        typed = texts.select([self._value(n).alias(place(n)) for n in self._indexes])
        nulls = dict(zip(self._indexes, typed.null_count().row(0), strict=True)) if typed.height else {}
        for n, missing in nulls.items():
            if missing and not self._account(n, texts[place(n)].filter(typed[place(n)].is_null())):
                self._failed = True
        if self._failed:
            return typed.clear()
        typed = self._with_target(typed, texts)
        self._kept += typed.height
        for n in self._indexes:
            self._tallies[n].add(typed[place(n)])
        wide = [n for n in self._indexes if self._tallies[n].wide and n != self._target and self._kind(n) == "category"]
        return typed.with_columns([pl.lit(None, dtype=pl.String).alias(place(n)) for n in wide])  # nobody will learn from them

    def _value(self, n: int) -> pl.Expr:
        column = pl.col(place(n))
        if reading := self._readings.get(n):
            return reading.typed(column)
        return readings.finite(column) if isinstance(self._source.types[n], pl.Float64) else column

    def _account(self, n: int, lost: pl.Series) -> bool:
        """Whether what became null stands for a missing value. Where it doesn't, the column is understood anew."""
        tally, reading = self._tallies[n], self._readings.get(n)
        if reading is None:
            tally.infinite += int(lost.is_infinite().sum()) if lost.dtype == pl.Float64 else 0
            return True
        witnesses: dict[str, int] = {}
        for text, times in lost.value_counts().iter_rows():
            if readings.is_missing(text):
                tally.absent += times
                if bare := text.strip():
                    tally.tokens[bare] += times
            elif reading.kind in ("integer", "numeric") and readings.is_infinite(text):
                tally.infinite += times
            else:
                witnesses[text] = times
        if not witnesses:
            return True
        if fitting := sorted(text for text in witnesses if readings.fits(text, reading.kind)):
            self._sample[n] += fitting[:WITNESSES]
            self._tries[n] += 1
            better = self._told(n) if self._tries[n] <= TRIES else Texts()
            if better != reading:
                return self._anew(n, better, witnesses)
        if not self._tolerates(n):
            return self._anew(n, Texts(), witnesses)
        tally.odd += sum(witnesses.values())
        self._odd.setdefault(n, min(witnesses))
        return True

    def _anew(self, n: int, reading: Reading, witnesses: Iterable[str]) -> bool:
        if isinstance(reading, Texts):
            self._odd[n] = min(witnesses)
        self._readings[n] = reading
        return False

    def _too_odd(self) -> bool:
        """Columns that hold more of something else than typing errors are texts after all."""
        found = [n for n, tally in self._tallies.items() if tally.odd > TOLERATED * (self._rows - tally.absent)]
        self._readings |= dict.fromkeys(found, Texts())
        return bool(found)

    def _tolerates(self, n: int) -> bool:
        return self._readings[n].kind in ("integer", "numeric", "date") and not self._names_classes(n)

    def _names_classes(self, n: int) -> bool:
        return n == self._target and self._order.dataset_type.strip().casefold() != "regression"

    def _with_target(self, typed: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
        target = place(self._target)
        lost = typed[target].is_null()
        if not (missing := int(lost.sum())):
            return typed
        if texts[target].dtype == pl.Float64:
            infinite, unreadable = int(texts[target].filter(lost).is_infinite().sum()), 0
        else:
            counts = {str(text or ""): times for text, times in texts[target].filter(lost).value_counts().iter_rows()}
            infinite = sum(times for text, times in counts.items() if readings.is_infinite(text))
            unreadable = sum(times for text, times in counts.items() if not readings.is_missing(text)) - infinite
        count(self._refused, "target_infinite", infinite)
        count(self._refused, "target_unreadable", unreadable)
        count(self._refused, "target_missing", missing - infinite - unreadable)
        return typed.filter(~lost)

    def _told(self, n: int) -> Reading:
        reading = readings.told(self._sample[n], decimal=self._source.decimal)
        return Texts() if n == self._target and isinstance(reading, Booleans | Dates) else reading  # the names of classes

    def _first_told(self, n: int) -> Reading:
        reading = self._told(n)
        if isinstance(reading, Texts) and not self._names_classes(n):
            for kind in ("numeric", "date"):
                fitting = [text for text in self._sample[n] if readings.fits(text, kind)]
                if len(fitting) >= (1 - TOLERATED) * len(self._sample[n]) and not isinstance(
                    better := readings.told(fitting, decimal=self._source.decimal), Texts
                ):
                    self._sample[n] = fitting
                    return better
        return reading

    def _texts(self, frame: pl.DataFrame) -> dict[int, list[str]]:
        head = frame.head(SAMPLE)
        untyped = [n for n in self._indexes if n not in self._source.types]
        return {n: [text for text in head[place(n)].to_list() if not readings.is_missing(text)] for n in untyped}

    def _find_target(self) -> int:
        names, wanted = self._source.names, self._order.target
        folded = [name.strip().casefold() for name in names]
        if wanted:
            found = names.index(wanted) if wanted in names else folded.index(key) if (key := wanted.strip().casefold()) in folded else None
            if found is None:
                known = ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "")
                raise Refusal("target_not_found", f"There is no column {wanted[:200]!r} to be the target. The columns are {known}.")
        else:
            found = next((folded.index(name) for name in TARGETS if name in folded), None)
            if found is None:
                with_values = [n for n in self._indexes if n in self._source.types or self._sample.get(n)]
                found = (with_values or self._indexes or [0])[-1]
                self._target_note = f"The target is {names[found]!r}, the last column, because nobody named another."
            else:
                self._target_note = f"The target is {names[found]!r}, going by its name."
        if why := self._source.unreadable.get(found):
            raise Refusal("target_unreadable", f"The target {names[found]!r} can't be learned. {why}")
        return found

    def _dtype(self, n: int) -> pl.DataType:
        return self._readings[n].dtype if n in self._readings else self._source.types[n]

    def _kind(self, n: int) -> str:
        return self._readings[n].kind if n in self._readings else _KINDS[type(self._source.types[n])]

    def _no_rows(self) -> Refusal:
        if not self._rows:
            return Refusal("header_only", "The table has a header and no rows.")
        why = ", ".join(f"{reason} ({times:,})" for reason, times in self._refused.items())
        return Refusal("no_usable_rows", f"None of the {self._rows:,} rows can be used: {why}.")
