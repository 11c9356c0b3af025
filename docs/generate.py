"""The pages that the code itself can write: `make docs` writes them, `python -m docs.generate --check` tells which are stale."""

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
from msgspec.structs import FieldInfo

from infra.embedded.settings import Settings
from infra.nats.users import SERVICES
from libs.config import Datasets, Gateway, Service, Training, describe
from libs.events import EVENTS, CloudEvent, Event, JobCreated, Origin
from libs.events.asyncapi import document as events_api
from libs.events.catalog import LARGEST, envelope
from libs.events.subjects import SECRET_CATEGORIES

FOLDER = Path(__file__).parent
APP = "services.gateway.app"
NOTE = "<!-- Written by `make docs`: change the code it comes from instead. -->"
LIMITS = (
    "With `AUTH=jwt` a family's requests are limited as its document says; the owner of a machine (`AUTH=local`) has no limits. A request counts in one bucket: the user's, "
    "with whatever token or key; without a valid one that of the address at the other end of the connection (an IPv6 host is its /64). `X-Forwarded-For` and its like are not read. "
    "`/`, `/health`, `/livez`, `/readyz`, `/metrics`, the pages of documentation and a browser's preflights never count.",
    "Every answer has `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (the window's end, in seconds since 1970); one request too many is a 429 in the family's form with `Retry-After`. "
    "A window has a fixed length, and begins for each caller at a time of their own. A stream, a WebSocket or a download is one request, however long it is.",
    "All gateways count together, on the bus. While it doesn't answer within 100 ms, each gateway counts for itself (`trainyard_rate_limits_alone` is 1), from what it knew; afterwards it tells the others. "
    "`TRAINYARD_RATE_LIMITS` multiplies all limits, `TRAINYARD_ANONYMOUS_PER_HOUR` is the one for requests without a token ([settings](settings.md)).",
)
EXAMPLE = JobCreated(
    job_id="019a4f0e-5c1b-7d5e-9b7e-0c6a1f2d3e4f",
    kind="ingest",
    stages=["preparation"],
    inputs={
        "project_id": "019a4f0e-5bd2-7c44-a1b2-c3d4e5f60718",
        "file": {
            "file_id": "019a4f0e-5be0-7a31-8d21-5b0f6a7c8d9e",
            "filename": "answers.jsonl",
            "kind": "jsonl",
            "mime_type": "application/jsonl",
            "size": 48213,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "key": "local/019a4f0e-5bd2-7c44-a1b2-c3d4e5f60718/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
    },
    project_id="019a4f0e-5bd2-7c44-a1b2-c3d4e5f60718",
)
ORIGIN = Origin(tenant="local", actor="local", traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


def main(arguments: list[str]) -> int:
    written = {name: page() for name, page in PAGES.items()}
    if "--check" in arguments:
        return check(written)
    for name, text in written.items():
        (FOLDER / name).write_text(text)
    return 0


def check(written: dict[str, str]) -> int:
    stale = [name for name, text in written.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text]
    for name in stale:
        sys.stderr.write(f"docs/{name} is stale: run `make docs`\n")
    return 1 if stale else 0


def settings() -> str:
    every = describe(Service)
    known = {variable for variable, *_ in every}
    return _page(
        "# Settings",
        "Environment variables, or lines of a `.env` in the folder where a process starts; the environment wins. They are read once, at the start. "
        "`make up` sets what is required, so that none of them is needed on one machine.",
        "## Every process",
        _settings(every),
        "## The gateway besides",
        _settings([row for row in describe(Gateway) if row[0] not in known]),
        "## The datasets service besides",
        _settings([row for row in describe(Datasets) if row[0] not in known]),
        "## The training service besides",
        _settings([row for row in describe(Training) if row[0] not in known]),
        "## `make up`",
        "What `python -m infra.embedded` itself can be told; it passes everything else on to the services.",
        _settings(describe(Settings)),
    )


def events() -> str:
    return _page("# Events", *_intro(), "## The envelope", *_envelope(), *_categories(), *_shapes())


def limits() -> str:
    families = import_module("services.gateway.api.families").FAMILIES
    rows = [
        (
            family.name,
            bucket.covers,
            f"{bucket.limit:,}",
            {1: "a second", 60: "a minute", 3600: "an hour"}[bucket.seconds],
            "all gateways together" if bucket.shared else "each gateway",
        )
        for family in families
        for bucket in family.buckets
    ]
    return _page("# Limits on requests", *LIMITS, _table(("family", "requests", "limit", "within", "counted by"), rows))


def openapi() -> str:
    document = import_module(APP).openapi()
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def asyncapi() -> str:
    document = events_api(version=import_module(APP).app_version())
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[], str]] = {"settings.md": settings, "events.md": events}
if find_spec(APP):
    PAGES |= {"asyncapi.json": asyncapi, "openapi.json": openapi, "limits.md": limits}


def _settings(rows: list[tuple[str, str, str, str]]) -> str:
    cells = [(f"`{variable}`", kind, default if default in {"", "required"} else f"`{default}`", meaning) for variable, kind, default, meaning in rows]
    return _table(("variable", "type", "default", "meaning"), cells)


def _intro() -> Iterator[str]:
    yield (
        "All facts there are, by category. A category has one writer, and the bus lets nobody else write it. Facts are never changed: fields are only added, with a default, "
        "and whoever reads passes by the types and fields that are new to it."
    )
    yield (
        "A fact's subject is `ev.<tenant>.<category>.<event>.<id>`, with the parent's id before its own where there is one. The stream `EV` keeps all of them; as they happen "
        "they are also published under `feed.` instead of `ev.`. A consumer of the stream gets each fact in order and at least once (its `id` tells a repetition); a subscription to the feed "
        "gets what happens while it is there ([consumers.md](consumers.md): who may, and how nothing is missed). All facts of a job, whoever wrote them, are `ev.<tenant>.*.*.<job_id>`. "
        f"The data of a fact has at most {LARGEST // 1024} KiB: more lies in the object store, and the fact carries a [`Claim`](#shapes-within-events). "
        "The Python classes are in `libs/events`, which ships alone as `trainyard_events`; `libs.events.schema()` is their JSON Schema."
    )


def _envelope() -> Iterator[str]:
    example = envelope(
        EXAMPLE, origin=ORIGIN, source="/gateway", id="019a4f0e-5c1c-7f00-8a9b-1c2d3e4f5a6b", at=datetime(2026, 1, 5, 9, 30, 0, 125000, tzinfo=UTC)
    )
    yield _summary(CloudEvent)
    yield (
        "`source` is the service that wrote it, `subject` the aggregate within its `tenant`, `dataschema` the type and the number of its shape. `actor` is who wanted it, "
        "`causationid` the fact that led to it, and `correlationid` the first of all that led here: the trail of a model back to its data. `data` repeats `type`, so that it can be read alone. "
        "What is empty is left out."
    )
    yield _fields(CloudEvent)
    yield "For example:"
    yield f"```json\n{msgspec.json.format(msgspec.json.encode(example), indent=2).decode()}\n```"


def _categories() -> Iterator[str]:
    for category in dict.fromkeys(name.split(".")[0] for name in EVENTS):
        names = [name for name in EVENTS if name.startswith(f"{category}.")]
        yield f"## {category}"
        yield f"Written by: {_owner(category)}. {inspect.getdoc(inspect.getmodule(EVENTS[names[0]])) or ''}"
        for name in names:
            yield from _event(name, EVENTS[name])


def _event(name: str, event: type[Event]) -> Iterator[str]:
    yield f"### `{name}`"
    if summary := _summary(event):
        yield summary
    category, short = name.split(".", 1)
    schema = f", schema {event.SCHEMA}" if event.SCHEMA > 1 else ""
    home = event.TENANT or f"<{event.HOME or 'tenant'}>"
    yield f"`{_root(category)}.{home}.{category}.{short}.{'.'.join(f'<{field}>' for field in event.KEY)}` (class `{event.__name__}`{schema})"
    yield _fields(event)


def _shapes() -> Iterator[str]:
    yield "## Shapes within events"
    for shape in sorted(_parts(), key=lambda shape: shape.__name__):
        yield f"### `{shape.__name__}`"
        yield _summary(shape)
        yield _fields(shape)


def _owner(category: str) -> str:
    """As the bus has it: who may publish the category."""
    subject = "sec.*.>" if _root(category) == "sec" else f"ev.*.{category}.>"
    owners = [user.name for user in SERVICES if subject in user.publish]
    if not owners:
        raise SystemExit(f"docs: no service may write {category}: add it to infra/nats/users.py")
    return ", ".join(owners)


def _root(category: str) -> str:
    return "sec" if category in SECRET_CATEGORIES else "ev"


def _parts() -> set[type[msgspec.Struct]]:
    """Structs that are fields of events, or of such fields."""
    found: set[type[msgspec.Struct]] = set()
    todo: list[object] = list(EVENTS.values())
    while todo:
        kind = todo.pop()
        todo += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
            found.add(kind)
            todo += [field.type for field in msgspec.structs.fields(kind)]
    return {kind for kind in found if not issubclass(kind, Event)}


def _fields(kind: type[msgspec.Struct]) -> str:
    hints, notes = get_type_hints(kind), _notes(kind)
    rows = [(f"`{field.encode_name}`", f"`{_type(hints[field.name])}`", _default(field), notes.get(field.name, "")) for field in msgspec.structs.fields(kind)]
    return _table(("field", "type", "default", "meaning"), rows)


def _type(hint: object) -> str:
    """`list[File]` for `list[libs.events.projects.File]`."""
    name = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", name)


def _default(field: FieldInfo) -> str:
    if field.required:
        return "required"
    return f"`{msgspec.json.encode(field.default_factory() if callable(field.default_factory) else field.default).decode()}`"


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__dict__.get("__doc__") or "")


def _notes(kind: type) -> dict[str, str]:
    """The strings that follow fields, of the class and those it inherits from."""
    notes: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if issubclass(owner, msgspec.Struct) and owner is not msgspec.Struct:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            notes |= _notes_in(body.body if isinstance(body, ast.ClassDef) else [])
    return notes


def _notes_in(body: list[ast.stmt]) -> dict[str, str]:
    notes: dict[str, str] = {}
    for field, note in pairwise(body):
        match field, note:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                notes[name] = inspect.cleandoc(text)
            case _:
                pass
    return notes


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(_cell(text) for text in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in (NOTE, *parts) if part) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
