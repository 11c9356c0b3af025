"""Facts outlive the code: what was written once is read for ever."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.events import EVENTS, Event, JobCreated, Origin, ProjectCreated, Unreadable, decode, encode, kind, schema, uuid7
from libs.events.catalog import LARGEST, envelope
from libs.events.storable import NotStorable
from libs.events.upcast import UPCAST, upcast
from tests.kit import golden

FILES = sorted(golden.FOLDER.glob("*.json"))
CREATED = json.loads(golden.written_today(ProjectCreated(project_id="p", name="Red")))


def reading(**changed: object) -> Event | None:
    return decode(json.dumps(CREATED | changed).encode(), seq=1, subject="ev.golden").event


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_every_event_has_a_golden_file_of_its_present_shape(event: type[Event]):
    bodies = [golden.read(file) for file in golden.files(kind(event)) if file.name.startswith(f"{kind(event)}.{event.SCHEMA}")]

    assert any(recorded.event and golden.written_today(recorded.event) == body for body, recorded in bodies), "python -m tests.kit.golden"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_in_a_golden_file_is_lost(file: Path):
    body, recorded = golden.read(file)

    assert encode(recorded.envelope) == body
    assert isinstance(recorded.event, EVENTS[recorded.envelope.type])
    if recorded.envelope.dataschema.endswith(f":{recorded.event.SCHEMA}"):
        assert _holds(msgspec.to_builtins(recorded.event), json.loads(body)["data"])


def test_golden_files_belong_to_events_that_there_are():
    assert {re.sub(r"\.\d+(-\d+)?\.json$", "", file.name) for file in FILES} == set(EVENTS)


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_is_a_frozen_fact_in_the_past_that_knows_its_aggregate(event: Any):
    with pytest.raises(TypeError, match="Extra positional"):
        event("by position")
    assert event.__struct_config__.frozen
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", kind(event))
    assert all(event.__annotations__[field] is str for field in event.KEY)


def test_an_unknown_type_is_kept_but_not_understood():
    assert reading(type="project.teleported", dataschema="urn:trainyard:project.teleported:1") is None


def test_a_shape_of_the_future_is_kept_but_not_understood():
    assert reading(dataschema="urn:trainyard:project.created:2", data={"anything": 1}) is None


def test_fields_and_attributes_of_the_future_are_ignored():
    assert reading(data=CREATED["data"] | {"colour": "red"}, attribute="new") == ProjectCreated(project_id="p", name="Red")


def test_an_old_shape_is_read_through_every_step_up_to_ours(monkeypatch: pytest.MonkeyPatch):
    steps = {
        ("t", 1): lambda data: {**data, "title": data["nmae"]},
        ("t", 2): lambda data: {"name": data["title"]},
        ("t", 3): lambda data: {**data, "never": True},
    }
    monkeypatch.setitem(UPCAST, ("project.created", 0), lambda data: {"type": "project.created", "project_id": data["id"], "name": data["title"]})

    assert upcast("t", {"nmae": "Red"}, schema=1, current=3, steps=steps) == {"name": "Red"}
    assert reading(dataschema="urn:trainyard:project.created:0", data={"id": "p", "title": "Red"}) == ProjectCreated(project_id="p", name="Red")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"specversion":' + b"[" * 100_000,
        json.dumps(CREATED | {"data": {"type": "project.created"}}).encode(),
        json.dumps(CREATED | {"data": None}).encode(),
        json.dumps(CREATED | {"data": {**CREATED["data"], "name": 5}}).encode(),
        json.dumps(CREATED | {"dataschema": "nonsense"}).encode(),
        json.dumps(CREATED | {"dataschema": "urn:trainyard:project.created:x"}).encode(),
        json.dumps(CREATED | {"dataschema": "urn:trainyard:project.created:0"}).encode(),
        json.dumps(CREATED | {"time": "yesterday"}).encode(),
    ],
)
def test_what_is_no_event_is_named_with_its_place(body: bytes):
    with pytest.raises(Unreadable, match=r"fact 7 on ev\.t\.x"):
        decode(body, seq=7, subject="ev.t.x")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"a": "\0"}, "'config.a' contains the character NUL"),
        ({"loss": float("nan")}, "'config.loss' is not a finite number"),
        ({1: "one"}, "'config' has a key that is not text"),
        ({"a": "x" * LARGEST}, "would carry"),
    ],
)
def test_what_no_view_can_hold_does_not_become_a_fact(config: dict[str, object], reason: str):
    with pytest.raises(NotStorable, match=re.escape(reason)):
        golden.written_today(ProjectCreated(project_id="p", name="Red", config=config))


def test_a_value_nested_without_end_is_refused_like_any_other():
    bottomless: list[object] = []
    for _ in range(100_000):
        bottomless = [bottomless]

    with pytest.raises(NotStorable, match="deep"):
        golden.written_today(JobCreated(job_id="j", kind="ingest", stages=[], inputs={"a": bottomless}))


def test_the_envelope_is_a_cloud_event():
    event = JobCreated(job_id="j", kind="ingest", stages=[], inputs={})

    made = json.loads(encode(envelope(event, origin=Origin(tenant="local"), source="/test", id=golden.ID, at=golden.AT)))

    assert made == {
        "specversion": "1.0",
        "id": golden.ID,
        "source": "/test",
        "type": "job.created",
        "subject": "job/j",
        "time": "2026-11-05T06:07:08.901234Z",
        "dataschema": "urn:trainyard:job.created:1",
        "tenant": "local",
        "correlationid": golden.ID,
        "data": {
            "type": "job.created",
            "job_id": "j",
            "kind": "ingest",
            "stages": [],
            "inputs": {},
            "spec": {},
            "project_id": "",
            "request": "",
            "payer": "",
            "price": 0,
        },
    }


def test_ids_sort_by_the_time_they_were_made():
    ids = [uuid7(ms, bytes(10)) for ms in (0, 1, 255, 256, 2**40, 2**48 - 1)]

    assert ids == sorted(ids)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", uuid7(2**47, b"\xff" * 10))


def test_the_schema_names_every_event():
    assert {event.__name__ for event in EVENTS.values()} <= set(schema())


def _holds(now: object, before: object) -> bool:
    """Everything that was there is there still; there may be more."""
    if isinstance(now, dict) and isinstance(before, dict):
        return all(key in now and _holds(now[key], value) for key, value in before.items())
    if isinstance(now, list) and isinstance(before, list):
        return len(now) == len(before) and all(map(_holds, now, before))
    return now == before
