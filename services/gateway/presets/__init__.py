"""Presets: hyperparameters under a name, a file each. A start may begin with one, and what its caller sends counts more."""

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import msgspec


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`hyperparams` is what a start's body could have, and is checked like it."""

    description: str
    category: Literal["llm"]
    method: Literal["lora", "qlora", "full"]
    hyperparams: dict[str, Any]


@cache
def presets() -> dict[str, Preset]:
    """By name, which is that of the file."""
    found = sorted((file for file in files(__name__).iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name.removesuffix(".json"): msgspec.json.decode(file.read_bytes(), type=Preset) for file in found}
