"""Run by tests as a process of its own: makes tiny models with the libraries that people use, judges files as the check does, and loads exports as people would."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from libs.tiny import CONFIG  # noqa: E402
from services.export import verify  # noqa: E402
from services.export.header import length  # noqa: E402
from services.export.verification import Question  # noqa: E402

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base(**changed: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIG | changed), dtype=torch.float32)


def make(folder: Path) -> None:
    """An adapter that does something, a whole model, and logits to know them by."""
    adapter = peft.get_peft_model(base(), peft.LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM"))
    for name, weights in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    adapter.save_pretrained(str(folder / "adapter"))
    whole = base()
    whole.save_pretrained(str(folder / "model"))
    (folder / "logits.json").write_text(json.dumps(_logits(adapter)))


def load(folder: Path) -> list[float]:
    return _logits(peft.PeftModel.from_pretrained(base(), str(folder)))


def judge(file: Path, base_config: dict[str, Any], adapter_config: dict[str, Any] | None, rename: dict[str, str]) -> dict[str, Any]:
    """Of the file with some of its tensors renamed, or (to nothing) left out."""
    weights = {rename.get(name, name): tensor for name, tensor in load_file(str(file)).items() if rename.get(name, name)}
    save_file(weights, str(file.with_suffix(".changed")), metadata={"format": "pt"})
    content = file.with_suffix(".changed").read_bytes()
    verdict = verify.judge(Question(base_config=base_config, adapter_config=adapter_config, head=content[: length(content)], size=len(content)))
    return {"code": verdict.code, "message": verdict.message, "tensors": verdict.tensors}


def judge_shards(file: Path, base_config: dict[str, Any], left_out: int, twice: int) -> dict[str, Any]:
    """Of a model in two files, with so many tensors in none of them, and so many in both."""
    weights = sorted(load_file(str(file)).items())[left_out:]
    parts = []
    for some in (weights[:10], weights[10 - twice :]):
        save_file(dict(some), str(file.with_suffix(".part")), metadata={"format": "pt"})
        parts.append(file.with_suffix(".part").read_bytes())
    heads = [(part[: length(part)], len(part)) for part in parts]
    question = Question(base_config=base_config, adapter_config=None, head=heads[0][0], size=heads[0][1], others=heads[1:])
    verdict = verify.judge(question)
    return {"code": verdict.code, "message": verdict.message, "tensors": verdict.tensors}


@torch.no_grad()
def _logits(model: Any) -> list[float]:
    model.eval()
    return model(torch.arange(8)[None]).logits[0, -1, :16].tolist()


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        match order.pop("do"):
            case "make":
                answer: Any = make(Path(order["folder"]))
            case "load":
                answer = load(Path(order["folder"]))
            case "judge_shards":
                answer = judge_shards(Path(order.pop("file")), **order)
            case _:
                answer = judge(Path(order.pop("file")), **order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
