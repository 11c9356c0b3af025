"""A dry run: what a model would learn is shown as it would be learned, counted, and refused where it is nothing."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from transformers import AutoTokenizer

from infra.embedded import Process, Servers
from libs import tiny as tiny_llama
from libs.events import Claim, FineTune
from libs.rehearsal import SUBJECT, Answer, Line, Question, Seen, Segment, Spread
from libs.runtime import bus
from libs.storage import Storage
from services.training.frames import RunSpec
from services.training.runner import tiny
from services.training.runner.examples import Reading, examples
from services.training.runner.rehearsal import MOST_SHOWN, answer, segments, shown, spread
from services.training.runner.rows import Row
from services.training.runner.wishes import Wishes
from services.training.trainers import llm
from tests.kit import finetunes as kit
from tests.kit.eventually import eventually
from tests.kit.servers import revive
from tests.kit.training import child, folders, kill, service

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

TURNS = kit.conversation("Hi there", "Hello!", "How much is 2 plus 3?", "Five 🙂", system="Be kind.")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def tokenizer(cache: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny.folder(cache))


def read(tokenizer: Any, row: dict[str, Any], *, longest: int = 1000, everything: bool = False) -> Reading:
    found: list[Reading] = []
    content = row["data"].get("messages") or row["data"]["text"]
    examples([Row("train", content)], tokenizer, longest=longest, everything=everything, heed=lambda: None, progress=lambda *_: None, seen=found.append)
    return found[0]


# ---- the numbers


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([7], Spread(min=7, p5=7, p50=7, p95=7, p99=7, max=7)),
        ([3, 1], Spread(min=1, p5=1, p50=1, p95=3, p99=3, max=3)),
        ([*range(200, 0, -1)], Spread(min=1, p5=10, p50=100, p95=190, p99=198, max=200)),
        ([0] * 99 + [50], Spread(min=0, p5=0, p50=0, p95=0, p99=0, max=50)),
    ],
    ids=["one", "two", "200", "mostly nothing"],
)
def test_a_percentile_is_the_number_of_one_of_the_examples(numbers: list[int], expected: Spread):
    assert spread(numbers) == expected


# ---- what is shown


def test_of_a_chat_what_the_assistant_says_is_trained_and_all_pieces_together_are_the_rendered_text(tokenizer):
    reading = read(tokenizer, TURNS)

    pieces = segments(reading, 1000)

    assert "".join(piece.text for piece in pieces) == tokenizer.apply_chat_template(TURNS["data"]["messages"], tokenize=False)
    assert [piece.text for piece in pieces if piece.trained] == ["Hello!<|over|>\n", "Five 🙂<|over|>\n"]
    assert [piece.trained for piece in pieces] == [False, True, False, True]
    assert not any(piece.cut for piece in pieces)


def test_what_is_trained_is_shown_token_by_token_as_the_trainer_masks_it(tokenizer):
    reading = read(tokenizer, TURNS)

    pieces = segments(reading, 1000)

    for piece in pieces:
        ids = tokenizer(piece.text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == piece.text
    trained = sum(len(tokenizer(piece.text, add_special_tokens=False).input_ids) for piece in pieces if piece.trained)
    assert trained == len(reading.learned)


def test_what_lies_beyond_the_longest_row_is_shown_as_cut(tokenizer):
    whole = read(tokenizer, TURNS)
    longest = whole.learned[0] + 2
    reading = read(tokenizer, TURNS, longest=longest)

    pieces = segments(reading, longest)

    assert "".join(piece.text for piece in pieces) == "".join(piece.text for piece in segments(whole, 1000))
    seen = "".join(piece.text for piece in pieces if not piece.cut)
    assert tokenizer(seen, add_special_tokens=False).input_ids == reading.tokens.ids[:longest]
    assert [(piece.trained, piece.cut) for piece in pieces] == [(False, False), (True, False), (False, True)]


def test_of_plain_text_the_marks_that_a_tokenizer_puts_around_it_are_shown_too(tokenizer):
    reading = read(tokenizer, {"split": "train", "data": {"text": "The quick brown fox"}})

    (*before, last) = segments(reading, 1000)

    assert last.trained
    assert "".join(piece.text for piece in (*before, last)) == tokenizer.decode(reading.tokens.ids)
    assert last.text.endswith("fox<|over|>")


def test_with_train_on_everything_all_of_it_is_trained_but_the_first_token_which_nothing_foretells(tokenizer):
    pieces = segments(read(tokenizer, TURNS, everything=True), 1000)

    assert [(piece.text, piece.trained) for piece in pieces][:1] == [(tokenizer.bos_token, False)]
    assert [piece.trained for piece in pieces] == [False, True]


class Silent:
    """A tokenizer that doesn't tell where in a text its tokens come from."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *args: Any, **options: Any) -> Any:
        encoded = self._tokenizer(*args, **options)
        return type(encoded)(dict(encoded))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_a_tokenizer_that_does_not_tell_where_its_tokens_come_from_shows_the_same(tokenizer):
    told, untold = read(tokenizer, TURNS), read(Silent(tokenizer), TURNS)

    assert untold.learned == told.learned
    assert segments(untold, 1000) == segments(told, 1000)


def test_a_tokenizer_without_an_end_of_text_is_a_warning_where_there_is_plain_text(tokenizer):
    tokenizer.eos_token = None
    rows = [Row("train", "The quick brown fox"), Row("train", TURNS["data"]["messages"])]

    plain, chats = (examples([row], tokenizer, longest=1000, everything=False, heed=lambda: None, progress=lambda *_: None).warnings for row in rows)

    assert "no end-of-text token" in plain[0]
    assert chats == []


def test_of_an_endless_text_the_beginning_is_shown(tokenizer):
    found = shown(read(tokenizer, kit.conversation("Why?", "Because. " * (MOST_SHOWN // 5))), 1000)

    assert not found.complete
    assert len("".join(piece.text for piece in found.segments)) == MOST_SHOWN
    assert found.tokens > 1000 > found.trainable_tokens > 900


# ---- the whole answer


@pytest.fixture
def ask(tmp_path: Path, cache: Path) -> Callable[..., Answer]:
    def ask(rows: list[dict[str, Any]], *, of: int = 0, shown: dict[str, Any] | None = None, **tuning: Any) -> Answer:
        wanted = question(rows, of=of, shown=shown, **tuning)
        (tmp_path / "question").write_bytes(msgspec.json.encode(wanted))
        return answer(RunSpec(job_id="", attempt=0, folder=str(tmp_path), snapshot=str(tmp_path / "question"), tuning=wanted.tuning, cache=str(cache)))

    return ask


def question(rows: list[dict[str, Any]], *, of: int = 0, shown: dict[str, Any] | None = None, **tuning: Any) -> Question:
    settings = {"base_model": tiny_llama.BASE, "per_device_batch_size": 2, "gradient_accumulation_steps": 2, **tuning}
    return Question(tuning=msgspec.convert(settings, FineTune), rows=[line(row) for row in rows], of=of or len(rows), shown=line(shown) if shown else None)


def line(row: dict[str, Any]) -> Line:
    return Line(id=row["id"], split=row["split"], format=row["format"], data=msgspec.Raw(json.dumps(row["data"]).encode()))


def seen(answer: Answer) -> Seen:
    assert answer.seen, answer.refusal
    return answer.seen


def test_what_a_dry_run_counts_is_what_the_run_then_counts(ask, tmp_path, cache):

    rows = kit.sums(10)
    told = seen(ask(rows, num_epochs=3, max_seq_length=40))

    run = llm.prepare(kit.spec(tmp_path / "run", rows, cache=cache, num_epochs=3, max_seq_length=40), lambda _: None, Wishes())
    facts = run.facts()
    assert told.rows_left_out == 10 - facts["train_rows"] > 0
    assert told.estimate.total_steps == run.total > 3
    assert (told.estimate.rows, told.estimate.tokens_per_epoch, told.estimate.exact) == (facts["train_rows"], facts["train_tokens"], True)
    assert told.rows_cut == facts["truncated"] > 0
    assert told.warnings == facts["warnings"]


def test_of_a_sample_the_steps_of_the_whole_data_set_are_an_estimate(ask):
    told = seen(ask(kit.sums(10), of=1000, num_epochs=2)).estimate

    assert (told.exact, told.rows, told.rows_per_step, told.steps_per_epoch, told.total_steps) == (False, 1000, 4, 250, 500)
    assert told.tokens_per_epoch % 100 == 0


def test_a_shortest_a_middling_and_a_longest_example_are_shown_unless_one_is_asked_for(ask):
    rows = kit.sums(20)
    another = kit.conversation("Which?", "This one.", split="eval")

    three, one = seen(ask(rows)), seen(ask(rows, shown=another))

    assert [example.tokens for example in three.examples] == [three.tokens.min, three.tokens.p50, three.tokens.max]
    assert [(example.id, example.split, example.problem) for example in one.examples] == [("c", "eval", "")]
    assert [piece.text for piece in one.examples[0].segments if piece.trained] == ["This one.<|over|>\n"]
    assert (one.sampled, one.tokens) == (three.sampled, three.tokens)


def test_an_example_that_nothing_can_be_learned_from_is_shown_with_the_reason(ask):
    told = seen(ask(kit.sums(5), shown=kit.conversation("word " * 100, "Hello"), max_seq_length=64))

    (example,) = told.examples
    assert "max_seq_length" in example.problem
    assert (example.trainable_tokens, any(piece.trained for piece in example.segments)) == (0, False)
    assert example.segments[-1] == Segment(text=example.segments[-1].text, trained=False, cut=True)


def test_rows_without_a_trainable_token_are_counted_and_when_there_are_no_others_refused(ask):
    hopeless = kit.conversation("word " * 100, "Hello")

    some, none = ask([*kit.sums(3), hopeless], max_seq_length=64), ask([hopeless], max_seq_length=64)

    assert (seen(some).rows_left_out, seen(some).trainable_tokens.min) == (1, 0)
    assert none.refusal
    assert none.refusal.code == "data"
    assert "No row has a token to learn from" in none.refusal.message


def test_a_folder_without_a_model_is_refused(ask, tmp_path):
    (tmp_path / "base").mkdir()

    refused = ask(kit.sums(2), base_model=str(tmp_path / "base")).refusal

    assert refused
    assert (refused.code, "no model in the folder" in refused.message) == ("model", True)


def test_a_hub_that_can_not_be_reached_is_told_from_a_model_that_is_wrong(ask, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    refused = ask(kit.sums(2), base_model="some/model").refusal

    assert refused
    assert refused.code == "hub"


def test_a_smoke_run_is_shown_with_the_tokenizer_that_it_will_use(ask, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    told = seen(ask(kit.sums(3), base_model="some/model", smoke=True))

    assert "smoke run" in told.warnings[0]
    assert told.trainable_share > 0


# ---- the service


@pytest.fixture(scope="module")
async def training(place: Servers) -> AsyncIterator[Process]:
    with service(place, label="rehearsing", preload=("services.training.runner.preload",)) as process:
        await revive(process)
        yield process


@pytest.fixture
async def gateway(place: Servers, training: Process) -> AsyncIterator[Client]:
    """Once the service is warm."""
    nc = await bus.connect(place.nats_url("gateway"), name="gateway")
    await eventually(lambda: warm(nc), patience=90)
    yield nc
    await nc.close()


async def warm(nc: Client) -> bool:
    return (await told(nc, question(kit.sums(1)))).seen is not None


async def told(nc: Client, wanted: Any) -> Answer:
    return msgspec.json.decode((await nc.request(f"ask.{SUBJECT}", msgspec.json.encode(wanted), timeout=60)).data, type=Answer)


def with_template(template: str, cache: Path, folder: Path) -> str:
    """A model that brings this chat template."""
    shutil.copytree(tiny.folder(cache), folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


async def test_the_service_answers_as_often_as_it_is_asked_and_leaves_nothing(place: Servers, training: Process, gateway: Client):
    answers = await asyncio.gather(*(told(gateway, question(kit.sums(count))) for count in (3, 4, 5)))

    assert [seen(answer).sampled for answer in answers] == [3, 4, 5]
    await eventually(lambda: not folders(place) and child(training) is None)


async def test_a_hostile_chat_template_is_refused_in_words(gateway: Client, cache: Path, tmp_path: Path):
    base = with_template("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", cache, tmp_path / "base")

    refused = (await told(gateway, question(kit.sums(3), base_model=base))).refusal

    assert refused
    assert (refused.code, "chat template can't be used" in refused.message) == ("model", True)


async def test_of_a_base_that_was_trained_here_all_but_the_weights_is_fetched(gateway: Client, storage: Storage, cache: Path):
    nowhere = Claim(key="t/nowhere", sha256="0" * 64, size=1)
    files = {path.name: await storage.put(f"t/{path.name}", path.read_bytes()) for path in tiny.folder(cache).iterdir() if path.suffix != ".safetensors"}
    there, gone = (
        [{"job_id": "1", "project_id": "1", "method": "full", "files": msgspec.to_builtins(files | more)}]
        for more in ({"model.safetensors": nowhere}, {"config.json": nowhere})
    )

    told_of = seen(await told(gateway, question(kit.sums(2), base_model="trainyard/1", ancestors=there)))
    refused = (await told(gateway, question(kit.sums(2), base_model="trainyard/1", ancestors=gone))).refusal

    assert told_of.trainable_share > 0
    assert refused
    assert (refused.code, "not in the object store" in refused.message) == ("model", True)


async def test_a_process_that_is_killed_is_said_and_the_next_one_is_asked(training: Process, gateway: Client, cache: Path, tmp_path: Path):
    base = with_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", cache, tmp_path / "base")
    await eventually(lambda: child(training) is None)
    asked = asyncio.create_task(told(gateway, question(kit.sums(3), base_model=base)))
    after = asyncio.create_task(told(gateway, question(kit.sums(2))))

    kill(await eventually(lambda: child(training)))

    refused = (await asked).refusal
    assert refused
    assert (refused.code, "without a word" in refused.message) == ("service", True)
    assert seen(await after).sampled == 2


async def test_who_asks_for_what_takes_forever_holds_up_nobody_elses_dry_run(training: Process, gateway: Client, cache: Path, tmp_path: Path):
    base = with_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", cache, tmp_path / "base")
    await eventually(lambda: child(training) is None)
    endless = msgspec.structs.replace(question(kit.sums(3), base_model=base), workspace="one")
    asked = [asyncio.create_task(told(gateway, endless)) for _ in range(2)]
    first = await eventually(lambda: child(training))

    answered = await told(gateway, msgspec.structs.replace(question(kit.sums(2)), workspace="another"))

    assert seen(answered).sampled == 2
    assert not any(one.done() for one in asked)
    kill(first)
    kill(await eventually(lambda: other if (other := child(training)) != first else None))
    assert {answer.refusal.code for answer in await asyncio.gather(*asked) if answer.refusal} == {"service"}


async def test_a_question_that_makes_no_sense_is_refused(gateway: Client):
    refused = (await told(gateway, {"rows": "many"})).refusal

    assert refused
    assert refused.code == "service"
