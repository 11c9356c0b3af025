"""The AsyncAPI document says what the bus tells: valid by the specification's own schema, with examples that the wire really had."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from libs.events import EVENTS
from libs.events.asyncapi import document
from libs.events.subjects import PRIVATE_CATEGORIES
from tests.kit import golden

SPECIFICATION = Path(__file__).parent / "asyncapi-3.0.0.json.gz"
"""`schemas/3.0.0-without-$id.json` of @asyncapi/specs 6.11.1 (npm), Apache 2.0, as it is there."""
DOCUMENT = document(version="1.2.3")


@pytest.fixture(scope="module")
def specification() -> Any:
    return jsonschema_rs.validator_for(json.loads(gzip.decompress(SPECIFICATION.read_bytes())))


def test_the_document_is_asyncapi_3(specification: Any):
    assert [str(error) for error in specification.iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize("path", [("info", "version"), ("channels", "job.created", "messages", "job.created", "$ref"), ("operations", "job.created", "action")])
def test_what_checks_it_would_find_a_mistake(specification: Any, path: tuple[str, ...]):
    wrong = copy.deepcopy(DOCUMENT)
    *parents, last = path
    place = wrong
    for name in parents:
        place = place[name]
    place[last] = 7

    assert not specification.is_valid(wrong)


def test_every_reference_leads_somewhere():
    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            return [part["$ref"]] if isinstance(part.get("$ref"), str) else [found for inner in part.values() for found in references(inner)]
        return [found for inner in part for found in references(inner)] if isinstance(part, list) else []

    for reference in references(DOCUMENT):
        place = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_it_has_every_fact_that_a_workspace_is_told_and_no_other():
    told = {name for name, event in EVENTS.items() if name.split(".")[0] not in PRIVATE_CATEGORIES and not event.TENANT}

    assert set(DOCUMENT["components"]["messages"]) == set(DOCUMENT["channels"]) - {"everything"} == told
    assert told > {"job.created", "training.completed", "workspace.created"}
    assert not {name for name in told if name.startswith(("user.", "webhook.", "bus.", "credit.", "name."))}


@pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])
def test_its_example_is_what_the_wire_had_and_fits_its_schema(name: str):
    message = DOCUMENT["components"]["messages"][name]
    example = message["examples"][0]["payload"]
    schema = jsonschema_rs.validator_for({**message["payload"], "components": DOCUMENT["components"]})

    assert example in [json.loads(file.read_bytes()) for file in golden.files(name)]
    assert [str(error) for error in schema.iter_errors(example)] == []
    assert not schema.is_valid({**example, "data": {**example["data"], "type": "something.else"}})
    assert not schema.is_valid({**example, "data": {"type": name}})


def test_an_address_is_the_subject_that_the_bus_publishes():
    assert DOCUMENT["channels"]["example.deleted"]["address"] == "feed.{workspace}.example.deleted.{project_id}.{example_id}"
