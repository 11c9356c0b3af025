"""The rules of projects."""

from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from libs.events import (
    Ancestor,
    File,
    FineTune,
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
    TrainInputs,
)
from services.gateway.api.uploads import MOST_FILES, WORD
from services.gateway.domain.errors import (
    Conflicted,
    DomainError,
    FileBusy,
    IdempotencyKeyReused,
    ModelNotResolved,
    ModelNotUsable,
    NoSuccessfulRun,
    NotFound,
    NoTrainingData,
    ProjectBusy,
    ProjectFull,
    TrainingAlreadyRunning,
)
from services.gateway.domain.project import (
    MB,
    AddFiles,
    ChangeProject,
    Command,
    CreateProject,
    DeleteFile,
    DeleteProject,
    ExportRun,
    OwnBase,
    Project,
    ResolveModel,
    StartTraining,
    decide,
    evolve,
    in_hand,
)
from tests.kit.given import given, recorded

CREATE = CreateProject(project_id="p", name="yard", description="", task_type="qa", config={"train_eval_split": 0.8}, request="r1")
CREATED = ProjectCreated(project_id="p", name="yard", task_type="qa", config={"train_eval_split": 0.8}, request="r1")


def file(name: str, size: int = 100, sha256: str = "") -> File:
    return File(
        file_id=name,
        filename=f"{name}.jsonl",
        kind="dataset_upload",
        mime_type="application/jsonl",
        size=size,
        sha256=sha256 or name,
        key=f"k/{name}",
        job_id=f"job-{name}",
    )


def add(*files: File, limit_mb: int = 1) -> AddFiles:
    return AddFiles(project_id="p", files=list(files), limit_mb=limit_mb)


ADDED = ProjectFilesAdded(project_id="p", files=[file("a")])
INFO = {"valid": True, "warnings": [], "max_position_embeddings": 4096}
RESOLVE = ResolveModel(project_id="p", base_model_id="some/llama", model_info=INFO, revision="abc")
RESOLVED = ProjectModelResolved(project_id="p", base_model_id="some/llama", model_info=INFO, revision="abc")
START = StartTraining(project_id="p", job_id="train-1", method="lora", hyperparams={"lora_r": 8}, request="r")
STARTED = ProjectRunStarted(project_id="p", job_id="train-1")
EXPORT = ExportRun(project_id="p", job_id="export-1", request="r")


def test_a_project_is_created():
    assert decide(None, CREATE) == [CREATED]


def test_the_same_creation_again_is_no_second_one():
    assert decide(given(evolve, CREATED), CREATE) == []


def test_another_creation_under_the_same_key_is_refused():
    other = CreateProject(project_id="p", name="other", description="", task_type="qa", config={}, request="r2")

    with pytest.raises(IdempotencyKeyReused):
        decide(given(evolve, CREATED), other)


def test_a_change_records_only_what_changes():
    change = ChangeProject(project_id="p", name="yard", task_type="chat", config={"train_eval_split": 0.8, "max_seq_length": 512})

    assert decide(given(evolve, CREATED), change) == [ProjectUpdated(project_id="p", task_type="chat", config={"max_seq_length": 512})]


def test_a_change_to_what_is_already_so_records_nothing():
    assert decide(given(evolve, CREATED), ChangeProject(project_id="p", name="yard")) == []


def test_config_is_merged_not_replaced():
    project = given(evolve, CREATED, ProjectUpdated(project_id="p", config={"max_seq_length": 512}))

    assert project.config == {"train_eval_split": 0.8, "max_seq_length": 512}


@pytest.mark.parametrize(
    "command",
    [
        ChangeProject(project_id="p"),
        DeleteProject(project_id="p"),
        add(file("a")),
        DeleteFile(project_id="p", file_id="a"),
        RESOLVE,
        START,
        EXPORT,
    ],
)
@pytest.mark.parametrize("history", [(), (CREATED, ProjectDeleted(project_id="p"))], ids=["never there", "deleted"])
def test_nothing_can_be_done_to_a_project_that_is_not_there(command: Command, history: tuple):
    with pytest.raises(NotFound):
        decide(given(evolve, *history), command)


def test_each_file_gets_a_job_of_its_own_in_the_same_batch():
    first, *jobs = decide(given(evolve, CREATED), add(file("a"), file("b")))

    assert first == ProjectFilesAdded(project_id="p", files=[file("a"), file("b")])
    assert [(job.job_id, job.kind, job.stages, job.spec) for job in jobs if isinstance(job, JobCreated)] == [
        ("job-a", "ingest", ["preparation"], {"train_share": 0.8}),
        ("job-b", "ingest", ["preparation"], {"train_share": 0.8}),
    ]


def test_the_same_upload_again_adds_nothing():
    assert decide(given(evolve, CREATED, ADDED), add(file("a"))) == []


def test_other_bytes_under_the_same_key_are_refused():
    with pytest.raises(IdempotencyKeyReused):
        decide(given(evolve, CREATED, ADDED), add(file("a", sha256="other")))


def test_files_beyond_the_projects_limit_are_refused_counting_those_that_are_there():
    project = given(evolve, CREATED, ProjectFilesAdded(project_id="p", files=[file("a", size=900_000)]))

    assert decide(project, add(file("b", size=148_576)))
    with pytest.raises(ProjectFull):
        decide(project, add(file("b", size=148_577)))


def test_a_deleted_file_makes_room():
    project = given(
        evolve, CREATED, ProjectFilesAdded(project_id="p", files=[file("a", size=900_000)]), ProjectFileDeleted(project_id="p", file_id="a", key="k/a")
    )

    assert decide(project, add(file("b", size=900_000)))


def test_a_project_with_a_running_job_is_not_deleted():
    with pytest.raises(ProjectBusy) as refusal:
        decide(given(evolve, CREATED, ADDED), DeleteProject(project_id="p"))

    assert refusal.value.context == {"job_ids": ["job-a"]}


def test_unless_its_jobs_are_cancelled_in_the_same_batch():
    decided = decide(given(evolve, CREATED, ADDED), DeleteProject(project_id="p", cancel=True))

    assert decided == [JobCancelRequested(job_id="job-a", reason="project deleted"), ProjectDeleted(project_id="p")]


def test_a_file_that_a_job_reads_is_not_deleted_unless_that_is_cancelled():
    project = given(evolve, CREATED, ADDED)

    with pytest.raises(FileBusy):
        decide(project, DeleteFile(project_id="p", file_id="a"))
    assert decide(project, DeleteFile(project_id="p", file_id="a", cancel=True)) == [
        JobCancelRequested(job_id="job-a", reason="file deleted"),
        ProjectFileDeleted(project_id="p", file_id="a", key="k/a", job_id="job-a"),
    ]


def test_a_file_that_is_not_there_is_not_deleted():
    with pytest.raises(NotFound):
        decide(given(evolve, CREATED, ADDED), DeleteFile(project_id="p", file_id="b"))


def test_a_resolved_model_is_remembered_with_the_commit_it_was_read_at():
    assert decide(given(evolve, CREATED), RESOLVE) == [RESOLVED]


def test_the_same_model_resolved_again_is_no_news_but_another_commit_of_it_is():
    project = given(evolve, CREATED, RESOLVED)

    assert decide(project, RESOLVE) == []
    assert len(decide(project, ResolveModel(project_id="p", base_model_id="some/llama", model_info=INFO, revision="abd"))) == 1


def test_a_training_is_one_batch_of_the_projects_fact_and_its_job():
    first, job = decide(given(evolve, CREATED, ADDED, RESOLVED), START)

    assert first == STARTED
    assert isinstance(job, JobCreated)
    assert (job.job_id, job.kind, job.stages, job.project_id, job.request) == ("train-1", "train", ["preparation", "training"], "p", "r")
    assert msgspec.convert(job.inputs, TrainInputs) == TrainInputs(project_id="p")
    assert msgspec.convert(job.spec, FineTune) == FineTune(base_model="some/llama", revision="abc", method="lora", lora_r=8, max_seq_length=2048)


OWN = ProjectModelResolved(project_id="p", base_model_id="trainyard/run-1", model_info=INFO)
ANCESTOR = Ancestor(job_id="run-1", project_id="lender", method="lora", files={})
ON_OWN = StartTraining(
    project_id="p", job_id="train-1", method="lora", own=OwnBase(tenant="t", model_id="trainyard/run-1", root="some/llama", ancestors=[ANCESTOR])
)
LENDER = given(evolve, msgspec.structs.replace(CREATED, project_id="lender"))


def test_a_run_on_a_model_of_another_project_is_told_to_that_project_in_the_same_batch():
    _, lent, job = decide(given(evolve, CREATED, ADDED, OWN), ON_OWN, lenders=[LENDER])

    assert lent == ProjectWorkStarted(project_id="lender", job_id="train-1", kind="lend")
    assert isinstance(job, JobCreated)
    tuning = msgspec.convert(job.spec, FineTune)
    assert (tuning.base_model, tuning.root, tuning.ancestors) == ("trainyard/run-1", "some/llama", [ANCESTOR])


def test_a_project_that_lends_a_model_is_not_deleted_but_its_own_work_goes_on():
    lending = given(evolve, CREATED, ADDED, RESOLVED, ProjectWorkStarted(project_id="p", job_id="train-9", kind="lend"))

    with pytest.raises(ProjectBusy) as refusal:
        decide(lending, DeleteProject(project_id="p"))
    assert "train-9" in refusal.value.context["job_ids"]
    assert decide(lending, START)


@pytest.mark.parametrize("lenders", [[None], [given(evolve, CREATED, ProjectDeleted(project_id="p"))]], ids=["gone", "deleted"])
def test_a_model_whose_project_was_deleted_meanwhile_is_refused(lenders: list[Any]):
    with pytest.raises(ModelNotUsable):
        decide(given(evolve, CREATED, ADDED, OWN), ON_OWN, lenders=lenders)


def test_a_start_on_another_model_than_was_looked_up_is_looked_at_again():
    with pytest.raises(Conflicted):
        decide(given(evolve, CREATED, ADDED, RESOLVED), ON_OWN, lenders=[LENDER])
    with pytest.raises(Conflicted):
        decide(given(evolve, CREATED, ADDED, OWN), START)


def test_a_model_of_ours_that_can_be_none_any_more_is_refused_but_what_was_started_on_it_stays_started():
    assert ON_OWN.own
    gone = msgspec.structs.replace(ON_OWN, own=msgspec.structs.replace(ON_OWN.own, ancestors=[], unusable="it is gone"))
    history = (CREATED, ADDED, OWN, ProjectRunStarted(project_id="p", job_id=ON_OWN.job_id))

    with pytest.raises(ModelNotUsable, match="it is gone"):
        decide(given(evolve, *history[:-1]), gone)
    assert decide(given(evolve, *history), gone) == []


@pytest.mark.parametrize(("config", "limit", "length"), [(512, 4096, 512), (8192, 4096, 4096), (8192, None, 8192), (10_000_000, None, 1_048_576), (512, 1, 8)])
def test_rows_are_as_long_as_the_project_wants_and_the_model_can(config: int, limit: int | None, length: int):
    changed = ProjectUpdated(project_id="p", config={"max_seq_length": config})
    resolved = ProjectModelResolved(project_id="p", base_model_id="some/llama", model_info={**INFO, "max_position_embeddings": limit})

    _, job = decide(given(evolve, CREATED, changed, ADDED, resolved), START)

    assert isinstance(job, JobCreated)
    assert job.spec["max_seq_length"] == length


def test_a_second_start_is_refused_while_the_first_runs():
    other = StartTraining(project_id="p", job_id="train-2", method="lora")
    project = given(evolve, CREATED, ADDED, RESOLVED, STARTED)

    with pytest.raises(TrainingAlreadyRunning) as refusal:
        decide(project, other)

    assert refusal.value.context == {"job_id": "train-1"}
    assert decide(ended(project, "train-1"), other)


def test_the_same_start_again_starts_nothing_also_when_it_has_ended():
    project = given(evolve, CREATED, ADDED, RESOLVED, STARTED)

    assert decide(project, START) == []
    assert decide(ended(project, "train-1"), START) == []


def test_a_start_without_a_model_is_refused():
    with pytest.raises(ModelNotResolved):
        decide(given(evolve, CREATED, ADDED), START)


def test_a_start_on_a_model_that_is_not_valid_is_refused_with_the_reason():
    info = {"valid": False, "warnings": ["It has no safetensors weights"]}
    project = given(evolve, CREATED, ADDED, ProjectModelResolved(project_id="p", base_model_id="some/pickle", model_info=info))

    with pytest.raises(ModelNotUsable, match="'some/pickle' can't be fine-tuned: It has no safetensors weights"):
        decide(project, START)


def test_a_start_without_a_file_that_could_hold_a_row_is_refused():
    empty, barren = given(evolve, CREATED, RESOLVED), msgspec.structs.replace(given(evolve, CREATED, ADDED, RESOLVED), barren_jobs=frozenset({"job-a"}))

    for project in (empty, barren):
        with pytest.raises(NoTrainingData):
            decide(project, START)


def test_a_training_needs_one_file_with_a_usable_row():
    two = ProjectFilesAdded(project_id="p", files=[file("a"), file("b")])
    project = given(evolve, CREATED, two, RESOLVED)

    assert decide(msgspec.structs.replace(project, barren_jobs=frozenset({"job-a"})), START)
    with pytest.raises(NoTrainingData):
        decide(msgspec.structs.replace(project, barren_jobs=frozenset({"job-a", "job-b"})), START)


def test_a_project_of_thousands_of_jobs_fits_into_facts_and_batches():
    """A fact holds 64 KiB, a batch of the log 1,000 facts."""
    uploads = [ProjectFilesAdded(project_id="p", files=[file(str(uuid4())) for _ in range(50)]) for _ in range(40)]
    project = given(evolve, CREATED, RESOLVED, *uploads)

    training = decide(project, START)
    deletion = decide(project, DeleteProject(project_id="p", cancel=True))

    assert len(project.active_jobs) == 2000
    assert len(training) == 2
    assert deletion[-1] == ProjectDeleted(project_id="p")
    assert 0 < len(deletion) <= 200
    assert recorded([*training, *deletion])  # none is refused as too large


def test_the_largest_upload_fits_into_a_fact():
    """As many files as one may hold, all with the longest names and types there are."""
    id, sha256 = str(uuid4()), "f" * 64
    longest = {"filename": "n" * 200, "kind": "dataset_upload", "mime_type": WORD, "size": 50 * MB, "sha256": sha256, "key": f"{id}/{id}/{sha256}"}
    files = [File(file_id=str(uuid4()), job_id=str(uuid4()) if n % 2 else "", **longest) for n in range(MOST_FILES)]

    assert recorded(decide(given(evolve, CREATED), AddFiles(project_id="p", files=files, limit_mb=100 * MOST_FILES)))


def test_a_file_that_a_queued_training_reads_is_not_deleted_but_one_that_came_later_is():
    later = ProjectFilesAdded(project_id="p", files=[file("b")])
    project = ended(given(evolve, CREATED, ADDED, RESOLVED, STARTED, later), "job-a", "job-b")

    with pytest.raises(FileBusy) as refusal:
        decide(project, DeleteFile(project_id="p", file_id="a"))
    assert refusal.value.context == {"job_ids": ["train-1"]}
    assert decide(project, DeleteFile(project_id="p", file_id="a", cancel=True))[0] == JobCancelRequested(job_id="train-1", reason="file deleted")
    assert decide(project, DeleteFile(project_id="p", file_id="b"))


def test_a_deleted_project_takes_its_trainings_and_exports_along():
    exporting = ProjectWorkStarted(project_id="p", job_id="export-1", kind="export")
    project = ended(given(evolve, CREATED, ADDED, RESOLVED, STARTED, exporting), "job-a")

    with pytest.raises(ProjectBusy):
        decide(project, DeleteProject(project_id="p"))
    assert decide(project, DeleteProject(project_id="p", cancel=True)) == [
        JobCancelRequested(job_id="export-1", reason="project deleted"),
        JobCancelRequested(job_id="train-1", reason="project deleted"),
        ProjectDeleted(project_id="p"),
    ]


def test_an_export_is_of_the_latest_run_that_succeeded():
    project = msgspec.structs.replace(given(evolve, CREATED, ADDED, RESOLVED, STARTED), trained="train-0")

    first, job = decide(project, EXPORT)

    assert first == ProjectWorkStarted(project_id="p", job_id="export-1", kind="export")
    assert isinstance(job, JobCreated)
    assert (job.kind, job.stages, job.inputs) == ("export", ["export"], {"project_id": "p", "training_job_id": "train-0"})


def test_without_a_successful_run_nothing_is_exported():
    with pytest.raises(NoSuccessfulRun):
        decide(given(evolve, CREATED, ADDED, RESOLVED, STARTED), EXPORT)


def test_a_run_that_is_being_exported_is_not_exported_twice():
    other = ExportRun(project_id="p", job_id="export-2")
    trained = msgspec.structs.replace(given(evolve, CREATED), trained="train-0")
    (fact,) = recorded([ProjectWorkStarted(project_id="p", job_id="export-1", kind="export")], after=1)
    exporting = evolve(trained, fact)
    assert exporting

    assert decide(exporting, other) == []
    assert exporting.exporting == "export-1"
    assert decide(ended(exporting, "export-1"), other)


def test_a_merged_model_is_made_by_those_who_train_before_it_is_exported():
    project = msgspec.structs.replace(given(evolve, CREATED), trained="train-0")

    first, job = decide(project, msgspec.structs.replace(EXPORT, merged=True))

    assert first == ProjectWorkStarted(project_id="p", job_id="export-1", kind="export", merged=True)
    assert isinstance(job, JobCreated)
    assert (job.kind, job.stages) == ("export", ["training", "export"])
    assert job.inputs == {"project_id": "p", "training_job_id": "train-0", "merged": True}


def test_a_run_of_all_weights_has_nothing_to_merge():
    project = msgspec.structs.replace(given(evolve, CREATED), trained="train-0", whole=True)

    first, job = decide(project, msgspec.structs.replace(EXPORT, merged=True))

    assert first == ProjectWorkStarted(project_id="p", job_id="export-1", kind="export")
    assert isinstance(job, JobCreated)
    assert (job.stages, job.inputs["merged"]) == (["export"], True)


def test_an_export_under_way_is_the_answer_only_where_it_has_all_that_is_asked_for():
    """One that merges has the adapter too."""
    trained = msgspec.structs.replace(given(evolve, CREATED), trained="train-0")
    plain, merging = ExportRun(project_id="p", job_id="export-2"), ExportRun(project_id="p", job_id="export-3", merged=True)
    (one, other) = recorded(
        [
            ProjectWorkStarted(project_id="p", job_id="export-1", kind="export"),
            ProjectWorkStarted(project_id="p", job_id="export-2", kind="export", merged=True),
        ],
        after=1,
    )
    exporting = evolve(trained, one)
    both = evolve(exporting, other)
    assert exporting
    assert both

    assert decide(exporting, merging)
    assert decide(both, merging) == decide(both, msgspec.structs.replace(plain, job_id="export-4")) == []
    assert (in_hand(both, merged=True), in_hand(exporting, merged=False)) == ("export-2", "export-1")
    assert decide(ended(both, "export-2"), merging)


def ended(project: Project, *jobs: str) -> Project:
    """As the view tells it: that a job has ended is no fact of the project."""
    return msgspec.structs.replace(project, active_jobs=project.active_jobs - {*jobs})


names = st.sampled_from(["yard", "shed"])
ids = st.sampled_from(["a", "b", "c"])
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(ChangeProject, project_id=st.just("p"), name=names | st.none(), config=st.none() | st.dictionaries(names, st.integers(0, 2))),
    st.builds(lambda id, size: add(file(id, size=size)), ids, st.integers(1, 600_000)),
    st.builds(DeleteFile, project_id=st.just("p"), file_id=ids, cancel=st.booleans()),
    st.builds(DeleteProject, project_id=st.just("p"), cancel=st.booleans()),
    st.just(RESOLVE),
    st.builds(StartTraining, project_id=st.just("p"), job_id=st.sampled_from(["train-1", "train-2"]), method=st.just("qlora")),
    st.builds(ExportRun, project_id=st.just("p"), job_id=st.sampled_from(["export-1", "export-2"])),
)


@examples(st.lists(commands, max_size=12))
def test_whatever_is_ordered_the_rules_hold(orders: list[Command]):
    project: Project | None = given(evolve, CREATED)
    seq = 1
    for order in orders:
        try:
            events = decide(project, order)
        except DomainError:
            continue
        for fact in recorded(events, after=seq):
            project, seq = evolve(project, fact), fact.seq
        assert project is not None
        assert sum(file.size for file in project.files.values()) <= 1024 * 1024
        if isinstance(order, (ChangeProject, AddFiles, ResolveModel, StartTraining, ExportRun)) and not project.deleted:
            assert decide(project, order) == []  # the same again changes nothing
