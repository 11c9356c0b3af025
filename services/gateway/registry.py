"""Models enter the list here once a run has made one, and what nobody can ask for any more is removed: of runs that have ended, of deleted models and data sets."""

import logging

import asyncpg

from libs.events import (
    Address,
    Claim,
    DatasetDeleted,
    DatasetUsed,
    Event,
    JobCreated,
    ModelDeleted,
    ModelRegistered,
    Origin,
    Recorded,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    address,
    decode,
    kind,
)
from libs.events.log import Conflict, EventLog, Unavailable, Write
from libs.runtime.broker import Broker, react
from libs.storage import Storage
from services.gateway.domain.model import founding, named
from services.gateway.views import models
from services.gateway.views.database import DOWN

log = logging.getLogger(__name__)

ENDS: tuple[type[Event], ...] = (TrainingCompleted, TrainingFailed, TrainingCancelled)
TRIES = 100
"""Numbers that may be taken while one is looked for: by runs that end at the same moment."""


def subscribe(broker: Broker, storage: Storage, event_log: EventLog, db: asyncpg.Pool) -> None:
    async def register(recorded: Recorded) -> None:
        """Safe to do again: the model's own guard lets one through."""
        assert isinstance(recorded.event, TrainingCompleted)
        job_id = recorded.event.job_id
        created = await event_log.read(Address(tenant=recorded.tenant, category="job", key=(job_id,)).under("created"))
        job = created[0].event if created else None
        if not isinstance(job, JobCreated) or "dataset_id" not in job.inputs:
            return
        model_type = str(job.spec["model_type"])
        try:
            number = 1 + await models.taken(db, recorded.tenant, f"{named(model_type)}_v")
        except DOWN as error:
            raise Unavailable(f"model {job_id}: {str(error) or type(error).__name__}") from error
        origin = Origin(
            tenant=recorded.tenant,
            actor=created[0].envelope.actor,
            correlation=recorded.envelope.correlationid,
            causation=recorded.id,
            traceparent=recorded.envelope.traceparent,
        )
        for n in range(number, number + TRIES):
            events = founding(recorded.tenant, model_id=job_id, model_type=model_type, dataset_id=job.inputs["dataset_id"], number=n)
            try:
                await event_log.append([Write(events=[event], after=0, nth=0) for event in events], origin=origin)
            except Conflict:
                if await event_log.read(address(recorded.tenant, next(event for event in events if isinstance(event, ModelRegistered)))):
                    return
            else:
                return
        raise Unavailable(f"model {job_id}: the views don't show the numbers of its kind yet")

    async def remove_model(recorded: Recorded) -> None:
        assert isinstance(recorded.event, ModelDeleted)
        await storage.delete_folder(f"{recorded.tenant}/{recorded.event.model_id}")

    async def remove_dataset(recorded: Recorded) -> None:
        """And what is left of its runs that made no model. Those that have not ended yet are seen to when they do."""
        assert isinstance(recorded.event, DatasetDeleted)
        used = [fact for fact in await _before(event_log, recorded, DatasetUsed, recorded.event.dataset_id) if isinstance(fact, DatasetUsed)]
        fruitless = [fact.job_id for fact in used for end in (TrainingFailed, TrainingCancelled) if await _before(event_log, recorded, end, fact.job_id)]
        for owner in (recorded.event.dataset_id, recorded.event.job_id, *fruitless):
            await storage.delete_folder(f"{recorded.tenant}/{owner}")

    async def clear_run(recorded: Recorded) -> None:
        """No run on a data set goes on where another one has ended: its checkpoints are worth nothing then, nor is what its attempts stored and never told."""
        job_id = recorded.subject.rsplit(".", 1)[1]
        created = next(iter(await _before(event_log, recorded, JobCreated, job_id)), None)
        if not isinstance(created, JobCreated) or "dataset_id" not in created.inputs:
            return
        kept = {claim.key for claim in await _left_by(event_log, recorded, job_id)}
        if not isinstance(recorded.event, TrainingCompleted) and await _before(event_log, recorded, DatasetDeleted, created.inputs["dataset_id"]):
            kept.clear()
        while keys := [key for key, _ in await storage.keys(f"{recorded.tenant}/{job_id}/") if key not in kept]:
            await storage.delete(keys)

    react(broker, TrainingCompleted, durable="gateway-register-model", to=register, give_up=_never)
    react(broker, ModelDeleted, durable="gateway-remove-model", to=remove_model, give_up=_left_to_the_sweep)
    react(broker, DatasetDeleted, durable="gateway-remove-dataset", to=remove_dataset, give_up=_left_to_the_sweep)
    for end in ENDS:
        react(broker, end, durable=f"gateway-clear-{kind(end).replace('.', '-')}", to=clear_run, give_up=_left_to_the_sweep)


async def _left_by(event_log: EventLog, end: Recorded, job_id: str) -> list[Claim]:
    """Its model, and the newest log of its steps."""
    match end.event:
        case TrainingCompleted(artifacts=artifacts, steps=steps):
            return [*artifacts.values(), steps]
        case TrainingFailed(steps=Claim() as steps) | TrainingCancelled(steps=Claim() as steps):
            return [steps]
        case _:
            checkpoints = await _before(event_log, end, TrainingCheckpointed, job_id)
            return [fact.steps for fact in checkpoints[-1:] if isinstance(fact, TrainingCheckpointed)]


async def _before(event_log: EventLog, fact: Recorded, type_: type[Event], key: str) -> list[Event | None]:
    """All facts of a type about something that stand before this one: of two that come at once, the later one knows of the other."""
    category, name = kind(type_).split(".", 1)
    subject = Address(tenant=fact.tenant, category=category, key=(key,)).under(name)
    return [decode(raw.data, seq=raw.seq, subject=raw.subject).event async for raw in event_log.scan_to(subject, last=fact.seq)]


async def _never(recorded: Recorded, error: Exception) -> None:
    """What somebody paid for is not left lying about without a name."""
    raise error


async def _left_to_the_sweep(recorded: Recorded, error: Exception) -> None:
    log.error("objects stay until the sweep: %s", error, extra={"fact": recorded.id})
