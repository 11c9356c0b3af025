"""Which family's form an answer takes when no route says so: told by the path's prefix."""

from collections.abc import Callable
from typing import Any

from services.gateway.api.autotrainx import errors as autotrainx
from services.gateway.api.datagen import errors as datagen
from services.gateway.api.deep_learning import errors as deep_learning
from services.gateway.api.finetuneflow import errors as finetuneflow
from services.gateway.api.lora import errors as lora
from services.gateway.api.problems import Problem
from services.gateway.api.v2 import errors as v2

Dress = Callable[[Problem], tuple[int, dict[str, Any]]]


def family(path: str, raw_path: str) -> Dress:
    """`raw_path` still has the slash at its end, which tells datagen's paths from autotrainx's."""
    first, _, rest = path.lstrip("/").partition("/")
    match first:
        case "projects" | "jobs" | "hardware" | "health":
            return finetuneflow.dress
        case "v2":
            return v2.dress
        case "api" if rest == "train" or rest.startswith("train/"):
            return lora.dress
        case "api" if rest == "v1" or rest.startswith("v1/"):
            return datagen.dress if raw_path.endswith("/") else autotrainx.dress
        case "ws":
            return autotrainx.dress
        case _:
            return deep_learning.dress
