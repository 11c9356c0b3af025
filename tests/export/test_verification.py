"""Whether a model loads, and the bounds of the process that says so."""

import asyncio
import json
import os
from typing import Any

import pytest

from libs.tiny import CONFIG
from services.export import verification
from services.export.refused import Refused
from services.export.verification import Broken, Question, verdict
from tests.export.conftest import Workshop
from tests.kit.eventually import eventually
from tests.kit.processes import children

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
ANYTHING = Question(base_config={}, adapter_config={}, head=b"", size=0)


def judged(
    workshop: Workshop, *, base: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None, rename: dict[str, str] | None = None
) -> dict[str, Any]:
    config = json.loads((workshop.folder / "adapter" / "adapter_config.json").read_text()) | (adapter or {})
    file = str(workshop.folder / "adapter" / "adapter_model.safetensors")
    return workshop.ask("judge", file=file, base_config=base or CONFIG, adapter_config=config, rename=rename or {})


def test_an_adapter_that_peft_wrote_loads(workshop: Workshop):
    assert judged(workshop) == {"code": "", "message": "", "tensors": 28}


def test_the_base_is_taken_as_published_not_quantised(workshop: Workshop):
    quantised = CONFIG | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}

    assert judged(workshop, base=quantised)["code"] == ""


MISMATCHES = {
    "a key is missing": ({"rename": {f"{LAYER}.lora_A.weight": ""}}, f"1 missing: {LAYER}.lora_A.weight"),
    "a key is left over": ({"rename": {f"{LAYER}.lora_A.weight": f"{LAYER}.lora_C.weight"}}, f"1 left over: {LAYER}.lora_C.weight"),
    "another base": ({"base": CONFIG | {"hidden_size": 128}}, "(8x64 instead of 8x128)"),
    "a base with more layers": ({"base": CONFIG | {"num_hidden_layers": 3}}, "14 missing"),
    "another rank": ({"adapter": {"r": 4}}, "(8x64 instead of 4x64)"),
    "fewer modules": ({"adapter": {"target_modules": ["q_proj"]}}, "24 left over"),
    "no LoRA": ({"adapter": {"peft_type": "IA3"}}, "not one of a LoRA"),
    "a setting that only peft knows": ({"adapter": {"use_dora": True}}, "sets use_dora"),
    "a module to import": ({"adapter": {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "x"}}}, "sets auto_mapping"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_an_adapter_that_doesnt_fit_is_told_with_its_first_keys(workshop: Workshop, what: str):
    changed, told = MISMATCHES[what]

    found = judged(workshop, **changed)

    assert found["code"] == "does_not_load"
    assert told in found["message"]


@pytest.mark.parametrize("base", [{"model_type": "unheard-of"}, {"hidden_size": 64}, CONFIG | {"num_attention_heads": "many"}, CONFIG | {"model_type": "vit"}])
def test_a_configuration_that_nobody_understands_is_not_said_to_load(workshop: Workshop, base: dict[str, Any]):
    assert judged(workshop, base=base)["code"] == "unverifiable"


def test_a_whole_model_is_held_against_its_own_configuration(workshop: Workshop):
    file, config = workshop.folder / "model" / "model.safetensors", json.loads((workshop.folder / "model" / "config.json").read_text())

    fits = workshop.ask("judge", file=str(file), base_config=config, adapter_config=None, rename={})
    lacks = workshop.ask("judge", file=str(file), base_config=config, adapter_config=None, rename={"model.norm.weight": ""})

    assert (fits["code"], lacks["code"]) == ("", "does_not_load")
    assert "1 missing: model.norm.weight" in lacks["message"]


def test_what_a_key_says_is_fit_to_be_a_fact(workshop: Workshop):
    told = judged(workshop, rename={f"{LAYER}.lora_A.weight": "a\u202e\x00" + "x" * 5000})["message"]

    assert "a\ufffd\ufffdxxx" in told
    assert len(told) <= 1000


# The process


def instead(monkeypatch: pytest.MonkeyPatch, judge: str) -> None:
    """The real process with its real bounds, but for what it thinks about."""
    code = f"import os, sys, time; from services.export import verify; verify.CPU_SECONDS = 1; verify.judge = lambda question: {judge}; verify.main()"
    monkeypatch.setattr(verification, "COMMAND", ("-c", code))


@pytest.mark.parametrize("greed", ["bytearray(4 * 1024**3)", "all(True for _ in iter(int, 1))"])
async def test_more_memory_or_time_than_it_may_have_is_refused(monkeypatch: pytest.MonkeyPatch, greed: str):
    instead(monkeypatch, greed)

    with pytest.raises(Refused) as refused:
        await verdict(ANYTHING)

    assert refused.value.code == "unverifiable"


async def test_a_process_that_was_killed_has_said_nothing(monkeypatch: pytest.MonkeyPatch):
    instead(monkeypatch, "os.kill(os.getpid(), 9)")

    with pytest.raises(Broken):
        await verdict(ANYTHING)


async def test_it_gets_no_secrets_and_may_not_write_files(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    monkeypatch.setenv("TRAINYARD_S3_SECRET_KEY", "hush")
    file = tmp_path_factory.mktemp("written") / "file"
    instead(monkeypatch, f"verify.Verdict(library=repr(dict(os.environ)), message=repr(open({str(file)!r}, 'wb', buffering=0).write(bytes(9000))))")

    answer = await verdict(ANYTHING)

    assert "'TRANSFORMERS_OFFLINE': '1'" in answer.library
    assert not any(name in answer.library for name in ("TRAINYARD", "hush", "SECRET", "AWS", "TOKEN"))
    assert int(answer.message) <= 4096


async def test_nobody_waits_for_it_and_it_is_gone(monkeypatch: pytest.MonkeyPatch):
    instead(monkeypatch, "time.sleep(600)")
    before = children(os.getpid())
    work = asyncio.create_task(verdict(ANYTHING))
    await eventually(lambda: [child for child in children(os.getpid()) if child not in before])

    work.cancel()
    await asyncio.wait({work}, timeout=5)

    assert children(os.getpid()) == before
