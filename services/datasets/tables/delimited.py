"""CSV as people write it: any usual delimiter, encoding and quoting, with a header or without. Lines of another width are counted, none is bent into shape."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

import polars as pl

from services.datasets.confined.frames import Refusal

from . import readings
from .source import Batch, count, named, place, too_many_columns

PIECE = 8 * 1024 * 1024
HEAD = 4 * 1024 * 1024
"""Bytes that tell how the rest is written: a header of the most and longest names fits."""
LOOKED_AT = 200
"""Records of the head that tell how the rest is written."""
LONGEST_RECORD = 4 * 1024 * 1024
DELIMITERS = (";", "\t", "|", ",")
"""The comma last: where another divides every line alike, commas stand before decimals."""
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
CONTROLS = 0.02
"""The share of control characters from which on a file is no text."""

_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1f\x7f]")
_SEPARATOR = re.compile(r"sep=(.)\n", re.IGNORECASE)


class Encoding(NamedTuple):
    name: str
    skip: int = 0
    """Bytes of the byte order mark."""


class Delimited:
    def __init__(self, file: IO[bytes], *, most_columns: int) -> None:
        csv.field_size_limit(LONGEST_RECORD * 2)
        self.types: dict[int, pl.DataType] = {}
        self.unreadable: dict[int, str] = {}
        self.notes: list[str] = []
        self.done = 0
        self._file = file
        self._encoding = _encoding(file)
        if self._encoding.name in ("cp1252", "latin-1"):
            self.notes.append("The file is not UTF-8; it was read as Windows-1252 (Latin-1).")
        elif self._encoding.name.startswith("utf-16"):
            self.notes.append("The file was read as UTF-16.")
        head = self._head()
        self._line_end = "\r" if "\n" not in head and "\r" in head else "\n"
        head = _unix(head, self._line_end)
        self._skip_line = False
        if hint := _SEPARATOR.match(head):
            self._skip_line, head = True, head[hint.end() :]
        self._delimiter = hint[1] if hint and hint[1] in DELIMITERS else _delimiter(head)
        self._spaced = re.search(rf'{re.escape(self._delimiter)} +"', head) is not None
        records = _sample(head, self._delimiter, spaced=self._spaced)
        width = _width(records)
        if width < 2:
            raise Refusal(
                "one_column",
                f"The table has one column: its lines are divided by none of {', '.join(NAMES.values())}. There must be a target and something to tell it by.",
            )
        self._has_header = _has_header(records)
        header = self._widened(records, width) if self._has_header else [""] * width
        self.names = named(header, self.notes)
        self._width = len(self.names)
        self._header_fits = len(records[0]) == self._width
        if self._width > most_columns:
            raise too_many_columns(self._width, most_columns)
        if not self._has_header:
            self.notes.append(f"The file has no header; its columns are called column_1 to column_{self._width}.")
        if self._delimiter != ",":
            self.notes.append(f"Its columns are divided by {NAMES[self._delimiter]}.")
        body = [record for record in records[self._has_header :] if len(record) == self._width]
        columns = ([text for text in column if not readings.is_missing(text)] for column in zip(*body, strict=True))
        self.decimal = readings.decimal_of(columns, otherwise="." if self._delimiter == "," else ",")

    def batches(self) -> Iterator[Batch]:
        self.done = self._encoding.skip
        header = self._has_header
        held = b""
        pieces = self._pieces()
        piece = next(pieces, None)
        while piece is not None:
            following = next(pieces, None)
            frame, refused, held = self._parsed(held + piece, last=following is None)
            if len(held) > LONGEST_RECORD * 4:
                raise Refusal("row_too_large", f"A line of the file is longer than {LONGEST_RECORD >> 20} MiB.")
            if header and (frame.height or refused):
                header = False
                if self._header_fits:
                    frame = frame.slice(1)
                else:
                    refused = Counter(refused) - Counter(ragged=1)
            yield Batch(frame, refused)
            piece = following

    def _head(self) -> str:
        self._file.seek(self._encoding.skip)
        raw = self._file.read(HEAD)
        return codecs.getincrementaldecoder(self._encoding.name)().decode(raw)

    def _pieces(self) -> Iterator[bytes]:
        """UTF-8, with line ends of one kind as far as they are whole."""
        self._file.seek(self._encoding.skip)
        decoder = None if self._encoding.name == "utf-8" else codecs.getincrementaldecoder(self._encoding.name)()
        skip = self._skip_line
        while raw := self._file.read(PIECE):
            self.done += len(raw)
            while raw.endswith(b"\r") and (more := self._file.read(1)):  # its other half may come
                raw += more
                self.done += 1
            piece = raw if decoder is None else decoder.decode(raw).encode()
            piece = piece.replace(b"\r\n", b"\n") if self._line_end == "\n" else piece.replace(b"\r", b"\n")
            if skip:
                piece, skip = piece.partition(b"\n")[2], False
            yield piece

    def _parsed(self, piece: bytes, *, last: bool) -> tuple[pl.DataFrame, dict[str, int], bytes]:
        """Its records, and what of it is no whole record yet."""
        if last:
            whole, held = (piece if piece.endswith(b"\n") or not piece else piece + b"\n"), b""
        else:
            cut = piece.rfind(b"\n") + 1
            if cut and piece.count(b'"', 0, cut) % 2:
                cut = _even(piece, cut)
            whole, held = piece[:cut], piece[cut:]
        if not whole:
            return self._empty(), {}, held
        found = None if self._spaced and b'"' in whole else self._fast(whole)
        if found:
            return *found, held
        return self._slow(whole.decode(), held, last=last)

    def _fast(self, piece: bytes) -> tuple[pl.DataFrame, dict[str, int]] | None:
        """A mark at each line's end, in a column of its own, shows which lines are as wide as they should be. None: quotes are not where they belong."""
        quoted = b'"' in piece
        mark = next(sign for sign in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", b"\x06", b"\x07", b"") if sign not in piece or not sign)
        if not mark:
            return None
        end = self._delimiter.encode() + mark + b"\n"
        try:
            frame = pl.read_csv(
                piece.replace(b"\n", end),
                has_header=False,
                schema={place(n): pl.String() for n in range(self._width + 1)},
                separator=self._delimiter,
                quote_char='"' if quoted else None,
                empty_string_is_null=False,
                extra_columns="ignore",
                missing_columns="insert",
            )
        except pl.exceptions.PolarsError:
            return None
        last, sign = place(self._width), mark.decode()
        right = frame[last] == sign
        wrong = frame.height - int(right.sum())
        if wrong and quoted:
            return None
        refused = Counter[str]()
        if wrong:
            blank = int(frame.select(((pl.col(place(0)).str.strip_chars() == "") & (pl.col(place(1)) == sign)).sum()).item())
            count(refused, "ragged", wrong - blank)
            frame = frame.filter(right)
        lines = piece.count(b"\n")
        if quoted and lines != frame.height:
            frame = frame.with_columns(pl.exclude(last).str.replace_all(end.decode(), "\n", literal=True))
        return frame.drop(last), refused

    def _slow(self, text: str, held: bytes, *, last: bool) -> tuple[pl.DataFrame, dict[str, int], bytes]:
        """Record by record, as the library of Python reads them. A quote that is never closed, or goes on behind its end, costs the line that it is in and no other."""
        lines = _Lines(text.replace("\r", " ").split("\n")[:-1])
        rows: list[list[str]] = []
        refused = Counter[str]()
        while not lines.ended:
            try:
                for cells in csv.reader(lines, delimiter=self._delimiter, skipinitialspace=self._spaced, strict=True):
                    if lines.ended:
                        raise _Unclosed
                    lines.begin = lines.at
                    if not cells or (len(cells) == 1 and not cells[0].strip()):
                        continue
                    if len(cells) == self._width:
                        rows.append(cells)
                    else:
                        count(refused, "ragged")
            except (_Unclosed, csv.Error):
                if lines.ended and not last and lines.size_from_begin() < LONGEST_RECORD:
                    held = lines.rest().encode() + held
                    break
                count(refused, "bad_quotes")
                lines.leave_out()
        columns = list(zip(*rows, strict=True)) or [()] * self._width
        frame = pl.DataFrame({place(n): pl.Series(column, dtype=pl.String) for n, column in enumerate(columns)})
        return frame, refused, held

    def _empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema={place(n): pl.String() for n in range(self._width)})

    def _widened(self, records: list[list[str]], width: int) -> list[str]:
        """The header, where it names one column less or more than the lines have."""
        header = records[0]
        body = [record for record in records[1:] if len(record) == width]
        if width == len(header) + 1 and body:
            ends = all(not record[-1].strip() for record in body)
            return [*header, ""] if ends else ["", *header]
        if width == len(header) - 1 and body and not header[-1].strip():
            return header[:-1]
        return header


class _Unclosed(Exception):
    """A record went on to the end."""


class _Lines:
    """Feeds csv.reader, and knows where the record began that it is in."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self.at = self.begin = 0
        self.ended = not lines
        self._size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.at == self.begin:
            self._size = 0
        if self.at == len(self._lines):
            self.ended = True
            raise StopIteration
        line = self._lines[self.at] + "\n"
        self._size += len(line)
        if self._size > LONGEST_RECORD:
            raise _Unclosed
        self.at += 1
        return line

    def size_from_begin(self) -> int:
        return self._size

    def rest(self) -> str:
        return "".join(line + "\n" for line in self._lines[self.begin :])

    def leave_out(self) -> None:
        """Goes on behind the first line of the record."""
        self.begin += 1
        self.at = self.begin
        self.ended = self.at >= len(self._lines)


def _even(piece: bytes, cut: int) -> int:
    """The last line's end that no quote is open at, as far as that can be told; else the last."""
    before, quotes = cut, piece.count(b'"', 0, cut)
    for _ in range(1_000):
        earlier = piece.rfind(b"\n", 0, before - 1) + 1
        if not earlier:
            return cut
        quotes -= piece.count(b'"', earlier, before)
        before = earlier
        if quotes % 2 == 0:
            return before
    return cut


def _encoding(file: IO[bytes]) -> Encoding:
    """All of the file is looked at."""
    file.seek(0)
    head = file.read(HEAD)
    if head.startswith(codecs.BOM_UTF8):
        return _checked(file, Encoding("utf-8", 3))
    if head.startswith(codecs.BOM_UTF16_LE):
        return _checked(file, Encoding("utf-16-le", 2))
    if head.startswith(codecs.BOM_UTF16_BE):
        return _checked(file, Encoding("utf-16-be", 2))
    if not head.strip():
        raise Refusal("empty", "The file holds nothing but blanks.")
    zeros = head.count(b"\0")
    if zeros > len(head) // 4:  # half of the bytes of most letters
        even = head[::2].count(b"\0")
        if min(even, zeros - even) * 20 < zeros:
            return _checked(file, Encoding("utf-16-be" if even * 2 > zeros else "utf-16-le"))
    return _checked(file, Encoding("utf-8"))


def _checked(file: IO[bytes], encoding: Encoding) -> Encoding:
    file.seek(encoding.skip)
    decoder = codecs.getincrementaldecoder(encoding.name)()
    wide = encoding.name.startswith("utf-16")
    first = fits = True
    while True:
        raw, text = file.read(PIECE), ""
        if fits:
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError:
                if wide or encoding.skip:
                    raise Refusal(
                        "encoding_invalid", f"The file says that it is {encoding.name.upper()}, and isn't. Save it as UTF-8 and upload that."
                    ) from None
                fits = False
        if not raw:
            break
        if first and _is_binary(text[:HEAD] if wide else raw[:HEAD].decode("latin-1")):
            raise Refusal("binary", "The file is no text that a table could be read from. Upload a table (CSV, JSON, Parquet) or a ZIP of images.")
        if "\0" in text if wide else b"\0" in raw:
            raise Refusal("nul", "The file holds the character NUL, which no table has. It may be damaged; save it anew and upload that.")
        first = False
    if fits:
        return encoding
    file.seek(0)
    return Encoding("cp1252" if _all_decode(file, "cp1252") else "latin-1")


def _all_decode(file: IO[bytes], name: str) -> bool:
    try:
        while raw := file.read(PIECE):
            raw.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _is_binary(head: str) -> bool:
    return len(_CONTROL.findall(head)) > CONTROLS * len(head)


def _unix(text: str, line_end: str) -> str:
    return text.replace("\r\n", "\n") if line_end == "\n" else text.replace("\r", "\n")


def _sample(head: str, delimiter: str, *, spaced: bool = False) -> list[list[str]]:
    """The first records, without blank lines. One that the head's end cuts is left out."""
    found: list[list[str]] = []
    reader = csv.reader(io.StringIO(head.replace("\r", " ") if "\n" in head else head, newline="\n"), delimiter=delimiter, skipinitialspace=spaced)
    try:
        for record in reader:
            if record and (len(record) > 1 or record[0].strip()):
                found.append(record)
            if len(found) > LOOKED_AT:
                break
    except csv.Error:
        pass  # a field that never ends
    if len(found) > 1 and len(found) <= LOOKED_AT and len(head) >= HEAD // 4:
        found.pop()
    return found


def _delimiter(head: str) -> str:
    shares: dict[str, float] = {}
    for delimiter in DELIMITERS:
        records = _sample(head, delimiter)
        width = _width(records)
        if width < 2:
            continue
        shares[delimiter] = sum(len(record) == width for record in records) / len(records)
        if len(records[0]) == width and shares[delimiter] >= 0.98 and delimiter != ",":
            return delimiter
    return max(shares, key=lambda delimiter: shares[delimiter], default=",")


def _width(records: list[list[str]]) -> int:
    """Of most records; where it's even, of the first."""
    if not records:
        return 0
    widths = Counter(map(len, records))
    most = max(widths.values())
    first = len(records[0])
    return first if widths[first] == most else next(width for width, times in widths.items() if times == most)


def _has_header(records: list[list[str]]) -> bool:
    """A name over a column of numbers or dates says so; a number over such a column says no. Where all is text, a line of names that never come again is one."""
    first, rest = records[0], records[1:]
    below = [[record[n] for record in rest if n < len(record) and not readings.is_missing(record[n])] for n in range(len(first))]
    votes = [
        not readings.looks_like_data(cell)
        for cell, column in zip(first, below, strict=True)
        if column and not readings.is_missing(cell) and sum(map(readings.looks_like_data, column)) * 10 >= len(column) * 9
    ]
    if votes:
        return any(votes)
    if not rest:
        return not any(map(readings.looks_like_data, first))
    return all(cell.strip() for cell in first) and not any(cell in column for cell, column in zip(first, below, strict=True))
