"""What a job asks of a worker: to train on its snapshot, or to merge what another job has trained, for the export that follows."""

import re
from collections.abc import Iterable

import msgspec

from libs.events import Claim, ExportInputs, FineTune, Fit, FitInputs, JobCreated, Recorded, TrainingCompleted, TrainingSampled, story
from libs.events.log import EventLog

from .ending import Hopeless
from .story import Story

TRAIN, EXPORT = "train", "export"
KINDS = (TRAIN, EXPORT)
"""Kinds of jobs whose stage `training` this version does."""
SNAPSHOT, ADAPTER = "snapshot", "adapter"
FIT = "fit"
"""The `trainer` that a spec names whose model is fitted to a data set."""
ANCESTOR = "ancestor-"
"""And a number, the oldest first: where what a base of our own is made of lies."""
NEEDED = ("adapter_model.safetensors", "adapter_config.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    tuning: FineTune | None = None
    fit: Fit | None = None
    """One of the two."""
    dataset_id: str = ""
    files: dict[str, Claim]
    """What the child gets to read, by where it lies in the run's folder."""
    merge: bool = False
    texts: list[str] = []
    """On which models are compared."""
    missing: Hopeless
    """What is the matter when a file is not in the store any more, and when it is another one."""
    damaged: Hopeless

    def gone(self, name: str) -> Hopeless:
        """Why it can't be done without this file."""
        return self._of_base(name, "is not in the object store any more") or self.missing

    def spoiled(self, name: str) -> Hopeless:
        return self._of_base(name, "is damaged in the object store") or self.damaged

    def _of_base(self, name: str, why: str) -> Hopeless | None:
        if self.tuning is None or not name.startswith(ANCESTOR):
            return None
        return Hopeless("model_gone", f"{self.tuning.base_model} can't be loaded: what one of the runs that it is made of left {why}.")


def takes(told: Story) -> bool:
    """It is a job of ours to do, and its turn has come."""
    return bool(told.created) and told.job.kind in KINDS and "training" in told.job.stages and (told.prepared or "preparation" not in told.job.stages)


async def order(told: Story, event_log: EventLog, *, tenant: str) -> Order:
    """Raises Hopeless, or an outage of the log."""
    return await _merge(told, event_log, tenant) if told.job.kind == EXPORT else _train(told)


def _train(told: Story) -> Order:
    if told.snapshot is None:
        raise Hopeless("snapshot_missing", "The preparation left no snapshot to train on. Start the training again.")
    if told.job.spec.get("trainer") == FIT:
        return _fit(told, told.snapshot)
    tuning = _tuning(told.job.spec)
    return Order(
        tuning=tuning,
        files={SNAPSHOT: told.snapshot} | ancestors(tuning),
        missing=Hopeless("snapshot_missing", "The snapshot of the rows is not in the object store any more. Start the training again."),
        damaged=Hopeless("snapshot_damaged", "The snapshot in the object store is not the one that was made. Start the training again."),
    )


def _fit(told: Story, snapshot: Claim) -> Order:
    try:
        fit, inputs = msgspec.convert(told.job.spec, Fit), msgspec.convert(told.job.inputs, FitInputs)
    except msgspec.ValidationError as error:
        raise Hopeless("spec_invalid", f"The training's settings can't be used: {error}.") from error
    return Order(
        fit=fit,
        dataset_id=inputs.dataset_id,
        files={SNAPSHOT: snapshot},
        missing=Hopeless("snapshot_missing", "What was prepared of the data set is not in the object store any more. Upload it again."),
        damaged=Hopeless("snapshot_damaged", "What lies in the object store is not what was prepared of the data set. Upload it again."),
    )


async def _merge(told: Story, event_log: EventLog, tenant: str) -> Order:
    """Facts behind the job's own creation are left out: who takes it up again does the same."""
    assert told.created
    inputs = msgspec.convert(told.job.inputs, ExportInputs)
    trained = await event_log.read(story(tenant, inputs.training_job_id))
    created, completed, said = _trained(fact for fact in trained if fact.seq < told.created.seq)
    if created is None or completed is None:
        raise Hopeless("training_missing", "There is no completed training run to merge. Start one, and export it when it has completed.")
    tuning = _tuning(created.spec)
    if tuning.method == "full" or any(name not in completed.artifacts for name in NEEDED):
        raise Hopeless("incomplete", "The training left no adapter, so there is nothing that could be merged.")
    return Order(
        tuning=tuning,
        files={f"{ADAPTER}/{name}": claim for name, claim in sorted(completed.artifacts.items()) if _NAME.fullmatch(name)} | ancestors(tuning),
        merge=True,
        texts=said,
        missing=Hopeless("artifact_missing", "What the training stored is not in the object store any more."),
        damaged=Hopeless("artifact_damaged", "What the training stored is not what lies in the object store now."),
    )


def ancestors(tuning: FineTune) -> dict[str, Claim]:
    return {
        f"{ANCESTOR}{n}/{name}": claim for n, ancestor in enumerate(tuning.ancestors) for name, claim in sorted(ancestor.files.items()) if _NAME.fullmatch(name)
    }


def _trained(facts: Iterable[Recorded]) -> tuple[JobCreated | None, TrainingCompleted | None, list[str]]:
    """With prompts of the run and what was expected of them."""
    created: JobCreated | None = None
    completed: TrainingCompleted | None = None
    said: list[str] = []
    for fact in facts:
        match fact.event:
            case JobCreated(kind="train") as event:
                created = event
            case TrainingSampled(samples=samples):
                said = [f"{one.get('prompt', '')}\n{one.get('expected', '')}" for one in samples[:3]]
            case TrainingCompleted() as event:
                completed = event
            case _:
                continue
    return created, completed, said


def _tuning(spec: dict[str, object]) -> FineTune:
    try:
        return msgspec.convert(spec, FineTune)
    except msgspec.ValidationError as error:
        raise Hopeless("spec_invalid", f"The training's settings can't be used: {error}.") from error
