"""How the texts of a column are to be read: told by some of them, tried on all."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import polars as pl


def _cases(*words: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form for word in words for form in (word.lower(), word.upper(), word.capitalize())))


MISSING = (*_cases("", "na", "n/a", "#n/a", "null", "none", "?", "-"), "nan", "NaN", "NAN", "Nan")
"""What people write where there is no value."""
TRUE = _cases("true", "yes", "t", "y", "on")
FALSE = _cases("false", "no", "f", "n", "off")

_MISSING = frozenset(MISSING)
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?([eE][+-]?\d+)?")
_PADDED = re.compile(r"[+-]?0\d+")
_DATE = re.compile(
    r"(?:(?P<iso>\d{4}(?P<s1>[-/.])\d{1,2}(?P=s1)\d{1,2})|(?P<a>\d{1,2})(?P<s2>[-/.])(?P<b>\d{1,2})(?P=s2)\d{4})"
    r"(?:(?P<t>[T ])\d{1,2}:\d{2}(?P<seconds>:\d{2}(?P<fraction>\.\d{1,9})?)?(?P<zone>Z|[+-]\d{2}:?\d{2})?)?"
)


class Reading(ABC):
    """Accepts no text of a column that it couldn't read."""

    kind: str
    dtype: pl.DataType

    @abstractmethod
    def typed(self, texts: pl.Expr) -> pl.Expr:
        """The values, null where a text can't be read."""

    @abstractmethod
    def accepts(self, text: str) -> bool: ...


@dataclass(frozen=True)
class Integers(Reading):
    kind = "integer"
    dtype = pl.Int64()
    strip: bool = False

    def typed(self, texts: pl.Expr) -> pl.Expr:
        return (texts.str.strip_chars() if self.strip else texts).cast(pl.Int64, strict=False)

    def accepts(self, text: str) -> bool:
        return _INTEGER.fullmatch(text) is not None


@dataclass(frozen=True)
class Numbers(Reading):
    kind = "numeric"
    dtype = pl.Float64()
    strip: bool = False

    def typed(self, texts: pl.Expr) -> pl.Expr:
        return finite((texts.str.strip_chars() if self.strip else texts).cast(pl.Float64, strict=False))

    def accepts(self, text: str) -> bool:
        return _PLAIN.fullmatch(text) is not None


@dataclass(frozen=True)
class CommaNumbers(Reading):
    """A comma before the decimals, points between thousands."""

    kind = "numeric"
    dtype = pl.Float64()

    def typed(self, texts: pl.Expr) -> pl.Expr:
        bare = texts.str.strip_chars()
        plain = bare.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
        return pl.when(bare.str.contains(f"^(?:{_COMMA.pattern})$")).then(finite(plain))

    def accepts(self, text: str) -> bool:
        return _COMMA.fullmatch(text) is not None


@dataclass(frozen=True)
class GroupedNumbers(Reading):
    """Commas between thousands."""

    kind = "numeric"
    dtype = pl.Float64()

    def typed(self, texts: pl.Expr) -> pl.Expr:
        bare = texts.str.strip_chars()
        plain = bare.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False)
        return pl.when(bare.str.contains(f"^(?:{_GROUPED.pattern})$")).then(finite(plain))

    def accepts(self, text: str) -> bool:
        return _GROUPED.fullmatch(text) is not None


@dataclass(frozen=True)
class Booleans(Reading):
    kind = "boolean"
    dtype = pl.Boolean()

    def typed(self, texts: pl.Expr) -> pl.Expr:
        bare = texts.str.strip_chars()
        return pl.when(bare.is_in(TRUE)).then(True).when(bare.is_in(FALSE)).then(False)

    def accepts(self, text: str) -> bool:
        return text in TRUE or text in FALSE


@dataclass(frozen=True)
class Dates(Reading):
    """`forms` are those of chrono. Where day and month could be either, the whole column has them in one order."""

    kind = "date"
    dtype = pl.Datetime("us")
    forms: tuple[str, ...]
    day_first: bool
    told: bool
    """Whether a value told the order of day and month, or it doesn't matter."""

    def typed(self, texts: pl.Expr) -> pl.Expr:
        bare = texts.str.strip_chars()
        return pl.coalesce([_moment(bare, form) for form in self.forms])

    def accepts(self, text: str) -> bool:
        return any(form in self.forms for form in _forms([text], day_first=self.day_first) or [])


@dataclass(frozen=True)
class Texts(Reading):
    kind = "category"
    dtype = pl.String()

    def typed(self, texts: pl.Expr) -> pl.Expr:
        bare = texts.str.strip_chars()
        return pl.when(~bare.is_in(MISSING)).then(bare)

    def accepts(self, text: str) -> bool:
        return True


def finite(numbers: pl.Expr) -> pl.Expr:
    return pl.when(numbers.is_finite()).then(numbers)


def is_missing(text: str) -> bool:
    return text.strip() in _MISSING


def is_infinite(text: str) -> bool:
    """Too large for a number counts, too."""
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


def told(texts: list[str], *, decimal: str) -> Reading:
    """The narrowest reading of all these texts, of which none is missing."""
    bare = [text.strip() for text in texts]
    strip = bare != texts
    if any(map(_PADDED.fullmatch, bare)):
        return Texts()  # postal codes, and what else would lose its zeros
    numbers: list[Reading] = [Numbers(strip=strip), CommaNumbers(), GroupedNumbers()]
    if decimal == ",":
        numbers = [CommaNumbers(), Numbers(strip=strip), GroupedNumbers()]
    elif decimal == ".":
        numbers = [Numbers(strip=strip), GroupedNumbers(), CommaNumbers()]
    for reading in (Integers(strip=strip), *numbers, Booleans(), *_dates(bare)):
        if all(map(reading.accepts, bare)):
            return reading
    return Texts()


def fits(text: str, kind: str) -> bool:
    """Whether some reading of that kind might accept it."""
    bare = text.strip()
    if kind == "date":
        return _DATE.fullmatch(bare) is not None
    return kind in ("integer", "numeric") and any(form.fullmatch(bare) for form in (_PLAIN, _COMMA, _GROUPED))


def decimal_of(columns: Iterable[list[str]], *, otherwise: str) -> str:
    """What the columns of a table that are numbers and leave no doubt have before their decimals."""
    votes = {",": 0, ".": 0}
    for texts in columns:
        bare = [text.strip() for text in texts]
        plain, comma, grouped = (bool(bare) and all(map(form.fullmatch, bare)) for form in (_PLAIN, _COMMA, _GROUPED))
        if comma and not plain and not grouped:
            votes[","] += 1
        elif plain and not comma and any("." in text for text in bare):
            votes["."] += 1
    if votes[","] == votes["."]:
        return otherwise
    return max(votes, key=lambda sign: votes[sign])


def looks_like_data(cell: str) -> bool:
    """Nobody calls a column so."""
    bare = cell.strip()
    return any(form.fullmatch(bare) for form in (_PLAIN, _COMMA, _GROUPED, _DATE))


def _dates(bare: list[str]) -> Iterator[Dates]:
    matches = [_DATE.fullmatch(text) for text in bare]
    if not bare or not all(matches):
        return
    loose = [(int(match["a"]), int(match["b"]), match["s2"]) for match in matches if match and match["a"]]
    day, month = any(a > 12 for a, _, _ in loose), any(b > 12 for _, b, _ in loose)
    if day and month:
        return
    by_sign = all(sign != "/" for _, _, sign in loose)  # with points and dashes it is the day everywhere
    day_first = day or not month
    forms = _forms(bare, day_first=day_first)
    if forms and len(forms) <= 8:
        yield Dates(forms=tuple(forms), day_first=day_first, told=not loose or day or month or by_sign)


def _forms(bare: list[str], *, day_first: bool) -> list[str] | None:
    found: dict[str, None] = {}
    for text in bare:
        match = _DATE.fullmatch(text)
        if match is None:
            return None
        sign = match["s1"] or match["s2"]
        parts = ["%Y", "%m", "%d"] if match["iso"] else ["%d", "%m", "%Y"] if day_first else ["%m", "%d", "%Y"]
        form = sign.join(parts)
        if match["t"]:
            form += f"{match['t']}%H:%M" + (":%S" if match["seconds"] else "") + ("%.f" if match["fraction"] else "")
            form += "Z" if match["zone"] == "Z" else "%#z" if match["zone"] else ""
        found[form] = None
    return list(found)


def _moment(bare: pl.Expr, form: str) -> pl.Expr:
    moment = bare.str.to_datetime(form, strict=False, time_unit="us")
    return moment.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if form.endswith("z") else moment
