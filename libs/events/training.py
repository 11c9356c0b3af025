"""Training: a snapshot becomes a model. The training service is the only writer."""

from typing import Any

from .envelope import Claim, Event


class TrainingStarted(Event, frozen=True, kw_only=True, tag="training.started"):
    """A worker has taken the job. A higher attempt fences all lower ones; `resumed_from` is the step it goes on behind."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    worker: str = ""
    device: str = ""
    resumed_from: int = 0
    merge: bool = False
    """Nothing is trained: what another job has trained is merged into its base, for the export that follows."""


class TrainingProgressed(Event, frozen=True, kw_only=True, tag="training.progress"):
    """How far a run has come. Throttled: a reader may miss steps but never the last; every step is in the step log."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    step: int
    total_steps: int
    epoch: float = 0.0
    metrics: dict[str, float | None] = {}
    nonfinite: dict[str, str] = {}
    """Metrics that are no numbers (`nan`, `inf`, `-inf`); they are None in `metrics`."""
    made: int = 0
    """Steps that took the latest `seconds` of this attempt; 0: how fast it goes isn't known."""
    seconds: float = 0.0
    doing: str = ""
    """For people, where it isn't a step that goes on: the model is saved. Of a merge `step` of `total_steps` is how far its job is, with the export that follows."""


class TrainingBatchReduced(Event, frozen=True, kw_only=True, tag="training.batch_reduced"):
    """The device's memory was too small for a micro-batch: the same gradient is now summed over smaller ones."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    step: int
    micro_tokens: int
    """Most tokens that go through the model at once from here on."""


class TrainingCheckpointed(Event, frozen=True, kw_only=True, tag="training.checkpointed"):
    """All that is needed to go on behind `step` is stored. `steps` is the log of every step since the first, as JSON lines."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    step: int
    state: Claim
    steps: Claim


class TrainingEvaluated(Event, frozen=True, kw_only=True, tag="training.evaluated"):
    """Metrics on the held-out rows; step 0 is the model as it came."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    step: int
    metrics: dict[str, float | None]
    nonfinite: dict[str, str] = {}


class TrainingSampled(Event, frozen=True, kw_only=True, tag="training.sampled"):
    """What the model says: `samples` are objects with a prompt and what came of it; at the end of a run with what came of it `before`, too."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    step: int
    samples: list[dict[str, Any]]


class TrainingAttemptLost(Event, frozen=True, kw_only=True, tag="training.attempt_lost"):
    """The work ended without a word (killed, crashed, out of memory) and will be taken up again behind the last checkpoint."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    cause: str
    message: str = ""


class TrainingCompleted(Event, frozen=True, kw_only=True, tag="training.completed"):
    """The model is there: `artifacts` by file name. `summary` is what reports tell (losses before and after, hardware, speed, versions)."""

    KEY = ("job_id",)
    job_id: str
    attempt: int
    step: int
    artifacts: dict[str, Claim]
    steps: Claim
    metrics: dict[str, float | None] = {}
    summary: dict[str, Any] = {}
    merge: bool = False
    """What another job has trained is merged; the baton goes on to the export."""


class TrainingFailed(Event, frozen=True, kw_only=True, tag="training.failed"):
    KEY = ("job_id",)
    job_id: str
    code: str
    message: str
    attempt: int = 0
    step: int = 0
    steps: Claim | None = None


class TrainingCancelled(Event, frozen=True, kw_only=True, tag="training.cancelled"):
    """`attempt` is 0 when no worker had taken it."""

    KEY = ("job_id",)
    job_id: str
    attempt: int = 0
    step: int = 0
    steps: Claim | None = None
