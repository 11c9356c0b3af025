"""Models that were trained here are bases for others: found by their run, lent by its project, and nobody else's."""

import asyncio
import io
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from nats.aio.client import Client

from infra.embedded import Servers
from libs import tiny
from libs.config import Service, load
from libs.events import (
    Claim,
    Event,
    FineTune,
    JobCancelRequested,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationStarted,
    ProjectCreated,
    ProjectWorkStarted,
    TrainingCancelled,
    TrainingCompleted,
    TrainingStarted,
    address,
)
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.storage import Storage
from services.gateway.domain.jobs import run_id
from services.gateway.domain.project import CANCELLED_AT_ONCE
from tests.kit.eventually import eventually
from tests.kit.gateway import client, running

ROW = b'{"instruction": "Add 1 and 1.", "output": "2"}\n'
FILES = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def storage(servers: Servers) -> Any:
    storage = Storage(load(Service, servers.environ("training", port=0)))
    yield storage
    storage.close()


class Yard:
    """Projects, and the services that would train in them."""

    def __init__(self, api: httpx.AsyncClient, logs: dict[str, EventLog], storage: Storage) -> None:
        self.api = api
        self._logs = logs
        self._storage = storage

    async def say(self, *events: Event, tenant: str = "local") -> None:
        for event in events:
            where = address(tenant, event)
            log = self._logs[where.category]
            story = await log.read(where)
            await log.append([Write(events=[event], after=story[-1].seq if story else 0)], origin=Origin(tenant=tenant))

    async def project(self, base: str = tiny.BASE) -> str:
        id = (await self.api.post("/projects", json={"name": "yard"})).json()["id"]
        form = await self.api.post(f"/projects/{id}/files/upload", files={"files": ("a.jsonl", ROW)}, data={"kind": "dataset_upload"})
        reader = form.json()["files"][0]["job_id"]
        await self.say(PreparationStarted(job_id=reader), PreparationCompleted(job_id=reader, parts=0, rows=1, valid=1))
        assert (await self.resolve(id, base)).status_code == 200
        return id

    async def resolve(self, project: str, model: str) -> httpx.Response:
        return await self.api.post(f"/projects/{project}/model/resolve", json={"model_id": model})

    async def deleted(self, project: str) -> bool:
        """Also what is known of its jobs only in a moment."""
        return (await self.api.delete(f"/projects/{project}")).status_code == 204

    async def start(self, project: str, **body: Any) -> httpx.Response:
        return await self.api.post(f"/projects/{project}/train/start", json=body)

    async def run(self, project: str, *, method: str = "lora") -> str:
        """One that has completed."""
        answer = await self.start(project, method=method)
        assert answer.status_code == 202, answer.text
        job = answer.json()["job_id"]
        await self.completed(job, method=method)

        async def over() -> bool:
            return (await self.api.get(f"/projects/{project}/train/status")).json()["status"] == "success"

        assert await eventually(over)
        return job

    async def completed(self, job: str, *, method: str, tenant: str = "local") -> None:
        config = await self._storage.put(f"{tenant}/{job}/1", json.dumps(tiny.CONFIG).encode())
        fake = Claim(key=f"{tenant}/{job}/1/0", sha256="0" * 64, size=1)
        artifacts = dict.fromkeys(FILES, fake) | {"base_config.json": config}
        if method == "full":
            artifacts = {"model.safetensors": fake, "config.json": config, "tokenizer.json": fake}
        await self.say(
            PreparationStarted(job_id=job),
            PreparationCompleted(job_id=job, parts=0, rows=1, valid=1, snapshot=fake, splits={"train": 1}),
            TrainingStarted(job_id=job, attempt=1),
            TrainingCompleted(job_id=job, attempt=1, step=10, artifacts=artifacts, steps=fake),
            tenant=tenant,
        )

    async def tuning(self, job: str) -> FineTune:
        (fact,) = await self._logs["job"].read(f"ev.local.job.created.{job}")
        assert isinstance(fact.event, JobCreated)
        return msgspec.convert(fact.event.spec, FineTune)


@pytest.fixture(scope="module")
async def yard(api: httpx.AsyncClient, servers: Servers, storage: Storage) -> AsyncIterator[Yard]:
    users = {"preparation": "datasets", "training": "training", "job": "gateway", "project": "gateway"}
    connections: dict[str, Client] = {category: await bus.connect(servers.nats_url(user), name=user) for category, user in users.items()}
    yield Yard(api, {category: EventLog(nc, source=f"/{users[category]}") for category, nc in connections.items()}, storage)
    for nc in connections.values():
        await nc.close()


@pytest.fixture(scope="module")
async def another(servers: Servers) -> AsyncIterator[httpx.AsyncClient]:
    with running(servers, label="gateway-2") as second:
        async with client(second) as api:
            yield api


@pytest.fixture(scope="module")
async def trained(yard: Yard) -> tuple[str, str]:
    """A project, and the job of its completed run."""
    project = await yard.project()
    return project, await yard.run(project)


async def test_a_completed_run_is_a_model_by_its_job_and_by_its_run(yard: Yard, trained: tuple[str, str]):
    other = await yard.project()

    told = [(await yard.resolve(other, f"trainyard/{id}")).json() for id in (trained[1], run_id(trained[1]))]

    assert told[0] == told[1]
    assert (told[0]["model_id"], told[0]["valid"], told[0]["warnings"]) == (f"trainyard/{trained[1]}", True, [])
    assert (told[0]["architecture"], told[0]["num_parameters"], told[0]["license"]) == ("LlamaForCausalLM", 125248, tiny.LICENSE)


async def test_a_job_on_it_carries_what_it_is_made_of_and_so_do_those_on_top(yard: Yard, trained: tuple[str, str]):
    middle = await yard.project(f"trainyard/{trained[1]}")
    second = await yard.run(middle)
    top = await yard.project(f"trainyard/{second}")

    third = await yard.run(top, method="full")
    last = (await yard.start(await yard.project(f"trainyard/{third}"))).json()

    of_second, of_third, of_last = [await yard.tuning(job) for job in (second, third, last["job_id"])]
    assert (of_second.base_model, of_second.root, [one.job_id for one in of_second.ancestors]) == (f"trainyard/{trained[1]}", tiny.BASE, [trained[1]])
    assert set(of_second.ancestors[0].files) == {*FILES, "base_config.json"}
    assert (of_third.root, [one.job_id for one in of_third.ancestors]) == (tiny.BASE, [trained[1], second])
    assert set(of_third.ancestors[0].files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert (of_last.root, [(one.job_id, one.method) for one in of_last.ancestors]) == ("", [(third, "full")])
    assert last["base_model_id"] == f"trainyard/{third}"
    assert not {"ancestors", "root", "root_revision"} & set(last["hyperparams"])


async def test_nobody_else_can_build_on_it(yard: Yard):
    job, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    spec = msgspec.to_builtins(FineTune(base_model=tiny.BASE))
    created = JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={}, spec=spec, project_id=theirs)
    await yard.say(ProjectCreated(project_id=theirs, name="theirs"), created, tenant="stranger")
    await yard.completed(job, method="lora", tenant="stranger")

    answer = await yard.resolve(await yard.project(), f"trainyard/{job}")

    assert (answer.status_code, answer.json()["error_code"]) == (404, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("name", ["nothing", "tiny", "00000000-0000-0000-0000-000000000000", "x" * 90, "a.b"])
async def test_what_is_no_run_is_not_found(yard: Yard, trained: tuple[str, str], name: str):
    answer = await yard.resolve(trained[0], f"trainyard/{name}")

    assert (answer.status_code, answer.json()["error_code"]) == (404, "MODEL_NOT_FOUND")


async def test_a_run_that_trained_something_else_is_none(yard: Yard, trained: tuple[str, str]):
    job = str(uuid.uuid4())
    await yard.say(JobCreated(job_id=job, kind="train", stages=["training"], inputs={}, spec={"model_type": "mlp"}, project_id=trained[0]))
    await yard.say(TrainingCompleted(job_id=job, attempt=1, step=1, artifacts={}, steps=Claim(key="local/x/0", sha256="0" * 64, size=1)))

    assert (await yard.resolve(trained[0], f"trainyard/{job}")).status_code == 404


async def test_a_run_that_has_not_completed_is_none_yet(yard: Yard):
    project = await yard.project()
    job = (await yard.start(project)).json()["job_id"]

    assert (await yard.resolve(project, f"trainyard/{job}")).status_code == 404


async def test_a_project_whose_run_is_a_base_stays_as_long_as_a_job_needs_it(yard: Yard):
    lender = await yard.project()
    base = await yard.run(lender)
    job = (await yard.start(await yard.project(f"trainyard/{base}"))).json()["job_id"]

    busy = await yard.api.delete(f"/projects/{lender}")
    await yard.say(
        PreparationStarted(job_id=job),
        PreparationCompleted(job_id=job, parts=0, rows=1, valid=1, snapshot=Claim(key="local/x/0", sha256="0" * 64, size=1), splits={"train": 1}),
        TrainingStarted(job_id=job, attempt=1),
        TrainingCancelled(job_id=job, attempt=1),
    )

    assert (busy.status_code, busy.json()["error_code"], busy.json()["context"]["job_ids"]) == (409, "PROJECT_BUSY", [job])
    assert await eventually(lambda: yard.deleted(lender))


async def test_who_deletes_it_all_the_same_cancels_that_job(yard: Yard):
    lender = await yard.project()
    base = await yard.run(lender)
    job = (await yard.start(await yard.project(f"trainyard/{base}"))).json()["job_id"]

    answer = await yard.api.delete(f"/projects/{lender}", params={"cancel": "true"})

    assert answer.status_code == 204
    (asked,) = await yard._logs["job"].read(f"ev.local.job.cancel_requested.{job}")
    assert isinstance(asked.event, JobCancelRequested)


async def test_that_job_is_cancelled_however_much_else_goes_on(yard: Yard):
    lender = await yard.project()
    base = await yard.run(lender)
    crowd = [f"00000000{str(uuid.uuid4())[8:]}" for _ in range(CANCELLED_AT_ONCE)]
    for id in crowd:
        await yard.say(JobCreated(job_id=id, kind="ingest", stages=["preparation"], inputs={}, project_id=lender))
    job = (await yard.start(await yard.project(f"trainyard/{base}"))).json()["job_id"]
    assert (await yard.api.delete(f"/projects/{lender}")).json()["context"]["job_ids"] == sorted([*crowd, job])

    answer = await yard.api.delete(f"/projects/{lender}", params={"cancel": "true"})

    assert answer.status_code == 204
    assert await eventually(lambda: yard._logs["job"].read(f"ev.local.job.cancel_requested.{job}"))


async def test_of_a_start_and_a_deletion_at_the_same_moment_one_sees_the_other_on_whichever_gateway(yard: Yard, another: httpx.AsyncClient):
    seen: set[tuple[int, int]] = set()

    async def deleted_after(looks: int, lender: str) -> httpx.Response:
        for _ in range(looks):
            await another.get(f"/projects/{lender}")
        return await another.delete(f"/projects/{lender}")

    for looks in range(8):
        lender = await yard.project()
        project = await yard.project(f"trainyard/{await yard.run(lender)}")

        started, deleted = await asyncio.gather(yard.start(project), deleted_after(looks, lender))

        seen.add((started.status_code, deleted.status_code))
    assert seen <= {(202, 409), (400, 204)}


async def test_a_base_that_is_gone_since_it_was_resolved_is_refused_at_the_start(yard: Yard):
    lender = await yard.project()
    project = await yard.project(f"trainyard/{await yard.run(lender)}")
    assert await eventually(lambda: yard.deleted(lender))

    answer = await yard.start(project)

    assert (answer.status_code, answer.json()["error_code"]) == (400, "MODEL_NOT_USABLE")
    assert "not there any more" in answer.json()["detail"]


async def test_a_base_whose_own_base_is_gone_says_so(yard: Yard):
    lowest = await yard.project()
    middle = await yard.project(f"trainyard/{await yard.run(lowest)}")
    second = await yard.run(middle)
    assert await eventually(lambda: yard.deleted(lowest))

    told = (await yard.resolve(await yard.project(), f"trainyard/{second}")).json()

    assert told["valid"] is False
    assert "deleted with its project" in told["warnings"][0]


async def test_the_same_start_again_is_the_same_answer_also_when_the_base_can_be_none_any_more(yard: Yard):
    lowest = await yard.project()
    middle = await yard.project(f"trainyard/{await yard.run(lowest)}")
    top = await yard.project(f"trainyard/{await yard.run(middle)}")
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = await yard.api.post(f"/projects/{top}/train/start", json={"method": "lora"}, headers=key)
    await yard.completed(first.json()["job_id"], method="lora")
    assert await eventually(lambda: yard.deleted(lowest))

    again = await yard.api.post(f"/projects/{top}/train/start", json={"method": "lora"}, headers=key)
    anew = await yard.start(top)

    assert (again.status_code, again.json()) == (202, first.json())
    assert (anew.status_code, anew.json()["error_code"]) == (400, "MODEL_NOT_USABLE")
    assert "deleted with its project" in anew.json()["detail"]


async def test_a_base_whose_files_are_damaged_says_so(yard: Yard, storage: Storage):
    project = await yard.project()
    job = await yard.run(project)
    (completed,) = await yard._logs["training"].read(f"ev.local.training.completed.{job}")
    assert isinstance(completed.event, TrainingCompleted)
    key = completed.event.artifacts["base_config.json"].key
    storage._client.put_object(storage._bucket, key, io.BytesIO(b"{}"), 2)

    told = (await yard.resolve(project, f"trainyard/{job}")).json()

    assert told["valid"] is False
    assert "damaged" in told["warnings"][0]


async def test_a_project_can_build_on_its_own_run(yard: Yard, storage: Storage):
    project = await yard.project()
    first = await yard.run(project)
    await yard.resolve(project, f"trainyard/{first}")

    second = await yard.run(project)

    assert [one.job_id for one in (await yard.tuning(second)).ancestors] == [first]
    assert {(await yard.resolve(project, f"trainyard/{id}")).json()["license"] for id in (first, second)} == {tiny.LICENSE}
    lent = [fact for fact in await yard._logs["project"].read(f"ev.local.project.work_started.{project}") if isinstance(fact.event, ProjectWorkStarted)]
    assert lent == []
