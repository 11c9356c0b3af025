"""How much memory of a GPU a fine-tune takes: what its trainer keeps there, counted from a model's shape. Nothing of it is measured here; docs/memory.md says what it rests on."""

import msgspec

from libs.events import FineTune

NF4 = 0.516
"""Bytes of a weight in 4 bits, with its doubly quantised scales."""
STATES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "adafactor": 0.5}
"""Bytes of an optimizer for each number that it changes."""
LOGITS, CHUNK = 12, 512
"""Bytes of a logit with its gradient, and how many tokens have theirs at a time."""
CONTEXT = 0.5e9
"""CUDA's own, which PyTorch doesn't count."""
WORKSPACES = 0.4e9
"""Its libraries', and small things."""
SPLINTERED = 1.05
"""What comes and goes leaves gaps."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a Llama-like model is made of: a layer's linear ones as (in, out), and how many of the layers there are."""

    hidden: int
    intermediate: int
    keys: int
    layers: int
    vocabulary: int
    linears: list[tuple[int, int]]
    other: int
    """Parameters outside of the layers' linear ones."""

    @property
    def linear(self) -> int:
        return self.layers * sum(inside * outside for inside, outside in self.linears)

    def adapters(self, rank: int) -> int:
        return self.layers * sum(rank * (inside + outside) for inside, outside in self.linears)


def need(shape: Shape, parameters: int, tuning: FineTune, *, trained: float | None = None, chunk: int = CHUNK) -> float:
    """In bytes, with all rows of a batch at once and as long as they may be. Where that isn't there, the trainer takes fewer at once before it gives up.
    `trained` and `chunk` are for other trainers: bytes besides a weight for each number that is trained, and tokens whose logits exist at a time."""
    tokens = tuning.per_device_batch_size * tuning.max_seq_length
    each = 4 + 4 + STATES[tuning.optimizer] if trained is None else trained  # a float32 number (a copy, beside 16-bit weights) and its gradient
    numbers = parameters if tuning.method == "full" else shape.adapters(tuning.lora_r)
    held = CONTEXT + WORKSPACES + _weights(shape, parameters, tuning.method) + numbers * each
    return held + SPLINTERED * _passing(shape, tuning, tokens, min(chunk, tokens))


def _weights(shape: Shape, parameters: int, method: str) -> float:
    linear = min(shape.linear, parameters)
    return NF4 * linear + 2.0 * (parameters - linear) if method == "qlora" else 2.0 * parameters


def _passing(shape: Shape, tuning: FineTune, tokens: int, chunk: int) -> float:
    """From the way forth to the way back: what layers keep, or their inputs only; one layer's gradients; the ends of the model."""
    layer = tokens * kept(shape, tuning)
    held = shape.layers * tokens * 2 * shape.hidden + layer if tuning.gradient_checkpointing else shape.layers * layer
    slopes = tokens * (8 * shape.hidden + 6 * shape.intermediate)
    unpacked = 2.0 * max(inside * outside for inside, outside in shape.linears) if tuning.method == "qlora" else 0.0
    ends = tokens * 14 * shape.hidden + chunk * shape.vocabulary * LOGITS
    of_head = 6.0 * shape.vocabulary * shape.hidden if tuning.method == "full" else 0.0
    return held + slopes + unpacked + ends + of_head


def kept(shape: Shape, tuning: FineTune) -> int:
    """Bytes of a token in a layer. A test counts them on the trainer itself."""
    h, i, keys, rank = shape.hidden, shape.intermediate, shape.keys, tuning.lora_r
    if tuning.method == "full":
        return 22 * h + 8 * i + 4 * keys + 24
    if tuning.lora_dropout:  # each adapter has a float32 copy of its input then, and a mask
        return 60 * h + 14 * i + 4 * keys + 28 * rank + 24
    return 18 * h + 8 * i + 4 * keys + 14 * rank + 24
