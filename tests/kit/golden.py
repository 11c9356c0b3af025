"""Events as they were once written. `python -m tests.kit.golden` adds what is missing and never touches what is there."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from libs.events import EVENTS, Event, Origin, Recorded, decode, encode
from libs.events.catalog import envelope

FOLDER = Path(__file__).parents[1] / "events" / "golden"
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


def files(event_type: str) -> list[Path]:
    """The oldest first: `job.created.1.json`, and `job.created.1-2.json` once a field was added."""
    return sorted(FOLDER.glob(f"{event_type}.*.json"), key=lambda file: (len(file.name), file.name))


def read(file: Path) -> tuple[bytes, Recorded]:
    body = file.read_bytes().rstrip(b"\n")
    return body, decode(body, seq=1, subject="ev.golden")


def written_today(event: Event) -> bytes:
    return encode(envelope(event, origin=ORIGIN, source=SOURCE, id=ID, at=AT))


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


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for event_type, event in EVENTS.items():
        there, body = files(event_type), written_today(sample(event))
        if any(read(file)[0] == body for file in there):
            continue
        number = sum(file.name.startswith(f"{event_type}.{event.SCHEMA}") for file in there)
        file = FOLDER / f"{event_type}.{event.SCHEMA}{f'-{number + 1}' if number else ''}.json"
        file.write_bytes(body + b"\n")
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
