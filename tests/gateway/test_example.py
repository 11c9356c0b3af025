"""The rules of single examples."""

import pytest

from libs.events import ExampleDeleted
from services.gateway.domain.errors import NotFound
from services.gateway.domain.example import DeleteExample, Example, decide, evolve
from tests.kit.given import given

DELETE = DeleteExample(project_id="p", example_id="e")
DELETED = ExampleDeleted(project_id="p", example_id="e")


def test_an_example_is_deleted():
    assert decide(Example(id="e"), DELETE) == [DELETED]


def test_what_is_not_there_is_not_deleted():
    with pytest.raises(NotFound, match="Example not found"):
        decide(None, DELETE)


def test_what_is_deleted_is_not_there():
    with pytest.raises(NotFound):
        decide(given(evolve, DELETED), DELETE)


def test_what_decide_appends_evolve_folds():
    assert given(evolve, *decide(Example(id="e"), DELETE)) == Example(id="e", deleted=True)
