"""What the log says of a training run and of where its rows came from, up to the fact that asked for the export."""

import re
from datetime import datetime
from typing import Any

import msgspec

from libs.events import (
    Address,
    ExampleDeleted,
    ExampleMarked,
    File,
    FineTune,
    GenerateInputs,
    JobCreated,
    PreparationCompleted,
    ProjectCreated,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectModelResolved,
    ProjectUpdated,
    Recorded,
    Source,
    TrainingAttemptLost,
    TrainingBatchReduced,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingSampled,
    TrainingStarted,
    TrainInputs,
    decode,
    story,
)
from libs.events.log import EventLog
from libs.sources import GENERATE, of_project

from .refused import Refused

DOCUMENT = "raw_doc"
"""The kind of files that are cut into chunks."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")


class Run(msgspec.Struct, kw_only=True):
    """A training run that has completed."""

    created: Recorded
    job: JobCreated
    tuning: FineTune
    inputs: TrainInputs
    preparation: PreparationCompleted
    completed: TrainingCompleted
    completed_id: str
    completed_at: datetime
    attempts: list[TrainingStarted]
    started_at: datetime
    lost: list[TrainingAttemptLost]
    reduced: list[TrainingBatchReduced]
    checkpoints: int
    evaluations: list[TrainingEvaluated]
    samples: list[TrainingSampled]
    project_name: str = ""
    licence: str = ""
    """Of the base model, as far as the project knows it."""
    withheld: int = 0
    """Samples that nobody is shown any more: their example was deleted or taken out since."""
    merged: dict[str, Any] = {}
    """What the merge tells of itself, where there was one."""
    sources: list[Source] = []
    """Whose rows it learned from."""
    files: dict[str, File] = {}
    """By the ingest job that read them."""
    documents: list[File] = []
    """Of which the examples were made, where a generate job is among the sources."""

    @property
    def seconds(self) -> float:
        """From the first attempt's start to the end, with all that came between."""
        return (self.completed_at - self.started_at).total_seconds()

    @property
    def summary(self) -> dict[str, Any]:
        return self.completed.summary


async def read(event_log: EventLog, *, tenant: str, job_id: str, project_id: str, until: int) -> Run:
    """Facts behind `until` are left out: who reads again after a crash reads the same."""
    run = _fold(await _facts(event_log, story(tenant, job_id), until), project_id)
    run.sources = run.inputs.sources or await of_project(event_log, tenant, project_id, position=run.created.seq)
    cut = await _when_cut(event_log, tenant, run)
    for fact in await _facts(event_log, Address(tenant=tenant, category="project", key=(project_id,)).guard, until):
        match fact.event:
            case ProjectCreated(name=name):
                run.project_name = name
            case ProjectUpdated(name=str(name)):
                run.project_name = name
            case ProjectFilesAdded(files=files):
                run.files |= {file.job_id: file for file in files}
                run.documents += [file for file in files if file.kind == DOCUMENT and fact.seq < cut]
            case ProjectModelResolved(base_model_id=model, model_info=info) if model == run.tuning.base_model:
                run.licence = str(info.get("license") or "")
            case ProjectFileDeleted(file_id=file_id) if fact.seq < run.created.seq:
                run.documents = [file for file in run.documents if file.file_id != file_id]
            case ProjectFileDeleted(file_id=file_id, job_id=ingest) if any(
                ingest == source.job_id or file_id == source.file_id for source in run.sources
            ) or any(file_id == file.file_id for file in run.documents):
                _withhold(run, {_example(sample) for told in run.samples for sample in told.samples})
            case _:
                continue
    shown = {_example(sample) for told in run.samples for sample in told.samples}
    _withhold(run, {id for id in shown if _TOKEN.fullmatch(id) and await _hidden(event_log, tenant, project_id, id, until)})
    return run


async def _when_cut(event_log: EventLog, tenant: str, run: Run) -> int:
    """Where the job was created that cut documents into what its examples were made of; 0 where they were not."""
    for source in run.sources:
        for generate in await event_log.read(_founding(tenant, source.job_id)):
            if isinstance(generate.event, JobCreated) and generate.event.kind == GENERATE:
                chunks = msgspec.convert(generate.event.inputs, GenerateInputs).chunks
                return max((cut.seq for cut in await event_log.read(_founding(tenant, chunks))), default=0)
    return 0


def _founding(tenant: str, job_id: str) -> str:
    return Address(tenant=tenant, category="job", key=(job_id,)).under("created")


async def merge_of(event_log: EventLog, *, tenant: str, job_id: str) -> TrainingCompleted:
    """What the stage before an export has left."""
    for fact in await event_log.read(Address(tenant=tenant, category="training", key=(job_id,)).under("completed")):
        if isinstance(fact.event, TrainingCompleted):
            return fact.event
    raise Refused("merge_missing", "The adapter was not merged, so there is no merged model to export.")


async def _hidden(event_log: EventLog, tenant: str, project_id: str, example_id: str, until: int) -> bool:
    """By the latest word of a person on it."""
    hidden = False
    for fact in await _facts(event_log, Address(tenant=tenant, category="example", key=(project_id, example_id)).guard, until):
        match fact.event:
            case ExampleMarked(is_valid=is_valid):
                hidden = not is_valid
            case ExampleDeleted():
                return True
            case _:
                continue
    return hidden


def _withhold(run: Run, examples: set[str]) -> None:
    for n, told in enumerate(run.samples):
        left = [sample for sample in told.samples if _example(sample) not in examples]
        run.withheld = max(run.withheld, len(told.samples) - len(left))
        run.samples[n] = msgspec.structs.replace(told, samples=left)


def _example(sample: dict[str, Any]) -> str:
    return str(sample.get("example_id", ""))


async def _facts(event_log: EventLog, pattern: str, until: int) -> list[Recorded]:
    return [decode(raw.data, seq=raw.seq, subject=raw.subject) async for raw in event_log.scan_to(pattern, last=until)]


def _fold(told: list[Recorded], project_id: str) -> Run:
    founded = told[0] if told else None
    if founded is None or not isinstance(founded.event, JobCreated) or founded.event.kind != "train" or founded.event.project_id != project_id:
        raise Refused("training_missing", "There is no such training run in this project. Start one, and export it when it has completed.")
    preparation: PreparationCompleted | None = None
    completed: tuple[Recorded, TrainingCompleted] | None = None
    attempts: list[tuple[Recorded, TrainingStarted]] = []
    lost: list[TrainingAttemptLost] = []
    reduced: list[TrainingBatchReduced] = []
    checkpoints = 0
    evaluations: dict[int, TrainingEvaluated] = {}
    samples: dict[int, TrainingSampled] = {}
    for fact in told:
        match fact.event:
            case PreparationCompleted() as event:
                preparation = event
            case TrainingStarted(resumed_from=resumed_from) as event:
                attempts.append((fact, event))
                evaluations = {step: one for step, one in evaluations.items() if step <= resumed_from}
                samples = {step: one for step, one in samples.items() if step <= resumed_from}
            case TrainingEvaluated(step=step) as event:
                evaluations[step] = event
            case TrainingSampled(step=step) as event:
                samples[step] = event
            case TrainingCheckpointed():
                checkpoints += 1
            case TrainingBatchReduced() as event:
                reduced.append(event)
            case TrainingAttemptLost() as event:
                lost.append(event)
            case TrainingCompleted() as event:
                completed = (fact, event)
            case TrainingFailed():
                raise Refused("training_not_completed", "The training run failed, so there is no model to export. Its own error says why.")
            case TrainingCancelled():
                raise Refused("training_not_completed", "The training run was cancelled, so there is no model to export.")
            case _:
                continue
    if completed is None or preparation is None or not attempts:
        raise Refused("training_not_completed", "The training run had not completed when this export was asked for. Export again when it has.")
    return Run(
        created=founded,
        job=founded.event,
        tuning=msgspec.convert(founded.event.spec, FineTune),
        inputs=msgspec.convert(founded.event.inputs, TrainInputs),
        preparation=preparation,
        completed=completed[1],
        completed_id=completed[0].id,
        completed_at=completed[0].at,
        attempts=[event for _, event in attempts],
        started_at=attempts[0][0].at,
        lost=lost,
        reduced=reduced,
        checkpoints=checkpoints,
        evaluations=[evaluations[step] for step in sorted(evaluations)],
        samples=[samples[step] for step in sorted(samples)],
    )
