"""What happened before an export: a project, its files, and a training run whose artifacts lie in the object store."""

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

from libs.events import (
    Claim,
    Event,
    ExportInputs,
    File,
    JobCancelRequested,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationStarted,
    ProjectCreated,
    ProjectFilesAdded,
    ProjectWorkStarted,
    Recorded,
    TrainingAttemptLost,
    TrainingBatchReduced,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingSampled,
    TrainingStarted,
    TrainInputs,
    address,
    story,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage
from libs.tiny import BASE, CONFIG

HOSTILE = "| <script>alert(1)</script> ![x](https://evil.example/x.png)\n```\n# nobody"
STEPS = 40
MERGED = {
    "dtype": "bfloat16",
    "layers": 14,
    "tensors": 21,
    "logits_difference": 0.0042,
    "tolerance": 0.04,
    "effect": 0.31,
    "same_first_choice": 0.98,
    "tokens_compared": 120,
    "seen_by_the_run": {"logits_difference": 0.11, "same_first_choice": 0.9},
    "warnings": [f"Something {HOSTILE}"],
}


@dataclass
class Trained:
    """A run, to be changed before it is told."""

    storage: Storage
    log: EventLog
    origin: Origin
    project_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    job_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    project_name: str = f"Answers {HOSTILE}"
    spec: dict[str, Any] = field(default_factory=lambda: {"base_model": BASE, "method": "lora", "lora_r": 8, "lora_alpha": 16, "seed": 7})
    artifacts: dict[str, Claim] = field(default_factory=dict)
    steps: list[str] = field(
        default_factory=lambda: [json.dumps({"step": n, "attempt": 1, "train_loss": 6 / n, "learning_rate": 1e-4}) for n in range(1, STEPS + 1)]
    )
    document: str = ""
    """The id of a document of which examples were made too."""
    summary: dict[str, Any] = field(
        default_factory=lambda: {
            "base_config": CONFIG,
            "versions": {"torch": "2.13.0", "peft": "0.21.2"},
            "verified": {"largest_difference": 1e-7},
            "tokens_per_second": 1234.5,
            "best_step": 30,
            "warnings": [f"3 rows were cut {HOSTILE}"],
            "packing_efficiency": 0.97,
        }
    )

    async def keep(self, name: str, content: bytes, *, attempt: int = 2) -> None:
        self.artifacts[name] = await self.storage.put(f"{self.origin.tenant}/{self.job_id}/{attempt}", content)

    async def keep_all(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            await self.keep(name, content)

    async def told(self) -> "Trained":
        """A run that was killed behind step 20, resumed there, and completed."""
        ingest, file_id = str(uuid.uuid4()), str(uuid.uuid4())
        folder = f"{self.origin.tenant}/{self.job_id}"
        snapshot = await self.storage.put(folder, b'{"id":"1"}\n')
        steps = await self.storage.put(f"{folder}/2", "".join(line + "\n" for line in self.steps).encode())
        state = Claim(key=f"{folder}/1/{'0' * 64}", sha256="0" * 64, size=1)
        file = File(
            file_id=file_id,
            filename=f"rows {HOSTILE}.jsonl",
            kind="dataset_upload",
            mime_type="application/jsonl",
            size=3,
            sha256=hashlib.sha256(b"rows").hexdigest(),
            key="k",
            job_id=ingest,
        )
        inputs = TrainInputs(project_id=self.project_id)
        job: Any = {"job_id": self.job_id}
        before = {"prompt": f"Say {HOSTILE}", "completion": f"gibberish {HOSTILE}", "expected": "nothing"}
        after = {**before, "completion": f"as told {HOSTILE}"}
        await self._append(ProjectCreated(project_id=self.project_id, name=self.project_name), ProjectFilesAdded(project_id=self.project_id, files=[file]))
        if self.document:
            await self._generated()
        await self._append(self._job("train", ["preparation", "training"], msgspec.to_builtins(inputs), self.spec))
        await self._append(
            PreparationStarted(**job),
            PreparationCompleted(**job, parts=0, rows=110, valid=110, snapshot=snapshot, position=3, splits={"train": 100, "eval": 10}),
        )
        await self._append(
            TrainingStarted(**job, attempt=1, device="cpu"),
            TrainingEvaluated(**job, attempt=1, step=0, metrics={"eval_loss": 6.25, "perplexity": 518.0}),
            TrainingSampled(**job, attempt=1, step=0, samples=[before]),
            TrainingCheckpointed(**job, attempt=1, step=20, state=state, steps=steps),
            TrainingBatchReduced(**job, attempt=1, step=22, micro_tokens=512),
            TrainingEvaluated(**job, attempt=1, step=30, metrics={"eval_loss": 99.0, "perplexity": 99.0}),
            TrainingAttemptLost(**job, attempt=1, cause="killed"),
            TrainingStarted(**job, attempt=2, device="cpu", resumed_from=20),
            TrainingEvaluated(**job, attempt=2, step=STEPS, metrics={"eval_loss": 0.5, "perplexity": 1.65}),
            TrainingSampled(**job, attempt=2, step=STEPS, samples=[after]),
        )
        return self

    async def _generated(self) -> None:
        """Of the one document; another one came when that had been cut into chunks already."""
        chunk, generate = str(uuid.uuid4()), str(uuid.uuid4())
        book, later = (
            File(file_id=id, filename=name, kind="raw_doc", mime_type="text/plain", size=3, sha256=hashlib.sha256(name.encode()).hexdigest(), key="k")
            for id, name in ((self.document, f"book {HOSTILE}.txt"), (str(uuid.uuid4()), "later.txt"))
        )
        await self.add_to_project(ProjectFilesAdded(project_id=self.project_id, files=[book]))
        await self._append(self._job("chunk", ["preparation"], {"project_id": self.project_id}, {}, job_id=chunk))
        await self.add_to_project(ProjectFilesAdded(project_id=self.project_id, files=[later]))
        await self._append(self._job("generate", ["preparation"], {"project_id": self.project_id, "chunks": chunk}, {}, job_id=generate))
        await self.add_to_project(ProjectWorkStarted(project_id=self.project_id, job_id=generate, kind="generate"))

    async def add_to_project(self, event: Event) -> None:
        told = await self.log.read(address(self.origin.tenant, event))
        await self.log.append([Write(events=[event], after=told[-1].seq)], origin=self.origin)

    async def completed(self) -> "Trained":
        await self.told()
        last = [fact for fact in await self.log.read(story(self.origin.tenant, self.job_id)) if isinstance(fact.event, TrainingSampled)]
        steps = await self.storage.put(f"{self.origin.tenant}/{self.job_id}/2", "".join(line + "\n" for line in self.steps).encode())
        end = TrainingCompleted(
            job_id=self.job_id, attempt=2, step=STEPS, artifacts=self.artifacts, steps=steps, summary=self.summary, metrics={"train_loss": 0.15}
        )
        await self.log.append([Write(events=[end], after=last[-1].seq)], origin=self.origin)
        return self

    async def export(self, **changed: Any) -> Recorded:
        inputs = msgspec.to_builtins(ExportInputs(project_id=self.project_id, training_job_id=self.job_id)) | changed
        created = self._job("export", ["export"], inputs, {}, job_id=str(uuid.uuid4()))
        (recorded,) = await self.log.append([Write(events=[created], after=0)], origin=self.origin)
        return recorded

    async def merge(self, files: dict[str, bytes], **told: Any) -> tuple[Recorded, Recorded]:
        """An export that merges first, and the end of the merge: its files are the job's own."""
        inputs = msgspec.to_builtins(ExportInputs(project_id=self.project_id, training_job_id=self.job_id, merged=True))
        created = self._job("export", ["training", "export"], inputs, {}, job_id=str(uuid.uuid4()))
        (recorded,) = await self.log.append([Write(events=[created], after=0)], origin=self.origin)
        where = f"{self.origin.tenant}/{created.job_id}/1"
        made = {f"merged/{name}": await self.storage.put(where, content) for name, content in files.items()}
        job: Any = {"job_id": created.job_id, "attempt": 1}
        end = TrainingCompleted(**job, step=0, artifacts=made, steps=await self.storage.put(where, b""), summary={"merged": MERGED | told}, merge=True)
        _, completed = await self.log.append([Write(events=[TrainingStarted(**job, merge=True), end], after=0)], origin=self.origin)
        return recorded, completed

    def _job(self, kind: str, stages: list[str], inputs: dict[str, Any], spec: dict[str, Any], *, job_id: str = "") -> JobCreated:
        return JobCreated(job_id=job_id or self.job_id, kind=kind, stages=stages, project_id=self.project_id, inputs=inputs, spec=spec)

    async def _append(self, *events: Event) -> None:
        await self.log.append([Write(events=events, after=0)], origin=self.origin)


async def cancel(log: EventLog, created: Recorded) -> None:
    assert isinstance(created.event, JobCreated)
    last = (await log.read(address(created.tenant, created.event)))[-1].seq
    await log.append([Write(events=[JobCancelRequested(job_id=created.event.job_id)], after=last)], origin=Origin(tenant=created.tenant))
