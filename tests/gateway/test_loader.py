"""Rows of parts come into the views, or it is said why they don't."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import Claim, Event, File, JobCreated, PreparationCompleted, PreparationProduced, ProjectCreated, ProjectFilesAdded
from libs.events.log import Write
from libs.runtime import bus as runtime
from services.gateway import loader
from services.gateway.loader import load_next
from services.gateway.views import jobs
from services.gateway.views.progress import Progress
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


@pytest.mark.parametrize("error", [None, TimeoutError])
async def test_looking_for_what_is_outdated_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None):
    """However many jobs there ever were, and also while it fails."""
    now, looked = 0.0, 0

    async def clear(_: object) -> None:
        nonlocal now, looked
        now, looked = now + 0.4, looked + 1
        if error:
            raise error

    async def nothing(*_: object) -> bool:
        return False

    monkeypatch.setattr(loader, "load_next", nothing)
    monkeypatch.setattr(loader.chunks, "clear", clear)
    monkeypatch.setattr(loader, "time", SimpleNamespace(monotonic=lambda: now))
    of_one_gateway = loader.Loader(cast("Any", None), cast("Any", None), Progress(), holder="me")

    while now < 100:
        with suppress(TimeoutError):
            await of_one_gateway._load_all()  # as often as something is produced, and every second
        now += 1

    assert 8 <= looked <= 12
