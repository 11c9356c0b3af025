"""The invariants of training runs and exports, proved like all others: from the JSON of the facts, and from the bytes that they refer to."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kit.evidence import Evidence, Fact

ENDS = ("completed", "failed", "cancelled")
TRIES = 3
"""Attempts without a new checkpoint that a run may have."""
GIVEN_BACK = "given_back"
"""The cause of an attempt whose worker was asked to end: it doesn't count."""
EXPORTED = {"adapter_model.safetensors", "adapter_config.json", "training_config.json", "metrics.json", "report.md"}
"""What the contract names of an adapter's export, but for the ZIP, which is no object."""
TOLD = ("train_loss", "learning_rate")
"""What a fact about progress repeats from the step log."""


@dataclass
class Attempt:
    number: int
    resumed_from: int
    facts: list[Fact] = field(default_factory=list)
    """What it said after its start."""

    def all(self, name: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.type == f"training.{name}"]


@dataclass
class Run:
    created: Fact
    facts: list[Fact] = field(default_factory=list)
    """Of its training."""

    @property
    def job(self) -> str:
        return self.created.data["job_id"]

    @property
    def attempts(self) -> list[Attempt]:
        found: list[Attempt] = []
        for fact in self.facts:
            if fact.type == "training.started":
                found.append(Attempt(fact.data["attempt"], fact.data.get("resumed_from", 0)))
            elif found:
                found[-1].facts.append(fact)
        return found

    @property
    def end(self) -> Fact | None:
        return next((fact for fact in self.facts if fact.type.partition(".")[2] in ENDS), None)


def ends(fact: Fact, stages: list[str]) -> bool:
    """Is it its job's terminal fact?"""
    name = fact.type.partition(".")[2]
    return bool(fact.stage) and (name in ("failed", "cancelled") or (name == "completed" and fact.stage == stages[-1]))


def runs(evidence: Evidence) -> list[Run]:
    found = {fact.data["job_id"]: Run(fact) for fact in evidence.facts if fact.type == "job.created" and fact.data["kind"] == "train"}
    for fact in evidence.facts:
        if fact.stage == "training" and fact.data["job_id"] in found:
            found[fact.data["job_id"]].facts.append(fact)
    return list(found.values())


# A rule across aggregates


def one_run_at_a_time(evidence: Evidence) -> Iterator[str]:
    """A project's next run starts only after the end of the one before, whoever starts it."""
    stages: dict[str, list[str]] = {}
    ended: set[str] = set()
    running: dict[str, str] = {}
    for fact in evidence.facts:
        if fact.type == "job.created":
            stages[fact.data["job_id"]] = fact.data["stages"]
        elif fact.type == "project.run_started":
            project, job = fact.data["project_id"], fact.data["job_id"]
            if project in running and running[project] not in ended:
                yield f"fact {fact.seq}: run {job} of project {project} starts while {running[project]} goes on"
            running[project] = job
        elif fact.stage and ends(fact, stages.get(fact.data["job_id"], [""])):
            ended.add(fact.data["job_id"])


# What a run learns from


def snapshots_are_the_rows(evidence: Evidence) -> Iterator[str]:
    """A snapshot holds the usable rows of its sources, in their order, less the examples that were deleted before the job was created; and no others."""
    parts: dict[str, list[Fact]] = defaultdict(list)
    for fact in evidence.facts:
        if fact.type == "preparation.produced":
            parts[fact.data["job_id"]].append(fact)
    created = {run.job: run.created for run in runs(evidence) if "dataset_id" not in run.created.data["inputs"]}
    for fact in evidence.facts:
        if fact.type == "preparation.completed" and (job := created.get(fact.data["job_id"])):
            yield from (f"job {fact.data['job_id']}: {what}" for what in _wrong_with_snapshot(evidence, fact, job, parts))


def _wrong_with_snapshot(evidence: Evidence, completed: Fact, created: Fact, parts: dict[str, list[Fact]]) -> Iterator[str]:
    if not (snapshot := completed.data.get("snapshot")):
        yield "it has no snapshot"
        return
    if completed.data.get("position") != created.seq:
        yield f"its snapshot knows the edits up to {completed.data.get('position')}, it was created at {created.seq}"
    if snapshot["key"] not in evidence.objects:
        return  # that is another invariant's business, or it was deleted with its project
    found = evidence.lines(snapshot["key"])
    if (splits := dict(Counter(row["split"] for row in found))) != completed.data.get("splits"):
        yield f"its snapshot holds {splits}, {completed.data.get('splits')} were promised"
    gone = {fact.data["job_id"] for fact in evidence.facts if fact.type == "project.file_deleted" and fact.seq < created.seq}
    wanted = [part for job in _sources(evidence, created) if job not in gone for part in parts[job]]
    if any(part.data["content"]["key"] not in evidence.objects for part in wanted):
        return  # a source was deleted since
    deleted = {fact.data["example_id"] for fact in evidence.facts if fact.type == "example.deleted" and fact.seq < created.seq}
    rows = [row for part in wanted for row in evidence.lines(part.data["content"]["key"]) if row["valid"] and row["id"] not in deleted]
    if found != [{name: row[name] for name in ("id", "split", "format", "data")} for row in rows]:
        yield f"its snapshot holds {len(found)} rows, which are not the {len(rows)} of its sources"


def _sources(evidence: Evidence, created: Fact) -> list[str]:
    """The jobs that it names, or those that read the project's files when it was created: less those that had failed or been cancelled."""
    if named := created.data["inputs"].get("sources"):
        return [source["job_id"] for source in named]
    found: dict[str, str] = {}
    lost: set[str] = set()
    for fact in evidence.facts:
        if fact.seq > created.seq:
            break
        if fact.type == "project.files_added" and fact.data["project_id"] == created.data["project_id"]:
            found |= {file["file_id"]: file["job_id"] for file in fact.data["files"] if file["kind"] == "dataset_upload"}
        elif fact.type == "project.file_deleted":
            found.pop(fact.data["file_id"], None)
        elif fact.type in ("preparation.failed", "preparation.cancelled"):
            lost.add(fact.data["job_id"])
    return [job for job in found.values() if job not in lost]


# Attempts


def attempts_follow_each_other(evidence: Evidence) -> Iterator[str]:
    """Attempts are numbered from 1; what an attempt says comes before the next one starts, and nothing after it was given up; three in vain are the most."""
    for run in runs(evidence):
        yield from (f"job {run.job}: {what}" for what in _wrong_with_attempts(run))


def _wrong_with_attempts(run: Run) -> Iterator[str]:
    current, in_vain, lost = 0, 0, False
    for fact in run.facts:
        attempt = fact.data.get("attempt", 0)
        if fact.type == "training.started":
            if attempt != current + 1:
                yield f"attempt {attempt} starts after attempt {current}"
            current, in_vain, lost = attempt, in_vain + 1, False
            if in_vain > TRIES:
                yield f"attempt {attempt} starts after {TRIES} without a new checkpoint"
            continue
        if attempt != current:
            yield f"fact {fact.seq} {fact.type} is of attempt {attempt}, the last that started is {current}"
        if lost and fact.type not in ("training.failed", "training.cancelled"):
            yield f"fact {fact.seq} {fact.type} comes after attempt {current} was given up"
        if fact.type == "training.checkpointed":
            in_vain = 0
        if fact.data.get("cause") == GIVEN_BACK:
            in_vain = max(0, in_vain - 1)
        lost = lost or fact.type == "training.attempt_lost"
    if run.end and run.end.type == "training.completed" and not current:
        yield "it completed, but no attempt ever started"


def attempts_go_on_from_checkpoints(evidence: Evidence) -> Iterator[str]:
    """An attempt starts at the newest checkpoint that the log has, or at 0 while there is none; its own lie behind it and rise."""
    for run in runs(evidence):
        newest = 0
        for attempt in run.attempts:
            if attempt.resumed_from != newest:
                yield f"job {run.job}: attempt {attempt.number} goes on from step {attempt.resumed_from}, the newest checkpoint is of step {newest}"
            for fact in attempt.facts:
                step = fact.data.get("step", 0)
                if fact.type == "training.checkpointed":
                    if step <= newest:
                        yield f"job {run.job}: fact {fact.seq} is a checkpoint of step {step}, there was one of step {newest}"
                    newest = step
                elif fact.type in ("training.progress", "training.evaluated", "training.sampled", "training.completed") and step < attempt.resumed_from:
                    yield f"job {run.job}: fact {fact.seq} {fact.type} is about step {step}, attempt {attempt.number} went on from {attempt.resumed_from}"


# Steps


def steps_join(evidence: Evidence) -> Iterator[str]:
    """Every step log holds each step from the first on exactly once, by the attempt whose word counts; and goes on where its checkpoints' logs end."""
    for run in runs(evidence):
        started = {attempt.number: attempt.resumed_from for attempt in run.attempts}
        before = b""
        for fact in run.facts:
            if not (claim := fact.data.get("steps")) or claim["key"] not in evidence.objects:
                continue
            content = evidence.objects[claim["key"]].content
            wrong = _wrong_with_steps(fact, evidence.lines(claim["key"]), {number: step for number, step in started.items() if number <= fact.data["attempt"]})
            yield from (f"job {run.job}: fact {fact.seq} {fact.type}: {what}" for what in wrong)
            if not content.startswith(before):
                yield f"job {run.job}: fact {fact.seq} {fact.type}: its steps differ from those of the checkpoint before"
            if fact.type == "training.checkpointed":
                before = content


def _wrong_with_steps(fact: Fact, lines: list[dict[str, Any]], started: dict[int, int]) -> Iterator[str]:
    """`started`: behind which step each attempt so far began."""
    numbers = [line["step"] for line in lines]
    if odd := [(n, number) for n, number in enumerate(numbers, 1) if n != number]:
        yield f"line {odd[0][0]} of its steps is about step {odd[0][1]}"
    kept_earlier = fact.type == "training.cancelled" and len(numbers) < fact.data["step"]  # where the store was away it is the last checkpoint's
    if fact.type != "training.failed" and not kept_earlier and len(numbers) != fact.data["step"]:
        yield f"there are {len(numbers)} steps, it is about step {fact.data['step']}"
    for line in lines:
        author = max((number for number, step in started.items() if step < line["step"]), default=0)  # whoever went on below it last did it anew
        if author != line["attempt"]:
            yield f"step {line['step']} is of attempt {line['attempt']}, not of {author}"
            return


def progress_is_of_the_steps(evidence: Evidence) -> Iterator[str]:
    """What facts say of a step is what the step log says; steps rise; whoever completed told of the last one, and went no further than planned."""
    for run in runs(evidence):
        if not run.end or run.end.type != "training.completed":
            continue
        steps = {(line["attempt"], line["step"]): line for line in evidence.lines(run.end.data["steps"]["key"])}
        for attempt in run.attempts:
            yield from (f"job {run.job}: {what}" for what in _wrong_with_progress(attempt, steps))
        told = run.attempts[-1].all("progress") if run.attempts else []
        if not told or told[-1].data["step"] != run.end.data["step"]:
            yield f"job {run.job}: it completed at step {run.end.data['step']}, which nobody told"


def _wrong_with_progress(attempt: Attempt, steps: dict[tuple[int, int], dict[str, Any]]) -> Iterator[str]:
    last = attempt.resumed_from
    for fact in attempt.all("progress"):
        step, metrics = fact.data["step"], fact.data.get("metrics", {})
        if step < last or step > fact.data["total_steps"]:
            yield f"fact {fact.seq} is about step {step} of {fact.data['total_steps']}, the one before about {last}"
        last = step
        line = steps.get((attempt.number, step), {})
        for name in TOLD:
            if name in metrics and name in line and metrics[name] != line[name]:
                yield f"fact {fact.seq}: {name} of step {step} is {metrics[name]}, the step log has {line[name]}"


# What a run leaves


def objects_lie_where_nobody_else_writes(evidence: Evidence) -> Iterator[str]:
    """What an attempt stored lies under its tenant, job and number: who was taken for dead can't overwrite it."""
    for run in runs(evidence):
        for fact in run.facts:
            attempt = fact.data.get("attempt", 0)
            mine = f"{fact.tenant}/{run.job}/{attempt}"
            for name, claim in claims(fact.data):
                inherited = name == "steps" and fact.type in ("training.failed", "training.cancelled")
                may = {mine} | ({f"{fact.tenant}/{run.job}/{number}" for number in range(1, attempt)} if inherited else set())
                folder, _, digest = claim["key"].rpartition("/")
                if folder not in may or digest != claim["sha256"]:
                    yield f"fact {fact.seq} {fact.type}: its {name} lies under {claim['key']}"


def exports_are_whole(evidence: Evidence) -> Iterator[str]:
    """An export is of a run that had completed, of the same project; it has the contract's files, with true checksums, and the very adapter that was trained."""
    trained = {run.job: run for run in runs(evidence)}
    created = {fact.data["job_id"]: fact for fact in evidence.facts if fact.type == "job.created" and fact.data["kind"] == "export"}
    for job, fact in created.items():
        run = trained.get(fact.data["inputs"]["training_job_id"])
        if not (run and run.end and run.end.type == "training.completed" and run.end.seq < fact.seq):
            yield f"job {job} exports {fact.data['inputs']['training_job_id']}, which had not completed"
        elif run.created.data["project_id"] != fact.data["project_id"]:
            yield f"job {job} exports a run of another project"
    for fact in evidence.facts:
        if fact.type == "export.completed" and (job := created.get(fact.data["job_id"])):
            run = trained.get(job.data["inputs"]["training_job_id"])
            yield from (f"job {fact.data['job_id']}: {what}" for what in _wrong_with_files(evidence, fact, run))


def _wrong_with_files(evidence: Evidence, completed: Fact, run: Run | None) -> Iterator[str]:
    files = {file["name"]: file for file in completed.data["files"]}
    if len(files) != len(completed.data["files"]):
        yield "a name is there twice"
    if run and run.created.data["spec"].get("method", "lora") != "full" and (missing := EXPORTED - files.keys()):
        yield f"{sorted(missing)} are missing"
    for name, file in files.items():
        stored = evidence.objects.get(file["content"]["key"])
        if stored and zlib.crc32(stored.content) != file["crc32"]:
            yield f"the checksum of {name} is wrong"
    artifacts = run.end.data.get("artifacts", {}) if run and run.end else {}
    weights = "adapter_model.safetensors"
    if weights in artifacts and weights in files and artifacts[weights]["sha256"] != files[weights]["content"]["sha256"]:
        yield "its adapter is not the one that was trained"


def claims(data: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every {key, sha256, size} in it, with the name that it goes by."""
    if isinstance(data, dict):
        if {"key", "sha256", "size"} <= data.keys():
            yield name, data
        for inner, value in data.items():
            yield from claims(value, inner)
    elif isinstance(data, list):
        for value in data:
            yield from claims(value, name)
