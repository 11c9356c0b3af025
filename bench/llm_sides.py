"""One side of `bench.llm`, in a process of its own: the same model, rows and batches through our loop, TRL or the HF Trainer. Prints one line of JSON."""

import argparse
import contextlib
import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

LENGTH = 512
BATCH = 8
RATE = 1e-4
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock:
    """From the first step's begin to the last one's end: loading a model is nobody's loop."""

    def start(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall


def ours(folder: Path, method: str, clock: Clock, seed: int) -> tuple[float, int]:
    from libs.events import FineTune
    from services.training import frames
    from services.training.runner.wishes import Wishes
    from services.training.trainers import llm

    losses: list[tuple[float, int]] = []

    def tell(frame: frames.Frame) -> None:
        match frame:
            case frames.Ready():
                clock.start()
            case frames.Step() as step:
                losses.append((step.loss, step.tokens))
                if step.step == total:
                    clock.stop()
            case _:
                return

    rows = sum(1 for _ in (folder / "snapshot.jsonl").open())
    total = -(-rows // BATCH)
    tuning = FineTune(
        base_model=str(folder / method),
        method=method,  # type: ignore[arg-type]
        num_epochs=1,
        seed=seed,
        learning_rate=RATE,
        lr_scheduler="linear",
        warmup_ratio=0.0,
        weight_decay=0.0,
        per_device_batch_size=BATCH,
        gradient_accumulation_steps=1,
        max_seq_length=LENGTH,
        lora_r=LORA["r"],  # type: ignore[arg-type]
        lora_alpha=LORA["lora_alpha"],  # type: ignore[arg-type]
    )
    run = folder / f"run-{method}-{time.time_ns()}"
    run.mkdir()
    spec = frames.RunSpec(job_id="bench", attempt=1, folder=str(run), snapshot=str(folder / "snapshot.jsonl"), tuning=tuning, cache=str(folder / "cache"))
    llm.train(spec, tell, Wishes())
    return sum(loss for loss, _ in losses) / len(losses), len(losses)


def peer_rows(folder: Path) -> list[dict[str, list[int]]]:
    return json.loads((folder / "tokens.json").read_text())


def load(folder: Path, method: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more = {}
    if method == "qlora":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
        )
    return AutoModelForCausalLM.from_pretrained(folder / method, **more)


def adapter(method: str) -> Any:
    from peft import LoraConfig

    return None if method == "full" else LoraConfig(**LORA, target_modules=TARGETS, task_type="CAUSAL_LM")


def trl(folder: Path, method: str, clock: Clock, seed: int, *, packing: bool) -> tuple[float, int]:
    from transformers import AutoTokenizer

    peer, datasets = import_module("trl"), import_module("datasets")  # installed by `make bench` alone, so unknown to checks of types

    how: dict[str, Any] = {"per_device_train_batch_size": BATCH}
    if packing:
        how = {"per_device_train_batch_size": 2, "packing": True, "gradient_checkpointing": False}
    config = peer.SFTConfig(output_dir=str(folder / "trl"), max_length=LENGTH, completion_only_loss=True, **how, **common(method, seed))
    trainer = peer.SFTTrainer(
        load(folder, method),
        args=config,
        train_dataset=datasets.Dataset.from_list(peer_rows(folder)),
        processing_class=AutoTokenizer.from_pretrained(folder / method),
        peft_config=adapter(method),
        callbacks=[timer(clock)],
    )
    done = trainer.train()
    return done.training_loss, done.global_step


def hf(folder: Path, method: str, clock: Clock, seed: int) -> tuple[float, int]:
    from transformers import Trainer, TrainingArguments

    rows = peer_rows(folder)
    arguments = TrainingArguments(output_dir=str(folder / "hf"), per_device_train_batch_size=BATCH, remove_unused_columns=False, **common(method, seed))
    done = Trainer(load(folder, method), args=arguments, data_collator=padded, train_dataset=rows, callbacks=[timer(clock)]).train()  # type: ignore[arg-type]
    return done.training_loss, done.global_step


def common(method: str, seed: int) -> dict[str, Any]:
    """As the peers have it by default, but for what would make another comparison of it."""
    return {
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "use_cpu": True,
        "bf16": method != "full",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10**6,
        "dataloader_pin_memory": False,
        "seed": seed,
    }


def timer(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    return Timer()


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for n, row in enumerate(rows):
        tokens, learnt = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"])
        ids[n, : len(tokens)] = tokens
        labels[n, : len(tokens)] = torch.where(learnt == 1, tokens, -100)
        mask[n, : len(tokens)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


SIDES: dict[str, Callable[[Path, str, Clock, int], tuple[float, int]]] = {
    "ours": ours,
    "trl": lambda folder, method, clock, seed: trl(folder, method, clock, seed, packing=False),
    "trl-packing": lambda folder, method, clock, seed: trl(folder, method, clock, seed, packing=True),
    "hf-trainer": hf,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.llm_sides", description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("method", choices=("full", "lora", "qlora"))
    parser.add_argument("folder", type=Path, help="what bench.llm has made")
    parser.add_argument("seed", type=int, help="shuffles the rows and draws the adapter")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    clock = Clock()
    with contextlib.redirect_stdout(io.StringIO()):
        loss, steps = SIDES[arguments.side](arguments.folder, arguments.method, clock, arguments.seed)
    tokens = sum(len(row["input_ids"]) for row in peer_rows(arguments.folder))
    sys.stdout.write(json.dumps({"tokens": tokens, "cpu": clock.cpu, "wall": clock.wall, "loss": loss, "steps": steps}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
