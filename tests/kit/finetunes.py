"""Small runs of the trainer: models and datasets made on the spot, trained in this process."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from libs.events import FineTune
from services.training.frames import Completed, Frame, RunSpec, Stopped

F = TypeVar("F")


def sums(count: int, *, held_out: int = 0, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of a snapshot that a tiny model can learn something from; the first ones are held out."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        a, b = rng.randrange(20), rng.randrange(20)
        more = " Please explain it in one sentence." * rng.randrange(3)
        data = {"instruction": f"How much is {a} plus {b}?{more}", "input": "", "output": f"{a} plus {b} is {a + b}."}
        rows.append({"id": str(number), "split": "eval" if number < held_out else "train", "format": "alpaca", "data": data})
    return rows


def conversation(*said: str, split: str = "train", system: str = "") -> dict[str, Any]:
    """A row in which user and assistant take turns."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return {"id": "c", "split": split, "format": "messages", "data": {"messages": messages}}


def spec(folder: Path, rows: Iterable[dict[str, Any]], *, cache: Path, attempt: int = 1, resume: str = "", **tuning: Any) -> RunSpec:
    folder.mkdir(exist_ok=True)
    snapshot = folder / "snapshot.jsonl"
    snapshot.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {
        "base_model": "trainyard/tiny-llama",
        "num_epochs": 1,
        "learning_rate": 0.005,
        "per_device_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_seq_length": 128,
        "lora_r": 4,
        **tuning,
    }
    return RunSpec(
        job_id="job",
        attempt=attempt,
        folder=str(folder),
        snapshot=str(snapshot),
        tuning=msgspec.convert(wanted, FineTune),
        resume=resume,
        cache=str(cache),
    )


class Told(list[Frame]):
    """Frames in order; what ended the run is `end`."""

    end: Completed | Stopped

    def of(self, kind: type[F]) -> list[F]:
        return [frame for frame in self if isinstance(frame, kind)]


def train(spec: RunSpec, *, on: Callable[[Frame, Any], None] = lambda frame, wishes: None) -> Told:
    """In this process. `on` sees each frame as it comes, and may ask for something."""
    from services.training.runner import entry
    from services.training.runner.wishes import Wishes
    from services.training.trainers import llm

    entry.settle(spec)
    told, wishes = Told(), Wishes()

    def tell(frame: Frame) -> None:
        told.append(frame)
        on(frame, wishes)

    told.end = llm.train(spec, tell, wishes)
    return told
