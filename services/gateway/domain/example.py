"""What people may do to a single example of a data set."""

from datetime import datetime
from typing import Any

import msgspec

from libs.events import Event, ExampleDeleted, ExampleEdited, ExampleMarked, Recorded
from libs.rows import REFUSED_BY_PERSON
from services.gateway.domain.errors import ExampleUnreadable, NotFound, PreviewStays

PREVIEW = "preview"


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """As it is with all that people did to it. `format` is empty while its content isn't of any known form."""

    id: str
    job_id: str
    file_id: str
    row: int
    split: str
    format: str
    data: Any
    is_valid: bool
    reason: str
    message: str
    tokens: int
    created_at: datetime
    judged: bool = False
    """A person has said whether it is to be learned from."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Canonical, and checked already."""

    format: str
    data: dict[str, Any]
    tokens: int


class ChangeExample(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves things as they are."""

    project_id: str
    example_id: str
    content: Content | None = None
    split: str | None = None
    is_valid: bool | None = None
    message: str = ""
    """Why it is not valid, in the words of who says so."""


class DeleteExample(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    example_id: str


Command = ChangeExample | DeleteExample


def evolve(example: Example | None, recorded: Recorded) -> Example | None:
    if example is None:
        return None  # what there is to be changed comes from a job's rows, never from a fact
    match recorded.event:
        case ExampleEdited(data=data, format=format, tokens=tokens, split=split):
            moved = msgspec.structs.replace(example, split=split or example.split)
            if data is None:
                return moved
            edited = msgspec.structs.replace(moved, format=format, data=data, tokens=tokens)
            return edited if example.judged else msgspec.structs.replace(edited, is_valid=True, reason="", message="")
        case ExampleMarked(is_valid=is_valid, message=message):
            return msgspec.structs.replace(example, is_valid=is_valid, reason="" if is_valid else REFUSED_BY_PERSON, message=message, judged=True)
        case ExampleDeleted():
            return None
        case _:
            return example


def decide(example: Example | None, command: Command) -> list[Event]:
    if example is None:
        raise NotFound(what="Example", id=command.example_id)
    match command:
        case ChangeExample():
            return _change(example, command)
        case DeleteExample():
            return [ExampleDeleted(project_id=command.project_id, example_id=example.id, job_id=example.job_id)]


def _change(example: Example, command: ChangeExample) -> list[Event]:
    content = command.content if command.content and not _same(command.content, example) else None
    split = command.split or example.split
    if split != example.split and example.split == PREVIEW:
        raise PreviewStays
    events: list[Event] = []
    if content or split != example.split:
        events.append(
            ExampleEdited(
                project_id=command.project_id,
                example_id=example.id,
                job_id=example.job_id,
                format=content.format if content else "",
                data=content.data if content else None,
                tokens=content.tokens if content else 0,
                split=split if split != example.split else "",
            )
        )
    if command.is_valid is None:
        return events
    if command.is_valid and not (content or example.format):
        raise ExampleUnreadable(reason=example.reason, why=example.message.rstrip("."))
    so_already = example.is_valid or (content is not None and not example.judged)
    another_reason = example.reason == REFUSED_BY_PERSON and command.message not in ("", example.message)
    if command.is_valid != so_already or another_reason:
        judged = ExampleMarked(project_id=command.project_id, example_id=example.id, job_id=example.job_id, is_valid=command.is_valid, message=command.message)
        events.append(judged)
    return events


def _same(content: Content, example: Example) -> bool:
    """As JSON has it: for Python 1 and true are equal."""
    return content.format == example.format and _encode(content.data) == _encode(example.data)


_encode = msgspec.json.Encoder(order="deterministic").encode
