"""Exporting a run, with everything that can come between: again, crashes, other replicas, cancels, damage, outages."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt
from nats.aio.client import Client

from infra.embedded import Servers
from libs.config import Service, load
from libs.events import ExportCompleted, ExportedFile, ExportFailed, JobCreated, Origin, Recorded, story
from libs.events.log import EventLog
from libs.runtime.broker import HandedOver
from libs.storage import Storage, StorageDown
from services.export import exporting
from services.export.handlers import Exports
from services.export.verification import Question, Verdict
from tests.export.conftest import Workshop
from tests.export.stories import STEPS, Trained, cancel
from tests.kit.eventually import eventually
from tests.kit.place import one_service
from tests.kit.processes import children
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

CUT_SHORT = b"\x48\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(72) + b"\0"
ENDED = ("export.completed", "export.failed", "export.cancelled")


# The place


@pytest.fixture(scope="module")
def whose() -> str:
    return "export"


@pytest.fixture
def service(own_log: EventLog, storage: Storage) -> Exports:
    """What a replica does with a delivery, without the delivery."""
    return Exports(own_log, storage)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """For what doesn't hang on the check: nobody spends seconds on it, and it comes to no end before the event is set."""
    opened = asyncio.Event()
    opened.set()

    async def verdict(_: Question) -> Verdict:
        await opened.wait()
        return Verdict(tensors=28, values=1, library="nobody")

    monkeypatch.setattr(exporting, "verdict", verdict)
    return opened


# Runs


@pytest.fixture
async def trained(storage: Storage, log: EventLog, origin: Origin) -> Trained:
    """Its files are small, and nobody has looked into them."""
    made = Trained(storage, log, origin)
    await made.keep("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    await made.keep("adapter_config.json", b"{}")
    return made


@pytest.fixture
async def real(storage: Storage, log: EventLog, origin: Origin, workshop: Workshop) -> Trained:
    """Its adapter is one that peft has written."""
    made = Trained(storage, log, origin)
    await made.keep_all(workshop.files("adapter"))
    await made.keep("tokenizer.json", b'{"version":"1.0"}')
    await made.keep("chat_template.jinja", b"{{ messages }}")
    return made


async def facts(log: EventLog, created: Recorded) -> list[Recorded]:
    return [fact for fact in await log.read(story(created.tenant, job_id(created))) if fact.envelope.type.startswith("export.")]


async def names(log: EventLog, created: Recorded) -> list[str]:
    return [name for fact in await facts(log, created) if (name := fact.envelope.type.removeprefix("export.")) != "progress"]


async def ended(log: EventLog, created: Recorded, *, patience: float = 60.0) -> list[Recorded]:
    async def look() -> list[Recorded]:
        told = await facts(log, created)
        return told if told and told[-1].envelope.type in ENDED else []

    return await eventually(look, patience=patience)


async def files(log: EventLog, created: Recorded) -> dict[str, ExportedFile]:
    told = await facts(log, created)
    end = told[-1].event
    assert isinstance(end, ExportCompleted), end
    assert sum(fact.envelope.type in ENDED for fact in told) == 1
    return {file.name: file for file in end.files}


async def failure(log: EventLog, created: Recorded) -> ExportFailed:
    end = (await facts(log, created))[-1].event
    assert isinstance(end, ExportFailed), end
    return end


def job_id(created: Recorded) -> str:
    assert isinstance(created.event, JobCreated)
    return created.event.job_id


# The work


async def test_a_run_becomes_files_that_load_in_plain_peft(
    service: Exports, storage: Storage, log: EventLog, real: Trained, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
):
    created = await (await real.completed()).export()

    await service.export(created)

    made = await files(log, created)
    ours = {"training_config.json", "metrics.json", "report.md", "loss_curve.svg", "README.md"}
    assert made.keys() == {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} | ours
    assert list(made) == sorted(made)
    folder = tmp_path_factory.mktemp("export")
    for name, file in made.items():
        content = await storage.get(file.content)
        assert (len(content), zlib.crc32(content)) == (file.content.size, file.crc32)
        assert file.content.key == f"{created.tenant}/{job_id(created)}/{file.content.sha256}"
        (folder / name).write_bytes(content)
    there = json.loads((workshop.folder / "logits.json").read_text())
    assert await asyncio.to_thread(workshop.ask, "load", folder=str(folder)) == pytest.approx(there, abs=1e-6)


async def test_an_adapter_that_doesnt_load_is_no_export(service: Exports, log: EventLog, trained: Trained):
    await trained.keep("adapter_model.safetensors", CUT_SHORT)
    created = await (await trained.completed()).export()

    await service.export(created)

    failed = await failure(log, created)
    assert failed.code == "does_not_load"
    assert "shorter or longer than its head says" in failed.message


async def test_without_the_base_models_configuration_nothing_is_said_to_load(service: Exports, log: EventLog, trained: Trained):
    del trained.summary["base_config"]
    created = await (await trained.completed()).export()

    await service.export(created)

    assert (await failure(log, created)).code == "unverifiable"


async def test_its_metrics_are_those_of_the_attempts_that_counted(
    service: Exports, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event
):
    created = await (await trained.completed()).export()

    await service.export(created)

    metrics = json.loads(await storage.get((await files(log, created))["metrics.json"].content))
    assert metrics["initial"] == {"eval_loss": 6.25, "perplexity": 518.0}
    assert metrics["final"] == {"eval_loss": 0.5, "perplexity": 1.65, "train_loss": 0.15}
    assert [one["step"] for one in metrics["evaluations"]] == [0, STEPS]  # that of step 30 was lost with its attempt
    assert [point["step"] for point in metrics["loss_curve"]["points"]] == list(range(1, STEPS + 1))
    assert metrics["train_loss"] == {"first": 6.0, "last": 6 / STEPS}


async def test_the_configuration_says_what_was_asked_and_what_was_trained_on(
    service: Exports, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event
):
    created = await (await trained.completed()).export()

    await service.export(created)

    told = json.loads(await storage.get((await files(log, created))["training_config.json"].content))
    assert told["asked"] == trained.spec
    assert (told["resolved"]["seed"], told["resolved"]["num_epochs"]) == (7, 3.0)
    assert (told["data"]["rows"], told["data"]["log_position"], len(told["data"]["snapshot_sha256"])) == (110, 3, 64)
    assert [source["filename"].endswith(".jsonl") for source in told["data"]["sources"]] == [True]
    assert told["base_config"]["model_type"] == "llama"


async def test_the_report_tells_all_and_obeys_nobody(service: Exports, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    await trained.keep("README.md", b"peft's own")
    created = await (await trained.completed()).export()

    await service.export(created)

    report = (await storage.get((await files(log, created))["report.md"].content)).decode()
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(report)
    headings = [line for line in page.splitlines() if line.startswith("<h")]
    assert [heading[4:-5] for heading in headings[1:]] == [
        *("Warnings", "Before and after", "What it says", "How to load it", "What was checked", "Settings", "Machine and speed", "Where it comes from")
    ]
    assert page.count("<img") == 1
    assert '<img src="loss_curve.svg"' in page
    assert not any(tag in page for tag in ("<script", "<a ", "<pre><code>#"))
    assert page.count("&lt;script&gt;") >= 7
    for words in (
        "6.2500",
        "0.5000",
        "-92.0%",
        "2 (behind step 20)",
        "1 was lost: killed",
        "README.md",
        "Memory ran short at step 22",
    ):
        assert words in page
    for words in (
        trained.job_id,
        "as told",
        "gibberish",
        "those of step 30",
        "vllm serve trainyard/tiny-llama --enable-lora",
        "largest difference",
        "1,234.5",
        "0.9700",
    ):
        assert words in page


async def test_a_step_log_of_any_length_becomes_a_short_curve(service: Exports, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    trained.steps = [json.dumps({"step": n, "train_loss": 2.0}) for n in range(1, 30_001)]
    created = await (await trained.completed()).export()

    await service.export(created)

    made = await files(log, created)
    metrics = json.loads(await storage.get(made["metrics.json"].content))
    assert 500 <= len(metrics["loss_curve"]["points"]) <= 1000
    assert made["loss_curve.svg"].content.size < 40_000


async def test_two_exports_of_a_run_share_no_object(service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    await trained.completed()
    one, two = await trained.export(), await trained.export()

    await service.export(one)
    await service.export(two)

    first, second = await files(log, one), await files(log, two)
    assert [file.content.sha256 for file in first.values()] == [file.content.sha256 for file in second.values()]
    assert not {file.content.key for file in first.values()} & {file.content.key for file in second.values()}


async def test_a_whole_model_is_exported_with_its_configuration(service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    trained.spec["method"] = "full"
    trained.artifacts.clear()
    await trained.keep("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    await trained.keep("config.json", b"{}")
    created = await (await trained.completed()).export()

    await service.export(created)

    assert {"model.safetensors", "config.json"} < (await files(log, created)).keys()


async def test_an_adapter_on_a_model_of_our_own_tells_what_it_needs(
    service: Exports, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event
):
    nothing = {"key": "k", "sha256": "0", "size": 1}
    below = {"job_id": "run-below", "project_id": "project-below", "method": "lora", "files": {"adapter_config.json": nothing}}
    trained.spec |= {"base_model": "trainyard/run-below", "root": "someone/llama", "root_revision": "abc123", "ancestors": [below]}
    created = await (await trained.completed()).export()

    await service.export(created)

    made = await files(log, created)
    report, card = [(await storage.get(made[name].content)).decode() for name in ("report.md", "README.md")]
    for page in (report, card):
        assert "peft alone can't load it" in page
        assert '"merged": true' in page
        assert 'from_pretrained("someone/llama", revision="abc123", dtype="auto")' in page
        assert 'PeftModel.from_pretrained(base, "export-of-run-below").merge_and_unload()' in page
        assert "vllm serve" not in page
    assert "| Built on the runs | `run-below` |" in report
    assert "adapter_config" not in report.partition("## Settings")[2].partition("## Machine")[0]
    assert 'base_model: "someone/llama"' in card
    assert 'built_on: "run-below"' in card


async def test_progress_is_told_while_it_lasts(service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporting, "HEARTBEAT", 0.05)
    unchecked.clear()
    created = await (await trained.completed()).export()
    work = asyncio.create_task(service.export(created))

    async def doing() -> list[Any]:
        return [fact.event for fact in await facts(log, created) if fact.envelope.type == "export.progress"]

    told = await eventually(doing)
    unchecked.set()
    await work

    assert told[-1].doing
    assert 0 < told[-1].done <= told[-1].total
    await files(log, created)


# What can't be exported


async def test_a_run_that_has_not_completed_is_no_model(service: Exports, log: EventLog, trained: Trained):
    created = await (await trained.told()).export()

    await service.export(created)

    assert (await failure(log, created)).code == "training_not_completed"


@pytest.mark.parametrize("changed", [{"training_job_id": "0" * 32}, {"project_id": "another"}])
async def test_a_run_of_nobody_or_of_another_project_is_not_there(service: Exports, log: EventLog, trained: Trained, changed: dict[str, str]):
    created = await (await trained.completed()).export(**changed)

    await service.export(created)

    assert (await failure(log, created)).code == "training_missing"


async def test_another_workspaces_run_is_not_there(service: Exports, storage: Storage, log: EventLog, trained: Trained):
    await trained.completed()
    stranger = Trained(storage, log, Origin(tenant=f"{trained.origin.tenant}-2"), project_id=trained.project_id, job_id=trained.job_id)
    created = await stranger.export()

    await service.export(created)

    assert (await failure(log, created)).code == "training_missing"


DAMAGES = {"artifact_damaged": {"sha256": "0" * 64}, "artifact_missing": {"key": f"local/files/{'0' * 64}"}}


@pytest.mark.parametrize("code", DAMAGES)
async def test_an_artifact_that_is_not_what_was_stored_is_never_passed_on(service: Exports, storage: Storage, log: EventLog, trained: Trained, code: str):
    trained.artifacts["adapter_config.json"] = msgspec.structs.replace(trained.artifacts["adapter_config.json"], **DAMAGES[code])
    created = await (await trained.completed()).export()

    await service.export(created)

    assert (await failure(log, created)).code == code
    assert await storage.keys(f"{created.tenant}/{job_id(created)}/") == []


@pytest.mark.parametrize("steps", ["{broken", "[" * 50_000, "x" * 400_000])
async def test_a_step_log_that_is_none_is_no_curve(service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event, steps: str):
    trained.steps = [steps]
    created = await (await trained.completed()).export()

    await service.export(created)

    assert (await failure(log, created)).code == "artifact_damaged"


REFUSED = {
    "no weights": ({"adapter_model.safetensors": None}, "incomplete"),
    "a name that is ours": ({"REPORT.md.json": b"", "Metrics.json": b"{}"}, "name_taken"),
    "settings that are none": ({"adapter_config.json": b"[1]"}, "does_not_load"),
    "settings without a bottom": ({"adapter_config.json": b"[" * 100_000}, "does_not_load"),
    "settings without an end": ({"adapter_config.json": b'{"a":"' + b"x" * 2_000_000 + b'"}'}, "does_not_load"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_artifacts_that_make_no_export_are_refused(service: Exports, log: EventLog, trained: Trained, what: str):
    changed, code = REFUSED[what]
    for name, content in changed.items():
        if content is None:
            del trained.artifacts[name]
        else:
            await trained.keep(name, content)
    created = await (await trained.completed()).export()

    await service.export(created)

    assert (await failure(log, created)).code == code


async def test_what_loading_doesnt_need_stays_behind(service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    for name in ("state.bin", "modeling_evil.py", "..", "a/b.json", "-rf.json", f"{'x' * 200}.json", "pwn.pkl"):
        trained.artifacts[name] = trained.artifacts["adapter_config.json"]
    created = await (await trained.completed()).export()

    await service.export(created)

    assert len(await files(log, created)) == 7


@pytest.mark.parametrize("job", ["train", "ingest"])
async def test_other_jobs_are_left_alone(service: Exports, log: EventLog, trained: Trained, job: str):
    await trained.completed()
    created = (await log.read(f"ev.{trained.origin.tenant}.job.created.{trained.job_id}"))[0]

    await service.export(created)

    assert await facts(log, created) == []


# Again


async def test_a_delivery_again_changes_nothing(service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    created = await (await trained.completed()).export()

    await service.export(created)
    once = await facts(log, created)
    await service.export(created)

    assert await facts(log, created) == once


async def test_what_can_never_be_done_ends_as_failed_once(service: Exports, log: EventLog, trained: Trained):
    created = await (await trained.completed()).export()

    await service.give_up(created, RuntimeError("secret"))
    await service.give_up(created, RuntimeError("secret"))

    (told,) = await facts(log, created)
    assert isinstance(told.event, ExportFailed)
    assert (told.event.code, "secret" in told.event.message) == ("internal", False)


async def test_two_that_begin_together_end_it_once(own_log: EventLog, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    created = await (await trained.completed()).export()

    async def replica() -> None:
        with suppress(HandedOver):
            while True:
                with suppress(StorageDown):  # the embedded store misses an object for a moment when somebody stores it again
                    return await Exports(own_log, storage).export(created)

    await asyncio.gather(replica(), replica())

    assert await names(log, created) == ["started", "completed"]
    await files(log, created)


async def test_an_object_store_that_is_away_is_no_failure(
    place: Servers, own_log: EventLog, storage: Storage, log: EventLog, trained: Trained, unchecked: asyncio.Event
):
    created = await (await trained.completed()).export()
    away = Storage(load(Service, {**place.environ("export", port=0), "TRAINYARD_S3_ENDPOINT": "http://127.0.0.1:1"}))

    with pytest.raises(StorageDown):
        await Exports(own_log, away).export(created)
    away.close()
    assert await names(log, created) == ["started"]
    await Exports(own_log, storage).export(created)

    await files(log, created)


# Cancels


async def test_a_cancel_before_the_start_is_all_that_happens(service: Exports, log: EventLog, trained: Trained):
    created = await (await trained.completed()).export()
    await cancel(log, created)

    await service.export(created)

    assert await names(log, created) == ["cancelled"]


async def test_a_cancel_is_heard_at_once(own_nc: Client, service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event):
    unchecked.clear()
    created = await (await trained.completed()).export()
    await service.listen(own_nc)
    work = asyncio.create_task(service.export(created))
    await eventually(lambda: names(log, created))

    await cancel(log, created)
    await asyncio.wait_for(work, 2)

    assert await names(log, created) == ["started", "cancelled"]


async def test_a_cancel_is_read_where_it_was_not_heard(
    service: Exports, log: EventLog, trained: Trained, unchecked: asyncio.Event, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "HEARTBEAT", 0.05)
    unchecked.clear()
    created = await (await trained.completed()).export()
    work = asyncio.create_task(service.export(created))
    await eventually(lambda: names(log, created))

    await cancel(log, created)
    await asyncio.wait_for(work, 5)

    assert await names(log, created) == ["started", "cancelled"]


async def test_a_cancel_in_the_middle_of_a_copy_leaves_nothing_half_written(
    own_nc: Client, own_log: EventLog, place: Servers, storage: Storage, log: EventLog, trained: Trained
):
    await trained.keep("adapter_model.safetensors", os.urandom(3_000_000))
    created = await (await trained.completed()).export()
    reached, closed, copied = asyncio.Event(), asyncio.Event(), 0

    class Slow(Storage):
        async def chunks(self, key: str, **_: Any) -> AsyncGenerator[bytes, None]:
            nonlocal copied
            try:
                async for chunk in super().chunks(key):
                    copied += 1
                    yield chunk
                    if copied > 3:
                        reached.set()
                        await asyncio.sleep(0.1)
            finally:
                if reached.is_set():
                    closed.set()

    slow = Slow(load(Service, place.environ("export", port=0)))
    service = Exports(own_log, slow)
    await service.listen(own_nc)
    work = asyncio.create_task(service.export(created))
    await reached.wait()

    await cancel(log, created)
    await asyncio.wait_for(work, 2)
    await asyncio.wait_for(closed.wait(), 5)
    slow.close()

    assert copied < 12  # pieces that it has
    assert await names(log, created) == ["started", "cancelled"]
    weights = trained.artifacts["adapter_model.safetensors"].sha256
    assert f"{created.tenant}/{job_id(created)}/{weights}" not in {key for key, _ in await storage.keys(f"{created.tenant}/{job_id(created)}/")}


# The process


async def test_after_kill_9_a_new_process_makes_the_same_files(place: Servers, service: Exports, log: EventLog, real: Trained, unchecked: asyncio.Event):
    """Killed while it checks: nobody goes on with that either."""
    await real.completed()
    undisturbed = await real.export()
    await service.export(undisturbed)

    with one_service(place, "export") as export:
        await revive(export)
        created = await real.export()
        service_pid = export.pid or 0
        (checker,) = await eventually(lambda: children(service_pid))
        export.signal(signal.SIGKILL)
        await eventually(lambda: export.ended() is not None)
        await eventually(lambda: not Path(f"/proc/{checker.pid}").exists())

        await revive(export)
        await ended(log, created)

    expected, made = await files(log, undisturbed), await files(log, created)
    assert await names(log, created) == ["started", "completed"]
    assert made.keys() == expected.keys()
    same = made.keys() - {"report.md"}  # it names who checked, and nobody did in the undisturbed one
    assert {name: made[name].content.sha256 for name in same} == {name: expected[name].content.sha256 for name in same}


async def test_it_waits_until_the_object_store_is_back_and_cancels_at_once(place: Servers, log: EventLog, trained: Trained):
    with one_service(place, "export") as export:
        await revive(export)
        await trained.keep("adapter_model.safetensors", CUT_SHORT)
        await trained.completed()
        place["s3"].kill()
        created, unwanted = await trained.export(), await trained.export()
        await eventually(lambda: names(log, created))
        await eventually(lambda: names(log, unwanted))
        await cancel(log, unwanted)
        await ended(log, unwanted, patience=10)

        await revive(place["s3"])
        await ended(log, created)

    assert await names(log, unwanted) == ["started", "cancelled"]
    assert (await failure(log, created)).code == "does_not_load"


def test_the_service_itself_loads_no_model_library():
    code = "import sys, services.export.app; print(sorted({'torch', 'transformers', 'peft', 'safetensors'} & sys.modules.keys()))"

    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])

    assert seen.stdout.strip() == "[]"
