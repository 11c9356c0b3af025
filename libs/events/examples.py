"""What people do to single examples; each is its own aggregate, so that people never get in each other's way."""

from .envelope import Event


class ExampleDeleted(Event, frozen=True, kw_only=True, tag="example.deleted"):
    KEY = ("project_id", "example_id")
    project_id: str
    example_id: str
