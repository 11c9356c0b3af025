"""All that a run needs to go on as if nothing had happened, in one file that is there whole or not at all."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from services.training.frames import Checkpoint, Frame

KEEPING = 0.05
"""Share of the time that goes into writing checkpoints, at most."""

State = dict[str, Any]
"""Tensors and builtins only: it is read without unpickling anything else."""


class Keeper:
    """Of one run's checkpoints, told once they are there."""

    def __init__(self, folder: str, tell: Callable[[Frame], None], *, every: float) -> None:
        self._folder = Path(folder)
        self._tell = tell
        self._every = every
        """Seconds between two, but for those that take long to write."""
        self._writing = 0.0
        self._at = time.monotonic()
        self.step = 0
        """That the last one is of."""

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._at >= max(self._every, self._writing / KEEPING)

    def keep(self, step: int, state: Callable[[], State]) -> None:
        if self.step == step:
            return
        began = time.monotonic()
        path = self._folder / f"checkpoint-{step:08d}.pt"
        write(path, state())
        self.step, self._at = step, time.monotonic()
        self._writing = self._at - began
        self._tell(Checkpoint(step=step, path=str(path)))


def write(path: Path, state: State) -> None:
    being_written = path.with_name(f".{path.name}.tmp")
    with being_written.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    being_written.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> State:
    return torch.load(path, map_location="cpu", weights_only=True)


def randomness(device: torch.device) -> State:
    state: State = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_randomness(state: State, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
