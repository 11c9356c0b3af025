"""Which base models are on this machine already, so that their children need no network."""

import hashlib
from pathlib import Path

import msgspec

from libs import tiny
from libs.events import FineTune, Fit

from .snapshots import holds_table

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}
"""Environment of a child whose model is at hand."""
_MARKS = ".complete"


def at_hand(tuning: FineTune, cache: Path) -> bool:
    """The bundled one, a folder, or a commit of the hub that a run has loaded here before. The hub's newest may be another each time."""
    tuning = _fetched(tuning)
    return tuning.base_model == tiny.BASE or Path(tuning.base_model).is_dir() or (bool(tuning.revision) and _mark(tuning, cache).exists())


def fitted_alone(fit: Fit, snapshot: str) -> bool:
    """Nothing of the hub is needed for it."""
    return holds_table(snapshot) or ("/" not in fit.model_type and (fit.smoke or not fit.pretrained))


def loaded(tuning: FineTune, cache: Path) -> None:
    tuning = _fetched(tuning)
    if tuning.revision and not at_hand(tuning, cache):
        mark = _mark(tuning, cache)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def forget(tuning: FineTune, cache: Path) -> None:
    """It could not be loaded: the next run may ask the hub again."""
    _mark(_fetched(tuning), cache).unlink(missing_ok=True)


def _fetched(tuning: FineTune) -> FineTune:
    """Of a model of our own only what lies under it is fetched by the child: nothing, where that was trained here too."""
    return msgspec.structs.replace(tuning, base_model=tuning.root or tiny.BASE, revision=tuning.root_revision) if tuning.ancestors else tuning


def _mark(tuning: FineTune, cache: Path) -> Path:
    return cache / _MARKS / hashlib.sha256(f"{tuning.base_model}@{tuning.revision}@{tuning.smoke}".encode()).hexdigest()
