"""What is counted of a column while its batches go by."""

from collections import Counter

import polars as pl

TOLD_APART = 1_000
"""Different texts that are counted; a column with more is free text."""
LONGEST = 1_000
"""Bytes of a text that may be a category."""


class Tally:
    def __init__(self, *, counted: bool) -> None:
        self.missing = 0
        self.tokens = Counter[str]()
        """What stood where values were missing."""
        self.absent = 0
        """Texts that stand for no value."""
        self.infinite = 0
        self.odd = 0
        """Values that are nothing of what the others are, and were taken for missing ones."""
        self.values = Counter[str]()
        self.wide = False
        """There are more different texts than are counted, or they are too long for categories."""
        self._counted = counted

    def add(self, values: pl.Series) -> None:
        self.missing += values.null_count()
        if not self._counted or self.wide:
            return
        texts = values.cast(pl.String)
        counts = texts.drop_nulls().value_counts()
        if counts.height > TOLD_APART or (counts.get_column(values.name).str.len_bytes().max() or 0) > LONGEST:  # pyright: ignore[reportOperatorIssue]
            self.wide = True
        else:
            for text, times in counts.iter_rows():
                self.values[text] += times
            self.wide = len(self.values) > TOLD_APART
        if self.wide:
            self.values.clear()

    @property
    def distinct(self) -> int:
        return TOLD_APART + 1 if self.wide else len(self.values)
