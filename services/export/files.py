"""Which files an export has: those that a training left and that loading needs, and those that are written here."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from libs.events import Claim

from .refused import Refused

TRAINING_CONFIG, METRICS, REPORT, LOSS_CURVE, CARD = "training_config.json", "metrics.json", "report.md", "loss_curve.svg", "README.md"
OURS = (TRAINING_CONFIG, METRICS, REPORT, LOSS_CURVE, CARD)
ARCHIVE = "finetuneflow_export.zip"
"""Made of all files by whoever sends it; none of them may bear its name."""
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
BASE_CONFIG = "base_config.json"
"""The base model's own, where the training's summary had no room for it."""
MODEL = ("model.safetensors", "config.json")
MERGED = "merged/"
"""The folder of a merged model: beside an adapter's configuration transformers would take it for the adapter's base."""
_SHARD = re.compile(r"merged/model(-\d{5}-of-\d{5})?\.safetensors")
_KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Weights, settings, templates, vocabularies: nothing that is run when it is opened."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def needed(method: str) -> tuple[str, str]:
    """The weights, and the settings that they can't be loaded without."""
    return MODEL if method == "full" else ADAPTER


def chosen(artifacts: Mapping[str, Claim], *, method: str) -> tuple[dict[str, Claim], list[str]]:
    """What goes along, in order, and the names of what stays behind."""
    if missing := [name for name in needed(method) if name not in artifacts]:
        raise Refused("incomplete", f"The training left no {' and no '.join(missing)}, so there is nothing that could be loaded.")
    along = {name: artifacts[name] for name in sorted(artifacts) if _NAME.fullmatch(name) and name.endswith(_KINDS)}
    _check_apart((*along, *OURS, ARCHIVE))
    return along, sorted(artifacts.keys() - along.keys())


def merged(artifacts: Mapping[str, Claim]) -> dict[str, Claim]:
    """The files of the merged model, in order: all, or nothing could be loaded."""
    named = [name for name in sorted(artifacts) if name.startswith(MERGED) and _NAME.fullmatch(name.removeprefix(MERGED))]
    along = {name: artifacts[name] for name in named if name.endswith(_KINDS) and name.removeprefix(MERGED) not in ADAPTER}
    if f"{MERGED}config.json" not in along or not shards(along):
        raise Refused("incomplete", "The merge left no whole model, so there is nothing that could be loaded.")
    _check_apart(along)
    return along


def _check_apart(names: Iterable[str]) -> None:
    """Also where capitals make no difference."""
    taken = Counter(name.lower() for name in names)
    if twice := sorted(name for name, count in taken.items() if count > 1):
        raise Refused("name_taken", f"Two files of the export would be called {', '.join(twice)}.")


def shards(names: Iterable[str]) -> list[str]:
    return [name for name in names if _SHARD.fullmatch(name)]
