"""Presets of all families, to be looked at before one is trained with."""

from typing import Any

import msgspec
from litestar import get
from litestar.params import FromPath

from services.gateway.domain.errors import NotFound
from services.gateway.presets import Preset, presets


class PresetOut(msgspec.Struct, kw_only=True):
    name: str
    description: str
    category: str
    method: str
    hyperparams: dict[str, Any]


class PresetList(msgspec.Struct, kw_only=True):
    presets: list[PresetOut]


@get("/v2/presets", sync_to_thread=False, summary="What a training can begin with: hyperparameters under a name")
def list_presets() -> PresetList:
    """`preset` in the body of a start takes one of these names; hyperparameters that are sent beside it count more."""
    return PresetList(presets=[_out(name, preset) for name, preset in presets().items()])


@get("/v2/presets/{preset_name:str}", sync_to_thread=False, summary="One preset")
def get_preset(preset_name: FromPath[str]) -> PresetOut:
    if (preset := presets().get(preset_name)) is None:
        raise NotFound(what="Preset", id=preset_name)
    return _out(preset_name, preset)


handlers: list[Any] = [list_presets, get_preset]


def _out(name: str, preset: Preset) -> PresetOut:
    return PresetOut(name=name, **msgspec.structs.asdict(preset))
