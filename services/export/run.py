"""What the log says of a training run and of where its rows came from, up to the fact that asked for the export."""

from datetime import datetime
from typing import Any

import msgspec

from libs.events import (
    Address,
    File,
    FineTune,
    JobCreated,
    PreparationCompleted,
    ProjectCreated,
    ProjectFilesAdded,
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
from libs.sources import of_project

from .refused import Refused


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
    sources: list[Source] = []
    """Whose rows it learned from."""
    files: dict[str, File] = {}
    """By the ingest job that read them."""

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
    for fact in await _facts(event_log, Address(tenant=tenant, category="project", key=(project_id,)).guard, until):
        match fact.event:
            case ProjectCreated(name=name):
                run.project_name = name
            case ProjectUpdated(name=str(name)):
                run.project_name = name
            case ProjectFilesAdded(files=files):
                run.files |= {file.job_id: file for file in files}
            case _:
                continue
    return run


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
