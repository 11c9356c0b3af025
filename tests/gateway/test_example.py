"""The rules of single examples."""

from typing import Any

import msgspec
import pytest

from libs.events import Event, ExampleDeleted, ExampleEdited, ExampleMarked
from services.gateway.domain.errors import ExampleUnreadable, NotFound, PreviewStays
from services.gateway.domain.example import ChangeExample, Content, DeleteExample, Example, decide, evolve
from tests.kit.given import BEGINNING, recorded

WHOSE: Any = {"project_id": "p", "example_id": "e", "job_id": "j"}
WRITTEN = Content(format="text", data={"text": "new"}, tokens=1)
FRESH = Example(
    id="e", job_id="j", file_id="f", row=1, split="train", format="alpaca", data={"instruction": "a", "output": "b"}, is_valid=True, reason="", message="",
    tokens=2, created_at=BEGINNING,
)  # fmt: skip
UNREADABLE = msgspec.structs.replace(FRESH, format="", data={"raw": "{"}, is_valid=False, reason="json_invalid", message="Not valid JSON.", tokens=0)
DOUBTFUL = msgspec.structs.replace(FRESH, is_valid=False, reason="not_grounded", message="Not said in the text.")


def change(**wanted: Any) -> ChangeExample:
    return ChangeExample(project_id="p", example_id="e", **wanted)


def after(example: Example, *commands: ChangeExample) -> Any:
    """The example when all this was done to it. Any: a test knows that it is still there."""
    state: Example | None = example
    for command in commands:
        for fact in recorded(decide(state, command)):
            state = evolve(state, fact)
    return state


@pytest.mark.parametrize(
    ("example", "command", "facts"),
    [
        (FRESH, change(content=WRITTEN), [ExampleEdited(**WHOSE, format="text", data={"text": "new"}, tokens=1)]),
        (FRESH, change(split="eval"), [ExampleEdited(**WHOSE, split="eval")]),
        (FRESH, change(content=WRITTEN, split="eval"), [ExampleEdited(**WHOSE, format="text", data={"text": "new"}, tokens=1, split="eval")]),
        (FRESH, change(is_valid=False, message="dull"), [ExampleMarked(**WHOSE, is_valid=False, message="dull")]),
        (DOUBTFUL, change(is_valid=True), [ExampleMarked(**WHOSE, is_valid=True)]),
        (UNREADABLE, change(content=WRITTEN, is_valid=True), [ExampleEdited(**WHOSE, format="text", data={"text": "new"}, tokens=1)]),
        (FRESH, change(split="train"), []),
        (FRESH, change(is_valid=True), []),
        (DOUBTFUL, change(is_valid=False), []),
        (FRESH, change(content=Content(format="alpaca", data={"output": "b", "instruction": "a"}, tokens=2)), []),
        (FRESH, change(), []),
        (FRESH, DeleteExample(project_id="p", example_id="e"), [ExampleDeleted(**WHOSE)]),
    ],
)
def test_what_is_asked_for_is_said_in_facts_and_what_is_so_already_is_not(example: Example, command: Any, facts: list[Event]):
    assert decide(example, command) == facts


@pytest.mark.parametrize("command", [change(is_valid=True), DeleteExample(project_id="p", example_id="e")])
def test_what_is_not_there_can_not_be_changed(command: Any):
    with pytest.raises(NotFound, match="Example not found"):
        decide(None, command)


def test_what_is_deleted_is_not_there():
    (fact,) = recorded([ExampleDeleted(**WHOSE)])

    assert evolve(FRESH, fact) is None


def test_a_row_that_its_form_refused_becomes_valid_by_an_edit_only():
    with pytest.raises(ExampleUnreadable, match=r"json_invalid: Not valid JSON\): it becomes valid when its data is edited"):
        decide(UNREADABLE, change(is_valid=True))

    mended = after(UNREADABLE, change(content=WRITTEN))
    assert (mended.is_valid, mended.reason, mended.message, mended.format, mended.data) == (True, "", "", "text", {"text": "new"})


def test_what_a_check_doubts_a_person_may_accept():
    accepted = after(DOUBTFUL, change(is_valid=True))

    assert (accepted.is_valid, accepted.reason, accepted.message) == (True, "", "")


def test_a_person_refuses_with_a_reason_and_takes_it_back():
    refused = after(FRESH, change(is_valid=False, message="dull"))

    assert (refused.is_valid, refused.reason, refused.message) == (False, "refused_by_person", "dull")
    assert decide(refused, change(is_valid=False)) == []
    assert decide(refused, change(is_valid=False, message="wrong")) == [ExampleMarked(**WHOSE, is_valid=False, message="wrong")]
    assert after(refused, change(is_valid=True)) == msgspec.structs.replace(FRESH, judged=True)


def test_an_edit_does_not_undo_what_a_person_said():
    edited = after(FRESH, change(is_valid=False, message="dull"), change(content=WRITTEN))

    assert (edited.is_valid, edited.reason, edited.data) == (False, "refused_by_person", {"text": "new"})


def test_an_example_of_a_preview_is_edited_where_it_is():
    preview = msgspec.structs.replace(FRESH, split="preview")

    assert after(preview, change(content=WRITTEN)).data == {"text": "new"}
    with pytest.raises(PreviewStays):
        decide(preview, change(split="train"))


def test_true_and_1_are_not_the_same_content():
    one = msgspec.structs.replace(FRESH, data={"text": "a", "meta": {"n": 1}}, format="text")

    assert decide(one, change(content=Content(format="text", data={"text": "a", "meta": {"n": True}}, tokens=1)))
