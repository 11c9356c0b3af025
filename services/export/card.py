"""README.md: the model card, for whoever gets the folder without us. Whatever people or models have written in it is escaped, and none of it stands in its head."""

import json
import re
from collections.abc import Iterator
from typing import Any

from libs.tiny import BASE

from . import loading, merging
from .documents import base_revision, final, initial, tokens_per_second
from .markdown import code, table, text
from .run import Run
from .saying import shown
from .wording import cautions, change, method, number

TOLD = (
    *("num_epochs", "max_steps", "learning_rate", "lr_scheduler", "optimizer", "warmup_ratio", "weight_decay", "max_grad_norm", "per_device_batch_size"),
    *("gradient_accumulation_steps", "max_seq_length", "lora_r", "lora_alpha", "lora_dropout", "train_on", "seed"),
)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")


def card(run: Run, *, merged: bool = False) -> bytes:
    """Of the export as a whole, or of the folder with the merged model in it."""
    sections = (
        _head(run, whole=merged or run.tuning.method == "full"),
        _title(run),
        _use(run, merged),
        _data(run),
        _results(run),
        _training(run),
        _limits(run),
    )
    return ("\n\n".join(part for section in sections for part in section) + "\n").encode()


def _head(run: Run, *, whole: bool) -> Iterator[str]:
    """YAML: names that are no more than names, numbers, and hashes."""
    base = run.tuning.root if run.tuning.ancestors else run.tuning.base_model
    snapshot = run.preparation.snapshot
    fields: list[tuple[str, Any]] = [
        ("base_model", base if _HUB_ID.fullmatch(base) and base != BASE else ""),
        ("base_model_relation", "finetune" if whole else "adapter"),
        ("library_name", "transformers" if whole else "peft"),
        ("pipeline_tag", "text-generation"),
        ("license", run.licence if _LICENCE.fullmatch(run.licence) else ""),
        ("tags", ["trainyard", run.tuning.method, "text-generation", *(["smoke"] if run.tuning.smoke else [])]),
    ]
    lineage = [("project", run.inputs.project_id), ("training_job", run.job.job_id), ("snapshot_sha256", snapshot.sha256 if snapshot else "")]
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields if value]
    lineage.append(("built_on", run.tuning.ancestors[-1].job_id if run.tuning.ancestors else ""))
    lines += ["trainyard:", *(f"  {name}: {json.dumps(value)}" for name, value in lineage if value)]
    lines.append(f"  sources: {json.dumps([source.job_id for source in run.sources])}")
    yield "\n".join(["---", *lines, "---"])


def _title(run: Run) -> Iterator[str]:
    rows = run.preparation.splits
    yield f"# Fine-tune of {text(run.tuning.base_model)}"
    yield (
        f"{method(run)} on {rows.get('train', 0):,} rows of the project {text(run.project_name) or 'without a name'}, {run.completed.step:,} steps. "
        "Everything that is known of it is in report.md, metrics.json and training\\_config.json of the same export."
    )


def _use(run: Run, merged: bool) -> Iterator[str]:
    yield "## How to load it"
    if merged or run.tuning.method == "full":
        yield from loading.whole(run, "merged" if merged else "model")
        return
    yield from loading.adapter(run)
    if run.merged:
        yield "### The merged model"
        yield from loading.whole(run, "merged")


def _data(run: Run) -> Iterator[str]:
    snapshot, splits = run.preparation.snapshot, run.preparation.splits
    files = [file for source in run.sources if (file := run.files.get(source.job_id))]
    named = [text(file.filename) for file in (*files, *run.documents)]
    rows = [
        ("Rows", ", ".join(f"{count:,} {text(split)}" for split, count in sorted(splits.items(), reverse=True)) or "—"),
        ("Snapshot, sha256", code(snapshot.sha256) if snapshot else "—"),
        ("Read from", ", ".join(named) or "—"),
        ("Project", code(run.inputs.project_id)),
        ("Training job", code(run.job.job_id)),
        ("Base model", f"{text(run.tuning.base_model)}{f' at commit {text(found)}' if (found := base_revision(run)) else ''}"),
    ]
    yield "## What it was trained on"
    yield table(["", ""], rows)


def _results(run: Run) -> Iterator[str]:
    before, after = initial(run), final(run)
    named = (("Loss on held-out rows", "eval_loss"), ("Perplexity on held-out rows", "perplexity"))
    rows = [
        [name, number(before.get(key)), number(after.get(key)), change(before.get(key), after.get(key))]
        for name, key in named
        if (before.get(key), after.get(key)) != (None, None)
    ]
    if rows:
        yield "## Results"
        yield table(["", "Before", "After", "Change"], rows)
    if told := list(shown(run)):
        yield "## What it says"
        yield "Prompts of held-out rows where there are some, answered greedily, at most 48 tokens; before is the base model."
        yield from told
    if run.merged:
        yield "## How the merged model was checked"
        yield from merging.told(run)


def _training(run: Run) -> Iterator[str]:
    settings = {name: getattr(run.tuning, name) for name in TOLD if run.tuning.method != "full" or not name.startswith("lora_")}
    rows = [
        ("Method", text(run.tuning.method)),
        *((code(name), text(str(value))) for name, value in settings.items()),
        ("Steps", number(run.completed.step)),
        ("Tokens per second", number(tokens_per_second(run))),
        *sorted((text(str(name)), text(str(version))) for name, version in _versions(run).items()),
    ]
    yield "## How it was trained"
    yield table(["", ""], [row for row in rows if row[1] != "—"])


def _limits(run: Run) -> Iterator[str]:
    known = cautions(run)
    if run.preparation.splits.get("eval"):
        known.append("Held-out rows are of the same origin as those it was trained on: the figures say little about other text.")
    known.append(f"It was trained on rows of at most {run.tuning.max_seq_length:,} tokens.")
    if run.tuning.method == "qlora":
        known.append("It was trained on a base model in 4 bits. On the base model in 16 bits it answers a little differently.")
    if _LICENCE.fullmatch(run.licence):
        known.append(f"The base model's licence, {text(run.licence)}, goes for this model too.")
    else:
        known.append("The base model's licence is not known here, and goes for this model too: look it up before you pass the model on.")
    known.append("Nobody has tested it for truth, safety or bias.")
    yield "## Limits"
    yield "\n".join(f"- {caution}" for caution in known)


def _versions(run: Run) -> dict[str, Any]:
    found = run.summary.get("versions")
    return found if isinstance(found, dict) else {}
