"""The rules of projects."""

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from libs.events import File, JobCancelRequested, JobCreated, ProjectCreated, ProjectDeleted, ProjectFileDeleted, ProjectFilesAdded, ProjectUpdated
from services.gateway.domain.errors import FileBusy, IdempotencyKeyReused, NotFound, ProjectBusy, ProjectFull
from services.gateway.domain.project import AddFiles, ChangeProject, Command, CreateProject, DeleteFile, DeleteProject, Project, decide, evolve
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


@pytest.mark.parametrize("command", [ChangeProject(project_id="p"), DeleteProject(project_id="p"), add(file("a")), DeleteFile(project_id="p", file_id="a")])
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

    assert decided == [JobCancelRequested(job_id="job-a", reason="project deleted"), ProjectDeleted(project_id="p", job_ids=["job-a"])]


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


names = st.sampled_from(["yard", "shed"])
ids = st.sampled_from(["a", "b", "c"])
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(ChangeProject, project_id=st.just("p"), name=names | st.none(), config=st.none() | st.dictionaries(names, st.integers(0, 2))),
    st.builds(lambda id, size: add(file(id, size=size)), ids, st.integers(1, 600_000)),
    st.builds(DeleteFile, project_id=st.just("p"), file_id=ids, cancel=st.booleans()),
    st.builds(DeleteProject, project_id=st.just("p"), cancel=st.booleans()),
)


@examples(st.lists(commands, max_size=12))
def test_whatever_is_ordered_the_rules_hold(orders: list[Command]):
    project: Project | None = given(evolve, CREATED)
    seq = 1
    for order in orders:
        try:
            events = decide(project, order)
        except (NotFound, ProjectBusy, FileBusy, ProjectFull, IdempotencyKeyReused):
            continue
        for fact in recorded(events, after=seq):
            project, seq = evolve(project, fact), fact.seq
        assert project is not None
        assert sum(file.size for file in project.files.values()) <= 1024 * 1024
        if isinstance(order, (ChangeProject, AddFiles)) and not project.deleted:
            assert decide(project, order) == []  # the same again changes nothing
