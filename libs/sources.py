"""Whose rows a training reads when it reads all that its project has: what the log says up to the training's own position."""

from libs.events import Event, PreparationCancelled, PreparationFailed, ProjectFileDeleted, ProjectFilesAdded, ProjectWorkStarted, Source, decode, kind
from libs.events.log import EventLog

DATASET = "dataset_upload"
"""The kind of files that have rows."""
GENERATE = "generate"
"""The kind of jobs that make examples."""


async def of_project(log: EventLog, tenant: str, project_id: str, *, position: int) -> list[Source]:
    """The jobs that read its files, in the order in which those came, and the latest that generated examples; less those that had failed or been cancelled."""
    files: dict[str, Source] = {}
    generated: list[str] = []
    async for raw in log.scan_to(f"ev.{tenant}.project.*.{project_id}", last=position):
        match decode(raw.data, seq=raw.seq, subject=raw.subject).event:
            case ProjectFilesAdded(files=added):
                files |= {file.file_id: Source(job_id=file.job_id, file_id=file.file_id) for file in added if file.kind == DATASET and file.job_id}
            case ProjectFileDeleted(file_id=gone):
                files.pop(gone, None)
            case ProjectWorkStarted(job_id=job, kind=work) if work == GENERATE:
                generated.append(job)
            case _:
                continue
    lost = await _lost(log, tenant, position=position)
    made = next((job for job in reversed(generated) if job not in lost), "")
    return [source for source in files.values() if source.job_id not in lost] + ([Source(job_id=made)] if made else [])


async def _lost(log: EventLog, tenant: str, *, position: int) -> set[str]:
    """All of the workspace: they are few, and asking for each of a thousand jobs takes longer."""
    ends: tuple[type[Event], ...] = (PreparationFailed, PreparationCancelled)
    return {raw.subject.rsplit(".", 1)[1] for end in ends async for raw in log.scan_to(f"ev.{tenant}.{kind(end)}.*", last=position)}
