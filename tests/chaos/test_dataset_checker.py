"""The checker sees each kind of damage to data sets, runs on them and models: what can't fail proves nothing."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

import polars as pl
import pytest

from tests.kit import checker, looks
from tests.kit import dataset_checker as datasets
from tests.kit.evidence import Evidence, Fact, Stored
from tests.kit.trained import lines, trained

DATA, OTHER, PREPARES, PREPARES_OTHER, FIT, SECOND = "data-1", "data-2", "prepares-1", "prepares-2", "fit-1", "fit-2"
IMAGES, PREPARES_IMAGES = "data-3", "prepares-3"


def sound() -> Evidence:
    """Three data sets: one has been fitted twice, one is deleted while it is prepared, and one is of images; one of the two models is deleted."""
    book = Book()
    book.data_set(DATA, PREPARES)
    snapshot = book.prepared(PREPARES)
    for n, job in enumerate((FIT, SECOND), 1):
        book.fit(job, snapshot)
        book.model(job, f"MLP_v{n}")
    book.say("model.deleted", model_id=SECOND)
    del book.objects[book.artifacts[SECOND]["key"]]
    book.data_set(OTHER, PREPARES_OTHER)
    book.say("job.cancel_requested", job_id=PREPARES_OTHER)
    book.say("dataset.deleted", dataset_id=OTHER, job_id=PREPARES_OTHER)
    book.say("preparation.cancelled", job_id=PREPARES_OTHER)
    del book.objects[book.sources[OTHER]["key"]]
    book.data_set(IMAGES, PREPARES_IMAGES)
    book.prepared_images(PREPARES_IMAGES)
    evidence = trained()
    evidence.facts, evidence.objects = book.facts, book.objects
    return evidence


class Book:
    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.objects: dict[str, Stored] = {}
        self.sources: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}

    def data_set(self, id: str, job: str) -> None:
        batch = str(uuid4())
        self.sources[id] = self.put(id, b"a,note,label\n1,x,cat\n2,y,dog\n")
        file = {"file_id": f"file-{id}", "filename": "a.csv", "kind": "dataset", "mime_type": "text/csv", "job_id": job, **self.sources[id]}
        self.say("dataset.created", correlation=batch, dataset_id=id, name="animals", file=file)
        self.job(job, "prepare", ["preparation"], {"dataset_id": id, "file": file}, batch)

    def prepared(self, job: str) -> dict[str, Any]:
        buffer = io.BytesIO()
        pl.DataFrame({"a": [1, 2], "label": ["cat", "dog"]}).write_parquet(buffer)
        roles = {"a": "feature", "note": "ignored", "label": "target"}
        columns = [{"index": n, "name": name, "role": role} for n, (name, role) in enumerate(roles.items())]
        self.say("preparation.produced", job_id=job, part=1, content=self.put(job, lines(columns)), rows=3, valid=3)
        snapshot = self.put(job, buffer.getvalue())
        promised = {"parts": 1, "rows": 3, "valid": 2, "refused": {"ragged": 1}, "columns": 3, "contents": "table"}
        self.say("preparation.completed", job_id=job, snapshot=snapshot, **promised)
        return snapshot

    def prepared_images(self, job: str) -> None:
        columns = [{"index": 0, "name": "image", "role": "feature"}, {"index": 1, "name": "label", "role": "target"}]
        self.say("preparation.produced", job_id=job, part=1, content=self.put(job, lines(columns)), rows=2, valid=2)
        promised = {"parts": 1, "rows": 2, "valid": 2, "columns": 2, "contents": "image"}
        self.say("preparation.completed", job_id=job, snapshot=self.put(job, looks.archive(looks.squares(each=1))), **promised)

    def fit(self, job: str, snapshot: dict[str, Any]) -> None:
        batch = str(uuid4())
        self.say("dataset.used", correlation=batch, dataset_id=DATA, job_id=job)
        self.say("quota.taken", correlation=batch, user_id="ann", job_id=job, most=5)
        self.job(job, "train", ["preparation", "training"], {"dataset_id": DATA, "source": PREPARES}, batch)
        self.say("preparation.completed", job_id=job, parts=0, rows=3, valid=2, snapshot=snapshot, position=len(self.facts))
        self.say("training.started", job_id=job, attempt=1)
        self.artifacts[job] = self.put(f"{job}/1", f"model {job}".encode())
        self.say("training.completed", job_id=job, attempt=1, step=1, artifacts={"model.onnx": self.artifacts[job]})

    def model(self, job: str, name: str) -> None:
        batch = str(uuid4())
        self.say("name.claimed", correlation=batch, name_id=name, scope="model", holder=job)
        self.say("model.registered", correlation=batch, model_id=job, name=name, model_type="mlp", dataset_id=DATA)

    def job(self, id: str, kind: str, stages: list[str], inputs: dict[str, Any], batch: str) -> None:
        self.say("job.created", correlation=batch, job_id=id, kind=kind, stages=stages, project_id="", inputs=inputs, spec={})

    def put(self, folder: str, content: bytes) -> dict[str, Any]:
        digest = sha256(content).hexdigest()
        key = f"ann/{folder}/{digest}"
        self.objects[key] = Stored(key, digest, content)
        return {"key": key, "sha256": digest, "size": len(content)}

    def say(self, type: str, *, correlation: str = "", **data: Any) -> None:
        seq = len(self.facts) + 1
        fact = Fact(seq, f"ev.ann.{type}.x", b"", str(uuid4()), type, "ann", datetime(2026, 1, 1, tzinfo=UTC), correlation or str(uuid4()), data)
        self.facts.append(fact)


def found(evidence: Evidence, type: str, **about: Any) -> Fact:
    return next(fact for fact in evidence.facts if fact.type == type and about.items() <= fact.data.items())


def again(evidence: Evidence, fact: Fact, **changed: Any) -> None:
    """As the last of all."""
    evidence.facts.append(replace(fact, seq=evidence.facts[-1].seq + 1, data={**fact.data, **changed}))


def stored(evidence: Evidence, claim: dict[str, Any], content: bytes) -> None:
    """Another object in its place, with all that the claim says of it true."""
    digest = sha256(content).hexdigest()
    key = f"{claim['key'].rpartition('/')[0]}/{digest}"
    evidence.objects[key] = Stored(key, digest, content)
    claim |= {"key": key, "sha256": digest, "size": len(content)}


def a_column_that_is_missing(evidence: Evidence) -> None:
    part = found(evidence, "preparation.produced").data["content"]
    stored(evidence, part, lines(evidence.lines(part["key"])[1:]))


def a_column_that_is_told_twice(evidence: Evidence) -> None:
    part = found(evidence, "preparation.produced").data["content"]
    stored(evidence, part, b"".join(json.dumps(line).encode() + b"\n" for line in evidence.lines(part["key"]) for _ in range(2)))


def a_part_of_columns_that_is_missing(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "preparation.produced"))


def a_table_without_a_row(evidence: Evidence) -> None:
    claim = found(evidence, "preparation.completed", job_id=PREPARES).data["snapshot"]
    buffer = io.BytesIO()
    pl.read_parquet(io.BytesIO(evidence.objects[claim["key"]].content)).head(1).write_parquet(buffer)
    stored(evidence, claim, buffer.getvalue())


def a_table_with_an_ignored_column(evidence: Evidence) -> None:
    claim = found(evidence, "preparation.completed", job_id=PREPARES).data["snapshot"]
    buffer = io.BytesIO()
    pl.read_parquet(io.BytesIO(evidence.objects[claim["key"]].content)).with_columns(note=pl.lit("x")).write_parquet(buffer)
    stored(evidence, claim, buffer.getvalue())


def a_data_set_without_its_table(evidence: Evidence) -> None:
    found(evidence, "preparation.completed", job_id=PREPARES).data["snapshot"] = None


def an_image_that_is_missing(evidence: Evidence) -> None:
    images = looks.squares(each=1)
    manifest = "".join(json.dumps({"file": name, "label": label}) + "\n" for name, (label, _) in images.items())
    images.popitem()
    stored(evidence, found(evidence, "preparation.completed", job_id=PREPARES_IMAGES).data["snapshot"], looks.archive(images, lines=manifest))


def an_image_too_many(evidence: Evidence) -> None:
    stored(evidence, found(evidence, "preparation.completed", job_id=PREPARES_IMAGES).data["snapshot"], looks.archive(looks.squares(each=2)))


def refused_rows_that_do_not_add_up(evidence: Evidence) -> None:
    found(evidence, "preparation.completed", job_id=PREPARES).data["refused"] = {}


def a_run_that_learns_from_something_else(evidence: Evidence) -> None:
    fact = found(evidence, "preparation.completed", job_id=FIT)
    fact.data["snapshot"] = {**fact.data["snapshot"], "sha256": "another"}


def a_run_that_reads_another_data_set(evidence: Evidence) -> None:
    found(evidence, "job.created", job_id=FIT).data["inputs"]["source"] = PREPARES_OTHER


def a_run_that_does_not_wait_for_its_data_set(evidence: Evidence) -> None:
    again(evidence, fact := found(evidence, "preparation.completed", job_id=PREPARES))
    evidence.facts.remove(fact)


def a_start_on_a_deleted_data_set(evidence: Evidence) -> None:
    again(evidence, found(evidence, "dataset.used", job_id=FIT), dataset_id=OTHER)


def a_data_set_that_is_deleted_twice(evidence: Evidence) -> None:
    again(evidence, found(evidence, "dataset.deleted"))


def a_data_set_that_is_deleted_while_a_run_reads_it(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "training.completed", job_id=FIT))
    again(evidence, found(evidence, "dataset.deleted"), dataset_id=DATA, job_id=PREPARES)


def a_use_of_a_data_set_that_is_not_there(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "dataset.created", dataset_id=DATA))


def a_model_that_is_deleted_twice(evidence: Evidence) -> None:
    again(evidence, found(evidence, "model.deleted"))


def a_model_that_is_listed_twice(evidence: Evidence) -> None:
    again(evidence, found(evidence, "model.registered", model_id=FIT))


def a_run_without_its_model(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "model.registered", model_id=FIT))


def a_model_of_a_run_that_failed(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "training.completed", job_id=FIT))


def two_models_of_one_name(evidence: Evidence) -> None:
    found(evidence, "model.registered", model_id=SECOND).data["name"] = "MLP_v1"


def a_name_that_nobody_claimed(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "name.claimed", holder=FIT))


def a_model_of_another_data_set(evidence: Evidence) -> None:
    found(evidence, "model.registered", model_id=FIT).data["dataset_id"] = OTHER


def a_data_set_that_nobody_prepares(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "job.created", job_id=PREPARES))


def a_run_that_its_data_set_does_not_know(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "dataset.used", job_id=FIT))


def a_use_of_another_data_set_than_its_run_reads(evidence: Evidence) -> None:
    found(evidence, "dataset.used", job_id=FIT).data["dataset_id"] = OTHER


def a_table_that_is_missing(evidence: Evidence) -> None:
    del evidence.objects[found(evidence, "preparation.completed", job_id=FIT).data["snapshot"]["key"]]


def a_model_whose_file_is_missing(evidence: Evidence) -> None:
    del evidence.objects[found(evidence, "training.completed", job_id=FIT).data["artifacts"]["model.onnx"]["key"]]


def a_deleted_model_that_takes_room(evidence: Evidence) -> None:
    key = found(evidence, "training.completed", job_id=SECOND).data["artifacts"]["model.onnx"]["key"]
    evidence.objects[key] = Stored(key, "", b"")


def a_deleted_data_set_that_takes_room(evidence: Evidence) -> None:
    key = found(evidence, "dataset.created", dataset_id=OTHER).data["file"]["key"]
    evidence.objects[key] = Stored(key, "", b"")


BUGS: dict[checker.Invariant, list[Callable[[Evidence], None]]] = {
    datasets.data_sets_are_whole: [
        a_column_that_is_missing,
        a_column_that_is_told_twice,
        a_part_of_columns_that_is_missing,
        a_table_without_a_row,
        a_table_with_an_ignored_column,
        an_image_that_is_missing,
        an_image_too_many,
        a_data_set_without_its_table,
        refused_rows_that_do_not_add_up,
    ],
    datasets.fits_learn_from_their_data_set: [
        a_run_that_learns_from_something_else,
        a_run_that_reads_another_data_set,
        a_run_that_does_not_wait_for_its_data_set,
    ],
    datasets.nothing_happens_to_a_deleted_data_set: [
        a_start_on_a_deleted_data_set,
        a_data_set_that_is_deleted_twice,
        a_data_set_that_is_deleted_while_a_run_reads_it,
        a_use_of_a_data_set_that_is_not_there,
        a_model_that_is_deleted_twice,
        a_model_that_is_listed_twice,
    ],
    datasets.models_are_what_fits_made: [
        a_run_without_its_model,
        a_model_of_a_run_that_failed,
        two_models_of_one_name,
        a_name_that_nobody_claimed,
        a_model_of_another_data_set,
    ],
    checker.files_and_jobs_come_together: [
        a_data_set_that_nobody_prepares,
        a_run_that_its_data_set_does_not_know,
        a_use_of_another_data_set_than_its_run_reads,
    ],
    checker.objects_are_there: [a_table_that_is_missing, a_model_whose_file_is_missing],
    checker.nothing_is_left_over: [a_deleted_model_that_takes_room, a_deleted_data_set_that_takes_room],
}


def test_sound_data_sets_have_nothing_against_them():
    assert [what for invariant in (*BUGS, checker.jobs_end_once) for what in invariant(sound())] == []


@pytest.mark.parametrize(("invariant", "bug"), [pytest.param(invariant, bug, id=bug.__name__) for invariant, bugs in BUGS.items() for bug in bugs])
def test_damage_to_data_sets_and_models_is_seen(invariant: checker.Invariant, bug: Callable[[Evidence], None]):
    evidence = sound()

    bug(evidence)

    assert list(invariant(evidence))
