"""How many tokens of a fine-tune a CPU-second carries: our loop against TRL and the HF Trainer, on the same model, rows and losses."""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import NormalDist
from typing import Any

from bench.kit import Promises, p50, table

ROWS = 64
LENGTHS = NormalDist(5.0, 0.7)
"""Of the logarithm of a row's tokens, before the cap (ADR 0017). The wider, the more a side that pads loses, so it isn't moved to keep a promise."""
LENGTH = 512
TEMPLATE = 18
"""Tokens of a row that its template takes."""
PROMISED = {
    ("full", "trl"): 3.0,
    ("full", "trl-packing"): 1.5,
    ("full", "hf-trainer"): 2.2,
    ("lora", "trl"): 4.0,
    ("lora", "trl-packing"): 1.7,
    ("qlora", "trl"): 4.0,
    ("qlora", "trl-packing"): 1.7,
}
ALIKE = 0.02
"""How far mean losses may lie apart, relatively: sides shuffle differently."""


def make(folder: Path) -> None:
    """A Llama of 16 million parameters with a tokenizer of its own, and chats of very different lengths, half of each supervised.

    In the types that people use: all weights are trained in float32, adapters on a base in bfloat16.
    """
    program = f"from bench.llm import furnish; from pathlib import Path; furnish(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True)


def furnish(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rng = random.Random(7)
    syllables = ["ka", "ru", "mi", "to", "sel", "ban", "dro", "vi", "lum", "pha", "qui", "ne", "gor", "wy", "zet", "xo"]
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(9000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((" ".join(rng.choices(words, k=50)) for _ in range(2000)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    for method, kind in (("full", torch.float32), ("lora", torch.bfloat16), ("qlora", torch.bfloat16)):
        model.to(kind).save_pretrained(folder / method)
        fast.save_pretrained(folder / method)
    rows, tokens = [], []
    for n in range(ROWS):
        drawn = int(math.exp(LENGTHS.inv_cdf((n + 0.5) / ROWS)))  # its quantiles: no luck of a draw
        length = min(LENGTH, max(24, drawn)) - TEMPLATE
        asked_for = int(length * rng.uniform(0.3, 0.7))
        prompt, answer = (said(fast, rng, words, count) for count in (asked_for, length - asked_for))
        data = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        rows.append({"id": str(n), "split": "train", "format": "messages", "data": data})
        asked = fast.apply_chat_template(data["messages"][:1], add_generation_prompt=True, return_dict=False)
        whole = fast.apply_chat_template(data["messages"], return_dict=False)[:LENGTH]
        tokens.append({"input_ids": whole, "completion_mask": [int(place >= len(asked)) for place in range(len(whole))]})
    (folder / "snapshot.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tokens.json").write_text(json.dumps(tokens))


def said(tokenizer: Any, rng: random.Random, words: list[str], length: int) -> str:
    """Words of about so many tokens."""
    ids = tokenizer(" ".join(rng.choices(words, k=length))).input_ids[:length]
    return tokenizer.decode(ids)


def run(side: str, method: str, folder: Path, seed: int) -> dict[str, Any]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bench.llm_sides", side, method, str(folder), str(seed)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.llm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs, in turns")
    parser.add_argument("--method", choices=("full", "lora", "qlora"), action="append", help="just this one (may be given several times)")
    arguments = parser.parse_args()
    promises = Promises()
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as folder:
        make(Path(folder))
        for method in arguments.method or ("full", "lora", "qlora"):
            sides = ["ours", *(side for of, side in PROMISED if of == method)]
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for number in range(arguments.rounds):
                for side in sides[:: 1 if number % 2 else -1]:
                    found[side].append(run(side, method, Path(folder), seed=number))  # which rows share a batch is luck too
            judge(method, found, promises)
    return promises.exit_code()


def judge(method: str, found: dict[str, list[dict[str, Any]]], promises: Promises) -> None:
    speed = {side: p50([one["tokens"] / one["cpu"] for one in some]) for side, some in found.items()}
    loss = {side: p50([one["loss"] for one in some]) for side, some in found.items()}
    rows = [
        [side, f"{speed[side]:,.0f}", f"{p50([one['tokens'] / one['wall'] for one in some]):,.0f}", f"{loss[side]:.4f}", str(some[0]["steps"])]
        for side, some in found.items()
    ]
    table([f"{method}, one thread", "tokens/CPU-s", "tokens/s", "mean loss", "steps"], rows)
    for side in speed.keys() - {"ours"}:
        promises.at_least(f"{method}: tokens per CPU-second", speed["ours"] / speed[side], PROMISED[method, side], of=side)
        if side != "trl-packing":  # packed rows make other batches, so other means
            promises.at_most(f"{method}: losses apart", abs(loss["ours"] - loss[side]) / loss[side], ALIKE, of=side, unit="")


if __name__ == "__main__":
    sys.exit(main())
