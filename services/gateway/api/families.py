"""Which family a path belongs to, told by its prefix: the form of its refusals, and what its requests count as."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from services.gateway.api.autotrainx import errors as autotrainx
from services.gateway.api.autotrainx import limits as autotrainx_limits
from services.gateway.api.datagen import errors as datagen
from services.gateway.api.datagen import limits as datagen_limits
from services.gateway.api.deep_learning import errors as deep_learning
from services.gateway.api.deep_learning import limits as deep_learning_limits
from services.gateway.api.finetuneflow import errors as finetuneflow
from services.gateway.api.finetuneflow import limits as finetuneflow_limits
from services.gateway.api.lora import errors as lora
from services.gateway.api.lora import limits as lora_limits
from services.gateway.api.problems import Problem
from services.gateway.api.v2 import errors as v2
from services.gateway.api.v2 import limits as v2_limits
from services.gateway.limits import Bucket


class Family(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    dress: Callable[[Problem], tuple[int, dict[str, Any]]]
    buckets: list[Bucket]
    bucket: Callable[[str, Sequence[str]], Bucket]
    """Which of them a request counts in, by its method and the parts of its path."""


AUTOTRAINX = Family(name="autotrainx", dress=autotrainx.dress, buckets=autotrainx_limits.BUCKETS, bucket=autotrainx_limits.bucket)
DEEP_LEARNING = Family(name="deep-learning-platform", dress=deep_learning.dress, buckets=deep_learning_limits.BUCKETS, bucket=deep_learning_limits.bucket)
DATAGEN = Family(name="datagen", dress=datagen.dress, buckets=datagen_limits.BUCKETS, bucket=datagen_limits.bucket)
LORA = Family(name="lora-training", dress=lora.dress, buckets=lora_limits.BUCKETS, bucket=lora_limits.bucket)
FINETUNEFLOW = Family(name="finetuneflow", dress=finetuneflow.dress, buckets=finetuneflow_limits.BUCKETS, bucket=finetuneflow_limits.bucket)
V2 = Family(name="v2", dress=v2.dress, buckets=v2_limits.BUCKETS, bucket=v2_limits.bucket)
FAMILIES = [AUTOTRAINX, DEEP_LEARNING, DATAGEN, LORA, FINETUNEFLOW, V2]


def family(path: str, raw_path: str) -> Family:
    """`raw_path` still has the slash at its end, which tells datagen's paths from autotrainx's."""
    return _of(_parts(path), raw_path)


def bucket(method: str, path: str, raw_path: str) -> Bucket:
    parts = _parts(path)
    return _of(parts, raw_path).bucket(method, parts)


def _of(parts: list[str], raw_path: str) -> Family:
    match parts:
        case ["projects" | "jobs" | "hardware" | "health", *_]:
            return FINETUNEFLOW
        case ["v2", *_]:
            return V2
        case ["api", "train" | "credits", *_]:
            return LORA
        case ["api", "v1", *_]:
            return DATAGEN if raw_path.endswith("/") else AUTOTRAINX
        case ["ws", *_]:
            return AUTOTRAINX
        case _:
            return DEEP_LEARNING


def _parts(path: str) -> list[str]:
    """As the router sees them: more slashes, or one at the end, make no other path."""
    return [part for part in path.split("/") if part]
