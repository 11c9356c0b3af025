"""Stopping a run, for every family: what is answered says what came of it."""

import asyncio
from contextlib import aclosing

from libs.events import Origin, decode
from services.gateway.commands import Commands
from services.gateway.domain import jobs
from services.gateway.domain.errors import JobEnded
from services.gateway.domain.jobs import CancelJob, Job
from services.gateway.live import Live

WITHIN = 5.0
_SEEN = 2.0
"""Seconds that the answer waits for the views besides: who reads that his run has ended may start another at once."""


async def stop(job_id: str, *, reason: str, commands: Commands, live: Live, about: Origin) -> Job:
    """The job as it is once it has ended, or when the patience for that is over. Raises JobEnded where there was nothing to stop."""
    outcome = await commands.run(CancelJob(job_id=job_id, reason=reason), origin=about)
    if outcome.state.status.ended:
        raise JobEnded(job_id=job_id, status=outcome.state.status.value)
    job, told = await _end(live, about.tenant, outcome.state)
    await commands.visible(told, patience=_SEEN)
    return job


async def _end(live: Live, tenant: str, asked: Job) -> tuple[Job, int]:
    """And the position of what was told of it last."""
    job: Job | None = None
    told = 0
    try:
        async with asyncio.timeout(WITHIN), aclosing(live.watch(tenant, after=0, about=asked.id)) as story:
            async for raw in story:
                if raw is None:
                    continue
                job, told = jobs.evolve(job, decode(raw.data, seq=raw.seq, subject=raw.subject)), raw.seq
                if job is not None and job.status.ended:
                    break
    except TimeoutError:
        pass
    return job or asked, told
