"""What the machines that train are able to do: asked of the training service, never guessed here."""

import logging
from typing import Any

import msgspec
from litestar import get
from litestar.di import NamedDependency

from services.gateway.api.problems import Refused
from services.gateway.questions import NoAnswer, Questions

log = logging.getLogger(__name__)


class Hardware(msgspec.Struct, kw_only=True):
    has_nvidia_smi: bool
    gpu_name: str | None = None
    gpu_count: int = 0
    vram_total_gb: float | None = None
    vram_free_gb: float | None = None
    driver_version: str | None = None
    cuda_runtime: str | None = None
    torch_version: str | None = None
    torch_cuda: str | None = None
    cuda_available: bool
    bnb_available: bool
    recommended_method: str | None
    recommendation_reason: str
    notes: list[str] = []
    warnings: list[str] = []


@get("/hardware/check", summary="GPU, memory and versions where training runs, and the method they recommend")
async def check_hardware(questions: NamedDependency[Questions]) -> Hardware:
    try:
        return await questions.ask("hardware", {}, answer=Hardware)
    except NoAnswer as error:
        log.warning("hardware: %s", error)
        raise Refused(
            503,
            "Service unavailable: the training service does not answer. Try again in a moment",
            context={"part": "the training service"},
            headers={"Retry-After": "2"},
        ) from error


handlers: list[Any] = [check_hardware]
