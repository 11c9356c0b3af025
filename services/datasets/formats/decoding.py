"""JSON, read so that what is wrong with it can be said of one row."""

import json

import msgspec

from libs.rows import Unusable

from .row import not_utf8

_decode = msgspec.json.Decoder().decode


def parse(raw: bytes) -> object:
    """The value, or an Unusable. What msgspec refuses is read again by the more tolerant decoder, which says better what is wrong."""
    try:
        return _decode(raw)
    except UnicodeDecodeError:
        return not_utf8()
    except RecursionError:
        return too_deep()
    except msgspec.DecodeError:
        return _parse_tolerantly(raw)


def tolerant() -> json.JSONDecoder:
    """Lets NaN, 1e999, half characters and endless integers through as values, for the check of what can be stored to name them."""
    return json.JSONDecoder(parse_int=_integer)


def invalid(error: json.JSONDecodeError) -> Unusable:
    where = f"character {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
    return Unusable("json_invalid", f"Not valid JSON at {where}: {error.msg}.")


def too_deep() -> Unusable:
    return Unusable("not_storable", "The row is nested too deeply to be read.")


def _parse_tolerantly(raw: bytes) -> object:
    try:
        return tolerant().decode(raw.decode())
    except UnicodeDecodeError:
        return not_utf8()
    except RecursionError:
        return too_deep()
    except json.JSONDecodeError as error:
        return invalid(error)


def _integer(digits: str) -> int:
    return int(digits[:40])  # int() refuses thousands of digits; what is beyond 64 bits stays so when cut
