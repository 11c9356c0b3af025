"""How many projects there are is kept beside them, and always true."""

import asyncio

import httpx
import pytest

from tests.kit.people import registered


@pytest.mark.parametrize("query", ["", "?limit=1", "?limit=1&offset=1", "?offset=5", "?status=draft"])
async def test_a_list_says_how_many_there_are_whatever_part_it_shows(door: httpx.AsyncClient, query: str):
    ann, bob = await registered(door), await registered(door)
    made = await asyncio.gather(*(door.post("/projects", json={"name": f"project {n}"}, headers=ann.headers) for n in range(4)))
    await door.post("/projects", json={"name": "of another"}, headers=bob.headers)

    await asyncio.gather(*(door.delete(f"/projects/{answer.json()['id']}", headers=ann.headers) for answer in made[:2]))

    totals = [(await door.get(f"/projects{query}", headers=person.headers)).json()["total"] for person in (ann, bob)]
    assert totals == [2, 1]
