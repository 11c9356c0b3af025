"""What a language model learns from, what of it, and what comes out: the rules that a run's numbers rest on."""

import json
import math
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedModel, Qwen2Config

from libs.events import FineTune
from services.training.frames import BatchReduced, Checkpoint, Completed, Evaluated, Phase, Ready, Sampled, Step
from services.training.runner import adapters, attention, tiny
from services.training.runner.causal import Causal
from services.training.runner.examples import Example, Examples, Prompt, examples
from services.training.runner.losses import summed_cross_entropy
from services.training.runner.optimizing import Optimizer
from services.training.runner.outcome import Failure
from services.training.runner.packing import batch, packed
from services.training.runner.rows import Row, read
from services.training.runner.sampling import CUT_SHORT, samples
from tests.kit import finetunes as kit

CPU = torch.device("cpu")
LENGTHS = (37, 64, 11, 90, 54)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def base(cache: Path) -> Path:
    torch.set_num_threads(1)
    return tiny.folder(cache)


@pytest.fixture
def model(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base)


def documents(*lengths: int, vocabulary: int = 500) -> list[Example]:
    """The second half of each is learned."""
    generator = torch.Generator().manual_seed(1)
    return [
        Example(torch.randint(5, vocabulary, (length,), generator=generator, dtype=torch.int32), torch.arange(length // 2, length, dtype=torch.int32))
        for length in lengths
    ]


def plain_loss(model: Any, document: Example) -> torch.Tensor:
    """As transformers computes it, one document at a time; the sum over the learned tokens."""
    ids = document.ids.long()
    labels = torch.full_like(ids, -100)
    labels[document.learned.long()] = ids[document.learned.long()]
    return model(input_ids=ids[None], labels=labels[None], use_cache=False).loss * len(document.learned)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def close(one: torch.Tensor, other: torch.Tensor, within: float) -> bool:
    return bool((one - other).norm() <= within * other.norm())


# ---- packing and the loss


def test_every_document_is_packed_once_and_no_bin_overflows():
    lengths = [17, 3, 40, 8, 8, 25, 1, 39, 12]

    bins = packed(lengths, 40)

    assert sorted(index for indexes in bins for index in indexes) == list(range(len(lengths)))
    assert max(sum(lengths[index] for index in indexes) for indexes in bins) <= 40
    assert len(bins) == 4


def test_packed_and_unpacked_losses_and_gradients_are_the_same(model):
    held = documents(*LENGTHS)
    apart = sum((plain_loss(model, document) for document in held), torch.zeros(()))
    expected = gradients(model, apart)

    causal = Causal(model)
    together = causal.summed_loss(batch(held, CPU))

    assert (causal.packs, causal.headless, model.config._attn_implementation) == (True, True, attention.NAME)
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)
    assert close(gradients(model, together), expected, 1e-5)


def test_a_sliding_window_is_kept_within_each_document():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, sliding_window=16
    )
    windowed = MistralForCausalLM(config).eval()
    held = documents(*LENGTHS)
    expected = sum(plain_loss(windowed, document).item() for document in held)

    assert Causal(windowed).summed_loss(batch(held, CPU)).item() == pytest.approx(expected, rel=1e-5)


def test_a_model_that_mixes_documents_up_gets_them_one_by_one(model, monkeypatch):
    blind = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, cu_seq_lens_q=None, **more: blind(*args, **more))  # as if it didn't know of borders
    monkeypatch.setattr(Causal, "_packs_with", lambda self, name, *rest, tried=Causal._packs_with: name == attention.NAME and tried(self, name, *rest))

    assert not Causal(model).packs


def test_the_loss_in_chunks_is_cross_entropy():
    hidden, weight = torch.randn(1300, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (1300,))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    of_hidden, of_weight = torch.autograd.grad(expected / 3, (hidden, weight))

    found = summed_cross_entropy(hidden, weight, labels)

    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(found / 3, (hidden, weight))
    assert close(ours[0], of_hidden, 1e-5)
    assert close(ours[1], of_weight, 1e-5)


def test_a_lora_in_one_piece_is_the_lora_of_peft(model):
    model.requires_grad_(False)
    adapted = adapters.attach(model, FineTune(base_model="x", lora_r=4), name="x")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    held = batch(documents(*LENGTHS), CPU)
    causal = Causal(model)
    theirs = causal.summed_loss(held)
    expected = gradients(model, theirs)

    adapters.fuse(model)
    ours = causal.summed_loss(held)

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert close(gradients(model, ours), expected, 1e-5)


# ---- what is learned


def learned(tokenizer: Any, *rows: dict[str, Any], longest: int = 1000, everything: bool = False) -> Examples:
    read = [Row(split=row["split"], content=row["data"].get("messages") or row["data"]["text"]) for row in rows]
    return examples(read, tokenizer, longest=longest, everything=everything, heed=lambda: None, progress=lambda done, total: None)


def words(tokenizer: Any, example: Example) -> str:
    return tokenizer.decode(example.ids[example.learned.long()])


@pytest.fixture
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def test_only_what_the_assistant_says_is_learned_and_its_end(tokenizer):
    conversation = kit.conversation("Hi there", "Hello!", "How much is 2 plus 3?", "Five 🙂", system="Be kind.")

    (example,) = learned(tokenizer, conversation).train

    assert words(tokenizer, example) == "Hello!<|over|>\nFive 🙂<|over|>\n"
    assert tokenizer.decode(example.ids) == tokenizer.apply_chat_template(conversation["data"]["messages"], tokenize=False)


def test_with_train_on_everything_the_prompts_are_learned_too(tokenizer):
    (example,) = learned(tokenizer, kit.conversation("Hi", "Hello"), everything=True).train

    assert len(example.learned) == len(example.ids) - 1


def test_plain_text_is_learned_whole_and_has_an_end(tokenizer):
    (example,) = learned(tokenizer, {"split": "train", "data": {"text": "The quick brown fox"}}).train

    assert words(tokenizer, example).endswith("fox<|over|>")


def test_a_model_without_a_chat_template_gets_a_plain_one_and_a_warning(tokenizer):
    tokenizer.chat_template = None

    found = learned(tokenizer, kit.conversation("Hi", "Hello"))

    assert words(tokenizer, found.train[0]) == " Hello<|over|>\n\n"
    assert "no chat template" in found.warnings[0]


def test_a_template_that_does_not_write_turn_by_turn_makes_rows_learned_whole_with_a_warning(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"

    found = learned(tokenizer, kit.conversation("Hi", "Hello"))

    assert len(found.train[0].learned) == len(found.train[0].ids) - 1
    assert any("turn by turn" in warning for warning in found.warnings)


def test_turns_that_a_template_writes_otherwise_once_they_are_old_are_left_out_with_a_warning(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' and loop.last %}(thinks){% endif %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    found = learned(tokenizer, kit.conversation("Hi", "Hello", "How much is 2 plus 3?", "Five"))

    assert words(tokenizer, found.train[0]) == "(thinks)Five"
    assert any("In 1 rows" in warning and "two ways" in warning for warning in found.warnings)


def test_calls_of_tools_are_learned_and_the_template_is_told_which_there_are(tokenizer, tmp_path):
    said = [("human", "How late is it?"), ("function_call", '{"name": "clock"}'), ("observation", "12:00"), ("gpt", "Noon.")]
    content, _, meta = canonical_of({"conversations": [{"from": who, "value": text} for who, text in said], "tools": '[{"name": "clock"}]'})
    (tmp_path / "rows").write_text(json.dumps({"id": "1", "split": "train", "format": "sharegpt", "data": {**content, "meta": meta}}) + "\n")
    tokenizer.chat_template = "{{ tools[0].name }}" + tiny.TEMPLATE

    (example,) = examples(read(tmp_path / "rows"), tokenizer, longest=1000, everything=False, heed=lambda: None, progress=lambda done, total: None).train

    assert tokenizer.decode(example.ids).startswith("clock")
    assert words(tokenizer, example) == '{"name": "clock"}<|over|>\nNoon.<|over|>\n'


def canonical_of(row: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """As the datasets service leaves it."""
    from libs.rows import canonical

    name, content, meta = canonical(row)
    return content, name, meta


def test_a_row_that_a_template_stumbles_over_is_left_out_and_the_others_are_learned(tokenizer):
    odd, sound = kit.conversation("Hi", "Hello"), kit.conversation("Who?", "Me")
    odd["data"]["messages"][1]["tool_calls"] = 5
    tokenizer.chat_template = "{% for m in messages %}{% for call in m.tool_calls or [] %}{% endfor %}{% endfor %}" + tiny.TEMPLATE

    found = learned(tokenizer, odd, sound)

    assert [words(tokenizer, example) for example in found.train] == ["Me<|over|>\n"]
    assert any("refuses 1 rows" in warning for warning in found.warnings)


def test_a_template_is_written_with_where_there_is_no_network():
    from services.training.runner.limited import limited
    from tests.kit.trainer import can_connect
    from tests.training.test_worker import kernel_takes_networks_away

    (connected,) = limited(lambda: iter([can_connect()]), seconds=5, megabytes=64, heed=lambda: None)

    assert connected is not kernel_takes_networks_away()


def test_a_template_without_a_system_gets_its_words_in_the_first_question(tokenizer):
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.TEMPLATE

    found = learned(tokenizer, kit.conversation("Hi", "Hello", system="Be kind."))

    assert "Be kind.\n\nHi" in tokenizer.decode(found.train[0].ids)
    assert any("no system message" in warning for warning in found.warnings)


def test_rows_that_are_too_long_are_cut_and_counted_and_those_with_nothing_left_to_learn_are_left_out(tokenizer):
    long_answer, long_question = kit.conversation("Hi", "a b c d e f g h i j k l m n o p q r s t"), kit.conversation("word " * 100, "Hello")

    found = learned(tokenizer, long_answer, long_question, longest=24)

    assert [len(example.ids) for example in found.train] == [24]
    assert (found.counts["truncated"], found.counts["unsupervised"]) == (2, 1)
    assert len(found.warnings) == 2


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "computing time"),
        ("{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}", "memory"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "characters"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "Expected"),
    ],
    ids=["endless", "huge in memory", "huge text", "breaking out", "broken"],
)
def test_a_hostile_chat_template_is_refused_with_a_reason(tokenizer, monkeypatch, template, why):
    if why == "computing time":
        monkeypatch.setattr("services.training.runner.chat.SECONDS", 1)
    tokenizer.chat_template = template

    with pytest.raises(Failure, match=why) as failure:
        learned(tokenizer, kit.conversation("Hi", "Hello"))

    assert failure.value.code == "model"


def test_each_step_learns_from_the_rows_it_was_promised_and_each_epoch_from_all_rows(tmp_path, cache):
    spec = kit.spec(tmp_path / "run", kit.sums(10), cache=cache, num_epochs=2)

    told = kit.train(spec)

    steps = told.of(Step)
    (ready,) = told.of(Ready)
    assert [step.epoch for step in steps] == [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]
    assert sum(step.tokens for step in steps[:3]) == sum(step.tokens for step in steps[3:]) == ready.facts["train_tokens"]
    assert [step.tokens for step in steps[:3]] != [step.tokens for step in steps[3:]]


# ---- runs


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_adapter_of_a_run_loads_in_plain_peft_and_is_the_model_that_was_measured(tmp_path, cache, base, method):
    rows = kit.sums(40, held_out=8)
    spec = kit.spec(tmp_path / "run", rows, cache=cache, method=method, num_epochs=3)

    told = kit.train(spec)

    assert isinstance(told.end, Completed)
    metrics = told.end.metrics
    assert metrics["eval_loss"] < metrics["initial_eval_loss"] - 0.5
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert set(told.end.artifacts) >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    folder = Path(told.end.artifacts["adapter_config.json"]).parent
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "trainyard/tiny-llama"
    assert loss_in_peft(base, folder, rows, quantized=method == "qlora") == pytest.approx(metrics["eval_loss"], rel=1e-4)
    (sampled,) = told.of(Sampled)  # the base is still there at the end, below the adapter: nobody has to wait for it before the first step
    assert [said["example_id"] for said in sampled.samples] == ["0", "1", "2"]
    assert all(said["before"] and said["before"] != said["completion"] for said in sampled.samples)
    assert told.end.summary["verified"]["effect"] > 0.1
    assert told.end.summary["samples"][0].keys() == {"prompt", "before", "after", "expected"}
    msgspec.json.encode(told.end)


def loss_in_peft(base: Path, adapter: Path, rows: list[dict[str, Any]], *, quantized: bool) -> float:
    from peft import PeftModel

    options: dict[str, Any] = {}
    if quantized:
        from transformers import BitsAndBytesConfig

        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
        options = {"quantization_config": nf4, "device_map": {"": "cpu"}}
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), adapter)
    loaded.train()  # on some CPUs bitsandbytes evaluates in half precision only, and only shapes that it likes
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    turns = [(row["data"]["instruction"], row["data"]["output"]) for row in rows]
    held_out = learned(tokenizer, kit.conversation("x", "y"), *(kit.conversation(*turn, split="eval") for turn in turns[:8])).held_out
    with torch.no_grad():
        total = sum(plain_loss(loaded, document).item() for document in held_out)
    return total / sum(len(document.learned) for document in held_out)


def test_a_full_run_leaves_a_model_that_loads_as_it_is(tmp_path, cache):
    spec = kit.spec(tmp_path / "run", kit.sums(24), cache=cache, method="full", learning_rate=0.002, gradient_checkpointing=True)

    told = kit.train(spec)

    assert isinstance(told.end, Completed)
    assert set(told.end.artifacts) >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(Path(told.end.artifacts["config.json"]).parent, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert model.config._attn_implementation != attention.NAME
    assert told.end.metrics["train_loss"] < told.end.metrics["initial_train_loss"] - 0.5
    before, after = told.of(Sampled)
    assert (before.step, after.step) == (0, told.end.step)
    assert [said["before"] for said in after.samples] == [said["completion"] for said in before.samples]
    assert told.index(before) < told.index(told.of(Ready)[0])


def test_what_a_model_says_takes_no_longer_than_it_may(model, tokenizer):
    """Each prompt has its share of the time."""
    prompt = Prompt(asked="Hi", text="<s><|turn|>user\nHi<|over|>\n<|turn|>assistant\n", expected="Hello", row="7")
    heeded: list[float] = []

    short = samples(model, tokenizer, [prompt] * 2, longest=128, seconds=0.0, heed=lambda: heeded.append(1))
    whole = samples(model, tokenizer, [prompt], longest=128, seconds=60.0, heed=lambda: None)

    assert [said["completion"] for said in short] == [CUT_SHORT] * 2
    assert len(heeded) == 2
    assert CUT_SHORT not in whole[0]["completion"]
    assert whole[0]["example_id"] == "7"


def test_weights_in_half_precision_have_masters_that_take_small_steps():
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    tuning = FineTune(base_model="x", learning_rate=1e-4, lr_scheduler="constant", warmup_ratio=0, weight_decay=0)
    optimizer = Optimizer(layer.named_parameters(), tuning, total_steps=100)

    for step in range(1, 61):
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(step, optimizer.norm())

    assert layer.weight.dtype == torch.bfloat16
    assert optimizer.masters[0].mean().item() == pytest.approx(1 - 60e-4, abs=1e-4)
    assert layer.weight.float().mean().item() == pytest.approx(1 - 60e-4, abs=4e-3)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit", "adafactor"])
def test_each_optimizer_learns_and_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path, cache, optimizer):
    wanted: dict[str, Any] = {"method": "full", "optimizer": optimizer, "max_steps": 6, "save_steps": 3, "learning_rate": 0.003}
    whole = kit.train(kit.spec(tmp_path / "whole", kit.sums(8), cache=cache, **wanted))

    resumed = kit.train(kit.spec(tmp_path / "again", kit.sums(8), cache=cache, attempt=2, resume=whole.of(Checkpoint)[0].path, **wanted))

    losses = [step.loss for step in whole.of(Step)]
    assert losses[-1] < losses[0] - 0.3
    assert [step.loss for step in resumed.of(Step)] == pytest.approx(losses[3:], rel=1e-5)
    facts = whole.of(Ready)[0].facts
    assert facts["optimizer"] == optimizer
    assert any("paged" in warning for warning in facts["warnings"]) == (optimizer == "paged_adamw_8bit")


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.1 * 0.5 * (1 + math.cos(math.pi * 8 / 9))), ("linear", 0.1 / 9), ("constant", 0.1)])
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule, last):
    tuning = FineTune(base_model="x", learning_rate=0.1, lr_scheduler=schedule, warmup_ratio=0.1)
    optimizer = Optimizer(torch.nn.Linear(2, 2).named_parameters(), tuning, total_steps=10)

    rates = [optimizer.rate(step) for step in range(1, 11)]

    assert rates[0] == pytest.approx(0.05)
    assert rates[1] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(last)


def test_when_memory_is_short_the_micro_batch_is_halved_and_the_gradient_stays(tmp_path, cache, monkeypatch):
    tuning: dict[str, Any] = {"method": "full", "max_steps": 2, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 0.001}
    undisturbed = kit.train(kit.spec(tmp_path / "roomy", kit.sums(8), cache=cache, **tuning))
    loss = Causal.summed_loss

    def cramped(self: Causal, batch: Any) -> torch.Tensor:
        part = loss(self, batch)
        if batch.tokens > 120:
            part.backward()  # what is left over of a failed micro-batch must not count
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return part

    monkeypatch.setattr(Causal, "summed_loss", cramped)
    told = kit.train(kit.spec(tmp_path / "cramped", kit.sums(8), cache=cache, **tuning))

    assert told.of(BatchReduced)
    assert all(frame.step == 0 for frame in told.of(BatchReduced))
    assert [step.loss for step in told.of(Step)] == pytest.approx([step.loss for step in undisturbed.of(Step)], rel=1e-6)
    assert [step.grad_norm for step in told.of(Step)] == pytest.approx([step.grad_norm for step in undisturbed.of(Step)], rel=1e-5)


def test_a_row_too_long_for_the_memory_ends_the_run_with_words(tmp_path, cache, monkeypatch):
    def never(self: Causal, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Causal, "summed_loss", never)

    with pytest.raises(Failure, match="max_seq_length") as failure:
        kit.train(kit.spec(tmp_path / "run", kit.sums(8), cache=cache))

    assert failure.value.code == "oom"


def test_a_run_that_gets_no_better_ends_early_and_keeps_its_best_weights(tmp_path, cache):
    rows = kit.sums(24, held_out=8)
    spec = kit.spec(
        tmp_path / "run", rows, cache=cache, method="full", num_epochs=50, eval_steps=1, early_stopping_patience=2, learning_rate=0.02, lr_scheduler="constant"
    )

    told = kit.train(spec)

    assert isinstance(told.end, Completed)
    losses = {frame.step: frame.metrics["eval_loss"] for frame in told.of(Evaluated) if frame.step}
    best = min(losses, key=lambda step: losses[step])
    assert told.end.step == best + 2 < told.end.summary["total_steps"]
    assert told.end.metrics["eval_loss"] == losses[best]
    again = kit.train(
        replaced(spec, base_model=str(Path(told.end.artifacts["config.json"]).parent), max_steps=1, early_stopping_patience=0, folder=str(tmp_path / "again"))
    )
    assert again.of(Evaluated)[0].metrics["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


def replaced(spec: Any, *, folder: str, **tuning: Any) -> Any:
    Path(folder).mkdir()
    return msgspec.structs.replace(spec, folder=folder, tuning=msgspec.structs.replace(spec.tuning, **tuning))


@pytest.mark.parametrize("stopped_at", [2, 6], ids=["in the middle", "at the end"])
def test_a_run_that_is_stopped_while_it_evaluates_does_so_when_it_goes_on(tmp_path, cache, stopped_at):
    rows = kit.sums(16, held_out=4)
    whole = kit.train(kit.spec(tmp_path / "whole", rows, cache=cache, num_epochs=2, eval_steps=2))
    again = kit.spec(tmp_path / "again", rows, cache=cache, num_epochs=2, eval_steps=2)

    stopped = kit.train(again, on=lambda frame, wishes: wishes.stop.set() if isinstance(frame, Step) and frame.step == stopped_at else None)
    (kept,) = stopped.of(Checkpoint)[-1:]
    resumed = kit.train(msgspec.structs.replace(again, resume=kept.path))

    assert isinstance(whole.end, Completed)
    assert isinstance(resumed.end, Completed)
    assert kept.step == stopped_at
    assert [frame.step for frame in stopped.of(Evaluated)] == [step for step in (0, 2, 4) if step < stopped_at]
    assert resumed.end.summary["evaluations"] == whole.end.summary["evaluations"]
    assert {name: value for name, value in resumed.end.metrics.items() if name != "tokens_per_second"} == {
        name: value for name, value in whole.end.metrics.items() if name != "tokens_per_second"
    }


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, cache, monkeypatch):
    from services.training.trainers import llm

    losses = iter([2.0, math.nan, 1.5, 1.8])
    monkeypatch.setattr(llm.Run, "_held_out_loss", lambda self: next(losses))

    told = kit.train(kit.spec(tmp_path / "run", kit.sums(16, held_out=4), cache=cache, eval_steps=1))

    assert isinstance(told.end, Completed)
    assert (told.end.summary["best_step"], told.end.metrics["eval_loss"]) == (2, 1.5)


def test_a_run_that_diverges_fails_and_names_the_step(tmp_path, cache):
    spec = kit.spec(tmp_path / "run", kit.sums(24), cache=cache, method="full", learning_rate=0.99, max_grad_norm=0, max_steps=400, warmup_ratio=0)

    with pytest.raises(Failure, match=r"at step \d+.*learning_rate") as failure:
        poisoned(spec)

    assert failure.value.code == "diverged"


def poisoned(spec: Any) -> None:
    """The third step meets a weight that has grown beyond all bounds."""
    from services.training.runner.entry import settle
    from services.training.runner.wishes import Wishes
    from services.training.trainers import llm

    settle(spec)
    run = llm.prepare(spec, lambda frame: None, Wishes())
    run.learn()
    run.learn()
    with torch.no_grad():
        next(run.causal.model.parameters()).fill_(torch.inf)
    run.learn()


def test_checkpoints_come_as_often_as_wanted(tmp_path, cache):
    by_epoch = kit.train(kit.spec(tmp_path / "a", kit.sums(8), cache=cache, num_epochs=2))
    by_steps = kit.train(kit.spec(tmp_path / "b", kit.sums(8), cache=cache, num_epochs=2, save_steps=3))

    assert [frame.step for frame in by_epoch.of(Checkpoint)] == [2, 4]
    assert [frame.step for frame in by_steps.of(Checkpoint)] == [3]


# ---- models


def test_the_tiny_model_is_the_same_wherever_it_is_built(tmp_path):
    for name in ("one", "other"):
        tiny.build(tmp_path / name)

    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files >= ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)


def broken(base: Path, place: Path, **config: Any) -> Path:
    shutil.copytree(base, place)
    written = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**written, **config}))
    return place


def refusal(tmp_path: Path, cache: Path, model: Path | str, **tuning: Any) -> tuple[Failure, kit.Told]:
    told = kit.Told()
    spec = kit.spec(tmp_path / "run", tuning.pop("rows", kit.sums(4)), cache=cache, base_model=str(model), **tuning)
    with pytest.raises(Failure) as failure:
        kit.train(spec, on=lambda frame, wishes: told.append(frame))
    return failure.value, told


def phases(told: kit.Told) -> list[str]:
    return list(dict.fromkeys(phase.name for phase in told.of(Phase)))


def test_a_model_with_code_of_its_own_is_refused_before_anything_is_loaded(tmp_path, cache, base):
    failure, told = refusal(tmp_path, cache, broken(base, tmp_path / "m", auto_map={"AutoModelForCausalLM": "evil.Model"}))

    assert failure.code == "model"
    assert "never run" in failure.message
    assert phases(told) == ["find"]


def test_a_model_that_is_only_there_as_a_pickle_is_refused(tmp_path, cache, base):
    place = broken(base, tmp_path / "m")
    (place / "model.safetensors").rename(place / "pytorch_model.bin")

    failure, told = refusal(tmp_path, cache, place)

    assert failure.code == "model"
    assert "safetensors" in failure.message
    assert phases(told) == ["find"]


def test_a_model_that_lacks_weights_is_refused(tmp_path, cache, base):
    failure, _ = refusal(tmp_path, cache, broken(base, tmp_path / "m", num_hidden_layers=3))

    assert failure.code == "model"
    assert "lacks weights" in failure.message


@pytest.mark.parametrize(
    ("config", "why", "last"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers", "find"),
        ({"num_labels": 10**9}, "num_labels", "find"),
        ({"vocab_size": 10**9}, "64,000,", "fetch"),
        ({"hidden_size": 10**12, "num_attention_heads": 1}, "asks for at least", "fetch"),
    ],
    ids=["layers", "labels", "vocabulary", "width"],
)
def test_a_configuration_that_wants_more_than_there_is_is_refused_before_anything_is_built(tmp_path, cache, base, config, why, last):
    failure, told = refusal(tmp_path, cache, broken(base, tmp_path / "m", **config))

    assert (failure.code, phases(told)[-1]) == ("model", last)
    assert why in failure.message


def test_a_tokenizer_with_tokens_that_the_model_does_not_know_is_refused_before_it_is_loaded(tmp_path, cache, base):
    place = broken(base, tmp_path / "m", vocab_size=300)

    failure, told = refusal(tmp_path, cache, place)

    assert failure.code == "model"
    assert "don't belong together" in failure.message
    assert "load" not in phases(told)


def test_a_model_with_an_adapter_in_its_folder_is_refused_as_not_what_it_is_called(tmp_path, cache, base):
    place = broken(base, tmp_path / "m")
    (place / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/somewhere/else"}')

    failure, told = refusal(tmp_path, cache, place)

    assert "adapter_config.json" in failure.message
    assert phases(told) == ["find"]


@pytest.mark.parametrize(
    ("model", "code", "why"),
    [
        ("/nowhere/at/all", "model", "no model in the folder"),
        ("../../etc", "model", "neither a folder nor the name"),
        ("someone/something", "hub_unreachable", "can't be reached"),
    ],
)
def test_a_model_that_is_not_there_is_refused_in_clear_words(tmp_path, cache, monkeypatch, model, code, why):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    failure, _ = refusal(tmp_path, cache, model)

    assert failure.code == code
    assert why in failure.message


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(base: Path) -> Iterator[str]:
    """Has the tiny model under the name someone/small, and it alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = base / self.path.rpartition("/")[2]
            if self.path.startswith("/api/models/someone/small/revision/"):
                self.answer(json.dumps({"id": "someone/small", "sha": SHA, "siblings": [{"rfilename": path.name} for path in base.iterdir()]}).encode())
            elif self.path.startswith("/api/models/someone/small/tree/"):
                files = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name} for path in base.iterdir()]
                self.answer(json.dumps(files).encode())
            elif self.path.startswith(f"/someone/small/resolve/{SHA}/") and place.exists():
                self.answer(place.read_bytes(), headers={"ETag": f'"{place.name}"', "X-Repo-Commit": SHA})
            elif "someone/gated" in self.path:
                self.answer(b"", status=403, headers={"X-Error-Code": "GatedRepo"})
            else:
                self.answer(b"", status=404, headers={"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_model_of_the_hub_is_fetched_once_and_its_name_stays_in_the_adapter(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    told = kit.train(kit.spec(tmp_path / "run", kit.sums(4), cache=tmp_path / "cache", base_model="someone/small", revision=SHA))

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = kit.train(kit.spec(tmp_path / "again", kit.sums(4), cache=tmp_path / "cache", base_model="someone/small", revision=SHA))

    assert isinstance(told.end, Completed)
    config = json.loads(Path(told.end.artifacts["adapter_config.json"]).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/small", SHA)
    assert [step.loss for step in again.of(Step)] == [step.loss for step in told.of(Step)]


def test_a_model_that_the_hub_does_not_have_is_refused(tmp_path, cache, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub)

    failure, _ = refusal(tmp_path, cache, "someone/else")

    assert failure.code == "model_not_found"
    assert "hub has no model" in failure.message


def test_a_model_that_has_gone_behind_a_licence_since_it_was_resolved_is_refused_with_what_helps(tmp_path, cache, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub)

    failure, _ = refusal(tmp_path, cache, "someone/gated", revision=SHA)

    assert failure.code == "model_not_accessible"
    assert "TRAINYARD_HF_TOKEN" in failure.message


def test_a_hub_that_is_away_is_no_model_that_is_not_there(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # else its library tries again for half a minute

    failure, _ = refusal(tmp_path, cache, "someone/small", revision=SHA)

    assert failure.code == "hub_unreachable"
    assert "http://127.0.0.1:9" in failure.message


def test_a_dataset_with_nothing_to_learn_from_is_refused_before_a_model_is_loaded(tmp_path, cache):
    failure, told = refusal(tmp_path, cache, "trainyard/tiny-llama", rows=[kit.conversation("word " * 500, "Hello")])

    assert failure.code == "data"
    assert "max_seq_length" in failure.message
    assert phases(told) == ["find", "tokenize"]


def test_a_smoke_run_takes_the_real_architecture_made_tiny_and_says_so(tmp_path, cache, base):
    real = tmp_path / "qwen"
    AutoTokenizer.from_pretrained(base).save_pretrained(real)
    Qwen2Config(hidden_size=3584, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944, num_hidden_layers=28).save_pretrained(real)

    told = kit.train(kit.spec(tmp_path / "run", kit.sums(8), cache=cache, base_model=str(real), smoke=True))

    assert isinstance(told.end, Completed)
    assert told.end.summary["smoke"] is True
    assert told.end.summary["parameters"] < 1_000_000
    assert "smoke" in told.end.summary["warnings"][0]
    config = json.loads(Path(told.end.artifacts["adapter_config.json"]).read_text())
    assert config["base_model_name_or_path"] == str(real)
    assert any("self_attn.q_proj" in key for key in load_file(told.end.artifacts["adapter_model.safetensors"]))
    assert json.loads((tmp_path / "run" / "base" / "config.json").read_text())["model_type"] == "qwen2"


def test_a_smoke_run_without_a_hub_takes_the_tiny_model(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    told = kit.train(kit.spec(tmp_path / "run", kit.sums(8), cache=cache, base_model="meta-llama/Llama-3.1-8B", smoke=True))

    assert isinstance(told.end, Completed)
    assert told.end.summary["smoke"] is True
    assert any("trainyard/tiny-llama" in warning for warning in told.end.summary["warnings"])
