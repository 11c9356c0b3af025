"""LoRA in peft's layout, computed in one piece. Imported in the child only: peft imports bitsandbytes, which asks CUDA about devices."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from libs.events import FineTune

from .outcome import Failure

SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER = "default"


def attach(model: PreTrainedModel, tuning: FineTune, *, name: str) -> PeftModel:
    """The adapters are float32 whatever the model is: they are what the optimizer changes."""
    config = LoraConfig(
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=_targets(model),
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        revision=tuning.revision or None,
    )
    model.name_or_path = name  # peft would put the folder into the configuration that the model was loaded from
    return _adapted(model, config)


def _adapted(model: PreTrainedModel, config: PeftConfig, *, low_cpu_mem_usage: bool = False) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words that are going away
        adapted = get_peft_model(model, config, low_cpu_mem_usage=low_cpu_mem_usage)
    assert isinstance(adapted, PeftModel)
    return adapted


def _targets(model: PreTrainedModel) -> list[str] | str:
    """Suffixes, since other programs read the file and not all of them know full paths."""
    leaves = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if found := [suffix for suffix in SUFFIXES if suffix in leaves]:
        return found
    kind = model.config.get_text_config().model_type
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    if known is None:
        raise Failure("model", f"Which layers of a model of the kind {kind!r} an adapter belongs to is not known; take the method full.")
    return known


def fuse(model: nn.Module) -> Callable[[], None]:
    """Layers whose adapter is a plain LoRA are computed by the function below. Gives what undoes it."""
    fused: list[LoraLayer] = []
    for layer in _layers(model):
        if isinstance(layer.lora_dropout[ADAPTER], nn.Identity) and _can_fuse(layer):
            layer.forward = partial(_forward, layer)  # pyright: ignore[reportAttributeAccessIssue]
            fused.append(layer)

    def undo() -> None:
        for layer in fused:
            del layer.forward  # pyright: ignore[reportAttributeAccessIssue]

    return undo


def _layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def _can_fuse(layer: Any) -> bool:
    base = layer.get_base_layer()
    plain = type(base) is nn.Linear and base.weight.is_floating_point()
    return (plain or _quantized(base)) and isinstance(layer.lora_A[ADAPTER], nn.Linear) and not layer.use_dora.get(ADAPTER)


def _quantized(base: nn.Module) -> bool:
    return type(base).__name__ == "Linear4bit"


def _forward(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base = layer.get_base_layer()
    return _FusedLora.apply(x, base, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER])  # pyright: ignore[reportReturnType]


class _FusedLora(torch.autograd.Function):
    """y = x W' + b + s (x A') B', in the type of x; A and B are float32. No gradient for W, none of the branch's activations but x A'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Linear, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down = flat @ a.to(x.dtype).t()
        weight = _weight(base, x.dtype)
        out = flat @ weight.t() if base.bias is None else torch.addmm(base.bias.to(x.dtype), flat, weight.t())
        out.addmm_(down, b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(flat, a, b, down)
        ctx.base, ctx.scale, ctx.shape = base, scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, a, b, down = ctx.saved_tensors
        slope = grads[0].reshape(-1, grads[0].shape[-1])
        through = (slope @ b.to(slope.dtype)).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (slope @ _weight(ctx.base, slope.dtype)).addmm_(through, a.to(slope.dtype)).view(ctx.shape)
        of_a = through.t() @ flat
        of_b = (slope.t() @ down).mul_(ctx.scale)
        return of_x, None, of_a.to(a.dtype), of_b.to(b.dtype), None


def _weight(base: nn.Linear, dtype: torch.dtype) -> Tensor:
    if not _quantized(base):
        return base.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight, base.weight.quant_state).to(dtype)  # pyright: ignore[reportAttributeAccessIssue]


def save(model: PeftModel, folder: Path) -> None:
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config[ADAPTER]
    inference, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = inference


def reload(model: PeftModel, folder: Path) -> None:
    outcome = set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    assert not outcome.unexpected_keys


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """The base alone, exactly: peft's own switch doesn't reach layers that are computed in one piece."""
    scales = [(layer, layer.scaling[ADAPTER]) for layer in _layers(model)]
    for layer, _ in scales:
        layer.scaling[ADAPTER] = 0.0
    try:
        yield
    finally:
        for layer, scale in scales:
            layer.scaling[ADAPTER] = scale


def added(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """What another run has learned becomes part of the weights, in their own type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder), use_safetensors=True).merge_and_unload()  # pyright: ignore[reportReturnType]


def blank(model: PeftModel) -> None:
    for layer in _layers(model):
        for weights in (layer.lora_A, layer.lora_B):
            nn.init.zeros_(weights[ADAPTER].weight)


def expected(config: PretrainedConfig, folder: Path, build: Callable[[PretrainedConfig], PreTrainedModel]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes that peft makes of the saved configuration on the base's; no weight exists anywhere."""
    with torch.device("meta"):
        base = build(config)
    read = LoraConfig.from_pretrained(str(folder))
    base.name_or_path = read.base_model_name_or_path or ""
    adapted = _adapted(base, read, low_cpu_mem_usage=True)
    return {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()}
