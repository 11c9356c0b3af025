"""What the estimate of memory says is kept for the way back is counted on the trainer itself, with small models, and doesn't depend on their size."""

from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from libs.events import FineTune
from services.gateway.domain.vram import kept
from services.gateway.hub import Config, shape_of
from services.training.runner import adapters, attention
from services.training.runner.causal import Causal
from services.training.runner.examples import Example
from services.training.runner.packing import batch

TOKENS = 256
SHAPES = [(128, 256, 4), (128, 512, 4), (128, 512, 1), (256, 512, 2)]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention never has all scores at once."""
    torch.set_num_threads(1)
    monkeypatch.setattr(attention, "SHORT", 0)


@pytest.mark.parametrize(("hidden", "intermediate", "keys"), SHAPES)
@pytest.mark.parametrize("wanted", [{"method": "full"}, {"method": "lora", "lora_r": 4}, {"method": "lora", "lora_r": 8, "lora_dropout": 0.05}])
def test_a_layer_keeps_what_the_estimate_says(hidden: int, intermediate: int, keys: int, wanted: dict[str, Any]):
    tuning = msgspec.convert({"base_model": "x", **wanted}, FineTune)
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": 4, "num_key_value_heads": keys, "vocab_size": 512}

    counted = (_kept(sizes, 3, tuning) - _kept(sizes, 1, tuning)) / 2 / TOKENS

    shape = shape_of(msgspec.convert({**sizes, "model_type": "llama", "num_hidden_layers": 3}, Config))
    assert shape
    assert counted == pytest.approx(kept(shape, tuning), rel=0.01)


def test_with_checkpointing_a_layer_keeps_its_input_only():
    tuning = FineTune(base_model="x", method="full", gradient_checkpointing=True)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 512}

    assert (_kept(sizes, 3, tuning) - _kept(sizes, 1, tuning)) / 2 / TOKENS == 2 * 128


def _kept(sizes: dict[str, Any], layers: int, tuning: FineTune) -> int:
    """Bytes that one way forth leaves for the way back, besides weights."""
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers)).bfloat16()
    causal = Causal(model)
    if tuning.method == "lora":
        model.requires_grad_(False)
        adapters.attach(model, tuning, name="x")
        adapters.fuse(model)
    if tuning.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            held[place] = tensor
        return tensor

    row = Example(torch.arange(TOKENS, dtype=torch.int32) % 512, torch.arange(1, 2, dtype=torch.int32))
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        causal.summed_loss(batch([row], torch.device("cpu")))
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())
