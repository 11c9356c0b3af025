"""What a start asked for, as the log has it: a repeat is answered with what the first one made."""

from datetime import datetime

from libs.events import Address, JobCreated
from libs.events.log import EventLog
from services.gateway.domain.errors import IdempotencyKeyReused


async def as_asked(log: EventLog, tenant: str, job_id: str, request: str) -> tuple[JobCreated, datetime]:
    """And when. Another request under the same key is refused."""
    (fact,) = await log.read(Address(tenant=tenant, category="job", key=(job_id,)).under("created"))
    assert isinstance(fact.event, JobCreated)
    if fact.event.request != request:
        raise IdempotencyKeyReused(id=job_id)
    return fact.event, fact.at
