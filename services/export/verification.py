"""Whether a model loads: asked of a process of its own, with little memory, little time, no secrets and no network to speak of."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from libs.runtime.waiting import within

from .refused import Refused

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds of waiting. What it may compute is limited by the process itself."""
REPOSITORY = Path(__file__).parents[2]
COMMAND = ("-m", "services.export.verify")
OUT_OF_BOUNDS = 3
"""Exit status of a process that wanted more than it may have."""
_LONGEST_ANSWER = 64 * 1024


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`head` is that of the file with the weights, which is `size` bytes long."""

    base_config: dict[str, Any]
    """Of the model as it is published, not quantised."""
    adapter_config: dict[str, Any] | None
    """None: the weights are a whole model's."""
    head: bytes
    size: int
    others: list[tuple[bytes, int]] = []
    """Head and size of each other file, where the weights are in several."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    code: str = ""
    """Empty: it loads."""
    message: str = ""
    tensors: int = 0
    values: int = 0
    library: str = ""


async def verdict(question: Question) -> Verdict:
    """Raises Refused where it doesn't load, or where nobody can say."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", *COMMAND, str(os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environ(),
        cwd="/",
    )
    try:
        out, err = await within(PATIENCE, process.communicate(msgspec.msgpack.encode(question)))
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode in (OUT_OF_BOUNDS, -signal.SIGXCPU):
        raise Refused(
            "unverifiable", "To load the model for a check took more memory or time than an export may use; its base model's configuration is at fault."
        )
    if process.returncode != 0 or len(out) > _LONGEST_ANSWER:
        log.error("a check ended with %s: %s", process.returncode, err[-2000:].decode(errors="replace"))
        raise Broken(f"the process that checks whether a model loads ended with {process.returncode}")
    answer = msgspec.json.decode(out, type=Verdict)
    if answer.code:
        raise Refused(answer.code, answer.message)
    return answer


class Broken(Exception):
    """The check came to no end. Tried again, as any fault of the platform."""


def _environ() -> dict[str, str]:
    """Nothing that the service was given goes along."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",  # bitsandbytes would take a GPU's memory by merely being imported
        "OMP_NUM_THREADS": "1",
    }
