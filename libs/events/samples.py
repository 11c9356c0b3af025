"""One made-up fact of each kind, with a value in every field: for examples, and for the files that hold the wire's form."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import inspect

from .catalog import envelope
from .envelope import CloudEvent, Event, Origin

SOURCE = "/golden"
ORIGIN = Origin(
    tenant="local",
    actor="user-1",
    correlation="019a0000-0000-7000-8000-000000000001",
    causation="019a0000-0000-7000-8000-000000000002",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
ID = "019a0000-0000-7000-8000-000000000003"
AT = datetime(2026, 11, 5, 6, 7, 8, 901234, tzinfo=UTC)


def enveloped(event: Event) -> CloudEvent:
    return envelope(event, origin=ORIGIN, source=SOURCE, id=ID, at=AT)


def sample(event: type[Event]) -> Event:
    """An event with a value in each of its fields."""
    return msgspec.convert(_value(inspect.type_info(event), name=""), event)


def _value(kind: inspect.Type, *, name: str) -> Any:
    match kind:
        case inspect.StructType(fields=fields, tag_field=tag_field, tag=tag):
            return ({tag_field: tag} if tag_field else {}) | {field.encode_name: _value(field.type, name=field.name) for field in fields}
        case inspect.ListType(item_type=item):
            return [_value(item, name=name.removesuffix("s"))]
        case inspect.DictType(value_type=item):
            return {"a": _value(item, name=name), "é 𝄞": _value(item, name=name)}
        case inspect.UnionType(types=types):
            return _value(next(member for member in types if not isinstance(member, inspect.NoneType)), name=name)
        case inspect.IntType():
            return 2**53 + 1
        case inspect.FloatType():
            return 0.1
        case inspect.BoolType():
            return True
        case inspect.AnyType():
            return {"text": "é", "number": 1.5, "none": None, "list": [1, True]}
        case inspect.StrType():
            return name
        case _:
            raise NotImplementedError(f"{name}: say here what a {kind} looks like")
