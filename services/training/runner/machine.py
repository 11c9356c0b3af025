"""What a run was done with, for its report."""

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")


def name(device: Any) -> str:
    """As people call it. Asked of the driver: CUDA would take memory for the answer."""
    if str(device) == "cpu":
        return "cpu"
    import pynvml

    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    number = int(str(device).partition(":")[2] or 0)
    wanted = visible[number] if visible else str(number)
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(wanted)) if wanted.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(wanted)
        return str(pynvml.nvmlDeviceGetName(handle))
    except pynvml.NVMLError:
        return str(device)


def hardware(device: Any) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"device": name(device), "cpu": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if str(device) != "cpu":
        facts |= {"memory_bytes": torch.cuda.get_device_properties(device).total_memory, "cuda": torch.version.cuda}
    return facts


def peak_memory(device: Any) -> int:
    """Bytes, so far."""
    import torch

    if str(device) != "cpu":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parameters(model: Any) -> int:
    """Of the base model alone; 4-bit weights count as what they stand for."""
    return sum(_size(parameter) for key, parameter in model.named_parameters() if "lora_" not in key)


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
