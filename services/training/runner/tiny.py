"""The base model that ships with the platform, made where it is needed: random weights, but a real tokenizer with a chat template."""

import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from libs import tiny

VERSION = 1
"""Of what is built below; another number is another model."""
SPREAD = 0.125
"""Of the random weights: about 1 / sqrt(hidden size), so that adapters alone can teach it something."""
BOS, EOS, PAD, START, END = "<|begin|>", "<|end|>", "<|pad|>", "<|turn|>", "<|over|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXT = """\
The quick brown fox jumps over the lazy dog. How much is two plus three? Two plus three is five. What is the capital of France? The capital of France is Paris.
Write a short answer to the question that is asked. A yard is where things are kept and where work is done; a train goes from one place to another on rails.
Please explain in one sentence why the sky is blue. Sunlight is scattered by the air, and blue light is scattered more than the other colours are.
If you have three apples and give one away, you have two apples left. Name the days of the week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.
Translate this sentence into other words without changing its meaning. Here is the list: first, second, third. I don't know the answer to that question, sorry.
The order was sent to the customer yesterday and should arrive within four days. Thank you for your message; we will look into it and come back to you soon.
"""


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
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.CONFIG["vocab_size"],
        special_tokens=[BOS, EOS, PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytewise.train_from_iterator([TEXT], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token=BOS, eos_token=END, pad_token=PAD)
    wrapped.chat_template = TEMPLATE
    return wrapped
