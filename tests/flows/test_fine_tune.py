"""A fine-tune as its users live it: the demo from its command, and a client that knows the published document only."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.demo.api import Api, Refused
from tests.kit.processes import left_running
from tests.kit.servers import fresh_home

ROOT = Path(__file__).parents[2]
SIX = {"adapter_model.safetensors", "adapter_config.json", "training_config.json", "metrics.json", "report.md", "finetuneflow_export.zip"}

pytestmark = pytest.mark.timeout(300)


@dataclass
class Demo:
    home: Path
    said: str
    url: str
    process: "subprocess.Popen[str]"


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """`make demo` with its platform still running, and nothing of it left afterwards."""
    with fresh_home() as home:
        environ = {**os.environ, "TRAINYARD_HOME": str(home), "TRAINYARD_PORT": "0", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "infra.demo"]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                said = "".join(_until(process, "The platform runs on"))
                found = re.search(r"http://\S+:\d+", said)
                assert found, said
                yield Demo(home, said, found[0], process)
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)
            finally:
                if process.poll() is None:
                    process.terminate()
        assert left_running(home) == []


def _until(process: "subprocess.Popen[str]", end: str) -> Iterator[str]:
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        yield line
        if end in line:
            return
    raise AssertionError("the demo ended too early:\n" + "".join(lines))


def test_the_demo_ends_with_an_adapter_that_has_learnt(demo: Demo):
    before, after = map(float, re.search(r"held-out examples: ([\d.]+) before, ([\d.]+) after", demo.said).groups())  # type: ignore[union-attr]

    assert after < 0.8 * before, demo.said
    assert {file.name for file in (demo.home / "demo").iterdir()} >= SIX - {"finetuneflow_export.zip"}
    assert "What to try next" in demo.said


def test_a_data_set_that_is_not_there_is_said_before_anything_is_started(tmp_path: Path):
    command = [sys.executable, "-m", "infra.demo", "--data", str(tmp_path / "no.jsonl")]

    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TRAINYARD_HOME": str(tmp_path / "home")}, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no file {tmp_path / 'no.jsonl'}" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_platform_that_went_away_is_said_in_a_sentence():
    with pytest.raises(Refused, match="does not answer"):
        Api("http://127.0.0.1:1").get("/health")


LOADS = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base = Path(sys.argv[1]), Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
rows = [json.loads(line) for line in open("infra/demo/marlow_yard.jsonl")][:20]

@torch.no_grad()
def loss(model):
    losses = []
    for row in rows:
        asked = [{"role": "user", "content": row["question"]}]
        said = [*asked, {"role": "assistant", "content": row["answer"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        whole = torch.tensor([tokenizer.apply_chat_template(said, return_dict=False)])
        labels = whole.clone()
        labels[0, : len(prompt)] = -100
        losses.append(model(input_ids=whole, labels=labels).loss.item())
    return sum(losses) / len(losses)

before = loss(plain)
adapted = PeftModel.from_pretrained(plain, folder)
print(json.dumps({"before": before, "after": loss(adapted)}))
"""


def test_the_adapter_loads_in_plain_peft_and_is_the_better_model(demo: Demo):
    """By nothing but peft and transformers, as someone does who has never heard of us."""
    base = next((demo.home / "models").glob("tiny-llama*/config.json")).parent
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LOADS, str(demo.home / "demo"), str(base)]

    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["after"] < 0.8 * found["before"]


def told(events: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """Whatever the order: a checkpoint is told once it is stored, and by then the run may be some steps on."""
    return sorted(f"{event} {data}" for _, event, data in events)


class FineTuneFlow:
    """What someone writes who has read the published document, and nothing else."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)

    def project(self) -> str:
        made = self.http.post("/projects", json={"name": "Mon projet Q&A", "description": "docs internes", "task_type": "qa"})
        assert made.status_code == 201
        assert made.json()["status"] == "draft"
        assert made.json()["base_model_id"] is None
        return made.json()["id"]

    def resolve(self, project: str, model: str) -> httpx.Response:
        return self.http.post(f"/projects/{project}/model/resolve", json={"model_id": model})

    def upload(self, project: str, rows: list[dict[str, Any]]) -> str:
        """The job that reads them."""
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        answer = self.http.post(f"/projects/{project}/files/upload", files={"files": ("rows.jsonl", content)}, data={"kind": "dataset_upload"})
        assert answer.status_code == 201, answer.text
        return answer.json()["files"][0]["job_id"]

    def edit(self, project: str, example: str, data: dict[str, str]) -> None:
        """Until everybody sees it."""
        path, deadline = f"/projects/{project}/dataset/examples/{example}", time.monotonic() + 60
        etag = self.http.patch(path, json={"data": data}).headers["etag"]
        while self.http.get(path).headers["etag"] != etag:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def dry_run(self, project: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/projects/{project}/dataset/dry-run", json=body, timeout=60)

    def start(self, project: str, **hyperparams: Any) -> httpx.Response:
        return self.http.post(f"/projects/{project}/train/start", json={"method": "qlora", "hyperparams": hyperparams})

    def events(self, project: str, last: str = "") -> list[tuple[str, str, dict[str, Any]]]:
        """Until the server closes the stream: (id, event, data)."""
        found, id, event = [], "", ""
        headers = {"Last-Event-ID": last} if last else {}
        with self.http.stream("GET", f"/projects/{project}/train/logs/stream", headers=headers, timeout=120) as answer:
            if answer.status_code == 204:
                return []
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    id = value
                elif name == "event":
                    event = value
                elif name == "data":
                    found.append((id, event, json.loads(value)))
        return found

    def job(self, job: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while (seen := self.http.get(f"/jobs/{job}").json())["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, seen
            time.sleep(0.2)
        return seen


@pytest.fixture
def api(demo: Demo) -> Iterator[FineTuneFlow]:
    api = FineTuneFlow(demo.url)
    yield api
    api.http.close()


ROWS = [{"instruction": f"Say number {n}", "output": f"The number is {n}."} for n in range(40)]


def test_a_client_that_was_written_from_the_document_gets_its_adapter(api: FineTuneFlow):
    project = api.project()

    resolved = api.resolve(project, "trainyard/tiny-llama").json()
    assert resolved["valid"] is True
    assert resolved["architecture"] == "LlamaForCausalLM"
    api.upload(project, ROWS)
    assert api.http.get(f"/projects/{project}/train/status").json() == {"status": "no_runs"}
    started = api.start(
        project,
        num_epochs=3,
        learning_rate=5e-3,
        per_device_batch_size=4,
        gradient_accumulation_steps=2,
        max_seq_length=256,
        lora_r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        warmup_ratio=0.03,
        weight_decay=0.01,
    )
    assert started.status_code == 202, started.text
    assert started.json()["status"] == "queued"
    again = api.start(project, num_epochs=1)
    assert again.status_code == 409
    assert again.json()["detail"] == "A training job is already running for this project"
    assert again.json()["error_code"] == "TRAINING_ALREADY_RUNNING"

    events = api.events(project)
    names = [event for _, event, _ in events]
    logs = [data for _, event, data in events if event == "log"]
    assert [data["step"] for data in logs] == list(range(1, len(logs) + 1))
    assert {"train_loss", "learning_rate", "epoch"} <= logs[0].keys()
    assert set(names) <= {"log", "progress", "eval", "checkpoint", "complete"}
    assert {"progress", "eval", "checkpoint"} <= set(names)
    assert names[-1] == "complete"
    assert events[-1][2]["status"] == "success"
    assert events[-1][2]["final_train_loss"] < logs[0]["train_loss"]
    middle = next(n for n, (_, event, _) in enumerate(events) if event == "log" and n > len(events) // 2)
    rest, again = events[middle + 1 :], api.events(project, last=events[middle][0])
    assert [(id.split(".")[1], data) for id, event, data in again if event == "log"] == [(id.split(".")[1], data) for id, event, data in rest if event == "log"]
    assert again[-1] == rest[-1]
    assert told(again) == told(rest)
    assert api.events(project, last=events[-1][0]) == []

    status = api.http.get(f"/projects/{project}/train/status").json()
    assert (status["status"], status["progress_pct"], status["method"]) == ("success", 100, "qlora")
    assert status["current_metrics"]["step"] == status["current_metrics"]["total_steps"] == len(logs)
    assert api.http.post(f"/projects/{project}/train/cancel").json()["status"] == "no_active_job"

    exported = api.http.post(f"/projects/{project}/export")
    assert exported.status_code == 202
    assert api.job(exported.json()["job_id"])["status"] == "success"
    files = {file["filename"]: file["size_bytes"] for file in api.http.get(f"/projects/{project}/export/files").json()["files"]}
    assert files.keys() >= SIX
    for name, size in files.items():
        if name != "finetuneflow_export.zip":
            assert len(api.http.get(f"/projects/{project}/export/download/{name}").content) == size
    whole = api.http.get(f"/projects/{project}/export/download")
    assert len(whole.content) == files["finetuneflow_export.zip"]
    assert zipfile.ZipFile(BytesIO(whole.content)).testzip() is None
    assert api.http.get(f"/projects/{project}").json()["status"] == "completed"


def test_what_a_run_would_learn_is_seen_before_it_is_started(api: FineTuneFlow):
    project = api.project()
    api.resolve(project, "trainyard/tiny-llama")
    said = [("user", "Hi"), ("assistant", "Hello!"), ("user", "And?"), ("assistant", "That is all.")]
    chat = {"messages": [{"role": who, "content": text} for who, text in said]}
    assert api.job(api.upload(project, [chat, *ROWS]))["status"] == "success"
    asked = {"method": "lora", "hyperparams": {"num_epochs": 2, "per_device_batch_size": 4, "gradient_accumulation_steps": 2, "max_seq_length": 128}}

    seen = api.dry_run(project, **asked)
    example = api.http.get(f"/projects/{project}/dataset/examples", params={"format": "messages"}).json()["items"][0]
    one = api.dry_run(project, **asked, example_id=example["id"]).json()["examples"][0]
    api.edit(project, example["id"], {"question": "Who?", "answer": "Nobody."})
    edited = api.dry_run(project, **asked, example_id=example["id"]).json()["examples"][0]
    hopeless = api.dry_run(project, hyperparams={"max_seq_length": 8})

    told = seen.json()
    assert seen.status_code == 200, seen.text
    assert told["sampled"] == told["of"] == api.http.get(f"/projects/{project}/dataset/stats").json()["by_split"]["train"]["count"]
    assert told["tokens"]["min"] <= told["tokens"]["p50"] <= told["tokens"]["max"] < 128
    assert 0 < told["trainable_share"] < 1
    assert (told["base_model_id"], told["rows_cut"], told["warnings"]) == ("trainyard/tiny-llama", 0, [])
    assert [piece["text"] for piece in one["segments"] if piece["trained"]] == ["Hello!<|over|>\n", "That is all.<|over|>\n"]
    assert [piece["text"] for piece in edited["segments"]] == ["<|begin|><|turn|>user\nWho?<|over|>\n<|turn|>assistant\n", "Nobody.<|over|>\n"]
    assert (hopeless.status_code, hopeless.json()["error_code"]) == (422, "NOTHING_TO_LEARN")
    assert "raise max_seq_length" in hopeless.json()["detail"]
    assert api.http.get(f"/projects/{project}/train/status").json() == {"status": "no_runs"}

    assert api.http.post(f"/projects/{project}/train/start", json=asked).status_code == 202
    steps = [data["step"] for _, event, data in api.events(project) if event == "log"]
    assert len(steps) == told["estimate"]["total_steps"]


@pytest.mark.alone
def test_a_run_is_cancelled_while_it_trains(api: FineTuneFlow):
    project = api.project()
    api.resolve(project, "trainyard/tiny-llama")
    api.upload(project, ROWS)
    api.start(project, num_epochs=100, per_device_batch_size=1, gradient_accumulation_steps=1, max_seq_length=64)
    deadline = time.monotonic() + 60
    while (api.http.get(f"/projects/{project}/train/status").json().get("current_metrics") or {}).get("step", 0) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    asked = time.monotonic()
    answer = api.http.post(f"/projects/{project}/train/cancel")

    assert (answer.json()["status"], answer.json()["message"]) == ("cancelled", "Training job cancelled")
    assert time.monotonic() - asked < 5
    events = api.events(project)
    assert events[-1][1:] == ("complete", {**events[-1][2], "status": "cancelled"})
    assert api.start(project, num_epochs=0.1).status_code == 202


def test_a_model_that_is_not_there_is_refused_before_anything_trains(api: FineTuneFlow):
    project = api.project()
    api.upload(project, ROWS)

    unresolved = api.start(project)
    unreachable = api.resolve(project, "nobody/nothing")

    assert unresolved.status_code == 400
    assert unreachable.status_code in (404, 503)
    assert api.http.get(f"/projects/{project}/train/status").json() == {"status": "no_runs"}


PROVES = """
import contextlib, io, json, re, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

said = []
for program in re.findall(r"```python\\n(.*?)```", Path("adapter/README.md").read_text(), re.DOTALL):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(program, {})
    said.append(out.getvalue())
tokenizer = AutoTokenizer.from_pretrained("merged")
ids = tokenizer("User: Say number 7, and say it again.", return_tensors="pt")["input_ids"]
model, info = AutoModelForCausalLM.from_pretrained("merged", dtype="auto", output_loading_info=True)
plain = AutoModelForCausalLM.from_pretrained("trainyard/tiny-llama", dtype="auto")
with torch.no_grad():
    untrained = plain(ids).logits
    reference = PeftModel.from_pretrained(plain, "adapter").merge_and_unload(safe_merge=True)(ids).logits
    found = model(ids).logits
apart = lambda one, other: ((one - other).norm() / one.norm()).item()
odd = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
print(json.dumps({"said": said, "odd": odd, "apart": apart(reference, found), "effect": apart(reference, untrained), "class": type(model).__name__}))
"""


def test_a_merged_model_needs_nothing_but_transformers_and_both_loading_examples_run(api: FineTuneFlow, demo: Demo, tmp_path: Path):
    """Held against peft's own merge, which ours doesn't use."""
    project = api.project()
    api.resolve(project, "trainyard/tiny-llama")
    api.upload(project, ROWS)
    run = api.start(project, num_epochs=4, learning_rate=5e-3, max_seq_length=64).json()["job_id"]
    assert api.job(run)["status"] == "success"

    asked = api.http.post(f"/projects/{project}/export", json={"merged": True})
    done = api.job(asked.json()["job_id"])

    assert (asked.status_code, done["status"], done["type"]) == (202, "success", "export"), done
    assert done["started_at"] < done["finished_at"]
    status = api.http.get(f"/projects/{project}/train/status").json()
    assert (status["job_id"], status["status"]) == (run, "success")
    listed = {file["filename"]: file["size_bytes"] for file in api.http.get(f"/projects/{project}/export/files").json()["files"]}
    assert listed.keys() >= SIX | {"README.md", "merged/README.md", "merged/config.json", "merged/model.safetensors", "merged/tokenizer.json"}
    weights = api.http.get(f"/projects/{project}/export/download/merged/model.safetensors", headers={"Range": "bytes=8-99"})
    assert (weights.status_code, len(weights.content)) == (206, 92)
    archive = zipfile.ZipFile(BytesIO(api.http.get(f"/projects/{project}/export/download").content))
    archive.extractall(tmp_path / "adapter")
    (tmp_path / "merged").symlink_to(tmp_path / "adapter" / "merged")
    (tmp_path / "trainyard").mkdir()
    (tmp_path / "trainyard" / "tiny-llama").symlink_to(next((demo.home / "models").glob("tiny-llama*/config.json")).parent)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROVES]
    proved = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert proved.returncode == 0, proved.stderr[-3000:]
    found = json.loads(proved.stdout.splitlines()[-1])
    assert (found["odd"], found["class"]) == ([], "LlamaForCausalLM")
    assert found["apart"] < 1e-5 < 0.1 < found["effect"]
    assert len(found["said"]) == 2
    assert all(said.strip() for said in found["said"])
    report = archive.read("report.md").decode()
    assert "## The merged model" in report
    assert "The run saw its base model in 4 bits" in report
