"""README.md of a fitted model: what it is, of what it was made, how good it is, and a program that loads it and runs as it stands. In the child only."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from services.training.features import Feature, Preparation
from services.training.frames import FitSpec

CARD = "README.md"
MOST_SHOWN = 50
"""Features of the row in the example: what a row leaves out is missing."""

_PROGRAM = """import msgspec
import onnxruntime
from features import Preparation  # features.py, which lies beside this file

with open("preprocess.json", "rb") as file:
    preparation = msgspec.json.decode(file.read(), type=Preparation)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

rows = [
    {row}
]
output = session.run(["y"], {{"x": preparation.encode_rows(rows)}})[0]
print(preparation.decode(output))
"""


def write(folder: Path, spec: FitSpec, preparation: Preparation, *, metrics: dict[str, float], summary: dict[str, Any], original: str) -> None:
    target, architecture = preparation.target, summary["architecture"]
    names = f"{len(target.classes)} classes" if target.classes else "values"
    measured = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    notes = "\n".join(f"- {_plain(note)}" for note in summary["report"]["notes"])
    text = f"""---
library_name: onnx
tags:
- tabular-{target.task}
---

# {_plain(spec.fit.model_type)} for {_plain(target.name)}

Tells {names} of `{_plain(target.name)}` from {len(preparation.features)} features of a row. {architecture["parameters"]:,} parameters.

## Where it comes from

| | |
|---|---|
| run | `{spec.job_id}` |
| data set | `{spec.dataset_id}` |
| SHA-256 of what was learned from | `{spec.sha256}` |
| rows | {summary["rows"]} |
| epochs | {summary["epochs"]}, of which {summary["report"]["best_epoch"]} was the best and is the one that is here |

## How good it is

`val_` is measured on rows that nothing was learned from. Precision, recall and F1 score are means over the classes.

| | |
|---|---|
{measured}
{chr(10) + notes + chr(10) if notes else ""}
## Files

- `model.onnx`: the model. Input `x` is float32 [rows, {preparation.width}], output `y` is {"the probability of each class" if target.classes else "the standardised value"}.
- `preprocess.json`, `features.py`: from a row to `x`, and from `y` to an answer. They need numpy and msgspec.
- `{original}`: the weights as they were trained.
- `config.json`: how. `history.json`: what each epoch came to.

## Use it

`pip install onnxruntime msgspec numpy`, then, in this folder:

```python
{_PROGRAM.format(row=_literal(_row(preparation)))}```
"""
    (folder / CARD).write_text(text)


def _row(preparation: Preparation) -> dict[str, Any]:
    """Of what is usual."""
    return {feature.name: _usual(feature) for feature in preparation.features[:MOST_SHOWN]}


def _usual(feature: Feature) -> Any:
    match feature.type:
        case "category":
            return feature.categories[0] if feature.categories else None
        case "boolean":
            return feature.medians[0] >= 0.5
        case "date":
            return (datetime(1970, 1, 1) + timedelta(days=feature.medians[0])).isoformat(timespec="seconds")  # noqa: DTZ001  # dates have no zone here
        case "integer":
            return round(feature.medians[0])
        case "numeric":
            return feature.medians[0]


def _literal(row: dict[str, Any]) -> str:
    """As Python, in one line; a name can't end the block of code that it stands in."""
    return ascii(row).replace("`", "\\x60")


def _plain(text: str) -> str:
    """People's own words, in one line and without a meaning for Markdown."""
    return "".join(" " if letter in "`|<>[]*_#\\\n\r" else letter for letter in text)
