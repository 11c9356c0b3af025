"""What may become a fact comes back unchanged, from JSON and from PostgreSQL; the rest is refused, with its place."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infra.embedded import Servers
from libs.events.storable import DEEPEST, why_not_storable

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(min_value=-(2**63) - 2, max_value=2**63 + 1) | st.floats() | st.text() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()) | st.text(), inner, max_size=4),
    max_leaves=12,
)
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(servers.database_url)
    yield connection
    await connection.close()


def nested(levels: int, *, key: str = "") -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = {key: value} if key else [value]
    return value


def leaves(value: Any) -> list[Any]:
    match value:
        case dict():
            return [*value, *(leaf for item in value.values() for leaf in leaves(item))]
        case list():
            return [leaf for item in value for leaf in leaves(item)]
        case _:
            return [value]


@QUIET
@given(ANYTHING)
@example(-(2**63))
@example(2**63 - 1)
@example([-0.0, 5e-324, 1.7976931348623157e308, 1e22, 1.0])
@example({"": "\U0010ffff\ufffe\x01\x7f\u2028"})
@example(nested(DEEPEST, key="a"))
async def test_what_is_accepted_comes_back_unchanged(database: asyncpg.Connection, value: Any):
    if why_not_storable(value):
        return

    document = msgspec.json.encode(value)
    words = [leaf for leaf in leaves(value) if isinstance(leaf, str)]
    numbers = [leaf for leaf in leaves(value) if type(leaf) is int]
    kept = await database.fetchval("select $1::json::text", document.decode())
    texts = await database.fetchval("select $1::text[]", words)
    ints = await database.fetchval("select $1::int8[]", numbers)

    assert repr(msgspec.json.decode(document)) == repr(value)
    assert repr(msgspec.json.decode(str(kept))) == repr(value)
    assert (texts, ints) == (words, numbers)


@QUIET
@given(ANYTHING)
async def test_nothing_is_refused_that_would_come_back_unchanged(value: Any):
    if not why_not_storable(value):
        return

    assert any(_unfit(leaf) for leaf in leaves(value))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a\0b", "The value contains the character NUL"),
        ({"a": [{"b": "\0"}]}, "'a[0].b' contains the character NUL"),
        ({"a": {"\0": 1}}, "'a' contains the character NUL"),
        ("\ud800", "The value contains half a character (a lone surrogate)"),
        (["é", "\udfff"], "'[1]' contains half a character (a lone surrogate)"),
        ({"n": 2**63}, "'n' is an integer beyond 64 bits"),
        ({"n": -(2**63) - 1}, "'n' is an integer beyond 64 bits"),
        ({"n": 10**5000}, "'n' is an integer beyond 64 bits"),
        ({"x": float("nan")}, "'x' is not a finite number"),
        ({"x": float("inf")}, "'x' is not a finite number"),
        ([float("-inf")], "'[0]' is not a finite number"),
        ({"a": {1: "b"}}, "'a' has a key that is not text"),
        ({"a": b"b"}, "'a' is of a type that JSON doesn't have"),
        ({"a": {"b"}}, "'a' is of a type that JSON doesn't have"),
    ],
    ids=lambda value: None if isinstance(value, str) else "value",
)
def test_the_reason_names_the_place(value: Any, reason: str):
    assert why_not_storable(value) == reason


@pytest.mark.parametrize("key", ["", "a"])
def test_nesting_has_an_end(key: str):
    assert why_not_storable(nested(DEEPEST, key=key)) == ""
    assert f"nested deeper than {DEEPEST} levels" in why_not_storable(nested(DEEPEST + 1, key=key))


@pytest.mark.parametrize("key", ["", "a"])
def test_nesting_without_end_is_refused_by_a_reason_of_bounded_length(key: str):
    assert len(why_not_storable(nested(100_000, key=key))) < 200


def test_half_a_character_that_json_spells_out_is_found_after_decoding():
    assert why_not_storable(json.loads('"\\ud834"'))
    assert not why_not_storable(json.loads('"\\ud834\\udd1e"'))


def _unfit(leaf: Any) -> bool:
    try:
        return leaf != leaf or "\0" in str(leaf) or not -(2**63) <= leaf < 2**63 or abs(leaf) == float("inf")
    except TypeError:
        try:
            return not str(leaf).encode()
        except UnicodeEncodeError:
            return True
