"""What the platform costs a run: from the start to the first step, and for every step, against the same loop as a script on the same rows."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.kit import Promises, cpu_seconds, fresh_servers, ms, p50, table
from infra.embedded import Process, Servers
from infra.embedded.process import wait_ready
from libs.tiny import BASE

ROWS = [{"question": f"What is on track {n}?", "answer": f"On track {n} stand {n % 7} wagons."} for n in range(40)]
SHORT, LONG = 5, 1500
"""Steps of a run that is there for its start, and of one that is there for its steps."""
HOW = {"per_device_batch_size": 4, "gradient_accumulation_steps": 1, "max_seq_length": 128, "lora_dropout": 0.0}
SCRIPT = """
import json, sys, time, msgspec
from services.training import frames
from services.training.runner import preload
import bitsandbytes, peft
from services.training.runner.wishes import Wishes
from services.training.trainers import llm
spec = msgspec.json.decode(sys.stdin.read(), type=frames.RunSpec)
first = []
def tell(frame):
    if isinstance(frame, frames.Step) and not first:
        first.append(time.perf_counter() - began)
        cpu.append(time.process_time())
    elif isinstance(frame, frames.Step) and frame.step == spec.tuning.max_steps:
        cpu.append(time.process_time())
cpu = []
began = time.perf_counter()
llm.train(spec, tell, Wishes())
print(json.dumps({"first": first[0], "cpu": cpu[1] - cpu[0]}))
"""


@contextmanager
def services(servers: Servers) -> Iterator[dict[str, Process]]:
    started = {name: servers.service(name) for name in ("gateway", "datasets", "training")}
    for process in started.values():
        process.spawn()
    wait_ready(started.values())
    yield started


def started(api: httpx.Client, steps: int) -> tuple[str, float]:
    """A project with its rows, and when its run was asked for."""
    project = "/projects/" + api.post("/projects", json={"name": "bench"}).json()["id"]
    api.post(f"{project}/model/resolve", json={"model_id": BASE}).raise_for_status()
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    api.post(f"{project}/files/upload", files={"files": ("rows.jsonl", rows.encode())}, data={"kind": "dataset_upload"}).raise_for_status()
    while any(job["status"] != "success" for job in api.get(f"{project}/jobs").json()["jobs"]):
        time.sleep(0.05)
    asked = time.perf_counter()
    hyperparams = {**HOW, "max_steps": steps, "eval_steps": steps, "save_steps": steps}
    api.post(f"{project}/train/start", json={"method": "lora", "hyperparams": hyperparams}).raise_for_status()
    return project, asked


def watched(api: httpx.Client, project: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with api.stream("GET", f"{project}/train/logs/stream", timeout=300) as answer:
        event = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                yield event, json.loads(value)


def first_step(api: httpx.Client) -> float:
    project, asked = started(api, SHORT)
    taken = 0.0
    for event, _ in watched(api, project):
        if event == "log" and not taken:
            taken = time.perf_counter() - asked
    return taken


def per_step(api: httpx.Client, training: Process) -> float:
    """CPU-seconds of the service and its child, from about the first to about the last step."""
    project, _ = started(api, LONG)

    def pids() -> list[int | None]:
        return [training.pid, *descendants(training.pid or 0)]

    begun: dict[int, float] = {}
    used: dict[int, float] = {}
    at = 1
    for event, data in watched(api, project):
        if event == "log" and not begun:
            begun = {pid: cpu_seconds(pid) for pid in pids() if pid}
        if event == "log" and data["step"] % 250 == 0 and data["step"] < LONG:
            used = {pid: cpu_seconds(pid) - begun.get(pid, 0.0) for pid in pids() if pid}
            at = data["step"]
        if event in ("error", "complete") and data["status"] != "success":
            raise SystemExit(f"the run ended with {data}")
    return sum(used.values()) / at


def descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [*children, *(deeper for child in children for deeper in descendants(child))]


def script(steps: int, cache: Path) -> dict[str, float]:
    """The same run without any platform: its rows in the same form, its modules imported."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {
                "id": str(n),
                "split": "train" if n % 10 else "eval",
                "format": "question_answer",
                "data": {"instruction": row["question"], "input": "", "output": row["answer"]},
            }
            for n, row in enumerate(ROWS)
        ]
        Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tuning = {"base_model": BASE, "method": "lora", "max_steps": steps, "eval_steps": steps, "save_steps": steps, **HOW}
        spec = {"job_id": "bench", "attempt": 1, "folder": folder, "snapshot": f"{folder}/rows.jsonl", "tuning": tuning, "cache": str(cache)}
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], input=json.dumps(spec), env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.around", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    promises = Promises()
    with fresh_servers() as servers, services(servers) as running, httpx.Client(base_url=servers.url, timeout=60) as api:
        first_step(api)  # builds the model, and warms what a first run warms
        cache = servers.home.path / "models"
        starts, alone = [first_step(api) for _ in range(2 * rounds)], [script(SHORT, cache)["first"] for _ in range(rounds)]
        steps, bare = [], []
        for _ in range(rounds):
            steps.append(per_step(api, running["training"]))
            bare.append(script(LONG, cache)["cpu"] / (LONG - 1))
    table(
        ["", "platform", "script"],
        [["start to first step", ms(p50(starts)), ms(p50(alone))], ["CPU a step", ms(p50(steps)), ms(p50(bare))]],
    )
    promises.at_most("start to first step, beyond loading", p50(starts) - p50(alone), 1.5, unit=" s")
    promises.at_most("CPU of the platform around a step", (p50(steps) - p50(bare)) * 1000, 0.5, unit=" ms")
    return promises.exit_code()


if __name__ == "__main__":
    sys.exit(main())
