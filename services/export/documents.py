"""What a run was asked for and what came of it, for programs: training_config.json and metrics.json."""

from typing import Any

import msgspec

from libs.events import File, TrainingEvaluated

from .curve import Curve
from .run import Run

FORMAT = 1


def training_config(run: Run) -> bytes:
    """All that was asked for, all that was made of it, and where the rows came from."""
    snapshot = run.preparation.snapshot
    return _document(
        {
            "format": FORMAT,
            "project": {"id": run.inputs.project_id, "name": run.project_name},
            "job_id": run.job.job_id,
            "requested_by": run.created.envelope.actor,
            "requested_at": run.created.at,
            "base_model": run.tuning.base_model,
            "base_revision": base_revision(run),
            "smoke": run.tuning.smoke,
            "method": run.tuning.method,
            "asked": run.job.spec,
            "resolved": msgspec.to_builtins(run.tuning),
            "data": {
                "snapshot_sha256": snapshot.sha256 if snapshot else "",
                "snapshot_bytes": snapshot.size if snapshot else 0,
                "rows": sum(run.preparation.splits.values()),
                "splits": run.preparation.splits,
                "log_position": run.preparation.position,
                "sources": [
                    {"job_id": source.job_id, "file_id": source.file_id, "filename": file.filename, "sha256": file.sha256}
                    if (file := run.files.get(source.job_id))
                    else {"job_id": source.job_id, "file_id": source.file_id, "documents": [_known(document) for document in run.documents]}
                    for source in run.sources
                ],
            },
            "steps": run.completed.step,
            "attempts": [{"attempt": one.attempt, "device": one.device, "resumed_from": one.resumed_from} for one in run.attempts],
            "micro_batches_reduced": [{"step": one.step, "micro_tokens": one.micro_tokens} for one in run.reduced],
            "facts": {"job.created": run.created.id, "training.completed": run.completed_id},
            "versions": run.summary.get("versions", {}),
            **({"base_config": config} if (config := run.summary.get("base_config")) else {}),  # else it is a file of its own
        }
    )


def metrics(run: Run, curve: Curve) -> bytes:
    best = best_evaluation(run)
    return _document(
        {
            "format": FORMAT,
            "steps": run.completed.step,
            "seconds": round(run.seconds, 3),
            "tokens_per_second": tokens_per_second(run),
            "initial": initial(run),
            "final": final(run),
            "best": {"step": best.step, **best.metrics} if best else None,
            "train_loss": {"first": curve.first, "last": curve.last},
            "evaluations": [{"step": one.step, "attempt": one.attempt, **one.metrics, **one.nonfinite} for one in run.evaluations],
            "loss_curve": {"steps_per_point": curve.every, "points": curve.points},
        }
    )


def _known(document: File) -> dict[str, str]:
    return {"file_id": document.file_id, "filename": document.filename, "sha256": document.sha256}


def base_revision(run: Run) -> str:
    """The commit that was trained on, when only the newest was asked for."""
    return run.tuning.revision or str(run.summary.get("revision", ""))


def tokens_per_second(run: Run) -> Any:
    return run.completed.metrics.get("tokens_per_second", run.summary.get("tokens_per_second"))


def initial(run: Run) -> dict[str, float | None]:
    """The model as it came."""
    return run.evaluations[0].metrics if run.evaluations and run.evaluations[0].step == 0 else {}


def final(run: Run) -> dict[str, float | None]:
    last = run.evaluations[-1].metrics if run.evaluations and run.evaluations[-1].step > 0 else {}
    return {**last, **run.completed.metrics}


def best_evaluation(run: Run) -> TrainingEvaluated | None:
    known = [(loss, one.step, one) for one in run.evaluations if (loss := one.metrics.get("eval_loss")) is not None]
    return min(known, key=lambda one: one[:2])[2] if known else None


def _document(content: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
