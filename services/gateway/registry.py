"""Models enter the list here once a run has made one, and what belonged to a deleted model or data set is removed."""

import logging

import asyncpg

from libs.events import Address, DatasetDeleted, JobCreated, ModelDeleted, ModelRegistered, Origin, Recorded, TrainingCompleted, address
from libs.events.log import Conflict, EventLog, Unavailable, Write
from libs.runtime.broker import Broker, react
from libs.storage import Storage
from services.gateway.domain.model import founding, named
from services.gateway.views import models
from services.gateway.views.database import DOWN

log = logging.getLogger(__name__)

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
        assert isinstance(recorded.event, DatasetDeleted)
        for owner in (recorded.event.dataset_id, recorded.event.job_id):
            await storage.delete_folder(f"{recorded.tenant}/{owner}")

    react(broker, TrainingCompleted, durable="gateway-register-model", to=register, give_up=_never)
    react(broker, ModelDeleted, durable="gateway-remove-model", to=remove_model, give_up=_left_to_the_sweep)
    react(broker, DatasetDeleted, durable="gateway-remove-dataset", to=remove_dataset, give_up=_left_to_the_sweep)


async def _never(recorded: Recorded, error: Exception) -> None:
    """What somebody paid for is not left lying about without a name."""
    raise error


async def _left_to_the_sweep(recorded: Recorded, error: Exception) -> None:
    log.error("objects stay until the sweep: %s", error, extra={"fact": recorded.id})
