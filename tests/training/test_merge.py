"""A merged model is its base and the adapter: proved against peft's own merge, which ours doesn't use, and by breaking ours."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from services.training.frames import Completed, Phase, RunSpec, Stopped
from services.training.runner import adapters, tiny
from services.training.runner.outcome import Failure
from services.training.runner.wishes import Wishes
from services.training.telling import merging
from services.training.trainers import merge
from tests.kit import finetunes as kit

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

ADAPTED = {"num_epochs": 3, "learning_rate": 0.01}
ASKED = "How much is 3 plus 4?\n3 plus 4 is 7."


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a run of each method has left."""
    folder = tmp_path_factory.mktemp("runs")
    found: dict[str, Path] = {}
    for method in ("lora", "qlora"):
        told = kit.train(kit.spec(folder / method, kit.sums(24), cache=cache, method=method, **ADAPTED))
        assert isinstance(told.end, Completed)
        found[method] = Path(told.end.artifacts["adapter_config.json"]).parent
    return found


@pytest.fixture
def spec(runs: dict[str, Path], cache: Path, tmp_path: Path) -> RunSpec:
    return ordered(tmp_path / "run", runs["lora"], cache)


def ordered(folder: Path, adapter: Path, cache: Path, **tuning: Any) -> RunSpec:
    asked = kit.spec(folder, [], cache=cache, **ADAPTED, **tuning)
    return msgspec.structs.replace(asked, snapshot="", merge=str(adapter), texts=[ASKED])


def merged(spec: RunSpec) -> tuple[Path, dict[str, Any]]:
    end = merge.merge(spec, lambda frame: None, Wishes())
    assert isinstance(end, Completed)
    assert set(end.artifacts) == {f"merged/{path.name}" for path in Path(spec.folder, "merged").iterdir()}
    return Path(spec.folder, "merged"), end.summary["merged"]


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(ids).logits.float()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


def by_peft(base: Path, adapter: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the base alone, and of peft's own merge."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    untrained = logits(plain, ids)
    return untrained, logits(PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload(safe_merge=True), ids)


# The model


def test_in_several_files_it_is_the_model_that_peft_would_have_merged(spec: RunSpec, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "SHARD", 150_000)

    folder, told = merged(spec)

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert all(path.stat().st_size < 160_000 for path in shards)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(ASKED, return_tensors="pt")["input_ids"]
    untrained, wanted = by_peft(tiny.folder(cache), Path(spec.merge), ids)
    found = logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), ids)
    assert apart(wanted, found) < 1e-5
    assert apart(wanted, untrained) > 0.1
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(spec.merge).chat_template
    assert {"generation_config.json", "config.json", "tokenizer.json"} < {path.name for path in folder.iterdir()}
    assert not {"adapter_config.json", "base_config.json"} & {path.name for path in folder.iterdir()}
    assert (told["logits_difference"] <= told["tolerance"] < 1e-5, told["effect"] > 0.1, told["same_first_choice"]) == (True, True, 1.0)
    assert (told["layers"], told["tensors"], told["dtype"]) == (14, 21, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_has_the_precision_of_its_base_and_differs_by_no_more_than_that(runs: dict[str, Path], cache: Path, tmp_path: Path, dtype: str):
    base = tmp_path / "base"
    shutil.copytree(tiny.folder(cache), base)
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)

    folder, told = merged(ordered(tmp_path / "run", runs["lora"], cache, base_model=str(base)))

    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert 0 < told["logits_difference"] <= told["tolerance"] < 0.05 < told["effect"]


def test_after_a_run_in_4_bits_it_rests_on_the_published_base_and_says_how_far_that_is(runs: dict[str, Path], cache: Path, tmp_path: Path):
    folder, told = merged(ordered(tmp_path / "run", runs["qlora"], cache, method="qlora"))

    ids = torch.arange(5, 60)[None]
    _, wanted = by_peft(tiny.folder(cache), runs["qlora"], ids)
    assert apart(wanted, logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), ids)) < 1e-5
    assert told["logits_difference"] <= told["tolerance"] < 1e-5
    assert 0.01 < told["seen_by_the_run"]["logits_difference"] < told["effect"]
    assert 0.5 < told["seen_by_the_run"]["same_first_choice"] <= 1.0


def test_what_rounding_may_have_taken_away_is_said(runs: dict[str, Path], cache: Path, tmp_path: Path):
    """An adapter that has learned next to nothing, and a base in bfloat16."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny.folder(cache), base)
    AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16").save_pretrained(base)
    shutil.copytree(runs["lora"], adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"lora_alpha": 0.001}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))

    _, told = merged(ordered(tmp_path / "run", adapter, cache, base_model=str(base)))

    assert told["effect"] <= told["tolerance"]
    assert "may have lost a part of it" in told["warnings"][-1]


# What is no merge


def test_a_layer_that_was_forgotten_is_noticed(spec: RunSpec, monkeypatch: pytest.MonkeyPatch):
    add = merge._add
    layers = iter(range(100))
    monkeypatch.setattr(merge, "_add", lambda layer: add(layer) if next(layers) else None)

    with pytest.raises(Failure, match="not its base with the adapter") as failure:
        merged(spec)

    assert failure.value.code == "internal"


def test_a_file_that_is_not_what_was_merged_is_noticed(spec: RunSpec, monkeypatch: pytest.MonkeyPatch):
    save = merge._save

    def spoil(model: Any, *rest: Any) -> None:
        save(model, *rest)
        next(model.parameters()).data[0, 0] += 1

    monkeypatch.setattr(merge, "_save", spoil)

    with pytest.raises(Failure, match="not the one that was merged"):
        merged(spec)


def test_an_adapter_that_is_too_large_for_its_bases_precision_is_refused(runs: dict[str, Path], cache: Path, tmp_path: Path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny.folder(cache), base)
    AutoModelForCausalLM.from_pretrained(base, dtype="float16").save_pretrained(base)
    shutil.copytree(runs["lora"], adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(json.loads((adapter / "adapter_config.json").read_text()) | {"lora_alpha": 10_000_000}))

    with pytest.raises(Failure, match="too large") as failure:
        merged(ordered(tmp_path / "run", adapter, cache, base_model=str(base)))

    assert failure.value.code == "diverged"


def test_an_adapter_of_another_model_is_refused_where_peft_says_no_word(runs: dict[str, Path], cache: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(tiny.folder(cache), base)
    config = LlamaConfig.from_pretrained(base)
    config.num_hidden_layers = 1
    LlamaForCausalLM(config).save_pretrained(base)

    with pytest.raises(Failure, match="doesn't fit its base model any more") as failure:
        merged(ordered(tmp_path / "run", runs["lora"], cache, base_model=str(base)))

    assert failure.value.code == "model"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""

    def load(*_: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(merge, "_loaded", load)


def test_without_the_memory_for_it_nothing_is_loaded(spec: RunSpec, unloaded: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "free_memory", lambda: 100_000_000)

    with pytest.raises(Failure, match=r"takes 0\.5 GB of memory, and 0\.1 GB are free") as failure:
        merged(spec)

    assert failure.value.code == "oom"


@pytest.mark.parametrize(
    ("folder", "names", "cached"),
    [
        (".", ("memory.max", "memory.current"), ("inactive_file", "active_file")),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("total_inactive_file", "total_active_file")),
    ],
    ids=["v2", "v1"],
)
def test_files_that_are_only_cached_take_no_memory(tmp_path: Path, folder: str, names: tuple[str, str], cached: tuple[str, str]):
    """Else a base that was fetched a moment ago would fill a container's memory, and nothing could be merged in it."""
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, content in zip((*names, "memory.stat"), ("1000", "990", f"anon 90\n{cached[0]} 600\n{cached[1]} 300"), strict=True):
        (tmp_path / folder / name).write_text(content + "\n")

    assert merge.free_memory(tmp_path) == 910


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=["python", "pytorch"])
def test_memory_that_ends_while_it_loads_is_said_and_no_fault_of_the_model(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(merge.AutoModelForCausalLM, "from_pretrained", load)

    with pytest.raises(Failure, match="too small to merge") as failure:
        merged(spec)

    assert failure.value.code == "oom"


def test_without_the_disk_for_it_nothing_is_loaded(spec: RunSpec, unloaded: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "BESIDES", 2**60)

    with pytest.raises(Failure, match="disk") as failure:
        merged(spec)

    assert failure.value.code == "disk_full"


def test_a_base_that_is_gone_is_said_by_name(runs: dict[str, Path], cache: Path, tmp_path: Path, unloaded: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    for base, words in ((str(tmp_path / "gone"), "no model in the folder"), ("someone/gone", "someone/gone is not on this machine, and the hub")):
        with pytest.raises(Failure, match=words):
            merged(ordered(tmp_path / "run", runs["lora"], cache, base_model=base))


def test_a_base_that_is_published_quantised_only_is_refused(runs: dict[str, Path], cache: Path, tmp_path: Path, unloaded: None):
    base = tmp_path / "base"
    shutil.copytree(tiny.folder(cache), base)
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises(Failure, match="published quantised"):
        merged(ordered(tmp_path / "run", runs["lora"], cache, base_model=str(base)))


def test_who_is_asked_to_stop_stops_between_two_layers(spec: RunSpec):
    wishes = Wishes()

    def tell(frame: Any) -> None:
        if isinstance(frame, Phase) and frame.name == "merge":
            wishes.stop.set()

    assert merge.merge(spec, tell, wishes) == Stopped(step=0)
    assert not Path(spec.folder, "merged").exists()


def test_how_far_it_is_only_grows_and_leaves_room_for_the_export(spec: RunSpec):
    told: list[Any] = []

    merge.merge(spec, told.append, Wishes())

    facts = [merging(frame, job_id="job", attempt=1) for frame in told if isinstance(frame, Phase)]
    shares = [fact.step / fact.total_steps for fact in facts]  # type: ignore[attr-defined]
    assert shares == sorted(shares)
    assert 0.4 < shares[-1] < 0.5
    assert len({fact.doing for fact in facts}) == 7  # type: ignore[attr-defined]


# Before and after


def test_an_adapter_that_is_switched_off_leaves_the_base_to_the_bit(runs: dict[str, Path], cache: Path):
    ids = torch.arange(5, 60)[None]
    plain = AutoModelForCausalLM.from_pretrained(tiny.folder(cache))
    untrained = logits(plain, ids)
    adapted = PeftModel.from_pretrained(plain, str(runs["lora"]))
    adapters.fuse(adapted)
    trained = logits(adapted, ids)

    with adapters.off(adapted):
        switched_off = logits(adapted, ids)

    assert torch.equal(switched_off, untrained)
    assert torch.equal(logits(adapted, ids), trained)
    assert apart(trained, untrained) > 0.1
