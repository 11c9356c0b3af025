"""docs/operations.csv against what is mounted, and against the facts there are."""

import csv
import re
from pathlib import Path

from libs.events import EVENTS
from services.gateway.api.autotrainx.progress import PATHS as SOCKETS
from services.gateway.app import openapi

ROWS = list(csv.DictReader((Path(__file__).parents[1] / "docs" / "operations.csv").read_text().splitlines()))
DONE = [row for row in ROWS if row["state"] == "done"]
PAGES = {("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json"), ("GET", "/asyncapi.json")}
"""Mounted, but not part of the document that they show."""


def mounted() -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, item in openapi()["paths"].items() for method in item} | PAGES | {("WS", path) for path in SOCKETS}


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_what_is_done_is_mounted_and_what_is_mounted_is_done():
    done = {(row["method"], shape(row["path"])) for row in DONE}

    assert done == {(method, shape(path)) for method, path in mounted()}


def test_no_two_routes_are_twins():
    """Of `{name}` and `{id}` at the same place the router would silently serve only one."""
    shapes = [(method, shape(path).rstrip("/") or "/") for method, path in mounted()]

    assert sorted(shapes) == sorted(set(shapes))


def test_the_facts_of_what_is_done_are_in_the_catalogue():
    named = {event for row in DONE for event in re.findall(r"[a-z]+\.[a-z_]+", row["events"].split("=>")[0])}

    assert named
    assert {event for event in named if event not in EVENTS} <= {"job.cancelled"}, "job.cancelled comes with jobs that wait for a release"


def test_every_fact_is_caused_by_some_operation():
    named = {event for row in ROWS for event in re.findall(r"[a-z]+\.[a-z_]+", row["events"])}

    assert set(EVENTS) <= named


def test_every_operation_that_writes_names_its_command_aggregate_and_guard():
    silent = [(row["method"], row["path"]) for row in ROWS if row["events"] and not (row["command"] and row["aggregate"] and row["guard"])]

    assert silent == []


def test_the_contracts_114_operations_and_two_websockets_are_all_there():
    stated = [row for row in ROWS if row["origin"] == "document" and row["family"] != "platform"]

    assert len([row for row in stated if row["method"] != "WS"]) == 114
    assert len([row for row in stated if row["method"] == "WS"]) == 2
