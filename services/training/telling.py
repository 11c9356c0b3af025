"""A child's frames as facts. A child loads strangers' models: what it says is made storable, and cut to what a fact may carry."""

import math
from itertools import islice
from typing import Any

import msgspec

from libs.events import Event, TrainingBatchReduced, TrainingEvaluated, TrainingProgressed, TrainingSampled
from libs.pace import Speed

from .frames import BatchReduced, Evaluated, FromChild, Phase, Sampled, Step

LONGEST_WORD = 4_000
"""Characters of an error's message."""
MOST = 48 * 1024
"""Bytes of what is free in its form: samples, a summary. A fact carries 64 KiB in all."""
WHOLE = 62 * 1024
"""All of a fact, but for its ids."""
MOST_NAMES, LONGEST_NAME = 100, 100
"""Of metrics, of samples, of what a summary tells: whoever counts for ever is not listened to for so long."""
_DEEPEST = 16
_INT8 = 2**63


def fact(frame: FromChild, *, job_id: str, attempt: int) -> Event | None:
    match frame:
        case Evaluated(step=step, metrics=metrics):
            finite, nonfinite = told(metrics)
            return TrainingEvaluated(job_id=job_id, attempt=attempt, step=step, metrics=finite, nonfinite=nonfinite)
        case Sampled(step=step, samples=samples):
            return TrainingSampled(job_id=job_id, attempt=attempt, step=step, samples=fitting(samples))
        case BatchReduced(step=step, micro_tokens=micro_tokens):
            return TrainingBatchReduced(job_id=job_id, attempt=attempt, step=step, micro_tokens=micro_tokens)
        case _:
            return None


SAVING = "Saving the model"


def progress(frame: Step, *, job_id: str, attempt: int, total: int, pace: Speed, doing: str = "") -> Event:
    metrics = {
        "train_loss": frame.loss,
        "learning_rate": frame.lr,
        **({} if frame.grad_norm is None else {"grad_norm": frame.grad_norm}),
        "tokens_per_second": speed(frame),
    } | ({"memory_gb": round(frame.memory / 1e9, 3)} if frame.memory else {})
    finite, nonfinite = told(metrics)
    epoch = frame.epoch if math.isfinite(frame.epoch) else 0.0
    return TrainingProgressed(
        job_id=job_id,
        attempt=attempt,
        step=frame.step,
        total_steps=max(total, frame.step),
        epoch=epoch,
        metrics=finite,
        nonfinite=nonfinite,
        made=pace.made,
        seconds=pace.seconds,
        doing=doing,
    )


MERGING = {
    "find": "looking for the base model",
    "fetch": "fetching the base model",
    "load": "loading the base model in its own precision",
    "compare": "asking base and adapter",
    "merge": "merging the adapter into its base",
    "save": "writing the merged model",
    "check": "loading the merged model again, to compare it",
}


def merging(frame: Phase, *, job_id: str, attempt: int) -> Event:
    """The export that follows is the other half of the job."""
    doing = MERGING.get(frame.name, "merging")
    return TrainingProgressed(job_id=job_id, attempt=attempt, step=frame.done, total_steps=2 * max(frame.total, frame.done, 1), doing=doing)


def speed(frame: Step) -> float:
    return round(frame.tokens / frame.seconds, 1) if frame.seconds > 0 else 0.0


def told(metrics: dict[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """A number that is none can't be read again: it is named beside the others."""
    named = {clean(name)[:LONGEST_NAME]: float(value) for name, value in islice(metrics.items(), MOST_NAMES)}
    finite = {name: value if math.isfinite(value) else None for name, value in named.items()}
    return finite, {name: str(value) for name, value in named.items() if not math.isfinite(value)}


def fitting(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As much of each as fits: texts are cut before samples are left out."""
    every = clean(samples[:MOST_NAMES])
    longest = MOST
    while len(msgspec.json.encode(every)) > MOST and longest > 64:
        longest //= 2
        every = [{name: _cut(value, longest) for name, value in sample.items()} for sample in every]
    while len(msgspec.json.encode(every)) > MOST:
        every.pop()
    return every


def summary(*parts: dict[str, Any], besides: Any = None) -> dict[str, Any]:
    """Later parts win; what is too large is left out: `besides` is what else the fact carries."""
    every: dict[str, Any] = {}
    room = min(MOST, WHOLE - len(msgspec.json.encode(besides)))
    for part in parts:
        for name, value in clean(dict(islice(part.items(), MOST_NAMES))).items():
            if len(msgspec.json.encode({**every, name: value})) <= room:
                every[name] = value
    return every


def words(text: str) -> str:
    return _cut(clean(text), LONGEST_WORD)


def clean(value: Any, *, depth: int = 0) -> Any:
    match value:
        case str():
            return value.replace("\0", "\u2400").encode(errors="replace").decode()
        case bool() | None:
            return value
        case int():
            return value if -_INT8 <= value < _INT8 else str(value)
        case float():
            return value if math.isfinite(value) else None
        case _ if depth >= _DEEPEST:
            return None
        case dict():
            return {clean(str(key)): clean(item, depth=depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [clean(item, depth=depth + 1) for item in value]
        case _:
            return clean(str(value))


def _cut(value: Any, longest: int) -> Any:
    return value[:longest] + "…" if isinstance(value, str) and len(value) > longest else value
