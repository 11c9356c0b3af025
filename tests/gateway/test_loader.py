"""Rows of parts come into the views, or it is said why they don't."""

from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import Claim, Event, File, JobCreated, PreparationCompleted, PreparationProduced, ProjectCreated, ProjectFilesAdded
from libs.events.log import Write
from libs.runtime import bus as runtime
from services.gateway.loader import load_next
from services.gateway.views import jobs
from tests.kit.servers import bus_alone
from tests.kit.views import ORIGIN, World, running, world


@pytest.fixture(scope="module")
def bus() -> Iterator[Servers]:
    with bus_alone() as bus:
        yield bus


@pytest.fixture
async def here(servers: Servers, bus: Servers) -> AsyncIterator[World]:
    nc: Client = await runtime.connect(bus.nats_url("infra"), name="infra")
    async with world(servers, bus, nc) as world_:
        yield world_
    await nc.close()


async def happened(here: World, *aggregates: list[Event]) -> None:
    for events in aggregates:
        await here.log.append([Write(events=events, after=0)], origin=ORIGIN)
    async with running(here.projector()):
        await here.caught_up()


@pytest.mark.parametrize("fault", ["damaged", "missing", "no rows", "too large"])
async def test_a_job_whose_rows_can_not_be_read_shows_as_failed_and_says_why(here: World, fault: str):
    stored = await here.storage.put("local/j", b"{}\n")
    content = {
        "damaged": Claim(key=stored.key, sha256="0" * 64, size=stored.size),
        "missing": Claim(key=stored.key + "0", sha256=stored.sha256, size=stored.size),
        "no rows": stored,
        "too large": Claim(key=stored.key, sha256=stored.sha256, size=2**30),
    }[fault]
    file = File(file_id="f", filename="rows.jsonl", kind="dataset", mime_type="", size=1, sha256="", key="k", job_id="j")
    await happened(
        here,
        [ProjectCreated(project_id="p", name="Red"), ProjectFilesAdded(project_id="p", files=[file])],
        [JobCreated(job_id="j", kind="ingest", stages=["preparation"], inputs={}, project_id="p")],
        [PreparationProduced(job_id="j", part=1, content=content, rows=1, valid=1), PreparationCompleted(job_id="j", parts=1, rows=1, valid=1)],
    )

    while await load_next(here.db, here.storage):
        pass

    job = await jobs.get(here.db, "local", "j")
    assert job
    assert job.shown == "failed"
    assert job.error
    assert "upload it again" in job.error
