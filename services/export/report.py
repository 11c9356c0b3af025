"""report.md: a run told to people. Whatever people or models have written in it is escaped."""

from collections.abc import Iterator
from typing import Any

import msgspec

from . import loading, merging
from .curve import Curve
from .documents import best_evaluation, final, initial, tokens_per_second
from .markdown import code, table, text
from .run import Run
from .saying import shown
from .verification import Verdict
from .wording import cautions, change, duration, method, number, spelled

TOLD_ELSEWHERE = frozenset(
    {
        *("base_config", "verified", "versions", "warnings", "hardware", "device", "tokens_per_second", "tokens", "parameters", "trainable_parameters"),
        *(
            "model",
            "revision",
            "smoke",
            "method",
            "metrics",
            "evaluations",
            "samples",
            "steps",
            "total_steps",
            "best_step",
            "training_seconds",
            "duration_seconds",
        ),
    }
)
"""Of a training's summary. Whatever else it says is put in a table as it is."""


def report(run: Run, curve: Curve, verdict: Verdict, *, left_behind: list[str]) -> bytes:
    sections = (
        _title(run),
        _warnings(run, left_behind),
        _losses(run, curve),
        _samples(run),
        _loading(run),
        _merged(run),
        _checked(run, verdict),
        _settings(run),
        _machine(run),
        _lineage(run),
    )
    return ("\n\n".join(part for section in sections for part in section) + "\n").encode()


def _title(run: Run) -> Iterator[str]:
    rows = run.preparation.splits
    yield f"# Fine-tune of {text(run.tuning.base_model)}"
    yield (
        f"{method(run)} on {rows.get('train', 0):,} rows of the project {text(run.project_name) or 'without a name'}, "
        f"{run.completed.step:,} steps, completed on {run.completed_at:%Y-%m-%d at %H:%M} UTC."
    )


def _warnings(run: Run, left_behind: list[str]) -> Iterator[str]:
    told = cautions(run)
    if run.reduced:
        told.append(f"Memory ran short at step {run.reduced[0].step:,}: fewer tokens went through the model at once from there on. The gradients are the same.")
    if left_behind:
        told.append(f"Not part of the export, because nothing that loads the model needs it: {', '.join(text(name) for name in left_behind)}.")
    if told:
        yield "## Warnings"
        yield "\n".join(f"- Note: {warning}" for warning in told)


def _losses(run: Run, curve: Curve) -> Iterator[str]:
    before, after, best = initial(run), final(run), best_evaluation(run)
    rows = [
        ("Loss on held-out rows", before.get("eval_loss"), after.get("eval_loss")),
        ("Perplexity on held-out rows", before.get("perplexity"), after.get("perplexity")),
        ("Loss in training (first step, last step)", curve.first, curve.last),
    ]
    yield "## Before and after"
    yield table(
        ["", "Before", "After", "Change"], [[name, number(old), number(new), change(old, new)] for name, old, new in rows if (old, new) != (None, None)]
    )
    if isinstance(kept := run.summary.get("best_step"), int) and kept != run.completed.step:
        yield f"The exported weights are those of step {kept:,}, which had the best loss on held-out rows; the training went on to step {run.completed.step:,}."
    elif best and best.step != run.completed.step:
        yield f"The best loss on held-out rows, {number(best.metrics.get('eval_loss'))}, was measured at step {best.step:,}."
    yield "![Loss by step](loss_curve.svg)"


def _samples(run: Run) -> Iterator[str]:
    if told := list(shown(run)):
        yield "## What it says"
        yield from told


def _loading(run: Run) -> Iterator[str]:
    yield "## How to load it"
    yield from loading.whole(run, "model") if run.tuning.method == "full" else loading.adapter(run)
    if run.merged:
        yield from loading.whole(run, "merged")


def _merged(run: Run) -> Iterator[str]:
    if run.merged:
        yield "## The merged model"
        yield from merging.told(run)


def _checked(run: Run, verdict: Verdict) -> Iterator[str]:
    yield "## What was checked"
    whole = "model" if run.tuning.method == "full" else "adapter"
    yield (
        f"All {verdict.tensors:,} tensors of the {whole} ({verdict.values:,} values) have the names and shapes that its base model asks for, none missing and none left over "
        f"({text(verdict.library)}). Every file has the checksum it had when the training stored it."
    )
    if found := run.summary.get("verified"):
        yield f"The training loaded the {whole} again beside its base: {spelled(found)}."


def _settings(run: Run) -> Iterator[str]:
    asked = run.job.spec
    yield "## Settings"
    yield table(
        ["Setting", "Value", ""],
        [[code(name), text(str(value)), "" if name in asked else "default"] for name, value in msgspec.to_builtins(run.tuning).items() if name != "ancestors"],
    )


def _machine(run: Run) -> Iterator[str]:
    summary = run.summary
    rows = [
        ("Device", spelled(summary.get("hardware") or summary.get("device") or run.attempts[-1].device)),
        ("Duration, from the first attempt on", duration(run.seconds)),
        ("Duration of the steps", duration(spent) if isinstance(spent := summary.get("training_seconds"), int | float) else ""),
        ("Tokens per second", number(tokens_per_second(run))),
        ("Tokens", number(summary.get("tokens"))),
        ("Parameters", number(summary.get("parameters"))),
        ("Trained parameters", number(summary.get("trainable_parameters"))),
        *((text(name.replace("_", " ").capitalize()), spelled(value)) for name, value in summary.items() if name not in TOLD_ELSEWHERE and _is_small(value)),
        *((text(name), text(str(version))) for name, version in sorted(_dict(summary.get("versions")).items())),
    ]
    yield "## Machine and speed"
    yield table(["", ""], [[name, value] for name, value in rows if value and value != "—"])


def _lineage(run: Run) -> Iterator[str]:
    snapshot, splits = run.preparation.snapshot, run.preparation.splits
    rows = [
        ("Project", f"{text(run.project_name)} ({text(run.inputs.project_id)})"),
        ("Asked for by", f"{text(run.created.envelope.actor) or 'nobody by name'}, {run.created.at:%Y-%m-%d %H:%M:%S} UTC"),
        ("Training job", code(run.job.job_id)),
        *([("Built on the runs", ", then ".join(code(one.job_id) for one in run.tuning.ancestors))] if run.tuning.ancestors else []),
        ("Snapshot of the rows, sha256", code(snapshot.sha256) if snapshot else "—"),
        ("Rows", ", ".join(f"{count:,} {text(split)}" for split, count in sorted(splits.items(), reverse=True)) or "—"),
        ("Position in the log", f"{run.preparation.position:,}: edits up to there are in the rows"),
        ("Caused by", f"fact {code(run.created.id)}, completed by fact {code(run.completed_id)}"),
        ("Attempts", _attempts(run)),
        ("Checkpoints", f"{run.checkpoints:,}"),
    ]
    yield "## Where it comes from"
    yield table(["", ""], rows)
    yield "The rows were read from:"
    yield table(
        ["File", "sha256", "Read by job"],
        [
            [text(file.filename), code(file.sha256), code(source.job_id)] if file else ["—", "—", code(source.job_id)]
            for source in run.sources
            for file in ([run.files.get(source.job_id)] if source.file_id else run.documents or [None])
        ],
    )


def _attempts(run: Run) -> str:
    told = [f"{one.attempt} (behind step {one.resumed_from:,})" if one.resumed_from else str(one.attempt) for one in run.attempts]
    lost = [f"{one.attempt} was lost: {text(one.message or one.cause)}" for one in run.lost]
    return "; ".join([", ".join(told), *lost])


def _is_small(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, dict | list) and 0 < len(value) <= 8)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
