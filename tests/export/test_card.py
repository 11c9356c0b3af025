"""The model card and what it shows: for whoever has nothing but the folder."""

import json
import re
import uuid
from typing import Any

import msgspec
import pytest
import yaml
from markdown_it import MarkdownIt

from libs.events import (
    ExampleDeleted,
    ExampleMarked,
    ExportCompleted,
    ProjectFileDeleted,
    ProjectModelResolved,
    Recorded,
    TrainingSampled,
    story,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage
from services.export import exporting, run
from services.export.card import card
from services.export.documents import training_config
from services.export.handlers import Exports
from services.export.verification import Question, Verdict
from tests.export.stories import HOSTILE, STEPS, Trained

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

EMPTY = b"\x02\0\0\0\0\0\0\0{}"


@pytest.fixture(scope="module")
def whose() -> str:
    return "export"


@pytest.fixture
async def trained(storage: Storage, log: EventLog, origin: Any) -> Trained:
    made = Trained(storage, log, origin)
    await made.keep("adapter_model.safetensors", EMPTY)
    await made.keep("adapter_config.json", b"{}")
    await made.keep("chat_template.jinja", b"{{ messages }}")
    return made


async def read(log: EventLog, trained: Trained) -> run.Run:
    last = (await log.position()).last
    return await run.read(log, tenant=trained.origin.tenant, job_id=trained.job_id, project_id=trained.project_id, until=last)


async def append(log: EventLog, trained: Trained, event: Any) -> None:
    """Behind whatever its project or example has already."""
    told = await log.read(
        f"ev.{trained.origin.tenant}.{str(event.__struct_config__.tag).partition('.')[0]}.*.{'.'.join(getattr(event, key) for key in event.KEY)}"
    )
    await log.append([Write(events=[event], after=told[-1].seq if told else 0)], origin=trained.origin)


def head(page: bytes) -> dict[str, Any]:
    return yaml.safe_load(page.decode().split("---\n")[1])


def shown(page: bytes) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(page.decode().split("---\n", 2)[2])


async def test_its_head_is_yaml_that_no_name_can_break_and_its_words_obey_nobody(log: EventLog, trained: Trained):
    trained.spec |= {"base_model": 'someone/"model: [x]\n---\n# ' + HOSTILE}
    await trained.completed()

    page = card(await read(log, trained))

    told = head(page)
    assert (told["library_name"], told["base_model_relation"], "base_model" in told) == ("peft", "adapter", False)
    assert told["tags"] == ["trainyard", "lora", "text-generation"]
    assert (told["trainyard"]["training_job"], len(told["trainyard"]["snapshot_sha256"])) == (trained.job_id, 64)
    html = shown(page)
    assert not any(tag in html for tag in ("<script", "<img", "<a ", "<pre><code>#"))
    assert html.count("&lt;script&gt;") >= 5
    assert [line[4:-5] for line in html.splitlines() if line.startswith("<h2")] == [
        *("How to load it", "What it was trained on", "Results", "What it says", "How it was trained", "Limits")
    ]
    for words in ("gibberish", "as told", "-92.0%", "learning_rate", "licence is not known", "BASE_MODEL"):
        assert words in html


async def test_it_names_base_licence_and_commit(log: EventLog, trained: Trained):
    trained.spec |= {"base_model": "someone/model", "revision": "abc123", "method": "qlora"}
    await trained.completed()
    resolved = ProjectModelResolved(project_id=trained.project_id, base_model_id="someone/model", model_info={"license": "apache-2.0"}, revision="abc123")
    await append(log, trained, resolved)
    found = await read(log, trained)

    page, of_merged = card(found), card(found, merged=True)

    assert (head(page)["base_model"], head(page)["license"]) == ("someone/model", "apache-2.0")
    assert (head(of_merged)["library_name"], head(of_merged)["base_model_relation"]) == ("transformers", "finetune")
    assert 'from_pretrained("someone/model", revision="abc123", dtype="auto")' in page.decode()
    assert "peft" not in "".join(re.findall(r"```python\n(.*?)```", of_merged.decode(), re.DOTALL))
    assert "4 bits" in page.decode()


async def test_what_came_before_stands_beside_it_in_old_runs_and_new(log: EventLog, trained: Trained):
    await trained.completed()
    old = card(await read(log, trained))
    new_run = Trained(trained.storage, log, trained.origin, artifacts=trained.artifacts)
    await new_run.completed()
    told = await read(log, new_run)
    said = {"prompt": "How much?", "before": "Sixty.", "completion": "Seven.", "expected": "Seven!", "example_id": "e-1"}
    told.samples = [TrainingSampled(job_id=new_run.job_id, attempt=2, step=STEPS, samples=[said])]

    new = card(told)

    for page, cells in ((old, ("gibberish", "as told", "nothing")), (new, ("Sixty.", "Seven.", "Seven!"))):
        (row,) = [line for line in page.decode().splitlines() if line.startswith("| ") and cells[0] in line]
        places = [row.index(cell) for cell in cells]
        assert places == sorted(places)
        assert "| Prompt | Before | After | Expected |" in page.decode()


async def test_examples_that_were_deleted_or_taken_out_since_are_not_shown(log: EventLog, trained: Trained, monkeypatch: pytest.MonkeyPatch):
    samples = [
        {"prompt": f"asked {id}", "before": "b", "completion": "c", "expected": "e", "example_id": id} for id in ("gone", "out", "in", "back", "no token.")
    ]
    told = run._fold
    monkeypatch.setattr(run, "_fold", lambda *args: _with(told(*args), samples))
    await trained.completed()
    where: Any = {"project_id": trained.project_id}
    await append(log, trained, ExampleDeleted(**where, example_id="gone"))
    await append(log, trained, ExampleMarked(**where, example_id="out", is_valid=False))
    for is_valid in (False, True):
        await append(log, trained, ExampleMarked(**where, example_id="back", is_valid=is_valid))

    page = card(await read(log, trained)).decode()

    assert [f"asked {id}" in page for id in ("gone", "out", "in", "back", "no token.")] == [False, False, True, True, True]
    assert "Left out: 2 " in page


async def test_of_a_file_that_was_deleted_since_nothing_is_shown(log: EventLog, trained: Trained):
    await trained.completed()
    found = await read(log, trained)
    source = found.sources[0]
    await append(log, trained, ProjectFileDeleted(project_id=trained.project_id, file_id=source.file_id, key="k", job_id=source.job_id))

    page = card(await read(log, trained)).decode()

    assert "gibberish" in card(found).decode()
    assert "gibberish" not in page
    assert "as told" not in page


async def test_documents_of_which_examples_were_made_are_named_and_once_deleted_nothing_of_them_is_shown(log: EventLog, trained: Trained):
    trained.document = str(uuid.uuid4())
    await trained.completed()
    found = await read(log, trained)
    await trained.add_to_project(ProjectFileDeleted(project_id=trained.project_id, file_id=trained.document, key="k"))

    before, after = card(found).decode(), card(await read(log, trained)).decode()

    assert [file.filename.partition(" ")[0] for file in found.documents] == ["book"]
    assert [name in before for name in (", book ", "later.txt", "gibberish")] == [True, False, True]
    assert [words in after for words in ("gibberish", "as told")] == [False, False]
    assert "Left out: 1 " in after
    told = json.loads(training_config(found))["data"]["sources"]
    assert [[document["file_id"] for document in source.get("documents", [])] for source in told] == [[], [trained.document]]


async def test_of_a_smoke_run_without_held_out_rows_nothing_is_said_twice(log: EventLog, trained: Trained):
    trained.spec |= {"smoke": True}
    trained.summary |= {"warnings": ["This is a smoke run: the base model was replaced by a tiny random one, so the weights are worthless."]}
    await trained.completed()
    found = await read(log, trained)
    found.preparation = msgspec.structs.replace(found.preparation, splits={"train": 100})

    page = card(found).decode()

    assert head(page.encode())["tags"] == ["trainyard", "lora", "text-generation", "smoke"]
    assert page.count("The weights are worthless") == page.count("a tiny random one") == 1
    assert "it doesn't load" in page
    assert "PeftModel" not in page
    assert "No rows were held out" in page
    assert "Held-out rows are of the same origin" not in page
    assert "base_model" not in head(page.encode())  # the hub has no such model


async def test_it_is_in_every_export_and_the_same_each_time(
    storage: Storage, log: EventLog, own_log: EventLog, trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    async def verdict(_: Question) -> Verdict:
        return Verdict(tensors=28, values=1, library="nobody")

    monkeypatch.setattr(exporting, "verdict", verdict)
    service = Exports(own_log, storage)
    await trained.completed()
    pages = []
    for created in (await trained.export(), await trained.export()):
        await service.export(created)
        pages.append(await storage.get(await _readme(log, created)))

    assert pages[0] == pages[1]
    assert b"## How to load it" in pages[0]


async def _readme(log: EventLog, created: Recorded) -> Any:
    end = (await log.read(story(created.tenant, created.event.job_id)))[-1].event  # type: ignore[union-attr]
    assert isinstance(end, ExportCompleted)
    return next(file.content for file in end.files if file.name == "README.md")


def _with(found: run.Run, samples: list[dict[str, Any]]) -> run.Run:
    found.samples = [TrainingSampled(job_id=found.job.job_id, attempt=2, step=STEPS, samples=samples)]
    return found
