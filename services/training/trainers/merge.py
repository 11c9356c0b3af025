"""Merging: what an adapter has learned becomes part of its base's weights, so that the model loads without peft.

W' = W + s B A, summed in float32 and rounded once to the type that the base is published in. The base is the published one, also where a run has seen it in 4
bits only: rounding what was learned to 4 bits would take a part of it away. How far the merged model is from what the run saw is measured and told.
"""

import gc
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from services.training.frames import Completed, Frame, Phase, RunSpec, Stopped
from services.training.runner import bases, machine
from services.training.runner.outcome import Failure, Stop, ran_out_of_memory
from services.training.runner.wishes import Wishes

Tell = Callable[[Frame], None]

FOLDER = "merged"
"""Of the files in an export: beside an adapter's configuration transformers would take them for an adapter."""
SHARD = 4_000_000_000
"""Bytes of a file of weights, at most."""
MOST_SHARDS = 64
NEEDED = 1.15
"""Times the weights, in memory: the model, and for a moment a layer of it in float32."""
BESIDES = 512 * 1024 * 1024
TRIED = 64
"""Tokens of each text on which two models are compared."""
TEXTS = ("The quick brown fox jumps over the lazy dog, and then", "1 + 1 = 2, 2 + 2 = 4, 3 + 3 =")
ROUNDING = {torch.float32: 8.0, torch.float16: 1.5, torch.bfloat16: 1.5}
"""How much of a type's precision, times the root of the number of merged layers, two ways to compute the same may differ by. Measured on random models of 2 to
32 layers: at most 2.7 in float32, where sums are made in another order, and 0.62 in 16 bits, where W' is rounded once more. Each layer adds its own, independently."""
DONE = {"find": 2, "fetch": 30, "load": 40, "compare": 45, "merge": 60, "save": 75, "check": 99}
"""How far the merge is when these are through, of 100."""
LEFT_OUT = frozenset({"adapter_model.safetensors", "adapter_config.json", "base_config.json"})
"""Of what a run left: the rest is its tokenizer."""


def merge(spec: RunSpec, tell: Tell, wishes: Wishes) -> Completed | Stopped:
    """Raises a Failure when it can't be done. There is nothing to keep halfway: who goes on begins again."""
    try:
        return _merge(spec, tell, wishes)
    except Stop:
        return Stopped(step=0)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise Failure("oom", f"The memory of {machine.name(spec.device)} is too small to merge this model. The adapter can be exported without it.") from error


def _merge(spec: RunSpec, tell: Tell, wishes: Wishes) -> Completed:
    def at(name: str, share: float = 0.0) -> None:
        before = [0, *DONE.values()][list(DONE).index(name)]
        tell(Phase(name=name, done=round(before + share * (DONE[name] - before)), total=100))

    at("find")
    base = wishes.unless_stopped(lambda: bases.find(spec))
    if getattr(base.config, "quantization_config", None):
        raise Failure(
            "model", f"{base.name} is published quantised. An adapter is merged into a model of 16 or 32 bits only: rounding would undo a part of it."
        )
    at("fetch")
    wishes.unless_stopped(lambda: bases.fetch_weights(base, spec, lambda done, total: at("fetch", done / max(1, total))))
    weights = sum(file.stat().st_size for file in base.folder.glob("*.safetensors"))
    _check_disk(Path(spec.folder), weights)
    device = _device(spec.device, weights)
    folder = Path(spec.folder, FOLDER)
    made = _made(base, spec, folder, device, weights, at, wishes)
    _freed(device)
    at("check")
    told: dict[str, Any] = {}
    if spec.tuning.method == "qlora":
        seen = wishes.unless_stopped(lambda: _as_the_run_saw_it(base, spec, made.ids))
        _freed(device)
        told["seen_by_the_run"] = {"logits_difference": _apart(seen, made.wanted), "same_first_choice": _same_choice(seen, made.wanted)}
    at("check", 0.5)
    told |= _compared(made, folder, device, wishes)
    warnings = list(base.warnings)
    if told["effect"] <= told["tolerance"]:
        warnings.append(
            f"What was trained changes the model's logits by {told['effect']:.2g} of their size, no more than rounding to {told['dtype']} may ({told['tolerance']:.2g}): "
            "the merged model may have lost a part of it. The adapter has all of it."
        )
    told |= {"device": machine.name(device), "warnings": warnings}
    files = {f"{FOLDER}/{path.name}": str(path) for path in sorted(folder.iterdir())}
    return Completed(step=0, artifacts=files, summary={"merged": told, "versions": machine.versions()})


class Made(NamedTuple):
    """What is known of the model that was written, once it is not in memory any more."""

    ids: list[Tensor]
    wanted: Tensor
    """Logits of base and adapter."""
    untrained: Tensor
    """Of the base alone."""
    sums: dict[str, int]
    layers: int
    dtype: torch.dtype
    parameters: int


def _made(base: bases.Base, spec: RunSpec, folder: Path, device: torch.device, weights: int, at: Callable[..., None], wishes: Wishes) -> Made:
    at("load")
    adapted = wishes.unless_stopped(lambda: _adapted(_loaded(base.name, base.folder, device), spec.merge))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.merge, trust_remote_code=False, local_files_only=True)
    ids = [_ids(tokenizer, text, adapted.config) for text in (*spec.texts, *TEXTS)]
    at("compare")
    wanted = wishes.unless_stopped(lambda: _logits(adapted, ids))
    with adapted.disable_adapter():
        untrained = wishes.unless_stopped(lambda: _logits(adapted, ids))
    layers = list(_layers(adapted))
    for number, layer in enumerate(layers, 1):
        wishes.heed()
        _add(layer)
        at("merge", number / len(layers))
    model = adapted.unload()
    at("save")
    wishes.unless_stopped(lambda: _save(model, base.folder, Path(spec.merge), folder, weights))
    sums = wishes.unless_stopped(lambda: _sums(model))
    return Made(ids, wanted, untrained, sums, len(layers), model.dtype, machine.parameters(model))


def _compared(made: Made, folder: Path, device: torch.device, wishes: Wishes) -> dict[str, Any]:
    """The folder is loaded again: tensor by tensor it must be what was merged, and its logits those of base and adapter."""
    again = wishes.unless_stopped(lambda: _loaded("The merged model", folder, device))
    if odd := sorted(made.sums.items() ^ wishes.unless_stopped(lambda: _sums(again)).items()):
        raise Failure("internal", f"The merged model that was saved is not the one that was merged: {odd[0][0]} among {len(odd)} values.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if _ids(tokenizer, TEXTS[-1], again.config).tolist() != made.ids[-1].tolist():
        raise Failure("internal", "The merged model's tokenizer makes other tokens of a text than the run's.")
    found = wishes.unless_stopped(lambda: _logits(again, made.ids))
    tolerance = ROUNDING.get(made.dtype, 1.5) * torch.finfo(made.dtype).eps * math.sqrt(made.layers)
    difference = _apart(made.wanted, found)
    if not difference <= tolerance:  # also when it is no number
        raise Failure(
            "internal", f"The merged model is not its base with the adapter: logits differ by {difference:.3g} of their size, {tolerance:.3g} is rounding."
        )
    return {
        "dtype": str(made.dtype).removeprefix("torch."),
        "layers": made.layers,
        "parameters": made.parameters,
        "tensors": len(made.sums),
        "logits_difference": difference,
        "tolerance": tolerance,
        "effect": _apart(made.wanted, made.untrained),
        "same_first_choice": _same_choice(made.wanted, found),
        "tokens_compared": sum(len(text) for text in made.ids),
    }


# ---- room


def _check_disk(folder: Path, weights: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < weights + BESIDES:
        raise Failure(
            "disk_full", f"The merged model takes {weights / 1e9:.1f} GB of disk for a while, and the training service has {free / 1e9:.1f} GB free only."
        )


def _device(wanted: str, weights: int) -> torch.device:
    """The GPU where the model fits, else the memory of the machine; refused before anything is loaded where neither has the room."""
    needed = NEEDED * weights + BESIDES
    if wanted != "cpu" and torch.cuda.mem_get_info(torch.device(wanted))[0] >= needed:
        return torch.device(wanted)
    if (free := free_memory()) < needed:
        raise Failure(
            "oom",
            f"To merge this model takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. The adapter can be exported without it "
            "(merged: false) and merged elsewhere: its README.md says how.",
        )
    return torch.device("cpu")


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Of the machine, or of what this process may have of it. Files that are only cached, such as the base that was just fetched, make room when it is needed."""
    free = [_available()]
    for folder, most, used, cached in (
        (groups, "memory.max", "memory.current", ("inactive_file", "active_file")),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        try:
            limit, now, told = ((folder / name).read_text().strip() for name in (most, used, "memory.stat"))
        except OSError:
            continue
        if limit.isdecimal():
            stat = dict(line.split() for line in told.splitlines())
            free.append(max(0, int(limit) - int(now) + sum(int(stat.get(name, 0)) for name in cached)))
    return min(free)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _freed(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- models


def _loaded(name: str, folder: Path, device: torch.device) -> PreTrainedModel:
    """As somebody would who has never heard of us, in the type in which it is stored; but every weight must be there, and no other."""
    options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": False, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if device.type != "cpu":
        options["device_map"] = {"": str(device)}
    try:
        model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", AutoModelForCausalLM.from_pretrained(folder, **options))
    except Exception as error:  # strangers' files break in every possible way
        if ran_out_of_memory(error):
            raise
        raise Failure("model", f"{name} can't be loaded ({type(error).__name__}): {str(error).strip()[:500]}") from error
    odd = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "mismatched_keys") if info.get(kind)}
    if odd:
        raise Failure("model", f"{name} doesn't load as a whole: {', '.join(f'{len(keys)} {kind}, {keys[0]} for one' for kind, keys in odd.items())}.")
    return model.eval()


def _adapted(model: PreTrainedModel, folder: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict  # it imports bitsandbytes, which a forkserver mustn't

    from services.training.runner import adapters

    try:
        adapted = PeftModel.from_pretrained(model, folder).eval()
    except (ValueError, KeyError, RuntimeError) as error:
        raise Failure("model", f"The adapter doesn't fit its base model any more: {str(error).strip()[:500]}") from error
    with safe_open(Path(folder, adapters.WEIGHTS), "pt") as file:
        if odd := sorted(set(file.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))):  # peft loads what it knows, and says no word
            raise Failure("model", f"The adapter doesn't fit its base model any more: {odd[0]} among {len(odd)} tensors.")
    return adapted


def _layers(adapted: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module for module in adapted.modules() if isinstance(module, LoraLayer))


@torch.no_grad()
def _add(layer: Any) -> None:
    weight = layer.get_base_layer().weight
    summed = weight.float() + layer.get_delta_weight("default").to(weight.device, torch.float32)
    merged = summed.to(weight.dtype)
    if not bool(torch.isfinite(merged).all()):
        raise Failure("diverged", f"Merged weights would be no numbers in {weight.dtype}: the adapter is too large for it.")
    weight.copy_(merged)


def _save(model: PreTrainedModel, base: Path, run: Path, folder: Path, weights: int) -> None:
    """The base's own generation settings go along as they are: some that are published are refused when they are saved anew."""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder, max_shard_size=max(SHARD, math.ceil(weights / MOST_SHARDS)))
    if (settings := base / "generation_config.json").is_file():
        shutil.copy(settings, folder)
    for file in run.iterdir():
        if file.name not in LEFT_OUT:
            shutil.copy(file, folder)


def _sums(model: PreTrainedModel) -> dict[str, int]:
    """By which each tensor is known again."""
    return {name: zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()) for name, tensor in model.state_dict().items()}


# ---- comparing


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, config: Any) -> Tensor:
    known = config.get_text_config().vocab_size
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"].long()[0, :TRIED]
    ids = ids[ids < known]
    return ids if len(ids) else torch.zeros(1, dtype=torch.long)


@torch.no_grad()
def _logits(model: Any, ids: list[Tensor]) -> Tensor:
    """Of every token of every text, one below the other."""
    return torch.cat([model(input_ids=text[None].to(model.device), use_cache=False).logits[0].float().cpu() for text in ids])


def _as_the_run_saw_it(base: bases.Base, spec: RunSpec, ids: list[Tensor]) -> Tensor:
    """Base in 4 bits, adapter beside it."""
    return _logits(_adapted(bases.load(base, spec), spec.merge), ids)


def _apart(one: Tensor, other: Tensor) -> float:
    """Relative to the size of the first."""
    return ((one - other).norm() / one.norm().clamp(min=1e-12)).item()


def _same_choice(one: Tensor, other: Tensor) -> float:
    """The share of places at which both find the same token the likeliest."""
    return (one.argmax(-1) == other.argmax(-1)).float().mean().item()
