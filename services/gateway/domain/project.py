"""What can be done to a project, and what forbids it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from libs import tiny
from libs.events import (
    Ancestor,
    ChunkInputs,
    ChunkSpec,
    Event,
    ExportInputs,
    File,
    FineTune,
    GenerateInputs,
    GenerateSpec,
    JobCancelRequested,
    JobCreated,
    ProjectCreated,
    ProjectDeleted,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectModelResolved,
    ProjectRunStarted,
    ProjectUpdated,
    ProjectWorkStarted,
    Recorded,
    Source,
    TrainInputs,
)
from services.gateway.domain.credit import Purse
from services.gateway.domain.errors import (
    ChunkingAlreadyRunning,
    ChunksTooLarge,
    Conflicted,
    FileBusy,
    GenerationAlreadyRunning,
    IdempotencyKeyReused,
    ModelNotResolved,
    ModelNotUsable,
    NoChunks,
    NoDocuments,
    NoSuccessfulRun,
    NotFound,
    NoTrainingData,
    ProjectBusy,
    ProjectFull,
    TrainingAlreadyRunning,
)
from services.gateway.domain.jobs import CHUNK, EXPORT, GENERATE, INGEST, MERGE_AND_EXPORT, PREVIEW, STAGES, TRAIN
from services.gateway.domain.quota import Quota, Starter, charged

MB = 1024 * 1024
DATASET, DOCUMENT = "dataset_upload", "raw_doc"
SHORTEST, LONGEST = 8, 1_048_576
"""Tokens of a row that anybody may ask for."""
DELETED = "project deleted"
OWN = "trainyard/"
"""What the names of models begin with that are the platform's own: of a run, or the bundled one."""
LEND = "lend"
"""The work of a project whose run is the base of another project's job."""
CANCELLED_AT_ONCE = 100
"""Jobs that are cancelled in one batch with their project's end, as far as a batch goes; the others are right behind it (reactions.py)."""


def is_own(model_id: str) -> bool:
    """Whether it was trained here."""
    return model_id.startswith(OWN) and model_id != tiny.BASE


class Project(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str
    task_type: str
    config: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    files: dict[str, File] = {}
    active_jobs: frozenset[str] = frozenset()
    """Jobs that may still run."""
    barren_jobs: frozenset[str] = frozenset()
    """Jobs that read a file or made examples and ended without a usable row."""
    works: frozenset[str] = frozenset()
    """Its jobs that are not of a single file."""
    base_model_id: str = ""
    model_info: dict[str, Any] = {}
    revision: str = ""
    run: str = ""
    """The latest train job."""
    read_by_run: frozenset[str] = frozenset()
    """Ingest jobs that the latest train job still has to read."""
    trained: str = ""
    """The latest train job that succeeded."""
    whole: bool = False
    """That run's weights are a whole model's: there is nothing to merge."""
    exporting: str = ""
    """The latest export of that, unless it has ended."""
    merging: str = ""
    """The latest of those that merges it first."""
    chunking: str = ""
    """The latest job that cuts its documents."""
    chunked: str = ""
    """The latest of those that succeeded."""
    generating: str = ""
    """The latest job that makes its examples; previews aside."""
    generated: str = ""
    """The latest of those that succeeded."""
    previewing: str = ""
    request: str = ""
    deleted: bool = False


class CreateProject(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    name: str
    description: str
    task_type: str
    config: dict[str, Any]
    request: str


class ChangeProject(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves a field as it is; `config` is merged."""

    project_id: str
    name: str | None = None
    description: str | None = None
    task_type: str | None = None
    config: dict[str, Any] | None = None


class DeleteProject(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    cancel: bool = False


class AddFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Files whose bytes are stored already. Each gets a job of its own that reads it."""

    project_id: str
    files: list[File]
    limit_mb: int


class DeleteFile(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str
    file_id: str
    cancel: bool = False


class ResolveModel(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a base model becomes part of the project, also when it can't be trained: then with the reasons."""

    project_id: str
    base_model_id: str
    model_info: dict[str, Any]
    revision: str


class OwnBase(msgspec.Struct, frozen=True, kw_only=True):
    """A base that was trained here, as far as a job must know it: see FineTune."""

    tenant: str
    model_id: str
    ancestors: list[Ancestor]
    root: str = ""
    root_revision: str = ""
    unusable: str = ""
    """Why nothing can be trained on it now."""

    @property
    def lenders(self) -> list[str]:
        """The projects that have the runs."""
        return list(dict.fromkeys(ancestor.project_id for ancestor in self.ancestors))


class StartTraining(msgspec.Struct, frozen=True, kw_only=True):
    """`hyperparams` are fields of a FineTune, checked already; `own` is what the base is made of where it was trained here."""

    project_id: str
    job_id: str
    method: str
    preset: str = ""
    hyperparams: dict[str, Any] = {}
    own: OwnBase | None = None
    smoke: bool = False
    request: str = ""
    starter: Starter = Starter()


class ExportRun(msgspec.Struct, frozen=True, kw_only=True):
    """Of the latest run that succeeded. While it is being exported already, that is the answer, if it has all that is asked for: see `in_hand`."""

    project_id: str
    job_id: str
    merged: bool = False
    """A whole model, too: the adapter is merged into its base first."""
    request: str = ""


class ChunkDocuments(msgspec.Struct, frozen=True, kw_only=True):
    """Overlap and size are in tokens of the base model, or of the platform's own tokenizer before one is chosen."""

    project_id: str
    job_id: str
    size: int
    overlap: int
    request: str = ""


class GenerateExamples(msgspec.Struct, frozen=True, kw_only=True):
    """Out of the chunks. What is None follows from the project's config."""

    project_id: str
    job_id: str
    preview: bool
    num_examples: int | None = None
    examples_per_chunk: int | None = None
    model: str = ""
    request: str = ""


Command = CreateProject | ChangeProject | DeleteProject | AddFiles | DeleteFile | ResolveModel | ChunkDocuments | GenerateExamples | StartTraining | ExportRun


def evolve(project: Project | None, recorded: Recorded) -> Project | None:
    event = recorded.event
    if isinstance(event, ProjectCreated):
        return Project(
            id=event.project_id,
            name=event.name,
            description=event.description,
            task_type=event.task_type,
            config=event.config,
            created_at=recorded.at,
            updated_at=recorded.at,
            request=event.request,
        )
    if project is None:
        return None
    match event:
        case ProjectUpdated():
            change = {field: value for field in ("name", "description", "task_type") if (value := getattr(event, field)) is not None}
            return msgspec.structs.replace(project, **change, config={**project.config, **(event.config or {})}, updated_at=recorded.at)
        case ProjectFilesAdded(files=files):
            added = {file.file_id: file for file in files}
            jobs = {file.job_id for file in files if file.job_id}
            return msgspec.structs.replace(project, files=project.files | added, active_jobs=project.active_jobs | jobs, updated_at=recorded.at)
        case ProjectFileDeleted(file_id=gone):
            rest = {id: file for id, file in project.files.items() if id != gone}
            return msgspec.structs.replace(project, files=rest, updated_at=recorded.at)
        case ProjectModelResolved(base_model_id=id, model_info=info, revision=revision):
            return msgspec.structs.replace(project, base_model_id=id, model_info=info, revision=revision, updated_at=recorded.at)
        case ProjectRunStarted(job_id=job):
            reads = frozenset(source.job_id for source in _sources(project))
            return msgspec.structs.replace(_at_work(project, job), run=job, read_by_run=reads, updated_at=recorded.at)
        case ProjectWorkStarted(job_id=job, kind=work) if work == LEND:
            return msgspec.structs.replace(project, active_jobs=project.active_jobs | {job})
        case ProjectWorkStarted(job_id=job, kind=kind):
            latest = {_LATEST[kind]: job} if kind in _LATEST else {}
            if event.merged:
                latest["merging"] = job
            return msgspec.structs.replace(_at_work(project, job), **latest, updated_at=recorded.at)
        case ProjectDeleted():
            return msgspec.structs.replace(project, deleted=True)
        case _:
            return project


_LATEST = {EXPORT: "exporting", CHUNK: "chunking", GENERATE: "generating", PREVIEW: "previewing"}


def _at_work(project: Project, job: str) -> Project:
    return msgspec.structs.replace(project, active_jobs=project.active_jobs | {job}, works=project.works | {job})


def decide(
    project: Project | None, command: Command, purse: Purse | None = None, quota: Quota | None = None, lenders: Sequence[Project | None] = ()
) -> list[Event]:
    """`purse` and `quota` are those of who starts a training, `lenders` the other projects whose runs its base is made of."""
    if isinstance(command, CreateProject):
        return _create(project, command)
    if project is None or project.deleted:
        raise NotFound(what="Project", id=command.project_id)
    match command:
        case ChangeProject():
            return _change(project, command)
        case DeleteProject():
            if project.active_jobs and not command.cancel:
                raise ProjectBusy(job_ids=sorted(project.active_jobs))
            cancelled = [JobCancelRequested(job_id=job, reason=DELETED) for job in sorted(project.active_jobs)[:CANCELLED_AT_ONCE]]
            return [*cancelled, ProjectDeleted(project_id=project.id)]
        case AddFiles():
            return _add(project, command)
        case DeleteFile():
            return _delete_file(project, command)
        case ResolveModel():
            return _resolve(project, command)
        case ChunkDocuments():
            return _chunk(project, command)
        case GenerateExamples():
            return _generate(project, command)
        case StartTraining():
            return _train(project, command, purse, quota, lenders)
        case ExportRun():
            return _export(project, command)


def _create(project: Project | None, command: CreateProject) -> list[Event]:
    if project is None:
        return [
            ProjectCreated(
                project_id=command.project_id,
                name=command.name,
                description=command.description,
                task_type=command.task_type,
                config=command.config,
                request=command.request,
            )
        ]
    if project.request != command.request:
        raise IdempotencyKeyReused(id=project.id)
    return []  # the same request again


def _change(project: Project, command: ChangeProject) -> list[Event]:
    wanted = {field: value for field in ("name", "description", "task_type") if (value := getattr(command, field)) not in (None, getattr(project, field))}
    config = {key: value for key, value in (command.config or {}).items() if key not in project.config or not _same(project.config[key], value)}
    if not wanted and not config:
        return []
    return [ProjectUpdated(project_id=project.id, **wanted, config=config or None)]


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: for Python 1 and true are equal."""
    return msgspec.json.encode(one, order="deterministic") == msgspec.json.encode(other, order="deterministic")


def _add(project: Project, command: AddFiles) -> list[Event]:
    new = [file for file in command.files if file.file_id not in project.files]
    if any(project.files[file.file_id].sha256 != file.sha256 for file in command.files if file not in new):
        raise IdempotencyKeyReused(id=project.id)
    if not new:
        return []  # the same request again
    if sum(file.size for file in (*project.files.values(), *new)) > command.limit_mb * MB:
        raise ProjectFull(limit_mb=command.limit_mb)
    jobs = [
        JobCreated(
            job_id=file.job_id,
            kind=INGEST,
            stages=STAGES[INGEST],
            project_id=project.id,
            inputs={"project_id": project.id, "file": msgspec.to_builtins(file)},
            spec={"train_share": project.config.get("train_eval_split", 0.9)},
        )
        for file in new
        if file.job_id
    ]
    return [ProjectFilesAdded(project_id=project.id, files=new), *jobs]


def _delete_file(project: Project, command: DeleteFile) -> list[Event]:
    if (file := project.files.get(command.file_id)) is None:
        raise NotFound(what="File", id=command.file_id)
    deleted = ProjectFileDeleted(project_id=project.id, file_id=file.file_id, key=file.key, job_id=file.job_id)
    of_documents = [project.chunking, project.generating, project.previewing] if file.kind == DOCUMENT else []
    readers = [file.job_id, *of_documents, *([project.run] if file.job_id in project.read_by_run else [])]
    if not (busy := [job for job in readers if job in project.active_jobs]):
        return [deleted]
    if not command.cancel:
        raise FileBusy(job_ids=busy)
    return [*(JobCancelRequested(job_id=job, reason="file deleted") for job in busy), deleted]


def _resolve(project: Project, command: ResolveModel) -> list[Event]:
    known = (project.base_model_id, project.model_info, project.revision)
    if _same(known, (command.base_model_id, command.model_info, command.revision)):
        return []
    return [
        ProjectModelResolved(project_id=project.id, base_model_id=command.base_model_id, model_info=command.model_info, revision=command.revision),
    ]


def _chunk(project: Project, command: ChunkDocuments) -> list[Event]:
    if command.job_id in project.works:
        return []  # the same request again
    if project.chunking in project.active_jobs:
        raise ChunkingAlreadyRunning(job_id=project.chunking)
    if all(file.kind != DOCUMENT for file in project.files.values()):
        raise NoDocuments(project_id=project.id)
    if (context := project.model_info.get("max_position_embeddings")) and command.size > context:
        raise ChunksTooLarge(size=command.size, context=context)
    spec = ChunkSpec(chunk_size_tokens=command.size, chunk_overlap_tokens=command.overlap, base_model=project.base_model_id, revision=project.revision)
    return _work(project, command.job_id, CHUNK, ChunkInputs(project_id=project.id), spec, command.request)


def _generate(project: Project, command: GenerateExamples) -> list[Event]:
    if command.job_id in project.works:
        return []  # the same request again
    kind, latest = (PREVIEW, project.previewing) if command.preview else (GENERATE, project.generating)
    if latest in project.active_jobs:
        raise GenerationAlreadyRunning(job_id=latest)
    chunks = project.chunking if project.chunking in project.active_jobs else project.chunked
    if not chunks:
        raise NoChunks(project_id=project.id)
    wanted = {"num_examples": command.num_examples, "examples_per_chunk": command.examples_per_chunk}
    if not command.preview and command.num_examples is None:
        wanted["num_examples"] = project.config.get("num_examples_target")
    spec = msgspec.convert(
        {
            **{name: value for name, value in wanted.items() if value is not None},
            "task_type": project.task_type or "instruction",
            "preview": command.preview,
            "model": command.model,
            "train_share": project.config.get("train_eval_split", 0.9),
        },
        GenerateSpec,
    )
    return _work(project, command.job_id, kind, GenerateInputs(project_id=project.id, chunks=chunks), spec, command.request)


def _work(project: Project, job_id: str, kind: str, inputs: msgspec.Struct, spec: msgspec.Struct | None, request: str) -> list[Event]:
    job = JobCreated(
        job_id=job_id,
        kind=kind,
        stages=STAGES[kind],
        project_id=project.id,
        inputs=msgspec.to_builtins(inputs),
        spec=msgspec.to_builtins(spec) if spec else {},
        request=request,
    )
    return [ProjectWorkStarted(project_id=project.id, job_id=job_id, kind=kind), job]


def _train(project: Project, command: StartTraining, purse: Purse | None, quota: Quota | None, lenders: Sequence[Project | None]) -> list[Event]:
    if command.job_id in project.works:
        return []  # the same request again
    if project.run in project.active_jobs:
        raise TrainingAlreadyRunning(job_id=project.run)
    tuning = planned(project, command)
    lent = _lent(project, command, lenders)
    besides = charged(command.starter, purse, quota, job_id=command.job_id)
    job = JobCreated(
        job_id=command.job_id,
        kind=TRAIN,
        stages=STAGES[TRAIN],
        project_id=project.id,
        inputs=msgspec.to_builtins(TrainInputs(project_id=project.id)),
        spec=msgspec.to_builtins(tuning),
        request=command.request,
        payer=command.starter.payer,
        price=command.starter.price,
    )
    return [ProjectRunStarted(project_id=project.id, job_id=command.job_id), *lent, *besides, job]


def _lent(project: Project, command: StartTraining, lenders: Sequence[Project | None]) -> list[Event]:
    """Whoever deletes one of them meanwhile sees it, or is seen."""
    if any(lender is None or lender.deleted for lender in lenders):
        raise ModelNotUsable(base_model_id=project.base_model_id, reason="a run that it is made of was deleted with its project")
    return [ProjectWorkStarted(project_id=lender.id, job_id=command.job_id, kind=LEND) for lender in lenders if lender]


def planned(project: Project, command: StartTraining) -> FineTune:
    """What would be trained. Raises what forbids it, but for a run that goes on already and for what it costs."""
    if not project.base_model_id:
        raise ModelNotResolved(project_id=project.id)
    if not project.model_info.get("valid", False):
        raise ModelNotUsable(base_model_id=project.base_model_id, reason="; ".join(project.model_info.get("warnings", [])))
    if not _sources(project):
        raise NoTrainingData(project_id=project.id)
    own = command.own
    if (own.model_id if own else "") != (project.base_model_id if is_own(project.base_model_id) else ""):
        raise Conflicted  # another model was looked up
    if own and own.unusable:
        raise ModelNotUsable(base_model_id=project.base_model_id, reason=own.unusable)
    base = {"base_model": project.base_model_id, "revision": project.revision, "method": command.method, "preset": command.preset, "smoke": command.smoke}
    if own:
        base |= {"ancestors": own.ancestors, "root": own.root, "root_revision": own.root_revision}
    return msgspec.convert({"max_seq_length": row_length(project, project.model_info.get("max_position_embeddings"))} | command.hyperparams | base, FineTune)


def still_coming(project: Project) -> bool:
    """Whether there will be more examples: files are being read, or examples made."""
    return any(source.job_id in project.active_jobs for source in _sources(project))


def _sources(project: Project) -> list[Source]:
    """Also of files that are still being read, and examples that are still being made: the training waits for them. libs/sources.py says the same of the log."""
    files = [file for file in project.files.values() if file.kind == DATASET and file.job_id and file.job_id not in project.barren_jobs]
    made = project.generating if project.generating in project.active_jobs else project.generated
    sources = [Source(job_id=file.job_id, file_id=file.file_id) for file in files]
    return [*sources, Source(job_id=made)] if made and made not in project.barren_jobs else sources


def row_length(project: Project, context: int | None) -> int:
    """As the project's config wants it, as far as the model goes."""
    return max(SHORTEST, min(project.config.get("max_seq_length", 2048), context or LONGEST, LONGEST))


def _export(project: Project, command: ExportRun) -> list[Event]:
    merges = command.merged and not project.whole
    if command.job_id in project.works or in_hand(project, merged=merges) in project.active_jobs:
        return []  # the same request again, or what it asks for is being done
    if not project.trained:
        raise NoSuccessfulRun(project_id=project.id)
    inputs = ExportInputs(project_id=project.id, training_job_id=project.trained, merged=command.merged)
    job = JobCreated(
        job_id=command.job_id,
        kind=EXPORT,
        stages=MERGE_AND_EXPORT if merges else STAGES[EXPORT],
        project_id=project.id,
        inputs=msgspec.to_builtins(inputs),
        request=command.request,
    )
    return [ProjectWorkStarted(project_id=project.id, job_id=command.job_id, kind=EXPORT, merged=merges), job]


def in_hand(project: Project, *, merged: bool) -> str:
    """The export that is under way and has all of it: one that merges leaves the adapter too."""
    return project.merging if merged and not project.whole else project.exporting
