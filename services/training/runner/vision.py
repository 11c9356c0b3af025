"""Networks that classify images: the platform's own, and those of the model hub. Only safetensors, and never code that comes with a model. In the child only."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import huggingface_hub
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, ConvNextConfig, PretrainedConfig, PreTrainedModel, ResNetConfig, ViTConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from libs.events import Fit
from services.training.frames import FitSpec
from services.training.images import RESAMPLING

from . import bases
from .outcome import Failure, Unreachable, ran_out_of_memory

HUB = {
    "resnet18": "microsoft/resnet-18",
    "resnet34": "microsoft/resnet-34",
    "resnet50": "microsoft/resnet-50",
    "resnet101": "microsoft/resnet-101",
    "vit": "google/vit-base-patch16-224",
    "convnext": "facebook/convnext-tiny-224",
}
"""Whose weights the platform's own begin with."""
MODEL_TYPES = tuple(HUB)
SMALL = ["config.json", "preprocessor_config.json"]
"""All but the weights."""
SMOKE = "This is a smoke run: the network is a tiny random one of the same architecture."
SCRATCH = "weights not reachable: trained from scratch"
MOST_PARAMETERS = 450_000_000
"""Whose 32 bits each have room in one ONNX file."""
TINY = 5_000_000
"""Parameters that a smoke run's network has at most."""
MOST_LAYERS = 1_000
ANSWERS = 10.0
"""Seconds within which a hub says that it is there. Its library would try for half a minute, though the run can go on without."""

Progress = Callable[[int, int], None]


class Look(NamedTuple):
    """What the network wants to be shown."""

    size: int
    mean: list[float] = [0.485, 0.456, 0.406]
    std: list[float] = [0.229, 0.224, 0.225]
    """As usual since ImageNet."""
    crop: float = 0.875
    resample: str = "bilinear"


class Found(NamedTuple):
    network: PreTrainedModel
    look: Look
    base: str
    """Whose weights it begins with; empty: nobody's."""
    revision: str
    notes: list[str]

    def origin(self) -> dict[str, Any]:
        """For a checkpoint: the hub isn't asked again."""
        return {"config": self.network.config.to_json_string(use_diff=False), **self._asdict(), "network": None, "look": self.look._asdict()}


class Classifier(nn.Module):
    """Images in, logits out."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(pixel_values=x).logits


def find(spec: FitSpec, classes: list[str], progress: Progress = lambda done, total: None) -> Found:
    """Raises a Failure where a model of the hub can't be had, or is none that classifies images."""
    fit = spec.fit
    cache = Path(spec.cache or os.path.join(spec.folder, "cache"))
    torch.manual_seed(fit.seed)
    if fit.model_type in HUB:
        return _own(fit, classes, cache, progress)
    return _smoke(fit, classes, cache, progress) if fit.smoke else _of_hub(fit, classes, cache, progress)


def restored(origin: dict[str, Any]) -> Found:
    """Without its weights, which are in the checkpoint."""
    known = json.loads(origin["config"])
    config = CONFIG_MAPPING[known["model_type"]].from_dict(known)
    return Found(_built(config), Look(**origin["look"]), origin["base"], origin["revision"], origin["notes"])


def head(network: PreTrainedModel, outputs: int) -> nn.Linear | None:
    """What its last layer is, where it is as usual."""
    found = [module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == outputs]
    return found[-1] if found else None


# ---- the platform's own


def _own(fit: Fit, classes: list[str], cache: Path, progress: Progress) -> Found:
    notes: list[str] = []
    if fit.smoke:
        notes.append(SMOKE)
    elif fit.pretrained:
        try:
            return _loaded(HUB[fit.model_type], fit, classes, cache, progress, patient=False)
        except Failure as failure:
            notes.append(f"{SCRATCH}. {failure.message}")
    config = _tiny(fit) if fit.smoke else _config(fit)
    network = _built(_named(config, classes))
    return Found(network, Look(fit.image_size), "", "", notes)


def _config(fit: Fit) -> PretrainedConfig:
    match fit.model_type:
        case "vit":
            return ViTConfig(image_size=fit.image_size)
        case "convnext":
            return ConvNextConfig()
        case "resnet18":
            return ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
        case "resnet34":
            return ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3], layer_type="basic")
        case "resnet101":
            return ResNetConfig(depths=[3, 4, 23, 3])
        case _:
            return ResNetConfig()


def _tiny(fit: Fit) -> PretrainedConfig:
    match fit.model_type:
        case "vit":
            small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            return ViTConfig(**small, image_size=fit.image_size, patch_size=fit.image_size // 8)
        case "convnext":
            return ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1])
        case kind:
            layer = "basic" if kind in ("resnet18", "resnet34") else "bottleneck"
            return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type=layer)


# ---- the hub's


def _of_hub(fit: Fit, classes: list[str], cache: Path, progress: Progress) -> Found:
    if fit.pretrained:
        return _loaded(fit.model_type, fit, classes, cache, progress)
    folder = _folder(fit.model_type, cache, progress)
    config = _named(_classifier(fit.model_type, folder), classes)
    network = _built(config)
    look = _suited(fit.model_type, network, _look(folder, fit.image_size))
    return Found(network, look, "", folder.name, [])


def _smoke(fit: Fit, classes: list[str], cache: Path, progress: Progress) -> Found:
    """The real configuration made small, where it can be had."""
    notes = [SMOKE]
    look = Look(fit.image_size)
    try:
        folder = _folder(fit.model_type, cache, progress)
    except Unreachable as failure:
        notes.append(f"Its architecture is that of resnet50. {failure.message}")
        return Found(_built(_named(_tiny(fit), classes)), look, "", "", notes)
    config = _classifier(fit.model_type, folder)
    try:
        network = _built(_named(bases.loaded("The network", lambda: _shrunk(config)), classes), most=TINY)
        look = _suited(fit.model_type, network, _look(folder, fit.image_size))
    except Failure:  # not every combination of small numbers is a network
        notes.append(f"Its architecture is that of resnet50: {config.model_type} can't be made small here.")
        network = _built(_named(_tiny(fit), classes))
    return Found(network, look, "", "", notes)


def _loaded(name: str, fit: Fit, classes: list[str], cache: Path, progress: Progress, *, patient: bool = True) -> Found:
    folder = _folder(name, cache, progress, patient=patient)
    config = _named(_classifier(name, folder), classes)
    if (least := _parameters(config)) > MOST_PARAMETERS:
        raise _too_large(least, MOST_PARAMETERS)
    if not any(folder.glob("*.safetensors")):
        folder = bases.downloaded(name, folder.name, cache, [*SMALL, "*.safetensors"], progress)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not stored:
        raise Failure("model", f"{name} has no weights in the format safetensors. Pickle files run code when they are read, so they are never loaded.")
    if least > bases.DENSEST * stored:
        raise Failure("model", f"The configuration of {name} asks for {least:,} weights, but its files have {stored:,} bytes only.")
    options: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "trust_remote_code": False,
        "use_safetensors": True,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    try:
        network, info = AutoModelForImageClassification.from_pretrained(folder, **options)
    except Exception as error:  # strangers' files break in every possible way
        if ran_out_of_memory(error):
            raise
        raise Failure("model", f"{name} can't be loaded ({type(error).__name__}): {str(error).strip()[:500]}") from error
    body = f"{network.base_model_prefix}."
    new = [key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])]
    if missing := sorted(key for key in new if key.startswith(body)):
        raise Failure("model", f"{name} lacks weights that its configuration asks for, {missing[0]} among {len(missing)}.")
    return _fitting(name, network, folder, fit)


def _fitting(name: str, network: PreTrainedModel, folder: Path, fit: Fit) -> Found:
    look = _suited(name, network, _look(folder, fit.image_size))
    notes = [] if look.size == fit.image_size else [f"{name} looks at {look.size} pixels, so image_size {fit.image_size} was not heeded."]
    return Found(network, look, name, folder.name, notes)


def _folder(name: str, cache: Path, progress: Progress, *, patient: bool = True) -> Path:
    """With all but the weights, which may be there too."""
    if name.startswith("/"):
        raise Failure("model", f"{name} is a folder: name a model of the hub, like microsoft/resnet-50.")
    if not patient and (found := _at_hand(name, cache)):
        return found
    if not patient:
        _ask(name)
    folder = bases.downloaded(name, "", cache, SMALL, progress)
    bases.check(name, folder)
    return folder


def _at_hand(name: str, cache: Path) -> Path | None:
    """A run has fetched it before."""
    try:
        found = Path(huggingface_hub.snapshot_download(name, cache_dir=cache / "hub", local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, OSError):
        return None
    return found if (found / "config.json").exists() and any(found.glob("*.safetensors")) else None


def _ask(name: str) -> None:
    hub = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise Unreachable("hub_unreachable", f"{name} is not on this machine, and the hub is not to be asked.")
    try:
        httpx.head(hub, timeout=ANSWERS)
    except httpx.HTTPError as error:
        raise Unreachable("hub_unreachable", f"{name} is not on this machine, and the hub at {hub} can't be reached ({type(error).__name__}).") from error


def _classifier(name: str, folder: Path) -> PretrainedConfig:
    config: PretrainedConfig = bases.loaded(name, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    if config.model_type not in CLASSIFIERS or config.model_type == "timm_wrapper":
        raise Failure("model", f"{name} is no image classifier: its type is {config.model_type}. Take one that the hub lists under image classification.")
    kinds = CLASSIFIERS[config.model_type]
    if isinstance(kinds, tuple) and not set(config.architectures or ()) & set(kinds):
        config.architectures = [kinds[0]]
    if (layers := _layers(config)) > MOST_LAYERS:
        raise Failure("model", f"The config.json of {name} asks for {layers:,} layers; more than {MOST_LAYERS:,} are no model.")
    return config


def _layers(config: PretrainedConfig) -> int:
    """Each is made before anybody could count what is in it."""
    told = [value for key, value in config.to_dict().items() if key in ("depths", "layers", "depth", "num_blocks", *bases.COUNTS) and key != "num_labels"]
    return sum(sum(count for count in value if isinstance(count, int)) if isinstance(value, list) else value for value in told if isinstance(value, list | int))


def _named(config: PretrainedConfig, classes: list[str]) -> PretrainedConfig:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = None
    return config


def _look(folder: Path, size: int) -> Look:
    """As preprocessor_config.json has it, where that makes sense."""
    look = Look(size)
    try:
        told = json.loads((folder / "preprocessor_config.json").read_bytes())
    except (OSError, ValueError):
        return look
    if not isinstance(told, dict):
        return look
    mean, std = _colours(told.get("image_mean")), _colours(told.get("image_std"))
    if mean and std and min(std) > 0:
        look = look._replace(mean=mean, std=std)
    if isinstance(crop := told.get("crop_pct"), float) and 0.5 <= crop <= 1:
        look = look._replace(crop=crop)
    resample = next((name for name, number in RESAMPLING.items() if number == told.get("resample")), look.resample)
    return look._replace(resample=resample)


def _colours(values: Any) -> list[float] | None:
    if isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) and abs(value) < 10 for value in values):
        return [float(value) for value in values]
    return None


def _suited(name: str, network: PreTrainedModel, look: Look) -> Look:
    """With the size that is wanted, or the only one that it can look at."""
    own = getattr(network.config, "image_size", None)
    own = own[0] if isinstance(own, list | tuple) and own else own
    why: Exception | None = None
    for size in (look.size, own):
        if not isinstance(size, int) or not 8 <= size <= 1024:
            continue
        try:
            with torch.no_grad():
                answer = Classifier(network).eval()(torch.zeros(2, 3, size, size))
        except Exception as error:  # a stranger's network breaks in every possible way
            if ran_out_of_memory(error):
                raise
            why = error
            continue
        if tuple(answer.shape) == (2, network.config.num_labels):
            return look._replace(size=size)
    raise Failure("model", f"{name} can't be shown images of {look.size} pixels{f': {str(why).strip()[:300]}' if why else ''}.")


# ---- building


def _built(config: PretrainedConfig, *, most: int = MOST_PARAMETERS) -> PreTrainedModel:
    if (count := _parameters(config)) > most:
        raise _too_large(count, most)
    return bases.loaded("The network", lambda: AutoModelForImageClassification.from_config(config, dtype=torch.float32, trust_remote_code=False))


def _too_large(count: int, most: int) -> Failure:
    return Failure("model", f"The network has {count:,} parameters; {most:,} are the most that a model of images can have here.")


def _parameters(config: PretrainedConfig) -> int:
    """Counted without memory for them."""
    with torch.device("meta"):
        network = bases.loaded("The network", lambda: AutoModelForImageClassification.from_config(config, dtype=torch.float32, trust_remote_code=False))
    return sum(parameter.numel() for parameter in network.parameters())


SMALLEST: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "embedding_size": 8,
}


def _shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """Of the same architecture, as far as its names for sizes are known."""
    known = {key: value for key, value in config.to_dict().items() if key not in ("stage_names", "out_features", "out_indices")}
    known |= {key: value for key, value in SMALLEST.items() if isinstance(known.get(key), int) and known[key] > value}
    if isinstance(sizes := known.get("hidden_sizes"), list):
        known["hidden_sizes"] = [8 * 2**stage for stage in range(len(sizes))]
    if isinstance(depths := known.get("depths"), list):
        known["depths"] = [1] * len(depths)
    for name in ("num_heads", "num_attention_heads"):
        if isinstance(heads := known.get(name), list):
            known[name] = [2] * len(heads)
    return type(config).from_dict(known)
