"""README.md of a network that classifies images: what it is, of what it was made, how good it is, and programs that load it and run as they stand. In the child only."""

from pathlib import Path
from typing import Any

from services.training.frames import FitSpec
from services.training.images import Preparation

from .card import CARD
from .vision import Found

MOST_NAMED = 50
"""Classes."""

_PORTABLE = """`pip install onnxruntime msgspec numpy pillow`, then, in this folder:

```python
import msgspec
import onnxruntime
from PIL import Image

import images  # images.py, which lies beside this file

with open("preprocess.json", "rb") as file:
    preparation = msgspec.json.decode(file.read(), type=images.Preparation)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

pictures = [Image.new("RGB", (320, 240), "red")]  # or: [images.picture(open("photo.jpg", "rb").read())]
output = session.run(["y"], {"x": preparation.encode(pictures)})[0]
print(preparation.decode(output))
```

"""

_ORIGINAL = """As it was trained, with `pip install torch transformers msgspec pillow`:

```python
import msgspec
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

import images

with open("preprocess.json", "rb") as file:
    preparation = msgspec.json.decode(file.read(), type=images.Preparation)
model = AutoModelForImageClassification.from_pretrained(".", local_files_only=True).eval()

x = torch.from_numpy(preparation.encode([Image.new("RGB", (320, 240), "red")]))
with torch.no_grad():
    output = torch.softmax(model(pixel_values=x).logits, dim=1)
print(preparation.decode(output.numpy()))
```
"""


def write(folder: Path, spec: FitSpec, preparation: Preparation, *, found: Found, metrics: dict[str, float], summary: dict[str, Any]) -> None:
    classes = preparation.classes
    named = ", ".join(plain(name) for name in classes[:MOST_NAMED]) + (", ..." if len(classes) > MOST_NAMED else "")
    measured = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    notes = "\n".join(f"- {plain(note)}" for note in summary["report"]["notes"])
    begins = f"`{found.base}` of the model hub, at {found.revision}" if found.base else "random weights"
    text = f"""---
library_name: transformers
pipeline_tag: image-classification
tags:
- image-classification
- onnx
---

# {plain(spec.fit.model_type)} for {len(classes)} classes of images

Tells apart: {named}. {summary["architecture"]["parameters"]:,} parameters.

## Where it comes from

| | |
|---|---|
| run | `{spec.job_id}` |
| data set | `{spec.dataset_id}` |
| SHA-256 of what was learned from | `{spec.sha256}` |
| images | {summary["rows"]} |
| it began with | {begins} |
| epochs | {summary["epochs"]}, of which {summary["report"]["best_epoch"]} was the best and is the one that is here |

## How good it is

`val_` is measured on images that nothing was learned from. Precision, recall and F1 score are means over the classes.

| | |
|---|---|
{measured}
{chr(10) + notes + chr(10) if notes else ""}
## Files

{_portable(preparation, summary["verified"])}- `preprocess.json`, `images.py`: from an image to `x`, and from `y` to an answer. They need numpy, msgspec and Pillow.
- `model.safetensors`, `config.json`: the network as it was trained, for transformers.
- `training.json`: how. `history.json`: what each epoch came to.

## Use it

{_PORTABLE if summary["verified"] else ""}{_ORIGINAL}"""
    (folder / CARD).write_text(text)


def _portable(preparation: Preparation, verified: dict[str, Any]) -> str:
    if not verified:
        return ""
    shape = f"[images, 3, {preparation.size}, {preparation.size}]"
    held = f"on {verified['rows']} held-out images it is that of the trained network but for {verified['largest_difference']:.1g} at most"
    return f"- `model.onnx`: the model. Input `x` is float32 {shape}, output `y` is the probability of each class; {held}.\n"


def plain(text: str) -> str:
    """People's own words, in one line and without a meaning for Markdown."""
    return "".join(" " if letter in "`|<>[]*_#\\\n\r" else letter for letter in text)
