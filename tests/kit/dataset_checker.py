"""The invariants of data sets, of the runs that fit models to them, and of those models, proved like all others: from the JSON of the facts, and from the bytes that they refer to."""

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import polars as pl

from tests.kit.evidence import Evidence, Fact
from tests.kit.run_checker import ends

MANIFEST = "manifest.jsonl"


def data_sets_are_whole(evidence: Evidence) -> Iterator[str]:
    """What a data set was prepared to describes each of its columns once, and is what it promises: a table of these rows, the features and the target, or so many images with their labels."""
    parts: dict[str, list[Fact]] = defaultdict(list)
    for fact in evidence.facts:
        if fact.type == "preparation.produced":
            parts[fact.data["job_id"]].append(fact)
    kinds = {fact.data["job_id"]: fact.data["kind"] for fact in evidence.facts if fact.type == "job.created"}
    for fact in evidence.facts:
        if fact.type == "preparation.completed" and kinds.get(fact.data["job_id"]) == "prepare":
            yield from (f"job {fact.data['job_id']}: {what}" for what in _wrong_with_prepared(evidence, fact.data, parts[fact.data["job_id"]]))


def _wrong_with_prepared(evidence: Evidence, completed: dict[str, Any], parts: list[Fact]) -> Iterator[str]:
    if (numbers := [part.data["part"] for part in parts]) != list(range(1, completed["parts"] + 1)):
        yield f"its parts are {numbers}, {completed['parts']} were promised"
    if completed["rows"] - completed["valid"] != sum(completed.get("refused", {}).values()):
        yield "its refused rows don't add up"
    if not (snapshot := completed.get("snapshot")):
        yield "there is nothing to learn from"
        return
    stored = evidence.objects.get(snapshot["key"])
    if stored is None or any(part.data["content"]["key"] not in evidence.objects for part in parts):
        return  # that is another invariant's business, or it was deleted
    told = [line for part in parts for line in evidence.lines(part.data["content"]["key"])]
    if [column["index"] for column in told] != list(range(completed["columns"])):
        yield f"{completed['columns']} columns were promised, it describes {[column['index'] for column in told]}"
    learned = {column["name"] for column in told if column["role"] != "ignored"}
    if stored.sha256 != snapshot["sha256"]:
        return  # likewise
    if completed["contents"] == "image":
        yield from _wrong_with_images(stored.content, completed["valid"])
    else:
        table = pl.read_parquet(io.BytesIO(stored.content))
        if table.height != completed["valid"] or set(table.columns) != learned:
            yield f"its table has {table.height} rows of {sorted(table.columns)}, {completed['valid']} of {sorted(learned)} were promised"


def _wrong_with_images(content: bytes, valid: int) -> Iterator[str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        labels = {line["file"]: line["label"] for line in map(json.loads, archive.read(MANIFEST).splitlines())}
        if sorted([*labels, MANIFEST]) != sorted(archive.namelist()) or len(labels) != valid or not all(labels.values()):
            yield f"its archive has {len(archive.namelist()) - 1} images and {len(labels)} labels, {valid} were promised"
        if damaged := archive.testzip():
            yield f"{damaged} in its archive is damaged"


def fits_learn_from_their_data_set(evidence: Evidence) -> Iterator[str]:
    """A run on a data set reads the job that prepared it, starts its training with the very bytes that this left, and never where it came to nothing."""
    prepares = {fact.data["dataset_id"]: fact.data["file"]["job_id"] for fact in evidence.facts if fact.type == "dataset.created"}
    snapshots: dict[str, Any] = {}
    fits = _fits(evidence)
    for fact in evidence.facts:
        if fact.type != "preparation.completed":
            continue
        job = fact.data["job_id"]
        snapshots[job] = fact.data.get("snapshot")
        if created := fits.get(job):
            inputs = created.data["inputs"]
            if inputs["source"] != prepares.get(inputs["dataset_id"]):
                yield f"job {job} reads {inputs['source']}, which did not prepare data set {inputs['dataset_id']}"
            if snapshots.get(inputs["source"]) is None or snapshots[job] != snapshots[inputs["source"]]:
                yield f"job {job} learns from {snapshots[job]}, its data set is {snapshots.get(inputs['source'])}"


def nothing_happens_to_a_deleted_data_set(evidence: Evidence) -> Iterator[str]:
    """It is created before anything else, once; nobody starts on what is deleted, and nothing is deleted twice or while a job uses it whom nobody asked to end."""
    created: set[str] = set()
    gone: dict[str, int] = {}
    uses: dict[str, set[str]] = defaultdict(set)
    stages: dict[str, list[str]] = {}
    over: set[str] = set()
    """Jobs that have ended, or were asked to."""
    for fact in evidence.facts:
        if fact.type == "job.created":
            stages[fact.data["job_id"]] = fact.data["stages"]
        elif fact.type == "job.cancel_requested" or (fact.stage and ends(fact, stages.get(fact.data["job_id"], [""]))):
            over.add(fact.data["job_id"])
        if fact.category not in ("dataset", "model"):
            continue
        id = fact.data[f"{fact.category}_id"]
        if fact.type in ("dataset.created", "model.registered"):
            if id in created:
                yield f"fact {fact.seq}: {fact.category} {id} is there again"
            created.add(id)
        elif id not in created:
            yield f"fact {fact.seq} {fact.type}: there is no {fact.category} {id} yet"
        if id in gone:
            yield f"fact {fact.seq} {fact.type}: {fact.category} {id} was deleted at {gone[id]}"
        match fact.type:
            case "dataset.created":
                uses[id].add(fact.data["file"]["job_id"])
            case "dataset.used":
                uses[id].add(fact.data["job_id"])
            case "dataset.deleted" | "model.deleted":
                gone[id] = fact.seq
                yield from (f"fact {fact.seq}: job {job} still reads data set {id}" for job in sorted(uses[id] - over))


def models_are_what_fits_made(evidence: Evidence) -> Iterator[str]:
    """Each run on a data set that completed is one model, and nothing else is one; its name is its own, and was claimed for it in the same batch."""
    fits = _fits(evidence)
    made = {fact.data["job_id"]: fact for fact in evidence.facts if fact.type == "training.completed" and fact.data["job_id"] in fits}
    claimed = {(fact.data["holder"], fact.correlation) for fact in evidence.facts if fact.type == "name.claimed" and fact.data["scope"] == "model"}
    names: dict[tuple[str, str], str] = {}
    registered: set[str] = set()
    for fact in evidence.facts:
        if fact.type != "model.registered":
            continue
        id, name = fact.data["model_id"], fact.data["name"]
        registered.add(id)
        completed = made.get(id)
        if completed is None or completed.seq > fact.seq:
            yield f"fact {fact.seq}: model {id} is of a run that had not completed"
        elif (inputs := fits[id].data["inputs"])["dataset_id"] != fact.data["dataset_id"]:
            yield f"fact {fact.seq}: model {id} was made of data set {inputs['dataset_id']}, it says {fact.data['dataset_id']}"
        if (other := names.setdefault((fact.tenant, name), id)) != id:
            yield f"fact {fact.seq}: models {other} and {id} are both called {name}"
        if (id, fact.correlation) not in claimed:
            yield f"fact {fact.seq}: nobody claimed the name {name} for model {id}"
    yield from (f"job {job} completed, and there is no model of it" for job in made.keys() - registered)


def _fits(evidence: Evidence) -> dict[str, Fact]:
    return {fact.data["job_id"]: fact for fact in evidence.facts if fact.type == "job.created" and is_fit(fact)}


def is_fit(created: Fact) -> bool:
    return created.data["kind"] == "train" and "dataset_id" in created.data["inputs"]


def left_by_fits(facts: list[Fact]) -> dict[str, set[str]]:
    """Keys of what stays of each run on a data set that has ended: its model and the newest log of its steps; of one without a model that log, as long as its data set is there."""
    reads = {fact.data["job_id"]: fact.data["inputs"]["dataset_id"] for fact in facts if fact.type == "job.created" and is_fit(fact)}
    deleted = {fact.data["dataset_id"] for fact in facts if fact.type == "dataset.deleted"}
    steps: dict[str, str] = {}
    left: dict[str, set[str]] = {}
    for fact in facts:
        if fact.category != "training" or (job := fact.data["job_id"]) not in reads:
            continue
        if claim := fact.data.get("steps"):
            steps[job] = claim["key"]
        match fact.type:
            case "training.completed":
                left[job] = {claim["key"] for claim in fact.data.get("artifacts", {}).values()} | {steps.get(job, "")}
            case "training.failed" | "training.cancelled":
                left[job] = set() if reads[job] in deleted else {steps.get(job, "")}
            case _:
                continue
    return left
