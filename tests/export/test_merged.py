"""Exports of merged models: what another stage of the job has made is looked through where it lies, checked, and told of."""

import json
import zlib
from typing import Any

import pytest

from libs.events import Claim, ExportCompleted, ExportFailed, ExportProgressed, Recorded, story
from libs.events.log import EventLog
from libs.storage import Storage
from services.export import exporting
from services.export.files import merged
from services.export.handlers import Exports
from services.export.refused import Refused
from services.export.verification import Question, Verdict
from tests.export.conftest import Workshop
from tests.export.stories import Trained, cancel

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

EMPTY = b"\x02\0\0\0\0\0\0\0{}"
FILES = {"model.safetensors": EMPTY, "config.json": b'{"model_type": "llama"}', "tokenizer.json": b"[]"}


@pytest.fixture(scope="module")
def whose() -> str:
    return "export"


@pytest.fixture
def service(own_log: EventLog, storage: Storage) -> Exports:
    return Exports(own_log, storage)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """What the check was asked; it says yes."""
    asked: list[Question] = []

    async def verdict(question: Question) -> Verdict:
        asked.append(question)
        return Verdict(tensors=28, values=1, library="nobody")

    monkeypatch.setattr(exporting, "verdict", verdict)
    return asked


@pytest.fixture
async def trained(storage: Storage, log: EventLog, origin: Any) -> Trained:
    made = Trained(storage, log, origin)
    await made.keep("adapter_model.safetensors", EMPTY)
    await made.keep("adapter_config.json", b"{}")
    return await made.completed()


async def told(log: EventLog, created: Recorded) -> list[Any]:
    return [
        fact.event
        for fact in await log.read(story(created.tenant, created.event.job_id))  # type: ignore[union-attr]
        if fact.envelope.type.startswith("export.")
    ]


async def test_it_waits_for_the_merge_and_leaves_its_files_where_they_lie(
    service: Exports, storage: Storage, log: EventLog, trained: Trained, asked: list[Question]
):
    created, merge = await trained.merge(FILES)

    await service.export(created)
    waited = await told(log, created)
    await service.export_merged(merge)
    await service.export_merged(merge)  # delivered again

    started, *_, end = await told(log, created)
    assert (waited, started.merged) == ([], True)
    assert isinstance(end, ExportCompleted)
    made = {file.name: file for file in end.files}
    for name, content in FILES.items():
        file = made[f"merged/{name}"]
        assert file.content == merge.event.artifacts[f"merged/{name}"]  # type: ignore[union-attr]
        assert file.crc32 == zlib.crc32(content)
    ours = {"training_config.json", "metrics.json", "report.md", "loss_curve.svg", "README.md", "merged/README.md"}
    assert made.keys() == {"adapter_model.safetensors", "adapter_config.json"} | {f"merged/{name}" for name in FILES} | ours
    assert [question.adapter_config is None for question in asked] == [False, True]
    assert asked[1].base_config == {"model_type": "llama"}
    report = (await storage.get(made["report.md"].content)).decode()
    for words in ("## The merged model", "rounded once to bfloat16", "0.0042", "98.0%", "0.11 apart from those of base and adapter as the run had them"):
        assert words in report
    assert "<script>" not in report


async def test_of_several_files_all_are_checked_together(service: Exports, log: EventLog, trained: Trained, asked: list[Question]):
    shards = {f"model-0000{n}-of-00003.safetensors": EMPTY + bytes(n) for n in (1, 2, 3)}
    _, merge = await trained.merge(shards | {"config.json": b"{}", "model.safetensors.index.json": b"{}"})

    await service.export_merged(merge)

    assert (asked[1].size, [size for _, size in asked[1].others]) == (11, [12, 13])


async def test_a_training_that_is_no_stage_of_an_export_is_none_of_its_business(service: Exports, log: EventLog, trained: Trained):
    facts = await log.read(story(trained.origin.tenant, trained.job_id))

    await service.export_merged(facts[-1])

    assert [fact.envelope.type for fact in await log.read(story(trained.origin.tenant, trained.job_id))] == [fact.envelope.type for fact in facts]


async def test_a_file_that_is_not_what_the_merge_stored_is_never_passed_on(
    service: Exports, storage: Storage, log: EventLog, trained: Trained, asked: list[Question], monkeypatch: pytest.MonkeyPatch
):
    put = storage.put

    async def spoiled(folder: str, content: bytes) -> Claim:
        claim = await put(folder, content)
        return Claim(key=claim.key, sha256="0" * 64, size=claim.size) if content == EMPTY else claim

    monkeypatch.setattr(storage, "put", spoiled)
    created, merge = await trained.merge(FILES)

    await service.export_merged(merge)

    end = (await told(log, created))[-1]
    assert isinstance(end, ExportFailed)
    assert end.code == "artifact_damaged"


async def test_a_cancel_behind_the_merge_is_the_exports_to_heed(service: Exports, log: EventLog, trained: Trained, asked: list[Question]):
    created, merge = await trained.merge(FILES)
    await cancel(log, created)

    await service.export_merged(merge)

    assert [type(event).__name__ for event in await told(log, created)] == ["ExportCancelled"]


async def test_its_progress_goes_on_where_the_merge_ended(
    service: Exports, log: EventLog, trained: Trained, asked: list[Question], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "HEARTBEAT", 0.0)
    created, merge = await trained.merge(FILES)

    await service.export_merged(merge)

    shares = [event.done / event.total for event in await told(log, created) if isinstance(event, ExportProgressed)]
    assert shares
    assert shares == sorted(shares)
    assert shares[0] >= 0.5
    assert shares[-1] <= 1.0


async def test_the_heads_of_many_files_are_not_held_without_end(
    service: Exports, log: EventLog, trained: Trained, asked: list[Question], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "KEPT", 30)
    created, merge = await trained.merge({f"model-0000{n}-of-00003.safetensors": EMPTY for n in (1, 2, 3)} | {"config.json": b"{}"})

    await service.export_merged(merge)

    end = (await told(log, created))[-1]
    assert isinstance(end, ExportFailed)
    assert end.code == "does_not_load"


async def test_a_fault_at_a_training_that_is_no_stage_of_an_export_ends_no_export(service: Exports, log: EventLog, trained: Trained):
    facts = await log.read(story(trained.origin.tenant, trained.job_id))

    await service.give_up_merged(facts[-1], ValueError())

    assert not await told(log, facts[0])


def test_weights_in_several_files_are_one_model(workshop: Workshop):
    """By the real check: together they are all that the configuration asks for, and none of them is there twice."""
    config = json.loads((workshop.folder / "model" / "config.json").read_bytes())
    file = str(workshop.folder / "model" / "model.safetensors")

    whole, lacking, doubled = (
        workshop.ask("judge_shards", file=file, base_config=config, left_out=left_out, twice=twice) for left_out, twice in ((0, 0), (1, 0), (0, 1))
    )

    assert (whole["code"], whole["tensors"]) == ("", 20)
    assert (lacking["code"], "1 missing" in lacking["message"]) == ("does_not_load", True)
    assert (doubled["code"], "is in two files" in doubled["message"]) == ("does_not_load", True)


def test_a_merge_without_weights_or_settings_is_no_model():
    claim = Claim(key="k", sha256="0" * 64, size=1)
    for names in ({"merged/config.json"}, {"merged/model.safetensors"}, {"merged/config.json", "merged/model.bin"}, {"model.safetensors", "config.json"}):
        with pytest.raises(Refused, match="no whole model"):
            merged(dict.fromkeys(names, claim))
    names = {"merged/config.json", "merged/model.safetensors"}
    assert set(merged(dict.fromkeys(names | {"merged/../x.json", "merged/a/b.json"}, claim))) == names


def test_of_a_merge_nothing_goes_along_that_is_run_or_takes_the_place_of_something_else():
    claim = Claim(key="k", sha256="0" * 64, size=1)
    names = {"merged/config.json", "merged/model.safetensors"}
    odd = {f"merged/{name}" for name in ("README.md", "modeling.py", "pytorch_model.bin", "run.sh", "adapter_config.json")}

    assert set(merged(dict.fromkeys(names | odd, claim))) == names
    with pytest.raises(Refused, match="Two files") as refused:
        merged(dict.fromkeys(names | {"merged/Config.json"}, claim))
    assert refused.value.code == "name_taken"
