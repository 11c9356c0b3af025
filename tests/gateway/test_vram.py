"""What memory a fine-tune takes is never estimated too low, and at most 30 % too high, against what others have published of runs like it."""

from typing import Any, NamedTuple

import msgspec
import pytest

from libs.events import FineTune
from services.gateway.domain.vram import CONTEXT, Shape, need
from services.gateway.hub import Config, shape_of

GB, GIB = 1e9, 2**30


def model(hidden: int, intermediate: int, layers: int, heads: int, keys: int, vocabulary: int) -> Shape:
    known = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape = shape_of(msgspec.convert({**known, "model_type": "llama", "num_key_value_heads": keys, "vocab_size": vocabulary}, Config))
    assert shape
    return shape


LLAMA_2_7B = model(4096, 11008, 32, 32, 32, 32000)
LLAMA_2_13B = model(5120, 13824, 40, 40, 40, 32000)
LLAMA_3_1_8B = model(4096, 14336, 32, 32, 8, 128256)


class Published(NamedTuple):
    """`context`: whether the figure has what CUDA itself takes. `trained` and `chunk`: where that trainer keeps more or less than ours; see need()."""

    source: str
    shape: Shape
    method: str
    rows: int
    length: int
    rank: int
    checkpointing: bool
    figure: float
    context: bool = False
    trained: float | None = None
    chunk: int = 512


TORCHTUNE = "README of pytorch/torchtune at 0031bfb: peak memory, batch 2, packed to 2048 tokens, compiled; recipes/configs/llama3_1"
LITGPT = "tutorials/resource-tables.md of Lightning-AI/litgpt at 4839345: bf16-true, 1304 tokens, one A100; 4,194,304 adapter weights are rank 2 on all layers"
FACTORY = "wiki of hiyouga/LLaMA-Factory, Performance comparison, 15 April 2024: FlashAttention-2, 4 bits, batch 1, rank 8; in whole GB, all logits at once"
TABLE = [
    Published(TORCHTUNE, LLAMA_3_1_8B, "lora", 2, 2048, 8, True, 16.2 * GIB),
    Published(TORCHTUNE, LLAMA_3_1_8B, "qlora", 2, 2048, 8, True, 7.4 * GIB),
    Published(TORCHTUNE + ", gradients applied at once, states in 8 bits", LLAMA_3_1_8B, "full", 2, 2048, 0, True, 37.4 * GIB, trained=2.1),
    Published(TORCHTUNE + ", gradients applied at once, states paged out", LLAMA_3_1_8B, "full", 2, 2048, 0, True, 18.9 * GIB, trained=0.0),
    Published(LITGPT, LLAMA_2_7B, "lora", 1, 1304, 2, False, 21.30 * GB),
    Published(LITGPT, LLAMA_2_7B, "lora", 2, 1304, 2, False, 29.07 * GB),
    Published(LITGPT, LLAMA_2_13B, "lora", 1, 1304, 2, False, 38.12 * GB),
    *(
        Published(FACTORY, LLAMA_2_7B, "qlora", 1, length, 8, True, figure * GB, context=True, chunk=length)
        for length, figure in ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32))
    ),
]


def tuning(**wanted: Any) -> FineTune:
    return msgspec.convert({"base_model": "x", **wanted}, FineTune)


@pytest.mark.parametrize("row", TABLE, ids=[f"{row.source.split()[2]}-{row.method}-{row.rows}x{row.length}-{row.figure / GB:.0f}" for row in TABLE])
def test_published_figures_are_met(row: Published):
    asked = {"method": row.method, "per_device_batch_size": row.rows, "max_seq_length": row.length, "gradient_checkpointing": row.checkpointing}
    settings = tuning(**asked, **({"lora_r": row.rank} if row.rank else {}))

    estimated = need(row.shape, row.shape.linear + row.shape.other, settings, trained=row.trained, chunk=row.chunk) - (0 if row.context else CONTEXT)

    assert row.figure <= estimated <= 1.3 * row.figure


def test_each_setting_that_saves_memory_saves_some():
    def takes(**wanted: Any) -> float:
        return need(LLAMA_3_1_8B, 8030261248, tuning(**{"method": "lora", "per_device_batch_size": 4, **wanted}))

    assert takes(method="qlora") < takes() < takes(method="full")
    assert takes(per_device_batch_size=1) < takes(per_device_batch_size=2) < takes()
    assert takes(max_seq_length=1024) < takes()
    assert takes(gradient_checkpointing=True) < takes() / 2
    assert takes(lora_r=8) < takes() < takes(lora_r=64)
    assert takes() < takes(lora_dropout=0.05)
    assert takes(method="full", optimizer="adafactor") < takes(method="full", optimizer="adamw_8bit") < takes(method="full")
