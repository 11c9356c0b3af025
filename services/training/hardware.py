"""What this machine can train on: NVIDIA's own library says what is there, a child says once whether PyTorch can use it."""

import asyncio
import importlib.metadata
import logging
import os
import signal
import socket
from typing import Any

import msgspec
import pynvml
from nats.aio.client import Client
from nats.aio.msg import Msg

from .children import Children, Gone
from .place import Slot

log = logging.getLogger(__name__)

QUESTION = "ask.hardware"
PROBE = "services.training.runner.probe:run"
PATIENCE = 60.0
"""Seconds for a child to find out about CUDA; the first time its driver may have to start."""
GB = 1024**3
ROOMY = 80
"""GB of one GPU from which LoRA on 16-bit weights is the better choice for up to about 30B parameters."""
SMALL = 8


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    uuid: str
    total: int
    free: int


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    gpus: list[Gpu]
    driver: str = ""
    cuda: str = ""


class Usable(msgspec.Struct, frozen=True, kw_only=True):
    """What a child found."""

    cuda: bool = False
    bnb: bool = False
    torch_cuda: str | None = None


class Hardware:
    def __init__(self, children: Children) -> None:
        self._children = children
        self._usable: Usable | None = None
        self._finding = asyncio.Lock()

    async def listen(self, nc: Client) -> None:
        """One of all replicas answers."""
        await nc.subscribe(QUESTION, queue="training", cb=self._answer)

    async def slots(self, workers: int, threads: int) -> list[Slot]:
        """As many as the settings say; else one for each GPU that can be used, else one."""
        gpus = visible(machine().gpus, os.environ.get("CUDA_VISIBLE_DEVICES")) if (await self.usable()).cuda else []
        return slots(gpus, workers=workers, threads=threads, host=f"{socket.gethostname()}-{os.getpid()}")

    async def usable(self) -> Usable:
        """Asked of a child once, and only where there is a GPU."""
        async with self._finding:
            if self._usable is None:
                self._usable = await self._find_out() if machine().gpus else Usable()
            return self._usable

    async def _find_out(self) -> Usable:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._ask_child()
        except (Gone, TimeoutError, OSError, msgspec.DecodeError) as error:
            log.warning("a child could not tell whether CUDA works: %s", str(error) or type(error).__name__)
            return Usable()

    async def _ask_child(self) -> Usable:
        child = await self._children.start(None, entry=PROBE)
        reader, writer = await asyncio.open_unix_connection(sock=child.sock)
        try:
            return msgspec.json.decode(await reader.read(), type=Usable)
        finally:
            writer.close()
            child.signal(signal.SIGKILL)

    async def _answer(self, msg: Msg) -> None:
        await msg.respond(msgspec.json.encode(report(machine(), await self.usable(), torch_version())))


def machine() -> Machine:
    """Nothing where there is no driver. No CUDA is touched."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Machine(gpus=[])
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Machine(
            gpus=[_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())],
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
        )
    except pynvml.NVMLError as error:
        log.warning("the NVIDIA driver does not answer: %s", error)
        return Machine(gpus=[])
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(name=str(pynvml.nvmlDeviceGetName(handle)), uuid=str(pynvml.nvmlDeviceGetUUID(handle)), total=int(memory.total), free=int(memory.free))


def visible(gpus: list[Gpu], setting: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves us, by number or by the beginning of their id."""
    if setting is None:
        return gpus
    found: list[Gpu] = []
    for token in (token.strip() for token in setting.split(",")):
        match = [gpu for n, gpu in enumerate(gpus) if token == str(n) or (token.startswith("GPU-") and gpu.uuid.startswith(token))]
        if not match:
            break  # as CUDA does: what comes behind one that is not there doesn't count
        found += match[:1]
    return found


def slots(gpus: list[Gpu], *, workers: int, threads: int, host: str) -> list[Slot]:
    count = workers or len(gpus) or 1
    threads = threads_each(threads, count)
    if not gpus:
        return [Slot(worker=f"{host}-{n}", threads=threads) for n in range(count)]
    chosen = [gpus[n % len(gpus)] for n in range(count)]
    return [
        Slot(worker=f"{host}-{n}", device="cuda:0", label=gpu.name, environ={"CUDA_VISIBLE_DEVICES": gpu.uuid}, threads=threads) for n, gpu in enumerate(chosen)
    ]


def threads_each(setting: int, workers: int) -> int:
    """A core is left to everything else: where several of them wait for the same one, threads of a run cost more than they bring."""
    return setting or max(1, (os.cpu_count() or 1) // workers - 1)


def torch_version() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def report(machine: Machine, usable: Usable, torch: str | None) -> dict[str, Any]:
    """finetuneflow's document has two shapes: with a GPU, and without."""
    if not machine.gpus:
        return {
            "has_nvidia_smi": False,
            "gpu_name": None,
            "cuda_available": False,
            "bnb_available": False,
            "recommended_method": None,
            "recommendation_reason": "No CUDA GPU detected. GPU fine-tuning not possible on this machine.",
            "notes": ["Tiny models, such as trainyard/tiny-llama, can be fine-tuned on the CPU."],
            "warnings": ["No NVIDIA GPU found. Consider using a cloud GPU instance."],
        }
    gpu = machine.gpus[0]
    total, free = round(gpu.total / GB, 1), round(gpu.free / GB, 1)
    method, reason = _recommended(total, usable)
    warnings = _warnings(total, free, usable)
    return {
        "has_nvidia_smi": True,
        "gpu_name": gpu.name,
        "gpu_count": len(machine.gpus),
        "vram_total_gb": total,
        "vram_free_gb": free,
        "driver_version": machine.driver,
        "cuda_runtime": machine.cuda,
        "torch_version": torch,
        "torch_cuda": usable.torch_cuda,
        "cuda_available": usable.cuda,
        "bnb_available": usable.bnb,
        "recommended_method": method,
        "recommendation_reason": reason,
        "notes": [] if warnings else ["All checks passed"],
        "warnings": warnings,
    }


def _recommended(total: float, usable: Usable) -> tuple[str | None, str]:
    size = f"{total:.0f}GB VRAM detected."
    if not usable.cuda:
        return None, f"{size} The installed PyTorch can't use it, so GPU fine-tuning is not possible yet."
    if not usable.bnb:
        return "lora", f"{size} LoRA recommended: bitsandbytes, which QLoRA needs, is not usable here."
    if total >= ROOMY:
        return "lora", f"{size} LoRA recommended: 16-bit weights of models up to about 30B fit, and train faster than 4-bit ones."
    return "qlora", f"{size} QLoRA recommended for 8B+ models to save memory."


def _warnings(total: float, free: float, usable: Usable) -> list[str]:
    warnings: list[str] = []
    if not usable.cuda:
        warnings.append("PyTorch was installed without CUDA, or is too new for this driver: install the wheel for this machine's CUDA.")
    elif not usable.bnb:
        warnings.append("bitsandbytes is not usable: method qlora will fail.")
    if free < total / 2:
        warnings.append(f"Only {free:g} of {total:g} GB of the GPU's memory are free: another program uses it.")
    if total < SMALL:
        warnings.append(f"{total:g} GB of GPU memory are enough for small models only.")
    return warnings
