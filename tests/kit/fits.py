"""Small data sets that models are fitted to, as the datasets service leaves them, and runs on them in this process."""

import socket
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from libs.events import Column, Fit
from services.training.frames import FitSpec, Frame
from tests.kit.finetunes import Told

TARGET = "label"


def mixed(rows: int = 240, *, seed: int = 0, missing: float = 0.0, classes: int = 3) -> pl.DataFrame:
    """Numbers, categories, a yes or no and a date, of which some say what the label is."""
    random = np.random.default_rng(seed)
    size, colour = random.normal(size=rows), random.integers(0, 4, rows)
    score = size + 0.8 * (colour - 1.5) + random.normal(size=rows) * 0.2
    cuts = np.quantile(score, np.arange(1, classes) / classes)
    frame = pl.DataFrame(
        {
            "size": size,
            "count": random.integers(0, 50, rows),
            "colour": np.array(["red", "green", "blue", "grey"])[colour],
            "old": random.random(rows) < 0.5,
            "day": np.datetime64("2024-01-01", "us") + random.integers(0, 700, rows).astype("timedelta64[D]"),
            TARGET: np.array(["low", "middle", "high", "top"])[np.digitize(score, cuts)],
        }
    )
    gone = random.random((rows, 5)) < missing
    return frame.with_columns(pl.when(pl.Series(gone[:, n])).then(None).otherwise(pl.col(name)).alias(name) for n, name in enumerate(frame.columns[:5]))


def values(rows: int = 240, *, seed: int = 0) -> pl.DataFrame:
    """A target in its own unit, far from zero."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=rows), random.normal(size=rows)
    return pl.DataFrame({"a": a, "b": b, TARGET: 1000 + 50 * a - 20 * b + random.normal(size=rows)})


def columns(frame: pl.DataFrame) -> list[Column]:
    return [Column(index=n, name=name, type=_kind(frame[name]), role="target" if name == TARGET else "feature") for n, name in enumerate(frame.columns)]


def _kind(series: pl.Series) -> Any:
    if series.dtype == pl.Boolean:
        return "boolean"
    if series.dtype.is_temporal():
        return "date"
    if series.dtype.is_integer():
        return "integer"
    return "numeric" if series.dtype.is_float() else "category"


def spec(folder: Path, frame: pl.DataFrame, *, attempt: int = 1, resume: str = "", known: list[Column] | None = None, **fit: Any) -> FitSpec:
    folder.mkdir(exist_ok=True)
    snapshot = folder / "snapshot"
    snapshot.write_bytes(parquet(frame, known))
    wanted = {"model_type": "mlp", "epochs": 3, "batch_size": 32, "seed": 1, **fit}
    return FitSpec(
        job_id="job", attempt=attempt, folder=str(folder), snapshot=str(snapshot), resume=resume, fit=msgspec.convert(wanted, Fit), dataset_id="data"
    )


def parquet(frame: pl.DataFrame, known: list[Column] | None = None) -> bytes:
    file = BytesIO()
    about = msgspec.json.encode(known or columns(frame)).decode()
    frame.write_parquet(file, metadata={"trainyard.columns": about})
    return file.getvalue()


def train(spec: FitSpec, *, on: Callable[[Frame, Any], None] = lambda frame, wishes: None) -> Told:
    """In this process. `on` sees each frame as it comes, and may ask for something."""
    from services.training.runner import entry
    from services.training.runner.wishes import Wishes
    from services.training.trainers import table

    entry.settle(spec)
    told, wishes = Told(), Wishes()

    def tell(frame: Frame) -> None:
        told.append(frame)
        on(frame, wishes)

    told.end = table.train(spec, tell, wishes)
    return told


def leisurely(sock: socket.socket, spec: Any) -> None:
    """A run's process that keeps a checkpoint often, and takes its time, so that there is something to interrupt."""
    from services.training.runner import entry
    from services.training.trainers import image, table

    class Leisurely(table.Run):
        def look_after(self) -> None:
            time.sleep(0.01)
            super().look_after()

    class Dreamy(image.Run):
        def look_after(self) -> None:
            time.sleep(0.01)
            super().look_after()

    table.KEEP_EVERY = image.KEEP_EVERY = 0.1
    table.Run, image.Run = Leisurely, Dreamy
    entry.run(sock, spec)
