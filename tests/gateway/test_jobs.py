"""The rules of jobs, and what a job's story means."""

import pytest

from libs.events import (
    Claim,
    Event,
    ExportCancelled,
    ExportCompleted,
    ExportFailed,
    ExportProgressed,
    ExportStarted,
    JobCancelRequested,
    JobCreated,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationProgressed,
    PreparationStarted,
    TrainingAttemptLost,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
)
from services.gateway.domain.errors import JobEnded, NotFound
from services.gateway.domain.jobs import CancelJob, Status, decide, evolve, run_id
from tests.kit.given import given

CREATED = JobCreated(job_id="j", kind="ingest", stages=["preparation"], inputs={})
OF_TWO = JobCreated(job_id="j", kind="train", stages=["preparation", "training"], inputs={})
STARTED = PreparationStarted(job_id="j")
COMPLETED = PreparationCompleted(job_id="j", parts=1, rows=1, valid=1)
FAILED = PreparationFailed(job_id="j", code="internal", message="a bug")
CANCELLED = PreparationCancelled(job_id="j")
ASKED = JobCancelRequested(job_id="j")
EXPORT = JobCreated(job_id="j", kind="export", stages=["export"], inputs={})
CLAIM = Claim(key="k", sha256="s", size=1)
TRAINING = TrainingStarted(job_id="j", attempt=1)
TRAINED = TrainingCompleted(job_id="j", attempt=1, step=9, artifacts={}, steps=CLAIM)
EXPORTED = ExportCompleted(job_id="j", files=[])
OF_MERGED = JobCreated(job_id="j", kind="export", stages=["training", "export"], inputs={})
MERGING = TrainingStarted(job_id="j", attempt=1, merge=True)
MERGED = TrainingCompleted(job_id="j", attempt=1, step=0, artifacts={}, steps=CLAIM, merge=True)
EXPORTING = ExportStarted(job_id="j", merged=True)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ([CREATED], Status.QUEUED),
        ([CREATED, STARTED], Status.RUNNING),
        ([CREATED, STARTED, PreparationProgressed(job_id="j", done=1, total=2)], Status.RUNNING),
        ([CREATED, STARTED, COMPLETED], Status.SUCCEEDED),
        ([CREATED, STARTED, FAILED], Status.FAILED),
        ([CREATED, ASKED, CANCELLED], Status.CANCELLED),
        ([CREATED, STARTED, COMPLETED, ASKED], Status.SUCCEEDED),
        ([OF_TWO, STARTED], Status.PREPARING),
        ([OF_MERGED], Status.QUEUED),
        ([OF_MERGED, MERGING], Status.RUNNING),
        ([OF_MERGED, MERGING, MERGED], Status.RUNNING),
        ([OF_MERGED, MERGING, MERGED, EXPORTING], Status.RUNNING),
        ([OF_MERGED, MERGING, MERGED, EXPORTING, EXPORTED], Status.SUCCEEDED),
        ([OF_TWO, STARTED, COMPLETED], Status.PREPARING),
        ([OF_TWO, STARTED, FAILED], Status.FAILED),
        ([OF_TWO, STARTED, COMPLETED, TRAINING], Status.RUNNING),
        ([OF_TWO, STARTED, COMPLETED, TRAINING, TrainingProgressed(job_id="j", attempt=1, step=3, total_steps=9)], Status.RUNNING),
        ([OF_TWO, STARTED, COMPLETED, TRAINING, TrainingCheckpointed(job_id="j", attempt=1, step=3, state=CLAIM, steps=CLAIM)], Status.RUNNING),
        ([OF_TWO, STARTED, COMPLETED, TRAINING, TrainingAttemptLost(job_id="j", attempt=1, cause="killed")], Status.RUNNING),
        ([OF_TWO, STARTED, COMPLETED, TRAINING, TRAINED], Status.SUCCEEDED),
        ([OF_TWO, STARTED, COMPLETED, TrainingFailed(job_id="j", code="oom", message="m")], Status.FAILED),
        ([OF_TWO, STARTED, COMPLETED, ASKED, TrainingCancelled(job_id="j")], Status.CANCELLED),
        ([EXPORT, ExportStarted(job_id="j")], Status.RUNNING),
        ([EXPORT, ExportStarted(job_id="j"), ExportProgressed(job_id="j", done=1, total=2)], Status.RUNNING),
        ([EXPORT, ExportStarted(job_id="j"), EXPORTED], Status.SUCCEEDED),
        ([EXPORT, ExportFailed(job_id="j", code="x", message="m")], Status.FAILED),
        ([EXPORT, ExportCancelled(job_id="j")], Status.CANCELLED),
    ],
)
def test_a_jobs_status_follows_from_its_story(facts: list[Event], status: Status):
    assert given(evolve, *facts).status is status


def test_a_run_has_an_id_of_its_own_that_follows_from_its_jobs():
    assert run_id("j") == run_id("j") != run_id("k")


def test_nothing_moves_a_job_that_has_ended():
    assert given(evolve, CREATED, STARTED, FAILED, COMPLETED).status is Status.FAILED


def test_a_running_job_is_asked_to_end():
    assert decide(given(evolve, CREATED, STARTED), CancelJob(job_id="j")) == [ASKED]


@pytest.mark.parametrize("facts", [[CREATED, ASKED], [CREATED, ASKED, CANCELLED]])
def test_asked_twice_is_asked_once(facts: list[Event]):
    assert decide(given(evolve, *facts), CancelJob(job_id="j")) == []


@pytest.mark.parametrize("end", [COMPLETED, FAILED])
def test_a_job_that_has_ended_otherwise_is_not_cancelled(end: Event):
    with pytest.raises(JobEnded):
        decide(given(evolve, CREATED, STARTED, end), CancelJob(job_id="j"))


def test_a_job_that_is_not_there_is_not_cancelled():
    with pytest.raises(NotFound):
        decide(None, CancelJob(job_id="j"))
