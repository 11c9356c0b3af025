"""What people may do to a single example of a data set."""

import msgspec

from libs.events import Event, ExampleDeleted, Recorded
from services.gateway.domain.errors import NotFound


class Example(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    deleted: bool = False


class DeleteExample(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    example_id: str


Command = DeleteExample


def evolve(example: Example | None, recorded: Recorded) -> Example | None:
    match recorded.event:
        case ExampleDeleted(example_id=id):
            return Example(id=id, deleted=True)
        case _:
            return example


def decide(example: Example | None, command: Command) -> list[Event]:
    if example is None or example.deleted:
        raise NotFound(what="Example", id=command.example_id)
    return [ExampleDeleted(project_id=command.project_id, example_id=command.example_id)]
