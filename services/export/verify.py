"""The process that checks whether a model loads: `verification.py` starts it, asks on its stdin and reads the verdict from its stdout."""

import ctypes
import math
import os
import resource
import signal
import sys
from typing import Any

import msgspec

from services.export.header import Tensor, Unsound, tensors
from services.export.verification import OUT_OF_BOUNDS, Question, Verdict

MEMORY = 3 * 1024**3
CPU_SECONDS = 60
PR_SET_PDEATHSIG = 1
PORTABLE = frozenset(
    {"task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_rslora"}
)
TOLD = frozenset({"peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "init_lora_weights"})
"""Don't change which weights there are."""
_SHOWN = 3


def main() -> None:
    _bound(parent=int(sys.argv[1]))
    question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Question)
    try:
        verdict = judge(question)
    except (MemoryError, RecursionError):
        sys.exit(OUT_OF_BOUNDS)
    sys.stdout.buffer.write(msgspec.json.encode(verdict))


def judge(question: Question) -> Verdict:
    what = "model" if question.adapter_config is None else "adapter"
    try:
        found: dict[str, Tensor] = {}
        for head, size in ((question.head, question.size), *question.others):
            more = tensors(head, size=size)
            if twice := found.keys() & more.keys():
                raise Unsound(f"tensor {min(twice)[:120]} is in two files")
            found |= more
    except Unsound as why:
        return Verdict(code="does_not_load", message=_clean(f"The {what}'s file is no sound safetensors file: {why}."))
    try:
        wanted, optional, library = _wanted(question)
    except MemoryError:
        raise
    except _Unfit as why:
        return Verdict(code="does_not_load", message=_clean(str(why)))
    except Exception as error:  # noqa: BLE001  # whatever the libraries make of a configuration, it is their answer
        return Verdict(code="unverifiable", message=_clean(f"The libraries can't build a model from these configurations: {type(error).__name__}: {error}"))
    if why := _difference(found, wanted, optional):
        return Verdict(code="does_not_load", message=_clean(f"The {what} doesn't fit its base model: {why}."))
    values = sum(math.prod(tensor.shape) for tensor in found.values())
    return Verdict(tensors=len(found), values=values, library=library)


class _Unfit(Exception):
    """Told apart from what the libraries say."""


def _wanted(question: Question) -> tuple[dict[str, list[int]], set[str], str]:
    """Names and shapes that the libraries would load, those they can do without, and who they are. Imported late: behind the bounds, and behind our own look."""
    sys.modules["bitsandbytes"] = None  # pyright: ignore[reportArgumentType]  # only quantised weights need it; peft would take a second to import it
    import torch
    import transformers

    settings = {key: value for key, value in question.base_config.items() if not key.startswith("_") and key not in {"auto_map", "quantization_config"}}
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(**settings)
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
        if question.adapter_config is None:
            return _shapes(model.state_dict()), _tied(model), f"transformers {transformers.__version__}"
        import peft

        adapter = peft.get_peft_model(model, peft.LoraConfig(**_portable(question.adapter_config, peft.LoraConfig().to_dict())))
    return (
        _shapes(peft.get_peft_model_state_dict(adapter, save_embedding_layers=False)),
        set(),
        f"peft {peft.__version__}, transformers {transformers.__version__}",
    )


def _portable(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What every loader understands. Other settings could name Python modules to import, or make weights that only peft can add up."""
    if settings.get("peft_type") != "LORA":
        raise _Unfit("The adapter's configuration is not one of a LoRA.")
    for name, value in settings.items():
        if name not in PORTABLE | TOLD and value != defaults.get(name):
            raise _Unfit(f"The adapter's configuration sets {name}, which loaders other than peft don't understand.")
    return {name: value for name, value in settings.items() if name in PORTABLE}


def _shapes(state: dict[str, Any]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _tied(model: Any) -> set[str]:
    """Names that a file may leave out because they are others by a second name."""
    return set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()


def _difference(found: dict[str, Tensor], wanted: dict[str, list[int]], optional: set[str]) -> str:
    missing = sorted(wanted.keys() - found.keys() - optional)
    over = sorted(found.keys() - wanted.keys())
    other = [
        f"{name} ({_by(tensor.shape)} instead of {_by(wanted[name])})"
        for name, tensor in sorted(found.items())
        if name in wanted and tensor.shape != wanted[name]
    ]
    told = (("missing", missing), ("left over", over), ("of another shape", other))
    return "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in told if names)


def _first(names: list[str]) -> str:
    return ", ".join(name[:160] for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _by(shape: list[int]) -> str:
    return "x".join(map(str, shape)) or "a single value"


def _clean(text: str) -> str:
    """Fit to be part of a fact."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)[:1000]


def _bound(*, parent: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # torch tries out where it could write, and must find a place
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(OUT_OF_BOUNDS)


if __name__ == "__main__":
    main()
