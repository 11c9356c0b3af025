"""What an endpoint is sent for a fact: one of deep-learning-platform's bodies, or the fact itself."""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from libs.events import (
    PreparationCompleted,
    PreparationFailed,
    Recorded,
    TrainingCompleted,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
    WebhookTestRequested,
)

CLOUDEVENTS = "application/cloudevents+json"
JSON = "application/json"
PING = "webhook.test"


def contract_names(recorded: Recorded) -> dict[str, str]:
    """What a fact is called there, by the kind of job that it is of. The document's five names, and `dataset.failed`: who waits for a data set would wait for ever."""
    match recorded.event:
        case TrainingStarted(attempt=1):
            return {"train": "training.started"}
        case TrainingProgressed():
            return {"train": "training.progress"}
        case TrainingCompleted():
            return {"train": "training.completed"}
        case TrainingFailed():
            return {"train": "training.failed"}
        case PreparationFailed():
            return {"train": "training.failed", "ingest": "dataset.failed", "prepare": "dataset.failed"}
        case PreparationCompleted():
            return {"ingest": "dataset.processed", "prepare": "dataset.processed"}
        case _:
            return {}


def decile(event: TrainingProgressed) -> int:
    return min(10, 10 * event.step // event.total_steps) if event.total_steps > 0 else 0


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the views know of the job that a fact is of."""

    kind: str = ""
    dataset_id: str = ""
    epochs: float = 0.0
    """As many as its run may take."""
    evaluation: dict[str, float | None] = {}
    """What the last epoch before the fact came to."""


def contract_body(recorded: Recorded, about: About) -> bytes:
    name = PING if isinstance(recorded.event, WebhookTestRequested) else contract_names(recorded)[about.kind]
    stamp = recorded.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return msgspec.json.encode({"event": name, "timestamp": stamp, "data": _data(recorded, about)})


def _data(recorded: Recorded, about: About) -> dict[str, Any]:
    match recorded.event:
        case TrainingStarted(job_id=job):
            return {"job_id": job, "status": "running"}
        case TrainingProgressed(job_id=job) as event:
            share = min(100, 100 * event.step // event.total_steps) if event.total_steps > 0 else 0
            steps = {"loss": event.metrics["train_loss"]} if "train_loss" in event.metrics else {}
            metrics = {**event.metrics, **steps, **about.evaluation}
            epoch = int(metrics.pop("epoch", None) or event.epoch)
            return {"job_id": job, "progress": share, "current_epoch": epoch, "total_epochs": math.ceil(about.epochs), "metrics": metrics}
        case TrainingCompleted(job_id=job) as event:
            # A run makes one model, which is known by the run's id.
            return {"job_id": job, "model_id": job, "accuracy": event.metrics.get("val_accuracy", event.metrics.get("accuracy"))}
        case PreparationFailed(job_id=job, message=message) if about.kind != "train":
            return {"dataset_id": about.dataset_id, "job_id": job, "error": message}
        case TrainingFailed(job_id=job, message=message) | PreparationFailed(job_id=job, message=message):
            return {"job_id": job, "error": message}
        case PreparationCompleted(job_id=job) as event:
            return {
                "dataset_id": about.dataset_id,
                "job_id": job,
                "rows": event.valid if event.contents else event.rows,
            }  # of a table or images as its metadata has it
        case WebhookTestRequested(webhook_id=id):
            return {"webhook_id": id}
        case event:
            raise TypeError(f"the contract has no body for {event}")


def retry_after(header: str, now: datetime) -> float:
    """Seconds, from either form that HTTP has; 0 when it says nothing that can be understood."""
    text = header.strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        at = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return max(0.0, (at - now).total_seconds())
