"""The base model that ships with the platform, made where it is needed: random weights, but a real tokenizer with a chat template."""

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from libs import tiny
from libs.tiny.tokenizer import BOS, END, PAD
from libs.tiny.tokenizer import build as build_tokenizer

VERSION = 1
"""Of what is built below; another number is another model."""
SPREAD = 0.125
"""Of the random weights: about 1 / sqrt(hidden size), so that adapters alone can teach it something."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def folder(cache: Path) -> Path:
    """Built once per cache; whoever builds at the same time builds the same, and the first one wins."""
    place = cache / f"tiny-llama-{VERSION}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".tiny-llama-", dir=cache))
        build(building)
        try:
            building.rename(place)
        except OSError:
            shutil.rmtree(building)
            if not place.exists():
                raise
    return place


def build(place: Path) -> None:
    letters = tokenizer()
    letters.save_pretrained(place)
    numbers = letters.get_vocab()
    config = LlamaConfig(
        **tiny.CONFIG,
        initializer_range=SPREAD,
        bos_token_id=numbers[BOS],
        eos_token_id=numbers[END],
        pad_token_id=numbers[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(place)


def tokenizer() -> PreTrainedTokenizerBase:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), bos_token=BOS, eos_token=END, pad_token=PAD)
    wrapped.chat_template = TEMPLATE
    return wrapped
