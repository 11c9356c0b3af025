"""What people are told about their machine, and how many workers it gets."""

import json

import pytest

from infra.embedded import Process, Servers
from libs.runtime import bus
from services.training.hardware import GB, Gpu, Machine, Usable, report, slots, visible

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

WITHOUT = {
    "has_nvidia_smi": False,
    "gpu_name": None,
    "cuda_available": False,
    "bnb_available": False,
    "recommended_method": None,
    "recommendation_reason": "No CUDA GPU detected. GPU fine-tuning not possible on this machine.",
    "warnings": ["No NVIDIA GPU found. Consider using a cloud GPU instance."],
}
ALL = Usable(cuda=True, bnb=True, torch_cuda="12.4")


def gpu(*, total: float = 24.0, free: float = 22.5, uuid: str = "GPU-a") -> Gpu:
    return Gpu(name="NVIDIA RTX 4090", uuid=uuid, total=int(total * GB), free=int(free * GB))


def machine(*gpus: Gpu) -> Machine:
    return Machine(gpus=list(gpus), driver="550.54.14", cuda="12.4")


def test_a_machine_with_a_gpu_is_told_of_as_the_document_says():
    assert report(machine(gpu()), ALL, "2.5.0") == {
        "has_nvidia_smi": True,
        "gpu_name": "NVIDIA RTX 4090",
        "gpu_count": 1,
        "vram_total_gb": 24.0,
        "vram_free_gb": 22.5,
        "driver_version": "550.54.14",
        "cuda_runtime": "12.4",
        "torch_version": "2.5.0",
        "torch_cuda": "12.4",
        "cuda_available": True,
        "bnb_available": True,
        "recommended_method": "qlora",
        "recommendation_reason": "24GB VRAM detected. QLoRA recommended for 8B+ models to save memory.",
        "notes": ["All checks passed"],
        "warnings": [],
    }


def test_a_machine_without_one_too_and_what_it_can_do_all_the_same():
    told = report(Machine(gpus=[]), Usable(), "2.13.0+cpu")

    assert {name: value for name, value in told.items() if name != "notes"} == WITHOUT
    assert "trainyard/tiny-llama" in told["notes"][0]


@pytest.mark.parametrize(
    ("total", "usable", "method"),
    [
        (24, ALL, "qlora"),
        (79, ALL, "qlora"),
        (80, ALL, "lora"),
        (141, ALL, "lora"),
        (24, Usable(cuda=True, bnb=False), "lora"),
        (24, Usable(), None),
    ],
)
def test_the_recommended_method_fits_the_memory_and_what_is_installed(total: float, usable: Usable, method: str | None):
    told = report(machine(gpu(total=total, free=total)), usable, "2.13.0")

    assert told["recommended_method"] == method
    assert bool(told["warnings"]) == (usable is not ALL)
    assert bool(told["notes"]) == (usable is ALL)


def test_memory_that_somebody_else_has_taken_is_a_warning():
    assert "Only 2 of 24 GB" in report(machine(gpu(free=2)), ALL, "2.13.0")["warnings"][0]


@pytest.mark.parametrize(
    ("setting", "seen"),
    [(None, ["GPU-a", "GPU-b"]), ("1", ["GPU-b"]), ("1,0", ["GPU-b", "GPU-a"]), ("GPU-b", ["GPU-b"]), ("", []), ("0,7,1", ["GPU-a"])],
)
def test_only_the_gpus_that_are_left_to_us_are_used(setting: str | None, seen: list[str]):
    assert [gpu.uuid for gpu in visible([gpu(uuid="GPU-a"), gpu(uuid="GPU-b")], setting)] == seen


def test_each_gpu_gets_a_worker_that_sees_no_other_one():
    found = slots([gpu(uuid="GPU-a"), gpu(uuid="GPU-b")], workers=0, threads=3, host="here")

    assert [(slot.device, slot.environ, slot.label, slot.threads) for slot in found] == [
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-a"}, "NVIDIA RTX 4090", 3),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-b"}, "NVIDIA RTX 4090", 3),
    ]


@pytest.mark.parametrize(("workers", "count"), [(0, 1), (3, 3)])
def test_without_a_gpu_there_is_one_worker_or_as_many_as_are_wanted(workers: int, count: int):
    found = slots([], workers=workers, threads=1, host="here")

    assert [slot.device for slot in found] == ["cpu"] * count
    assert len({slot.worker for slot in found}) == count


async def test_the_gateway_gets_an_answer(place: Servers, training: Process):
    nc = await bus.connect(place.nats_url("gateway"), name="gateway")
    try:
        told = json.loads((await nc.request("ask.hardware", b"", timeout=10)).data)
    finally:
        await nc.close()

    assert {"has_nvidia_smi", "cuda_available", "recommended_method", "recommendation_reason", "notes", "warnings"} <= set(told)
