"""The invariants of the platform, proved from what a run left behind: one function each, which yields what speaks against it.

They know the log's facts by their JSON alone, so that a mistake in our own code isn't made twice here.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kit import dataset_checker as datasets
from tests.kit import hook_checker as hooks
from tests.kit import money_checker as money
from tests.kit import run_checker as runs
from tests.kit.evidence import Evidence, Fact, undone
from tests.kit.record import Op

MB = 1024 * 1024
TRACED = ("create", "rename", "delete", "upload", "delete_file", "delete_example", "train", "upload_data_set", "delete_data_set", "fit", "delete_model")


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


Invariant = Callable[[Evidence], Iterator[str]]


def check(evidence: Evidence) -> list[Violation]:
    """Empty when all is well."""
    return [Violation(invariant.__name__, what) for invariant in INVARIANTS for what in invariant(evidence)]


def summary(violations: Iterable[Violation], *, most: int = 8) -> str:
    """The first few of each kind, and how many there are."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for violation in violations:
        kinds[violation.invariant].append(violation.what)
    return "\n".join(f"{name} ({len(found)}):\n" + "\n".join(f"  {what[:600]}" for what in found[:most]) for name, found in kinds.items())


# 1. What was answered is what is in the log


def answers_are_true(evidence: Evidence) -> Iterator[str]:
    """What was answered 2xx is in the log exactly once, what was refused isn't, what nobody answered is there at most once."""
    there = _traces(evidence.facts)
    for (kind, token), ops in _together(evidence.ops).items():
        count = there[kind][token] if kind in there else 0
        accepted, refused = any(op.accepted for op in ops), all(op.refused for op in ops)
        if accepted and count != 1:
            yield f"accepted, but {count} times in the log: {_told(ops)}"
        elif refused and count != 0:
            yield f"refused, but {count} times in the log: {_told(ops)}"
        elif count > 1:
            yield f"{count} times in the log: {_told(ops)}"
    exported = {fact.data["job_id"] for fact in evidence.facts if fact.type == "job.created" and fact.data["kind"] == "export"}
    for op in evidence.ops:
        for answer in op.odd:
            yield f"an answer that nobody should get: {op}: {answer}"
        if op.kind == "export" and op.accepted and op.answer["job_id"] not in exported:
            yield f"accepted, but there is no such export in the log: {op}"


def repeats_get_the_same_answer(evidence: Evidence) -> Iterator[str]:
    """An Idempotency-Key stands for one answer, whichever gateway gives it; of several who delete the same thing one succeeds."""
    for (kind, _), ops in _together(evidence.ops).items():
        accepted = [op for op in ops if op.accepted]
        if kind in ("create", "upload", "train", "upload_data_set", "fit"):
            if len({_essence(op.answer) for op in accepted}) > 1:
                yield f"different answers to the same request: {[op.answer for op in accepted]}"
        elif kind.startswith("delete") and len(accepted) > 1:
            yield f"{len(accepted)} deletes of the same thing succeeded: {_told(ops)}"


def versions_are_true(evidence: Evidence) -> Iterator[str]:
    """An ETag is the position of the fact that was written; If-Match was the position of the fact before it."""
    renamed = {fact.data["name"]: fact for fact in evidence.facts if fact.type == "project.updated" and fact.data.get("name")}
    before = _predecessors(evidence.facts)
    for op in evidence.ops:
        if op.kind != "rename" or not op.accepted or (fact := renamed.get(op.token)) is None:
            continue
        if op.version != fact.seq and not op.doubtful:
            yield f"answered with version {op.version}, but it is fact {fact.seq}: {op}"
        if op.if_match is not None and before[fact.seq] != op.if_match:
            yield f"asked for version {op.if_match}, was written after {before[fact.seq]}: {op}"


def missing_things_were_deleted(evidence: Evidence) -> Iterator[str]:
    """A 404 about a thing that once was there is true only once somebody deleted it. An export is never found before a run succeeded."""
    gone = {fact.data["project_id"] for fact in evidence.facts if fact.type == "project.deleted"}
    gone |= {fact.data["file_id"] for fact in evidence.facts if fact.type == "project.file_deleted"}
    gone |= {fact.data["example_id"] for fact in evidence.facts if fact.type == "example.deleted"}
    gone |= {fact.data[f"{fact.category}_id"] for fact in evidence.facts if fact.type in ("dataset.deleted", "model.deleted")}
    for op in evidence.ops:
        if op.status == 404 and op.kind != "export" and not any(part in gone for part in (op.of, *op.path.split("?")[0].split("/"))):
            yield f"not found, but nobody deleted it: {op}"


def nothing_comes_from_nowhere(evidence: Evidence) -> Iterator[str]:
    """Each fact of the gateway goes back to a command that somebody sent."""
    if not evidence.ops:
        return
    sent: dict[str, set[str]] = defaultdict(set)
    for op in evidence.ops:
        sent[op.kind].add(op.token)
    for kind, counts in _traces(evidence.facts).items():
        for token in counts.keys() - sent[kind]:
            yield f"nobody sent it: {kind} {token}"


def _traces(facts: list[Fact]) -> dict[str, Counter[str]]:
    """How often the facts say that something was done, by kind and token of the commands."""
    there: dict[str, Counter[str]] = {kind: Counter() for kind in TRACED}
    for fact in facts:
        match fact.type:
            case "project.created":
                there["create"][fact.data["name"]] += 1
            case "project.updated" if fact.data.get("name"):
                there["rename"][fact.data["name"]] += 1
            case "project.deleted":
                there["delete"][fact.data["project_id"]] += 1
            case "project.files_added":
                there["upload"].update(file["sha256"] for file in fact.data["files"])
            case "project.file_deleted":
                there["delete_file"][fact.data["file_id"]] += 1
            case "example.deleted":
                there["delete_example"][fact.data["example_id"]] += 1
            case "dataset.created":
                there["upload_data_set"][fact.data["file"]["sha256"]] += 1
            case "dataset.deleted":
                there["delete_data_set"][fact.data["dataset_id"]] += 1
            case "model.deleted":
                there["delete_model"][fact.data["model_id"]] += 1
            case "job.created" if datasets.is_fit(fact):
                there["fit"][str(fact.data["spec"].get("seed"))] += 1
            case "job.created" if fact.data["kind"] == "train":
                there["train"][str(fact.data["spec"].get("seed"))] += 1
            case _:
                continue
    return there


def _together(ops: list[Op]) -> dict[tuple[str, str], list[Op]]:
    """Those that stand for the same thing to be done. A cancel leaves the choice of its fact to others."""
    groups: dict[tuple[str, str], list[Op]] = defaultdict(list)
    for op in ops:
        if op.kind in TRACED:
            groups[op.kind, op.token].append(op)
    return groups


def _told(ops: list[Op]) -> str:
    return "; ".join(map(str, ops))


def _essence(answer: Any) -> str:
    """What a repeat may not change; what others did meanwhile may show."""
    if "run_id" in answer:
        return json.dumps([answer["job_id"], answer["run_id"]])
    if "files" in answer:
        return json.dumps([(file["id"], file["job_id"], file["size_bytes"]) for file in answer["files"]])
    if "job_id" in answer:
        return json.dumps([answer["job_id"], answer.get("id")])
    return json.dumps([answer["id"], answer["name"], answer["config"], answer["created_at"]])


def _predecessors(facts: list[Fact]) -> dict[int, int]:
    """Position of a project's fact -> position of the same project's fact before it."""
    last: dict[str, int] = {}
    before: dict[int, int] = {}
    for fact in facts:
        if fact.category == "project":
            before[fact.seq] = last.get(fact.data["project_id"], 0)
            last[fact.data["project_id"]] = fact.seq
    return before


# 2. What people see is the fold of the log


def the_copy_is_the_log(evidence: Evidence) -> Iterator[str]:
    """event_log holds each fact byte for byte; nothing was parked; the checkpoint is where the log ends."""
    log = {fact.seq: fact for fact in evidence.facts}
    copy = {row.seq: row for row in evidence.copied}
    for seq in sorted(log.keys() ^ copy.keys()):
        yield f"fact {seq} is only in {'the log' if seq in log else 'the copy'}"
    for seq in log.keys() & copy.keys():
        fact, row = log[seq], copy[seq]
        tokens = fact.subject.split(".")
        if (row.subject, row.body) != (fact.subject, fact.body):
            yield f"fact {seq} differs from its copy"
        if (row.id, row.aggregate) != (fact.id, "/".join([tokens[1], *tokens[4:]])):
            yield f"fact {seq} is filed wrongly: {row.id} {row.aggregate}"
    yield from (f"parked: {parked}" for parked in evidence.parked)
    if evidence.checkpoint != evidence.last:
        yield f"the views are at {evidence.checkpoint}, the log ends at {evidence.last}"


def views_can_be_built_again(evidence: Evidence) -> Iterator[str]:
    """The live views, row for row and bit for bit, are what our own code makes of the log from its beginning."""
    if evidence.rebuild_failed:
        yield f"the views can't be built again: {evidence.rebuild_failed}"
    for table, rows in evidence.live.items():
        again = evidence.rebuilt[table]
        for id in rows.keys() | again.keys():
            if rows.get(id) != again.get(id):
                yield f"{table} {id}: live {rows.get(id)}, rebuilt {again.get(id)}"


def views_tell_what_happened(evidence: Evidence) -> Iterator[str]:
    """Projects, files, jobs, runs, exports, data sets and models are what a second, independent fold of the facts says."""
    told = _Fold()
    for fact in evidence.facts:
        told.take(fact)
    for table, expected in told.tables.items():
        seen = {row["id"]: row for row in evidence.rows[table]}
        for id in expected.keys() | seen.keys():
            if id not in seen or id not in expected:
                yield f"{table} {id} is {'missing' if id in expected else 'there, but should not be'}"
                continue
            for column, value in expected[id].items():
                found = json.loads(seen[id][column]) if isinstance(value, dict | list) and isinstance(seen[id][column], str) else seen[id][column]
                if found != value:
                    yield f"{table} {id}: {column} is {found!r}, the facts say {value!r}"


class _Fold:
    """Column by column what the tables must show, from the facts' JSON."""

    def __init__(self) -> None:
        self.projects: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.exports: dict[str, dict[str, Any]] = {}
        self.datasets: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}

    @property
    def tables(self) -> dict[str, dict[str, dict[str, Any]]]:
        of_projects = {"projects": self.projects, "files": self.files, "jobs": self.jobs, "runs": self.runs, "exports": self.exports}
        return of_projects | {"datasets": self.datasets, "models": self.models}

    def take(self, fact: Fact) -> None:
        match fact.category:
            case "project":
                self._project(fact, fact.data)
            case "dataset":
                self._dataset(fact, fact.data)
            case "model":
                self._model(fact, fact.data)
            case "job":
                self._job(fact, fact.data)
            case "preparation" | "training" | "export":
                self._stage(fact, fact.data)
                self._outcome(fact, fact.data)
            case _:
                return

    def _project(self, fact: Fact, data: dict[str, Any]) -> None:
        id = data["project_id"]
        match fact.type:
            case "project.created":
                self.projects[id] = {name: data.get(name, "") for name in ("name", "description", "task_type", "request")}
                self.projects[id] |= {"tenant": fact.tenant, "config": data.get("config", {}), "created_at": fact.at}
            case "project.updated":
                self.projects[id] |= {name: data[name] for name in ("name", "description", "task_type") if data.get(name) is not None}
                self.projects[id]["config"] = self.projects[id]["config"] | (data.get("config") or {})
            case "project.files_added":
                for file in data["files"]:
                    self._file(fact, id, file)
            case "project.file_deleted":
                self.files.pop(data["file_id"], None)
            case "project.deleted":
                self.projects.pop(id, None)
                for table in (self.files, self.runs, self.exports):
                    for key in [key for key, row in table.items() if row["project_id"] == id]:
                        del table[key]
        if id in self.projects:
            self.projects[id] |= {"updated_at": fact.at, "version": fact.seq}

    def _file(self, fact: Fact, owner: str, file: dict[str, Any]) -> None:
        self.files[file["file_id"]] = {name: file[name] for name in ("filename", "kind", "mime_type", "size", "sha256", "key", "job_id")}
        self.files[file["file_id"]] |= {"project_id": owner, "tenant": fact.tenant, "created_at": fact.at}

    def _dataset(self, fact: Fact, data: dict[str, Any]) -> None:
        id = data["dataset_id"]
        match fact.type:
            case "dataset.created":
                told = {name: data.get(name, "") for name in ("name", "description", "dataset_type", "target", "request")}
                self.datasets[id] = told | {"tenant": fact.tenant, "size": data["file"]["size"], "job_id": data["file"]["job_id"], "created_at": fact.at}
                self._file(fact, id, data["file"])
            case "dataset.deleted":
                file = next(key for key, row in self.files.items() if row["project_id"] == id)
                del self.files[file], self.datasets[id]
        if id in self.datasets:
            self.datasets[id]["version"] = fact.seq

    def _model(self, fact: Fact, data: dict[str, Any]) -> None:
        if fact.type == "model.registered":
            self.models[data["model_id"]] = {name: data[name] for name in ("name", "model_type", "dataset_id")}
            self.models[data["model_id"]] |= {"tenant": fact.tenant, "created_at": fact.at, "version": fact.seq}
        else:
            self.models.pop(data["model_id"])

    def _job(self, fact: Fact, data: dict[str, Any]) -> None:
        if fact.type == "job.created":
            self.jobs[data["job_id"]] = {
                **{name: data.get(name) for name in ("project_id", "kind", "stages", "inputs")},
                "tenant": fact.tenant,
                "status": "queued",
                "cancel_requested": False,
                "result": None,
                "error": None,
                "created_at": fact.at,
                "started_at": None,
                "finished_at": None,
            }
            self._new(fact, data)
        else:
            self.jobs[data["job_id"]]["cancel_requested"] = True
        self.jobs[data["job_id"]]["version"] = fact.seq

    def _new(self, fact: Fact, data: dict[str, Any]) -> None:
        common = {"tenant": fact.tenant, "project_id": data.get("project_id"), "created_at": fact.at}
        if data["kind"] == "train":
            none = {"attempt": 0, "device": "", "step": 0, "total_steps": 0, "checkpoint_step": 0, "snapshot": None, "steps": None, "artifacts": {}}
            self.runs[data["job_id"]] = {**common, **none, "spec": data["spec"], "method": data["spec"].get("method", ""), "started_at": None}
        elif data["kind"] == "export":
            self.exports[data["job_id"]] = {**common, "training_job_id": data["inputs"]["training_job_id"], "files": None}

    def _stage(self, fact: Fact, data: dict[str, Any]) -> None:
        job = self.jobs[data["job_id"]]
        last = job["stages"][-1] == fact.stage
        match fact.type.partition(".")[2]:
            case "started":
                job["status"] = "running" if last else "preparing"
                job["started_at"] = job["started_at"] or fact.at
            case "completed" if last:
                job |= {"status": "succeeded", "progress": 100, "finished_at": fact.at}
            case "completed":
                job["status"] = "preparing"
            case "failed":
                job |= {"status": "failed", "error": data["message"], "finished_at": fact.at}
            case "cancelled":
                job |= {"status": "cancelled", "finished_at": fact.at}

    def _outcome(self, fact: Fact, data: dict[str, Any]) -> None:
        """What each kind of job has to show for itself; of a job whose project was deleted nothing is kept."""
        job, run, export = self.jobs[data["job_id"]], self.runs.get(data["job_id"], {}), self.exports.get(data["job_id"], {})
        match fact.type:
            case "preparation.completed" if run:
                run["snapshot"] = data["snapshot"]
            case "preparation.completed":
                told = ("generator", "model", "tokenizer", "splits", "refused_files", "notes", "task")
                job["result"] = {"rows": data["rows"], "valid": data["valid"], "refused": data.get("refused", {})}
                job["result"] |= {name: data[name] for name in told if data.get(name)}
            case "training.started":
                run |= {"attempt": data["attempt"], "device": data.get("device", ""), "started_at": run.get("started_at") or fact.at}
            case "training.progress":
                run |= {"step": data["step"], "total_steps": data["total_steps"]}
            case "training.checkpointed":
                run |= {"checkpoint_step": data["step"], "steps": data["steps"]}
            case "training.completed":
                run |= {"step": data["step"], "steps": data["steps"], "artifacts": data["artifacts"]}
                job.pop("result")  # whose words are the gateway's
            case "training.failed" | "training.cancelled" if data.get("steps"):
                run["steps"] = data["steps"]
            case "export.completed":
                export["files"] = data["files"]
                job.pop("result")
            case _:
                return


# 3. Every job ends, once, and by whoever holds the baton


def jobs_end_once(evidence: Evidence) -> Iterator[str]:
    """Every job has exactly one terminal fact, by the last holder of the baton; no stage says anything out of its turn or after the end."""
    stages: dict[str, list[str]] = {}
    turn: Counter[str] = Counter()
    ended: dict[str, Fact] = {}
    for fact in evidence.facts:
        if fact.type == "job.created":
            stages[fact.data["job_id"]] = fact.data["stages"]
        if not fact.stage:
            continue
        job = fact.data["job_id"]
        if job not in stages:
            yield f"fact {fact.seq} {fact.type} is about job {job}, which was never created"
        elif job in ended:
            yield f"fact {fact.seq} {fact.type} comes after the end of job {job}, {ended[job].type} at {ended[job].seq}"
        elif fact.stage != stages[job][turn[job]]:
            yield f"fact {fact.seq} {fact.type}: the baton of job {job} is with {stages[job][turn[job]]}"
        elif runs.ends(fact, stages[job]):
            ended[job] = fact
        elif fact.type.endswith(".completed"):
            turn[job] += 1
    yield from (f"job {job} never ended" for job in stages.keys() - ended.keys())


def cancels_are_kept(evidence: Evidence) -> Iterator[str]:
    """Who was told that a job is cancelled finds the wish in the log; and a job is cancelled only when somebody wished it before."""
    wished: dict[str, int] = {}
    for fact in evidence.facts:
        if fact.type == "job.cancel_requested":
            wished.setdefault(fact.data["job_id"], fact.seq)
        elif fact.stage and fact.type.endswith(".cancelled") and fact.data["job_id"] not in wished:
            yield f"job {fact.data['job_id']} was cancelled, but nobody wished it"
    for op in evidence.ops:
        if op.kind == "cancel" and op.accepted and op.token not in wished:
            yield f"accepted, but there is no wish in the log: {op}"


# 4. Rules across aggregates, at every position of the log


def projects_stay_within_their_limit(evidence: Evidence) -> Iterator[str]:
    """The sum of a project's files never exceeds the limit, whoever uploads at the same time."""
    held: dict[str, dict[str, int]] = defaultdict(dict)
    for fact in evidence.facts:
        project = fact.data.get("project_id", "")
        match fact.type:
            case "project.files_added":
                held[project] |= {file["file_id"]: file["size"] for file in fact.data["files"]}
                if (total := sum(held[project].values())) > evidence.limit_mb * MB:
                    yield f"fact {fact.seq}: project {project} holds {total} bytes, {evidence.limit_mb} MB are the most"
            case "project.file_deleted":
                held[project].pop(fact.data["file_id"], None)
            case _:
                continue


def nothing_happens_to_what_is_gone(evidence: Evidence) -> Iterator[str]:
    """A thing is created before anything else, once, and after its end nothing happens to it: a deleted project's jobs may end, no more."""
    projects: set[str] = set()
    gone: dict[str, int] = {}
    deleted_files: dict[str, int] = {}
    for fact in evidence.facts:
        project = fact.data.get("project_id", "")
        if fact.stage or not project:
            continue
        if fact.type == "project.created":
            if project in projects:
                yield f"fact {fact.seq}: project {project} is created again"
            projects.add(project)
        elif project not in projects:
            yield f"fact {fact.seq} {fact.type}: there is no project {project} yet"
        if project in gone:
            yield f"fact {fact.seq} {fact.type}: project {project} was deleted at {gone[project]}"
        if fact.type == "project.deleted":
            gone[project] = fact.seq
        if fact.type == "project.file_deleted":
            if fact.data["file_id"] in deleted_files:
                yield f"fact {fact.seq}: file {fact.data['file_id']} was deleted at {deleted_files[fact.data['file_id']]}"
            deleted_files[fact.data["file_id"]] = fact.seq


def files_and_jobs_come_together(evidence: Evidence) -> Iterator[str]:
    """Every job.created stands in the same batch as what its project or data set says of it, right behind it and what it costs: its file, its run, or other work on it."""
    at = {fact.seq: fact for fact in evidence.facts}
    expected: set[int] = set()
    for fact in evidence.facts:
        for n, (job, kind, file) in enumerate(_jobs_announced(fact), 1):
            position = fact.seq + n
            while (between := at.get(position)) and between.category in money.BESIDES and between.correlation == fact.correlation:
                position += 1
            created = at.get(position)
            expected.add(position)
            if created is None or created.type != "job.created" or created.data["job_id"] != job or created.correlation != fact.correlation:
                yield f"fact {fact.seq} {fact.type} announces job {job}, which is not in its batch"
            elif (created.data["kind"], _owner(created.data)) != (kind, _owner(fact.data)):
                yield f"fact {created.seq}: job {job} is of another kind or owner than fact {fact.seq} {fact.type} says"
            elif created.data["inputs"].get("file") != file:
                yield f"fact {created.seq}: the job reads something else than its file {file}"
    for fact in evidence.facts:
        if fact.type == "job.created" and fact.seq not in expected:
            yield f"fact {fact.seq}: job {fact.data['job_id']} was created, but what it works on doesn't know of it"


def _owner(data: dict[str, Any]) -> str:
    return data.get("project_id") or (data.get("inputs") or data)["dataset_id"]


def _jobs_announced(fact: Fact) -> list[tuple[str, str, dict[str, Any] | None]]:
    """(job, kind, the file that it reads)."""
    match fact.type:
        case "project.files_added":
            return [(file["job_id"], "ingest", file) for file in fact.data["files"] if file.get("job_id")]
        case "project.run_started":
            return [(fact.data["job_id"], "train", None)]
        case "project.work_started":
            return [(fact.data["job_id"], fact.data["kind"], None)]
        case "dataset.created":
            return [(fact.data["file"]["job_id"], "prepare", fact.data["file"])]
        case "dataset.used":
            return [(fact.data["job_id"], "train", None)]
        case _:
            return []


# 5. What facts refer to is there, and all of it


def objects_are_there(evidence: Evidence) -> Iterator[str]:
    """Each object that a fact refers to exists with its sha256 and size, unless it was deleted."""
    for key, (digest, size) in _referred(evidence.facts).items():
        stored = evidence.objects.get(key)
        if stored is None:
            yield f"{key} is missing"
        elif stored.sha256 != digest or len(stored.content) != size:
            yield f"{key} holds {len(stored.content)} bytes with {stored.sha256[:12]}…, the facts say {size} with {digest[:12]}…"


def parts_are_whole(evidence: Evidence) -> Iterator[str]:
    """The parts of a completed preparation are numbered without gaps, hold the rows they promise, and add up; no row of the file is missing or there twice."""
    referred = _referred(evidence.facts)
    loaded: dict[str, Counter[str]] = defaultdict(Counter)
    for row in evidence.rows["examples"]:
        loaded[row["job_id"]][row["id"]] += 1
    parts: dict[str, list[Fact]] = defaultdict(list)
    created = {fact.data["job_id"]: fact for fact in evidence.facts if fact.type == "job.created"}
    for fact in evidence.facts:
        if fact.type == "preparation.produced":
            parts[fact.data["job_id"]].append(fact)
    for fact in evidence.facts:
        if fact.type == "preparation.completed" and not fact.data.get("snapshot"):
            job, kind = fact.data["job_id"], created[fact.data["job_id"]].data["kind"]
            yield from (f"job {job}: {what}" for what in _wrong_with(parts[job], fact.data, in_order=kind not in ("preview", "generate")))
            if kind == "ingest" and created[job].data["inputs"]["file"]["key"] in referred:
                yield from (f"job {job}: {what}" for what in _missing_rows(evidence, parts[job], created[job], loaded[job]))


def _wrong_with(parts: list[Fact], completed: dict[str, Any], *, in_order: bool) -> Iterator[str]:
    numbers = [part.data["part"] for part in parts]
    if (numbers if in_order else sorted(numbers)) != list(range(1, completed["parts"] + 1)):
        yield f"its parts are {numbers}, {completed['parts']} were promised"
    for total in ("rows", "valid"):
        if (found := sum(part.data[total] for part in parts)) != completed[total]:
            yield f"its parts have {found} {total}, {completed[total]} were promised"
    if completed["rows"] - completed["valid"] != sum(completed.get("refused", {}).values()) and not completed.get("tokenizer"):
        yield "its refused rows don't add up"


def _missing_rows(evidence: Evidence, parts: list[Fact], created: Fact, loaded: Counter[str]) -> Iterator[str]:
    lines = [evidence.lines(part.data["content"]["key"]) for part in parts]
    for part, found in zip(parts, lines, strict=True):
        if len(found) != part.data["rows"] or sum(line["valid"] for line in found) != part.data["valid"]:
            yield f"part {part.data['part']} holds {len(found)} rows, {part.data['rows']} were promised"
    in_parts = {line["id"]: line["row"] for found in lines for line in found}
    if len(in_parts) != sum(map(len, lines)):
        yield "a row is in its parts twice"
    file = created.data["inputs"]["file"]
    source = evidence.objects.get(file["key"])
    if source and file["mime_type"] == "application/jsonl":
        numbers = [number for number, line in enumerate(source.content.split(b"\n"), 1) if line.strip()]
        if sorted(in_parts.values()) != numbers:
            yield f"the file has {len(numbers)} rows, its parts {len(in_parts)}"
    if loaded != Counter(in_parts.keys()):
        yield f"{len(in_parts)} rows are in its parts, {loaded.total()} ({len(loaded)} different ones) among the examples"


def examples_belong_to_files(evidence: Evidence) -> Iterator[str]:
    """Every example is a row of a file that is there, or was generated of a document that is there; every part that is there is loaded."""
    files = {row["id"]: row for row in evidence.rows["files"]}
    generating = {row["id"]: row["project_id"] for row in evidence.rows["jobs"] if row["kind"] in ("preview", "generate")}
    for row in evidence.rows["examples"]:
        file = files.get(row["file_id"])
        reads = row["job_id"] if generating.get(row["job_id"]) != row["project_id"] else ""
        if file is None or (file["job_id"], file["project_id"]) != (reads, row["project_id"]):
            yield f"example {row['id']} belongs to no file"
    for row in evidence.rows["parts"]:
        if row["state"] != "loaded":
            yield f"part {row['id']} is {row['state']}"


def _referred(facts: list[Fact]) -> dict[str, tuple[str, int]]:
    """Key -> (sha256, size) of everything that must be in the store when all of these facts have happened: nothing of deleted files, projects, data sets and
    models, nor of chunks and examples that were made anew since, nor what a run on a data set needs no more once it has ended."""
    there: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    sources = {fact.data["job_id"]: fact.data["inputs"]["source"] for fact in facts if fact.type == "job.created" and datasets.is_fit(fact)}
    for fact in facts:
        for name, claim in runs.claims(fact.data):
            owner = sources.get(fact.data.get("job_id", ""), "") if name == "snapshot" else ""
            there[claim.get("file_id") or owner or fact.data["job_id"]][claim["key"]] = (claim["sha256"], claim["size"])
    for job, left in datasets.left_by_fits(facts).items():
        there[job] = {key: claim for key, claim in there[job].items() if key in left}
    dead = {fact.data["project_id"] for fact in facts if fact.type == "project.deleted"}
    gone: set[str] = set()
    files: dict[str, str] = {}
    made: dict[str, tuple[str, str]] = {}
    for fact in facts:
        match fact.type:
            case "job.created" if fact.data["kind"] in ("chunk", "preview", "generate"):
                made[fact.data["job_id"]] = (fact.data.get("project_id", ""), fact.data["kind"])
            case "preparation.completed" if fact.data["job_id"] in made:
                earlier = list(made)[: list(made).index(fact.data["job_id"])]
                gone |= {job for job in earlier if made[job] == made[fact.data["job_id"]]}
            case _:
                continue
    for fact in facts:
        match fact.type:
            case "project.file_deleted":
                gone |= {fact.data["file_id"], fact.data.get("job_id", "")}
            case "project.files_added" if fact.data["project_id"] in dead:
                gone |= {file["file_id"] for file in fact.data["files"]}
            case "job.created" if fact.data.get("project_id") in dead:
                gone.add(fact.data["job_id"])
            case "dataset.created":
                files[fact.data["dataset_id"]] = fact.data["file"]["file_id"]
            case "dataset.deleted":
                gone |= {files[fact.data["dataset_id"]], fact.data["job_id"]}
            case "model.deleted":
                gone.add(fact.data["model_id"])
            case _:
                continue
    return {key: claim for owner, claims in there.items() if owner not in gone for key, claim in claims.items()}


# 8. Nothing is left over


def the_log_is_one(evidence: Evidence) -> Iterator[str]:
    """Positions without gaps from 1 to the end, no event id twice, each subject made of its own body."""
    for n, fact in enumerate(evidence.facts, 1):
        if fact.seq != n:
            yield f"fact {n} is missing, {fact.seq} stands in its place"
            break
    if evidence.facts and evidence.facts[-1].seq != evidence.last:
        yield f"the log ends at {evidence.last}, the last fact is {evidence.facts[-1].seq}"
    for id, count in Counter(fact.id for fact in evidence.facts).items():
        if count > 1:
            yield f"event {id} is in the log {count} times"
    for fact in evidence.facts:
        _, tenant, category, name, *_ = fact.subject.split(".")
        if (tenant, f"{category}.{name}") != (fact.tenant, fact.type):
            yield f"fact {fact.seq} of type {fact.type} lies under {fact.subject}"


def nothing_is_left_over(evidence: Evidence) -> Iterator[str]:
    """No object that nothing refers to (once swept), no temporary file, no lease of the dead or of an ended run, no consumer that nobody reads, no child."""
    referred = _referred(evidence.facts)
    yield from (f"object {key} belongs to nothing" for key in evidence.objects.keys() - referred.keys())
    yield from (f"file {path} is left over" for path in evidence.litter)
    for lease in evidence.leases:
        if lease.valid and int(lease.holder.rsplit("-", 2)[1]) not in evidence.alive:
            yield f"the lease '{lease.name}' is held by {lease.holder}, who is dead"
    followers = [consumer for consumer in evidence.consumers if not consumer["config"].get("durable_name")]
    if len(followers) > evidence.followers:
        yield f"{len(followers)} consumers follow the log, {evidence.followers} processes do"
    for consumer in (*evidence.consumers, *evidence.workers):
        if consumer["config"].get("durable_name") and (work := undone(consumer)):
            yield f"{consumer['name']} has not done {work}"
    yield from (f"the lease {lease} waits for nobody" for lease in evidence.work)
    yield from (f"still training: {process}" for process in evidence.trainers)


INVARIANTS: tuple[Invariant, ...] = (
    answers_are_true,
    repeats_get_the_same_answer,
    versions_are_true,
    missing_things_were_deleted,
    nothing_comes_from_nowhere,
    the_copy_is_the_log,
    views_can_be_built_again,
    views_tell_what_happened,
    jobs_end_once,
    cancels_are_kept,
    money.jobs_are_paid_for_as_they_end,
    money.money_adds_up,
    money.nobody_has_more_runs_than_he_may,
    projects_stay_within_their_limit,
    runs.one_run_at_a_time,
    nothing_happens_to_what_is_gone,
    files_and_jobs_come_together,
    objects_are_there,
    parts_are_whole,
    examples_belong_to_files,
    runs.snapshots_are_the_rows,
    datasets.data_sets_are_whole,
    datasets.fits_learn_from_their_data_set,
    datasets.nothing_happens_to_a_deleted_data_set,
    datasets.models_are_what_fits_made,
    runs.attempts_follow_each_other,
    runs.attempts_go_on_from_checkpoints,
    runs.steps_join,
    runs.progress_is_of_the_steps,
    runs.objects_lie_where_nobody_else_writes,
    runs.exports_are_whole,
    hooks.webhooks_are_told,
    the_log_is_one,
    nothing_is_left_over,
)
