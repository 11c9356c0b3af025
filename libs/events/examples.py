"""What people do to single examples; each is its own aggregate, so that people never get in each other's way."""

from typing import Any

from .envelope import Event


class ExampleEdited(Event, frozen=True, kw_only=True, tag="example.edited"):
    """Content in the canonical form of its format, checked as an uploaded row is. None and empty leave things as they were.

    What is edited can be learned from, whatever was wrong with it before, unless a person has said otherwise.
    """

    KEY = ("project_id", "example_id")
    project_id: str
    example_id: str
    job_id: str = ""
    """The one that produced the row."""
    format: str = ""
    data: dict[str, Any] | None = None
    tokens: int = 0
    split: str = ""


class ExampleMarked(Event, frozen=True, kw_only=True, tag="example.marked"):
    """A person's word on whether to learn from it. The latest counts, more than any check, and an edit doesn't change it."""

    KEY = ("project_id", "example_id")
    project_id: str
    example_id: str
    is_valid: bool
    job_id: str = ""
    message: str = ""


class ExampleDeleted(Event, frozen=True, kw_only=True, tag="example.deleted"):
    KEY = ("project_id", "example_id")
    project_id: str
    example_id: str
    job_id: str = ""
