"""A project that was worked on for long: thousands of jobs are no reason why it couldn't be trained, or deleted."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import msgspec
import pytest

from infra.embedded import Servers
from libs.events import File, JobCreated, Origin, PreparationCompleted, PreparationProduced, ProjectFilesAdded
from libs.events.log import EventLog, Write
from libs.storage import Storage
from tests.kit.eventually import eventually
from tests.kit.servers import storage_of

JOBS, AT_ONCE = 2000, 50
READ = 100
"""Of them have ended, each with a part; the others go on."""
LOCAL = Origin(tenant="local")


@pytest.fixture
async def storage(servers: Servers) -> AsyncIterator[Storage]:
    storage = storage_of(servers)
    yield storage
    storage.close()


async def old_project(api: httpx.AsyncClient, log: EventLog, storage: Storage) -> tuple[str, list[str]]:
    """Its facts are as uploads make them, without the uploads; and some have been read."""
    project = (await api.post("/projects", json={"name": "old"})).json()["id"]
    last = (await log.read(f"ev.local.project.*.{project}"))[-1].seq
    jobs = [str(uuid4()) for _ in range(JOBS)]
    for start in range(0, JOBS, AT_ONCE):
        files = [_file(job) for job in jobs[start : start + AT_ONCE]]
        added = Write(events=[ProjectFilesAdded(project_id=project, files=files)], after=last)
        last = (await log.append([added, *(Write(events=[_ingest(project, file)], after=0) for file in files)], origin=LOCAL))[0].seq
    for start in range(0, READ, AT_ONCE):
        done = jobs[start : start + AT_ONCE]
        parts = await asyncio.gather(*(storage.put(f"local/{job}", b"") for job in done))
        told = [
            [PreparationProduced(job_id=job, part=1, content=part, rows=0, valid=0), PreparationCompleted(job_id=job, parts=1, rows=0, valid=0)]
            for job, part in zip(done, parts, strict=True)
        ]
        await log.append([Write(events=events, after=0) for events in told], origin=LOCAL)
    return project, jobs


async def test_it_can_be_trained_and_deleted_and_nothing_of_it_stays(api: httpx.AsyncClient, log: EventLog, storage: Storage):
    project, jobs = await old_project(api, log, storage)
    await api.post(f"/projects/{project}/model/resolve", json={"model_id": "trainyard/tiny-llama"})

    started = await api.post(f"/projects/{project}/train/start", json={})
    busy = await api.delete(f"/projects/{project}")
    deleted = await api.delete(f"/projects/{project}", params={"cancel": "true"})

    assert (started.status_code, busy.status_code, deleted.status_code) == (202, 409, 204), (started.text, deleted.text)
    going_on = set(busy.json()["context"]["job_ids"])
    assert going_on == {*jobs[READ:], started.json()["job_id"]}
    await eventually(lambda: _wished(log, going_on), patience=60)
    await eventually(lambda: _empty(storage, jobs[:READ]), patience=60)


async def _wished(log: EventLog, jobs: set[str]) -> bool:
    return jobs <= {fact.subject.rsplit(".", 1)[1] for fact in await log.read("ev.local.job.cancel_requested.*")}


async def _empty(storage: Storage, jobs: list[str]) -> bool:
    return not any(await asyncio.gather(*(storage.keys(f"local/{job}/") for job in jobs)))


def _file(job: str) -> File:
    return File(file_id=f"f-{job}", filename="a.jsonl", kind="dataset_upload", mime_type="application/jsonl", size=1, sha256="", key=f"local/{job}", job_id=job)


def _ingest(project: str, file: File) -> JobCreated:
    inputs = {"project_id": project, "file": msgspec.to_builtins(file)}
    return JobCreated(job_id=file.job_id, kind="ingest", stages=["preparation"], project_id=project, inputs=inputs)
