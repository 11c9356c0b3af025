"""Base models: found, looked at before anything of them is loaded, and loaded. Only safetensors, and never code that comes with a model."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import msgspec
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from libs import tiny as tiny_llama
from libs.events import FineTune
from services.training.frames import RunSpec

from . import tiny
from .examples import Examples
from .outcome import Failure, Unreachable, ran_out_of_memory

SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
"""All but the weights."""
WEIGHTS = [*SMALL, "*.safetensors"]
CONFIGURATIONS = ("config.json", "tokenizer_config.json")

MOST = 10_000
COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_labels")
"""Of these transformers makes an entry each as soon as it reads a configuration."""
DENSEST = 8
"""Parameters that a byte of a weights file can stand for at most: one bit each."""

BETWEEN = 0.5
"""Seconds between two words about a download."""

Progress = Callable[[int, int], None]


class Base:
    """A model in a folder of this machine. `name` is what people call it, and what adapters are told they belong to."""

    def __init__(
        self, name: str, folder: Path, *, revision: str = "", smoke: bool = False, warnings: tuple[str, ...] = (), tokenizer: Path | None = None
    ) -> None:
        """The tokenizer is in a folder of its own where a later run has brought it along."""
        self.name = name
        self.folder = folder
        self.revision = revision
        self.smoke = smoke
        self.warnings = warnings
        self.config = loaded(name, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
        self.tokenizer: PreTrainedTokenizerBase = loaded(
            name, lambda: AutoTokenizer.from_pretrained(tokenizer or folder, trust_remote_code=False, local_files_only=True)
        )


def find(spec: RunSpec) -> Base:
    """What is needed to read the data with: configuration and tokenizer. The weights of a hub's model are not yet there."""
    tuning = spec.tuning
    cache = Path(spec.cache or os.path.join(spec.folder, "cache"))
    if not tuning.smoke:
        folder = _root(spec, cache, SMALL)
        check(tuning.base_model, folder)
        return Base(tuning.base_model, folder, revision=tuning.revision, tokenizer=_youngest(spec))
    return _smoke(spec, cache)


def fetch_weights(base: Base, spec: RunSpec, progress: Progress) -> None:
    """`progress` is told the bytes that are there, and of how many."""
    if base.smoke:
        return
    base.folder = _root(spec, Path(spec.cache or os.path.join(spec.folder, "cache")), WEIGHTS, progress)
    if not any(base.folder.glob("*.safetensors")):
        raise Failure("model", f"{base.name} has no weights in the format safetensors. Pickle files run code when they are read, so they are never loaded.")
    _check_weight(base)
    if adapters := [folder for folder, ancestor in zip(_ancestors(spec), spec.tuning.ancestors, strict=True) if ancestor.method != "full"]:
        base.folder = _stacked(base, adapters, Path(spec.folder, "base"))


def check_vocabulary(base: Base, learned: Examples) -> None:
    """A token that a model doesn't know ends a process on a CPU in riddles, and on a GPU takes the device along."""
    known = getattr(base.config.get_text_config(), "vocab_size", None)
    if not isinstance(known, int) or len(base.tokenizer) <= known:
        return
    highest = max(int(example.ids.max()) for example in (*learned.train, *learned.held_out))
    if highest >= known:
        raise Failure("model", f"The tokenizer of {base.name} makes the token {highest}, but the model knows {known} only: they don't belong together.")


def _check_weight(base: Base) -> None:
    """A configuration is a stranger's wish for memory: weights that are not in the files would be made up first, and missed afterwards."""
    config = base.config.get_text_config()
    hidden, inner, layers, vocabulary = (
        size if isinstance(size := getattr(config, name, 0), int) else 0 for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    least = layers * hidden * max(hidden, inner) + vocabulary * hidden
    stored = sum(file.stat().st_size for file in base.folder.glob("*.safetensors"))
    if least > DENSEST * stored:
        raise Failure("model", f"The configuration of {base.name} asks for at least {least:,} weights, but its files have {stored:,} bytes only.")


def _root(spec: RunSpec, cache: Path, patterns: list[str], progress: Progress = lambda done, total: None) -> Path:
    """Where the weights are that everything else was added to."""
    tuning = spec.tuning
    if not tuning.ancestors:
        return _folder(tuning, cache, patterns, progress)
    if tuning.ancestors[0].method == "full":
        return _ancestors(spec)[0]
    return _folder(msgspec.structs.replace(tuning, base_model=tuning.root, revision=tuning.root_revision), cache, patterns, progress)


def _ancestors(spec: RunSpec) -> list[Path]:
    """The runs that a base of our own is made of, the oldest first."""
    return [Path(spec.folder, f"ancestor-{n}") for n in range(len(spec.tuning.ancestors))]


def _youngest(spec: RunSpec) -> Path | None:
    return next(reversed(_ancestors(spec)), None)


def _stacked(base: Base, adapters: list[Path], place: Path) -> Path:
    """One after the other becomes part of the weights, in the type that those are stored in: never onto 4 bits, whatever is trained then."""
    from . import adapters as peft  # it imports bitsandbytes, which a forkserver mustn't

    options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": False, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, info = _from_folder(base, options)
    if missing := sorted(info["missing_keys"]):
        raise Failure("model", f"{base.name} lacks weights that its configuration asks for, {missing[0]} among {len(missing)}.")
    for folder in adapters:
        try:
            model = peft.added(model, folder)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise Failure("model", f"{base.name} can't be put together ({type(error).__name__}): {str(error).strip()[:500]}") from error
    model.save_pretrained(place, max_shard_size="4GB")
    return place


def _folder(tuning: FineTune, cache: Path, patterns: list[str], progress: Progress = lambda done, total: None) -> Path:
    name = tuning.base_model
    if name == tiny_llama.BASE:
        return tiny.folder(cache)
    if name.startswith("/"):
        if not Path(name, "config.json").is_file():
            raise Failure("model", f"There is no model in the folder {name}: it must be one that the training service can read, with a config.json.")
        if not any(Path(name).glob("*.safetensors")):
            raise Failure("model", f"{name} has no weights in the format safetensors. Pickle files run code when they are read, so they are never loaded.")
        return Path(name)
    return downloaded(name, tuning.revision, cache, patterns, progress)


def downloaded(name: str, revision: str, cache: Path, patterns: list[str], progress: Progress) -> Path:
    """The settings come with the child, and the hub's library was loaded before: it is told them again."""
    hub = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision or None,
                cache_dir=cache / "hub",
                allow_patterns=patterns,
                endpoint=hub,
                token=os.environ.get("HF_TOKEN") or None,
                local_files_only=os.environ.get("HF_HUB_OFFLINE") == "1",
                tqdm_class=_bar(progress),
            )
        )
    except HFValidationError as error:
        raise Failure("model", f"{name!r} is neither a folder nor the name of a model on the hub.") from error
    except GatedRepoError as error:
        raise Failure(
            "model_not_accessible", f"{name} asks for its licence to be accepted on the hub; do so, and set TRAINYARD_HF_TOKEN to your token."
        ) from error
    except RepositoryNotFoundError as error:
        raise Failure("model_not_found", f"The hub has no model {name}, or it is private and TRAINYARD_HF_TOKEN has no access to it.") from error
    except RevisionNotFoundError as error:
        raise Failure("model_not_found", f"The model {name} has no revision {revision}: resolve it again.") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise Unreachable(
            "hub_unreachable", f"{name} is not on this machine, and the hub at {hub} can't be reached or doesn't answer ({type(error).__name__})."
        ) from error


def _bar(progress: Progress) -> type[tqdm]:
    """What the hub's library takes for a bar on a screen."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts = options.get("name") == "huggingface_hub.snapshot_download"  # of its three bars the one for bytes on the disk
            self.done = 0
            self.told = 0.0
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if self.counts and time.monotonic() - self.told > BETWEEN:
                self.told = time.monotonic()
                progress(self.done, int(self.total or 0))

    return Bar


def check(name: str, folder: Path) -> None:
    for file in CONFIGURATIONS:
        if not (path := folder / file).exists():
            continue
        try:
            config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Failure("model", f"The {file} of {name} is not valid JSON: {error}") from error
        if config.get("auto_map"):
            raise Failure(
                "model", f"{name} brings its own code along (auto_map in {file}), which is never run. Take a model that transformers knows by itself."
            )
        if odd := _odd_count(config):
            raise Failure("model", f"The {file} of {name} asks for {odd[1]:,} as {odd[0]}; more than {MOST:,} are no model.")
    if (folder / "adapter_config.json").exists():  # it would be loaded silently, and the base not be what it is called
        raise Failure("model", f"{name} has an adapter in it (adapter_config.json). Take the base model alone, or one that the adapter was merged into.")
    if not (folder / "config.json").exists():
        raise Failure("model", f"{name} has no config.json, so it is no model for transformers.")


def _odd_count(config: dict[str, Any]) -> tuple[str, int] | None:
    for key, value in config.items():
        if isinstance(value, dict) and (odd := _odd_count(value)):
            return odd
        if key in COUNTS and isinstance(value, int) and value > MOST:
            return key, value
    return None


def loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise Failure("model", f"{name} can't be read: {str(error).strip()[:500]}") from error


def longest(base: Base, wanted: int) -> int:
    """Most tokens of a row: models with learned positions can't go beyond theirs."""
    known = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    return min(wanted, known) if isinstance(known, int) and known > 0 else wanted


# ---- loading


def load(base: Base, spec: RunSpec) -> PreTrainedModel:
    device = torch.device(spec.device)
    dtype = compute_dtype(base, device)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if spec.tuning.method == "qlora" or device.type != "cpu":
        options["device_map"] = {"": spec.device}
    if spec.tuning.method == "qlora" and not getattr(base.config, "quantization_config", None):
        options["quantization_config"] = _nf4(dtype)
    model, info = _from_folder(base, options)
    if missing := sorted(info["missing_keys"]):
        raise Failure("model", f"{base.name} lacks weights that its configuration asks for, {missing[0]} among {len(missing)}.")
    model.config.use_cache = False
    _never_repack(model)
    return model


def _never_repack(model: PreTrainedModel) -> None:
    """On some CPUs bitsandbytes re-arranges 4-bit weights in place when a model is evaluated; the gradient couldn't be computed from them any more."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def _from_folder(base: Base, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        return AutoModelForCausalLM.from_pretrained(base.folder, **options)  # pyright: ignore[reportReturnType]
    except Exception as error:  # strangers' files break in every possible way
        if ran_out_of_memory(error):
            raise
        raise Failure("model", f"{base.name} can't be loaded ({type(error).__name__}): {str(error).strip()[:500]}") from error


def compute_dtype(base: Base, device: torch.device) -> torch.dtype:
    """Half the size where the device is good at it. On a CPU as the model is stored, if the CPU has instructions for it, or if it wouldn't fit otherwise."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    stored = base.config.get_text_config().dtype
    if stored in (torch.bfloat16, "bfloat16") and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    weights = sum(file.stat().st_size for file in base.folder.glob("*.safetensors"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.float32 if 4 * weights < memory else torch.bfloat16


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


# ---- smoke


def _smoke(spec: RunSpec, cache: Path) -> Base:
    """The real configuration and tokenizer where they can be had, made small, with random weights."""
    tuning = spec.tuning
    warnings: tuple[str, ...] = ("This is a smoke run: the base model was replaced by a tiny random one, so the weights are worthless.",)
    try:
        real = _folder_for_smoke(spec, cache)
        check(tuning.base_model, real)
        base = Base(tuning.base_model, real, revision=tuning.revision, tokenizer=_youngest(spec))
        model = _random(shrunk(base.config, len(base.tokenizer)))
    except Failure as failure:
        if "auto_map" in failure.message:
            raise
        warnings += (f"Its architecture is that of {tiny_llama.BASE}: {failure.message}",)
        base = Base(tuning.base_model, tiny.folder(cache))
        model = _random(base.config)
    place = Path(spec.folder, "base")
    base.tokenizer.save_pretrained(place)
    model.save_pretrained(place)
    return Base(tuning.base_model, place, revision=tuning.revision, smoke=True, warnings=warnings)


def _folder_for_smoke(spec: RunSpec, cache: Path) -> Path:
    tuning = spec.tuning
    if tuning.base_model.startswith("/") and Path(tuning.base_model, "config.json").is_file():
        return Path(tuning.base_model)  # the weights needn't be there
    return _root(spec, cache, SMALL)


def _random(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = loaded("The shrunken model", lambda: AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False))
    model.generation_config = GenerationConfig.from_model_config(config)
    with torch.no_grad():
        loaded("The shrunken model", lambda: model.eval()(input_ids=torch.arange(8)[None]))  # not every combination of small numbers is a model
    return model


SMALLEST: dict[str, Any] = {
    "hidden_size": 64,
    "n_embd": 64,
    "head_dim": 16,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "n_inner": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "word_embed_proj_dim": 64,
}


def shrunk(config: PretrainedConfig, vocabulary: int) -> PretrainedConfig:
    """Of the same architecture, as far as its names for sizes are known."""
    known = config.to_dict()
    small = {key: value for key, value in SMALLEST.items() if isinstance(known.get(key), int) and known[key] > value}
    layers = small.get("num_hidden_layers", 2)
    if known.get("layer_types"):
        small["layer_types"] = known["layer_types"][:layers]
    if (heads := known.get("num_attention_heads")) and known.get("num_key_value_heads") == heads:
        small["num_key_value_heads"] = small.get("num_attention_heads", heads)
    known.update(small, vocab_size=vocabulary, dtype="float32")
    known.pop("quantization_config", None)
    return type(config).from_dict(known)
