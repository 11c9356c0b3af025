"""All that a run needs to go on as if nothing had happened, in one file that is there whole or not at all."""

import os
import random
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]
"""Tensors and builtins only: it is read without unpickling anything else."""


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
