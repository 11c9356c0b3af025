"""Models that were trained here are bases like any other: what a run left is what the next one begins with."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from libs.events import FineTune
from services.training import models
from services.training.ending import Hopeless
from services.training.frames import Checkpoint, Completed, Evaluated, Ready, RunSpec, Step
from services.training.orders import Order
from services.training.runner import tiny
from services.training.runner.outcome import Failure
from services.training.runner.wishes import Wishes
from services.training.trainers import merge
from tests.kit import finetunes as kit

CLAIM = {"key": "local/job/x", "sha256": "0", "size": 1}
ROWS = kit.sums(12, held_out=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> kit.Told:
    """Of a run on the bundled model."""
    return kit.train(kit.spec(tmp_path_factory.mktemp("first") / "run", ROWS, cache=cache, num_epochs=2))


def on(folder: Path, *below: tuple[str, kit.Told], cache: Path, **tuning: Any) -> kit.Told:
    """A run whose base is made of these, as its worker would have laid them out."""
    return kit.train(laid_out(folder, *below, rows=ROWS, cache=cache, **tuning))


def laid_out(folder: Path, *below: tuple[str, kit.Told], rows: list[dict[str, Any]], cache: Path, **tuning: Any) -> RunSpec:
    folder.mkdir()
    ancestors: list[dict[str, Any]] = []
    for n, (method, told) in enumerate(below):
        shutil.copytree(left_by(told), folder / f"ancestor-{n}")
        ancestors.append({"job_id": f"job-{n}", "project_id": "p", "method": method, "files": dict.fromkeys(end(told).artifacts, CLAIM)})
    root = "" if below[0][0] == "full" else "trainyard/tiny-llama"
    return kit.spec(folder, rows, cache=cache, base_model=f"trainyard/job-{len(below) - 1}", ancestors=ancestors, root=root, **tuning)


def left_by(told: kit.Told) -> Path:
    return Path(next(iter(end(told).artifacts.values()))).parent


def end(told: kit.Told) -> Completed:
    assert isinstance(told.end, Completed)
    return told.end


def before(told: kit.Told) -> float:
    return told.of(Evaluated)[0].metrics["eval_loss"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_begins_with_what_the_adapter_below_has_learned(tmp_path: Path, cache: Path, adapter: kit.Told, method: str):
    told = on(tmp_path / "second", ("lora", adapter), cache=cache, method=method)

    assert before(adapter) > end(adapter).metrics["eval_loss"] + 0.3
    assert before(told) == pytest.approx(end(adapter).metrics["eval_loss"], rel=1e-4)
    assert end(told).artifacts
    assert told.of(Ready)[0].facts["built_on"] == ["job-0"]


def test_a_qlora_run_begins_with_it_too_and_only_then_rounds_to_4_bits(tmp_path: Path, cache: Path, adapter: kit.Told):
    told = on(tmp_path / "second", ("lora", adapter), cache=cache, method="qlora", max_steps=2)

    assert before(told) == pytest.approx(end(adapter).metrics["eval_loss"], rel=0.05)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_resumed_run_puts_it_together_anew_and_goes_on_as_if_nothing_had_been(tmp_path: Path, cache: Path, adapter: kit.Told, method: str):
    wanted = {"method": method, "max_steps": 4, "save_steps": 2, "num_epochs": 4}
    whole = on(tmp_path / "whole", ("lora", adapter), cache=cache, **wanted)
    again = laid_out(tmp_path / "again", ("lora", adapter), rows=ROWS, cache=cache, **wanted)

    resumed = kit.train(msgspec.structs.replace(again, attempt=2, resume=whole.of(Checkpoint)[0].path))

    assert [(step.step, step.loss) for step in resumed.of(Step)] == [(step.step, pytest.approx(step.loss, rel=1e-5)) for step in whole.of(Step)[2:]]


def test_own_models_stand_on_own_models(tmp_path: Path, cache: Path, adapter: kit.Told):
    second = on(tmp_path / "second", ("lora", adapter), cache=cache, method="lora")

    third = on(tmp_path / "third", ("lora", adapter), ("lora", second), cache=cache, method="full", max_steps=2)
    fourth = on(tmp_path / "fourth", ("full", third), cache=cache, method="lora", max_steps=2)
    fifth = on(tmp_path / "fifth", ("full", third), ("lora", fourth), cache=cache, method="lora", max_steps=2)

    assert before(third) == pytest.approx(end(second).metrics["eval_loss"], rel=1e-4)
    assert before(fourth) == pytest.approx(end(third).metrics["eval_loss"], rel=1e-4)
    assert before(fifth) == pytest.approx(end(fourth).metrics["eval_loss"], rel=1e-4)


def test_an_adapter_on_an_own_model_says_so_and_tokenizer_and_template_come_along(tmp_path: Path, cache: Path, adapter: kit.Told):
    told = on(tmp_path / "second", ("lora", adapter), cache=cache, method="lora")

    folder = Path(end(told).artifacts["adapter_config.json"]).parent
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "trainyard/job-0"
    below = Path(end(adapter).artifacts["adapter_config.json"]).parent
    assert (folder / "tokenizer.json").read_bytes() == (below / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == (below / "chat_template.jinja").read_bytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_merged_it_needs_none_of_those_below(tmp_path: Path, cache: Path, adapter: kit.Told):
    second = on(tmp_path / "second", ("lora", adapter), cache=cache, method="lora")
    spec = laid_out(tmp_path / "merge", ("lora", adapter), rows=[], cache=cache)

    merge.merge(msgspec.structs.replace(spec, snapshot="", merge=str(left_by(second)), texts=["How much is 3 plus 4?"]), lambda frame: None, Wishes())

    both: Any = AutoModelForCausalLM.from_pretrained(tiny.folder(cache))
    for told in (adapter, second):
        both = PeftModel.from_pretrained(both, str(left_by(told))).merge_and_unload()
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merge" / "merged")
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        assert torch.allclose(alone.eval()(ids).logits, both.eval()(ids).logits, atol=1e-3)


def test_a_smoke_run_makes_a_tiny_one_of_it(tmp_path: Path, cache: Path, adapter: kit.Told):
    told = on(tmp_path / "second", ("lora", adapter), cache=cache, method="lora", smoke=True, max_steps=1)

    assert told.of(Ready)[0].facts["smoke"] is True
    assert told.of(Ready)[0].facts["model"] == "trainyard/job-0"


def test_an_adapter_that_does_not_fit_what_is_below_is_refused(tmp_path: Path, cache: Path, adapter: kit.Told):
    broken = tmp_path / "broken"
    shutil.copytree(Path(end(adapter).artifacts["adapter_config.json"]).parent, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    told = kit.Told()
    told.end = Completed(step=1, artifacts={path.name: str(path) for path in broken.iterdir()}, metrics={}, summary={})

    with pytest.raises(Failure, match="can't be put together") as refused:
        on(tmp_path / "second", ("lora", told), cache=cache)

    assert refused.value.code == "model"


def test_nothing_is_fetched_for_a_model_whose_weights_were_trained_here(cache: Path, tmp_path: Path):
    claims = {"job_id": "a", "project_id": "p", "files": {}}
    of_weights = kit.spec(tmp_path / "a", [], cache=cache, base_model="trainyard/a", ancestors=[{**claims, "method": "full"}]).tuning
    of_hub = kit.spec(
        tmp_path / "b", [], cache=cache, base_model="trainyard/a", root="someone/model", root_revision="abc", ancestors=[{**claims, "method": "lora"}]
    ).tuning

    assert models.at_hand(of_weights, tmp_path)
    assert not models.at_hand(of_hub, tmp_path)
    models.loaded(of_hub, tmp_path)
    assert models.at_hand(of_hub, tmp_path)


def test_what_is_wrong_with_a_file_of_a_run_below_is_not_said_of_the_snapshot():
    tuning = FineTune(base_model="trainyard/1")
    order = Order(tuning=tuning, files={}, missing=Hopeless("snapshot_missing", "gone"), damaged=Hopeless("snapshot_damaged", "another"))

    assert [why("snapshot").code for why in (order.gone, order.spoiled)] == ["snapshot_missing", "snapshot_damaged"]
    assert [why("ancestor-0/adapter_model.safetensors").code for why in (order.gone, order.spoiled)] == ["model_gone", "model_gone"]
    assert "damaged" in order.spoiled("ancestor-0/adapter_config.json").message
