"""Small data sets of images that networks are fitted to, as the datasets service leaves them, and runs on them in this process."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from libs.events import Fit
from services.training.frames import FitSpec, Frame
from tests.kit.finetunes import Told

SIDE = 40
RED, BLUE = (200, 40, 40), (40, 40, 200)


def square(colour: tuple[int, int, int], random: np.random.Generator, *, side: int = SIDE) -> bytes:
    """Of that colour, somewhere on grey noise."""
    pixels = random.integers(90, 160, (side, side, 3))
    top, left = random.integers(0, side // 3, 2)
    pixels[top : top + side * 2 // 3, left : left + side * 2 // 3] = np.array(colour) + random.integers(-30, 30, 3)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def squares(each: int = 16, *, seed: int = 0, **classes: tuple[int, int, int]) -> dict[str, tuple[str, bytes]]:
    """Label and content by name in the archive."""
    random = np.random.default_rng(seed)
    wanted = classes or {"red": RED, "blue": BLUE}
    drawn = [(label, square(colour, random)) for _ in range(each) for label, colour in wanted.items()]
    return {f"images/{number:06d}.png": one for number, one in enumerate(drawn)}


def archive(images: Mapping[str, tuple[str, bytes]], *, lines: str | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, (_, data) in images.items():
            file.writestr(name, data)
        told = [{"file": name, "label": label, "width": SIDE, "height": SIDE, "source": name} for name, (label, _) in images.items()]
        file.writestr("manifest.jsonl", "".join(json.dumps(line) + "\n" for line in told) if lines is None else lines)
    return out.getvalue()


def spec(folder: Path, data: bytes, *, attempt: int = 1, resume: str = "", cache: Path | None = None, **fit: Any) -> FitSpec:
    folder.mkdir(exist_ok=True)
    snapshot = folder / "snapshot"
    snapshot.write_bytes(data)
    wanted = {
        "model_type": "resnet18",
        "smoke": True,
        "pretrained": False,
        "epochs": 3,
        "batch_size": 8,
        "image_size": 32,
        "seed": 1,
        "learning_rate": 0.005,
        **fit,
    }
    return FitSpec(
        job_id="job",
        attempt=attempt,
        folder=str(folder),
        snapshot=str(snapshot),
        resume=resume,
        cache=str(cache or folder / "cache"),
        fit=msgspec.convert(wanted, Fit),
        dataset_id="data",
    )


def train(spec: FitSpec, *, on: Callable[[Frame, Any], None] = lambda frame, wishes: None) -> Told:
    """In this process. `on` sees each frame as it comes, and may ask for something."""
    from services.training.runner import entry
    from services.training.runner.wishes import Wishes
    from services.training.trainers import image

    entry.settle(spec)
    told, wishes = Told(), Wishes()

    def tell(frame: Frame) -> None:
        told.append(frame)
        on(frame, wishes)

    told.end = image.train(spec, tell, wishes)
    return told
