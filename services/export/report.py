"""report.md: a run told to people. Whatever people or models have written in it is escaped."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from libs.tiny import BASE

from .curve import Curve
from .documents import base_revision, best_evaluation, final, initial, tokens_per_second
from .markdown import code, lines, table, text
from .run import Run
from .verification import Verdict

PROMPTS = 10
"""Most prompts whose completions are shown."""
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
_PLAIN_NAME = re.compile(r"[A-Za-z0-9./~][A-Za-z0-9._/~-]{0,299}")
"""Can stand in a command or in Python as it is."""


def report(run: Run, curve: Curve, verdict: Verdict, *, left_behind: list[str]) -> bytes:
    sections = (
        _title(run),
        _warnings(run, left_behind),
        _losses(run, curve),
        _samples(run),
        _loading(run),
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
        f"{_method(run)} on {rows.get('train', 0):,} rows of the project {text(run.project_name) or 'without a name'}, "
        f"{run.completed.step:,} steps, completed on {run.completed_at:%Y-%m-%d at %H:%M} UTC."
    )


def _warnings(run: Run, left_behind: list[str]) -> Iterator[str]:
    told = [text(str(warning), most=500) for warning in _list(run.summary.get("warnings"))]
    if run.tuning.smoke:
        told.insert(0, "**The weights are worthless.** This was a smoke run: the base model was replaced by a tiny random one of the same architecture.")
    if not run.preparation.splits.get("eval"):
        told.append("No rows were held out, so nothing says how the model does on text that it was not trained on.")
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
        ["", "Before", "After", "Change"], [[name, _number(old), _number(new), _change(old, new)] for name, old, new in rows if (old, new) != (None, None)]
    )
    if isinstance(kept := run.summary.get("best_step"), int) and kept != run.completed.step:
        yield f"The exported weights are those of step {kept:,}, which had the best loss on held-out rows; the training went on to step {run.completed.step:,}."
    elif best and best.step != run.completed.step:
        yield f"The best loss on held-out rows, {_number(best.metrics.get('eval_loss'))}, was measured at step {best.step:,}."
    yield "![Loss by step](loss_curve.svg)"


def _samples(run: Run) -> Iterator[str]:
    """Side by side where the same prompts were put to the model before."""
    if not run.samples:
        return
    last = run.samples[-1]
    first = run.samples[0] if run.samples[0] is not last else None
    before = {_prompt(sample): str(sample.get("completion", "")) for sample in first.samples} if first else {}
    yield "## What it says"
    if first:
        yield f"Before is the model at step {first.step:,}, after is step {last.step:,}."
    shown = last.samples[:PROMPTS]
    columns = [
        ("Prompt", [lines(_prompt(sample), most=1000) for sample in shown]),
        ("Before", [lines(before.get(_prompt(sample), "—")) for sample in shown] if first else []),
        ("After" if first else "Says", [lines(str(sample.get("completion", ""))) for sample in shown]),
        ("Expected", [lines(str(sample["expected"])) if sample.get("expected") else "" for sample in shown]),
    ]
    there = [(name, cells) for name, cells in columns if any(cells)]
    yield table([name for name, _ in there], zip(*(cells for _, cells in there), strict=True))


def _loading(run: Run) -> Iterator[str]:
    base = run.tuning.base_model if _PLAIN_NAME.fullmatch(run.tuning.base_model) else "BASE_MODEL"
    revision = f", revision={json.dumps(found)}" if _PLAIN_NAME.fullmatch(found := base_revision(run)) else ""
    yield "## How to load it"
    if run.tuning.method == "full":
        yield "Put the files of this export into a folder `model`. They are the whole model."
        yield _block(
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("model")',
            'tokenizer = AutoTokenizer.from_pretrained("model")',
        )
        yield _block("sh", "vllm serve ./model")
        return
    commit = f" at commit {text(found)}" if found else ""
    yield f"Put the files of this export into a folder `adapter`. The base model, {text(run.tuning.base_model)}{commit}, is not part of the export."
    if run.tuning.base_model == BASE:
        yield "It is the tiny model with random weights that ships with this platform, made by whoever trains it, and on no hub: give its folder in place of its name (`models/tiny-llama-1` in the platform's home, or wherever TRAINYARD_MODELS_FOLDER says)."
    yield _block(
        "python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{revision})',
        'model = PeftModel.from_pretrained(base, "adapter")',
        'tokenizer = AutoTokenizer.from_pretrained("adapter")',
    )
    rank = f" --max-lora-rank {run.tuning.lora_r}" if run.tuning.lora_r > 16 else ""
    yield _block("sh", f"vllm serve {base} --enable-lora{rank} --lora-modules adapter=./adapter")
    yield (
        "To merge it, load the base in 16 bits, as above, and call `model.merge_and_unload(safe_merge=True)`. "
        "Never merge onto a quantised base: rounding takes away a part of what was learned."
    )


def _checked(run: Run, verdict: Verdict) -> Iterator[str]:
    yield "## What was checked"
    whole = "model" if run.tuning.method == "full" else "adapter"
    yield (
        f"All {verdict.tensors:,} tensors of the {whole} ({verdict.values:,} values) have the names and shapes that its base model asks for, none missing and none left over "
        f"({text(verdict.library)}). Every file has the checksum it had when the training stored it."
    )
    if found := run.summary.get("verified"):
        yield f"The training loaded the {whole} again beside its base: {_told(found)}."


def _settings(run: Run) -> Iterator[str]:
    asked = run.job.spec
    yield "## Settings"
    yield table(
        ["Setting", "Value", ""],
        [[code(name), text(str(value)), "" if name in asked else "default"] for name, value in msgspec.to_builtins(run.tuning).items()],
    )


def _machine(run: Run) -> Iterator[str]:
    summary = run.summary
    rows = [
        ("Device", _told(summary.get("hardware") or summary.get("device") or run.attempts[-1].device)),
        ("Duration, from the first attempt on", _duration(run.seconds)),
        ("Duration of the steps", _duration(spent) if isinstance(spent := summary.get("training_seconds"), int | float) else ""),
        ("Tokens per second", _number(tokens_per_second(run))),
        ("Tokens", _number(summary.get("tokens"))),
        ("Parameters", _number(summary.get("parameters"))),
        ("Trained parameters", _number(summary.get("trainable_parameters"))),
        *((text(name.replace("_", " ").capitalize()), _told(value)) for name, value in summary.items() if name not in TOLD_ELSEWHERE and _is_small(value)),
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
            [text(file.filename), code(file.sha256), code(source.job_id)] if (file := run.files.get(source.job_id)) else ["—", "—", code(source.job_id)]
            for source in run.sources
        ],
    )


def _attempts(run: Run) -> str:
    told = [f"{one.attempt} (behind step {one.resumed_from:,})" if one.resumed_from else str(one.attempt) for one in run.attempts]
    lost = [f"{one.attempt} was lost: {text(one.message or one.cause)}" for one in run.lost]
    return "; ".join([", ".join(told), *lost])


def _method(run: Run) -> str:
    match run.tuning.method:
        case "lora":
            return f"LoRA of rank {run.tuning.lora_r}"
        case "qlora":
            return f"QLoRA of rank {run.tuning.lora_r}"
        case "full":
            return "All weights trained"


def _prompt(sample: dict[str, Any]) -> str:
    match sample.get("prompt", sample.get("messages", "")):
        case str(prompt):
            return prompt
        case list(messages):
            return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" if isinstance(message, dict) else str(message) for message in messages)
        case other:
            return str(other)


def _told(value: Any) -> str:
    match value:
        case str():
            return text(value)
        case bool() | None:
            return "yes" if value else "no"
        case int() | float():
            return _number(value)
        case dict():
            return ", ".join(f"{text(str(name).replace('_', ' '))}: {_told(one)}" for name, one in value.items())
        case list():
            return ", ".join(_told(one) for one in value)
        case _:
            return text(str(value))


def _is_small(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, dict | list) and 0 < len(value) <= 8)


def _number(value: Any) -> str:
    match value:
        case bool() | None:
            return "—"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
        case _:
            return text(str(value))


def _change(old: float | None, new: float | None) -> str:
    if old is None or new is None or old == 0:
        return ""
    return f"{(new - old) / abs(old):+.1%}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{seconds:.1f} s"


def _block(language: str, *content: str) -> str:
    return "\n".join([f"```{language}", *content, "```"])


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
