"""What a training run with two lost attempts, and its export, leave behind: written by hand, so that the checker can be shown what is wrong with it."""

import json
import zlib
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

from tests.kit.evidence import Evidence, Fact, Stored

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT, FILE, INGEST, RUN, EXPORT, NEXT = (f"{name}-1" for name in ("project", "file", "ingest", "run", "export", "next"))
SPEC = {"base_model": "trainyard/tiny-llama", "method": "lora", "seed": 1}
STEPS = 5


def trained() -> Evidence:
    book = _Book()
    _data(book)
    _run(book)
    _export(book)
    book.say("project.run_started", project_id=PROJECT, job_id=NEXT)
    book.job(NEXT, "train", ["preparation", "training"], spec=SPEC, inputs={"project_id": PROJECT, "sources": []})
    book.say("job.cancel_requested", job_id=NEXT)
    book.say("preparation.cancelled", job_id=NEXT)
    return Evidence(
        facts=book.facts,
        last=len(book.facts),
        copied=[],
        parked=[],
        checkpoint=len(book.facts),
        live={},
        rebuilt={},
        rebuild_failed="",
        rows={},
        objects=book.objects,
        consumers=[],
        workers=[{"name": "workers", "config": {"durable_name": "workers"}, "num_pending": 0, "num_ack_pending": 0}],
        work=[],
        trainers=[],
        leases=[],
        alive=set(),
        litter=[],
    )


class _Book:
    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.objects: dict[str, Stored] = {}

    def say(self, type: str, **data: Any) -> None:
        id = data.get("job_id") if not type.startswith("project.") else data["project_id"]
        fact = Fact(
            seq=len(self.facts) + 1,
            subject=f"ev.local.{type}.{id}",
            body=b"",
            id=str(uuid4()),
            type=type,
            tenant="local",
            at=NOW,
            correlation="",
            data=data,
        )
        self.facts.append(fact)

    def job(self, id: str, kind: str, stages: list[str], *, inputs: dict[str, Any], spec: dict[str, Any]) -> None:
        self.say("job.created", job_id=id, kind=kind, stages=stages, project_id=PROJECT, inputs=inputs, spec=spec)

    def put(self, folder: str, content: bytes) -> dict[str, Any]:
        digest = sha256(content).hexdigest()
        key = f"local/{folder}/{digest}"
        self.objects[key] = Stored(key, digest, content)
        return {"key": key, "sha256": digest, "size": len(content)}


def _data(book: _Book) -> None:
    """Two parts of four rows; of each part the last row can't be used, of the first one the first row is deleted."""
    rows = [
        {"id": f"row-{n}", "row": n, "split": "eval" if n == 5 else "train", "format": "alpaca", "data": {"instruction": f"{n}"}, "valid": n % 4 != 0}
        for n in range(1, 9)
    ]
    source = book.put(PROJECT, lines([{}] * 8))
    file = {"file_id": FILE, "filename": "a.jsonl", "kind": "dataset_upload", "mime_type": "application/jsonl", "job_id": INGEST, **source}
    book.say("project.created", project_id=PROJECT, name="yard")
    book.say("project.files_added", project_id=PROJECT, files=[file])
    book.job(INGEST, "ingest", ["preparation"], inputs={"project_id": PROJECT, "file": file}, spec={})
    book.say("preparation.started", job_id=INGEST)
    for part in (1, 2):
        found = rows[4 * part - 4 : 4 * part]
        book.say("preparation.produced", job_id=INGEST, part=part, content=book.put(INGEST, lines(found)), rows=4, valid=3)
    book.say("preparation.completed", job_id=INGEST, parts=2, rows=8, valid=6, refused={"empty": 2})
    book.say("example.deleted", project_id=PROJECT, example_id="row-1", job_id=FILE)
    book.say("project.run_started", project_id=PROJECT, job_id=RUN)
    book.job(RUN, "train", ["preparation", "training"], spec=SPEC, inputs={"project_id": PROJECT, "sources": []})
    learned = [{name: row[name] for name in ("id", "split", "format", "data")} for row in rows if row["valid"] and row["id"] != "row-1"]
    book.say("preparation.started", job_id=RUN)
    book.say(
        "preparation.completed",
        job_id=RUN,
        parts=0,
        rows=8,
        valid=5,
        snapshot=book.put(RUN, lines(learned)),
        position=len(book.facts) - 1,
        splits={"train": 4, "eval": 1},
    )


def _run(book: _Book) -> None:
    """The first attempt ends without a word behind step 3 and had stored step 2; the second is killed with its worker behind step 4."""

    def tell(attempt: int, step: int) -> None:
        metrics = {"train_loss": _step(attempt, step)["train_loss"], "tokens_per_second": 1.0}
        book.say("training.progress", job_id=RUN, attempt=attempt, step=step, total_steps=STEPS, metrics=metrics)

    def keep(attempt: int, steps: bytes, step: int) -> None:
        where = f"{RUN}/{attempt}"
        book.say("training.checkpointed", job_id=RUN, attempt=attempt, step=step, state=book.put(where, b"state %d" % step), steps=book.put(where, steps))

    first, second = lines([_step(1, 1), _step(1, 2)]), lines([_step(2, 3), _step(2, 4)])
    book.say("training.started", job_id=RUN, attempt=1, resumed_from=0)
    book.say("training.evaluated", job_id=RUN, attempt=1, step=0, metrics={"eval_loss": 6.0})
    tell(1, 1)
    keep(1, first, 2)
    tell(1, 3)
    book.say("training.attempt_lost", job_id=RUN, attempt=1, cause="SIGKILL")
    book.say("training.started", job_id=RUN, attempt=2, resumed_from=2)
    keep(2, first + second, 4)
    book.say("training.started", job_id=RUN, attempt=3, resumed_from=4)
    tell(3, 5)
    where = f"{RUN}/3"
    artifacts = {"adapter_model.safetensors": book.put(where, b"weights"), "adapter_config.json": book.put(where, b"{}")}
    steps = book.put(where, first + second + lines([_step(3, 5)]))
    book.say("training.completed", job_id=RUN, attempt=3, step=STEPS, artifacts=artifacts, steps=steps)


def _step(attempt: int, step: int) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "train_loss": 5.0 / step, "learning_rate": 1e-3, "epoch": step / STEPS, "tokens_per_second": 9.0 * step}


def _export(book: _Book) -> None:
    contents = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}", "training_config.json": b"{}", "metrics.json": b"[]", "report.md": b"#"}
    files = [{"name": name, "content": book.put(EXPORT, content), "crc32": zlib.crc32(content)} for name, content in contents.items()]
    book.say("project.work_started", project_id=PROJECT, job_id=EXPORT, kind="export")
    book.job(EXPORT, "export", ["export"], inputs={"project_id": PROJECT, "training_job_id": RUN}, spec={})
    book.say("export.started", job_id=EXPORT)
    book.say("export.completed", job_id=EXPORT, files=files)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
