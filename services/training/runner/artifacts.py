"""The files that a run leaves, and the proof that they hold the model that was trained. Imported in the child only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import adapters
from .outcome import Failure

MODEL = "model.safetensors"
TOLERANCE = 0.05
"""Relative: peft computes an adapter's branch in float32, training in the model's type."""

Logits = Callable[[], Tensor]
"""Of the model as it is now, always on the same tokens."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # nothing is padded here, but elsewhere
    tokenizer.save_pretrained(folder)


def save_adapter(adapted: PeftModel, folder: Path, *, base: Path, logits: Logits, unfuse: Callable[[], None]) -> dict[str, Any]:
    """Verified: peft expects these keys and shapes for this base, and with the file read again, computed peft's way, the base is the trained model."""
    trained = logits()
    adapters.save(adapted, folder)
    path = folder / adapters.WEIGHTS
    _same(adapters.expected(AutoConfig.from_pretrained(base, trust_remote_code=False), folder, _on_meta), path)
    unfuse()
    adapters.blank(adapted)
    untrained = logits()
    adapters.reload(adapted, folder)
    difference = _difference(trained, logits())
    if difference > TOLERANCE:
        raise Failure("internal", f"The adapter that was saved doesn't give the trained model back: logits differ by {difference:.3g} of their size.")
    return {"tensors": len(_shapes(path)), "logits_difference": difference, "tolerance": TOLERANCE, "effect": _difference(trained, untrained)}


def save_model(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Verified: each tensor in the file is the one that was trained, and they are those that the configuration asks for."""
    model.config.use_cache = True
    model.save_pretrained(folder, max_shard_size="1TB")
    held = model.state_dict()
    with safe_open(folder / MODEL, "pt") as file:
        for key in file.keys():  # noqa: SIM118 it is no dict
            if not torch.equal(file.get_tensor(key), held[key].cpu()):
                raise Failure("internal", f"The model that was saved differs from the one that was trained, first in {key}.")
    again = _on_meta(AutoConfig.from_pretrained(folder))
    wanted = {key: tuple(tensor.shape) for key, tensor in again.state_dict().items()}
    found = _shapes(folder / MODEL)
    _same({key: shape for key, shape in wanted.items() if key in found or key not in again.all_tied_weights_keys}, folder / MODEL)
    return {"tensors": len(found), "logits_difference": 0.0}


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 it is no dict


def _same(expected: dict[str, tuple[int, ...]], path: Path) -> None:
    found = _shapes(path)
    if odd := sorted(set(expected.items()) ^ set(found.items())):
        raise Failure("internal", f"{path.name} doesn't fit the base model: {odd[0][0]} among {len(odd)} tensors.")


def _difference(one: Tensor, other: Tensor) -> float:
    """Relative to the size of the first."""
    return ((one - other).norm() / one.norm().clamp(min=1e-12)).item()
