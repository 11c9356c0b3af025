"""The sweep: whatever a fact refers to stays, however old; whatever none refers to goes."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from minio import Minio
from nats.aio.client import Client

from infra.embedded import Servers
from libs.config import Service, load
from libs.events import (
    Claim,
    DatasetCreated,
    DatasetDeleted,
    DatasetUsed,
    ExportCompleted,
    ExportedFile,
    File,
    JobCreated,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    ProjectCreated,
    ProjectDeleted,
    ProjectFilesAdded,
    ProjectRunStarted,
    ProjectWorkStarted,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    TrainingStarted,
)
from libs.runtime import bus as runtime
from libs.storage import Storage
from services.gateway.reactions import Sweep
from services.gateway.views import chunks
from services.gateway.views.progress import Progress, Step
from tests.kit.history import Scribe
from tests.kit.servers import bus_alone
from tests.kit.views import World, running, world

AT_ONCE = timedelta(microseconds=1)


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


@pytest.fixture
def bucket(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """One of its own: a sweep removes all that its facts don't know, and the others' tests have facts elsewhere."""
    name = f"sweep-{tmp_path_factory.mktemp('bucket').name}".replace("_", "-")
    settings = load(Service, servers.environ("datasets", port=0) | {"TRAINYARD_S3_BUCKET": name})
    endpoint = settings.s3_endpoint.removeprefix("http://")
    Minio(endpoint, access_key=settings.s3_access_key, secret_key=settings.s3_secret_key, region=settings.s3_region, secure=False).make_bucket(name)
    storage = Storage(settings)
    yield storage
    storage.close()


async def test_what_facts_refer_to_survives_and_the_rest_goes(here: World, bucket: Storage):
    claims = await a_whole_life(here, bucket)
    orphans = [await bucket.put("local/train", b"of nobody"), await bucket.put("local/train/9", b"by a zombie"), await bucket.put("local/nobody", b"at all")]

    removed = await swept(here, bucket)

    assert removed == len(orphans)
    assert await there(bucket) == {claim.key for claim in claims}


async def test_what_belonged_to_a_deleted_project_goes_also_when_it_was_written_afterwards(here: World, bucket: Storage):
    claims = await a_whole_life(here, bucket)
    scribe = Scribe(here.log)
    await scribe.write(ProjectCreated(project_id="q", name="another"))
    await scribe.write(
        ProjectRunStarted(project_id="q", job_id="late"), JobCreated(job_id="late", kind="train", stages=["training"], inputs={}, project_id="q")
    )
    await scribe.write(TrainingStarted(job_id="late", attempt=1))
    early = await bucket.put("local/late/1", b"before")
    await scribe.write(TrainingCheckpointed(job_id="late", attempt=1, step=1, state=early, steps=early))
    await scribe.write(ProjectDeleted(project_id="q"))
    late = await bucket.put("local/late/1", b"after")
    await scribe.write(TrainingCancelled(job_id="late", attempt=1, step=2, steps=late))

    removed = await swept(here, bucket)

    assert removed == 2
    assert await there(bucket) == {claim.key for claim in claims}


async def test_what_belonged_to_a_deleted_data_set_goes_also_when_it_was_written_afterwards(here: World, bucket: Storage):
    """A model that was made of it stays, and so does all that its run has left."""
    scribe = Scribe(here.log)
    names = ("kept", "learned", "late")
    claims = {name: (await bucket.put(f"local/{name}", b"a,b"), await bucket.put(f"local/prepares-{name}", b"table")) for name in names}
    for name, (source, _) in claims.items():
        about = {"filename": "a.csv", "kind": "dataset", "mime_type": "text/csv", "size": source.size, "sha256": source.sha256, "key": source.key}
        file = File(file_id=f"file-{name}", job_id=f"prepares-{name}", **about)
        created = JobCreated(job_id=file.job_id, kind="prepare", stages=["preparation"], inputs={"dataset_id": name})
        await scribe.write(DatasetCreated(dataset_id=name, name=name, file=file), created)
    prepared = {name: PreparationCompleted(job_id=f"prepares-{name}", parts=1, rows=1, valid=1, snapshot=snapshot) for name, (_, snapshot) in claims.items()}
    await scribe.write(prepared["kept"])
    await scribe.write(prepared["learned"])
    fit = JobCreated(job_id="fit", kind="train", stages=["preparation", "training"], inputs={"dataset_id": "learned", "source": "prepares-learned"})
    await scribe.write(DatasetUsed(dataset_id="learned", job_id="fit"), fit)
    await scribe.write(PreparationCompleted(job_id="fit", parts=0, rows=1, valid=1, snapshot=claims["learned"][1]))
    model = await bucket.put("local/fit/1", b"model")
    await scribe.write(TrainingStarted(job_id="fit", attempt=1))
    await scribe.write(TrainingCompleted(job_id="fit", attempt=1, step=1, artifacts={"model.onnx": model}, steps=model))
    for name in ("learned", "late"):
        await scribe.write(DatasetDeleted(dataset_id=name, job_id=f"prepares-{name}"))
    await scribe.write(prepared["late"])

    await swept(here, bucket)

    assert await there(bucket) == {*(claim.key for claim in claims["kept"]), model.key}


async def test_a_run_on_a_data_set_that_has_ended_leaves_its_model_and_the_newest_log_of_its_steps(here: World, bucket: Storage):
    """Nobody goes on from its checkpoints, and whoever was taken for dead may have stored them again. A run that has not ended needs all it has."""
    scribe = Scribe(here.log)
    kept = {claim.key for claim in await a_whole_life(here, bucket)}
    source = await bucket.put("local/data", b"a,b")
    about = {"filename": "a.csv", "kind": "dataset", "mime_type": "text/csv", "size": source.size, "sha256": source.sha256}
    for dataset in ("there", "deleted"):
        file = File(file_id=f"file-{dataset}", job_id=f"prepares-{dataset}", key=source.key if dataset == "there" else "local/gone", **about)
        await scribe.write(DatasetCreated(dataset_id=dataset, name=dataset, file=file))
    left: dict[str, list[Claim]] = {}
    for job in ("goes-on", "completed", "failed", "cancelled", "failed-deleted", "completed-deleted"):
        dataset = "deleted" if job.endswith("deleted") else "there"
        fit = JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={"dataset_id": dataset, "source": f"prepares-{dataset}"})
        await scribe.write(DatasetUsed(dataset_id=dataset, job_id=job), fit)
        await scribe.write(TrainingStarted(job_id=job, attempt=1))
        state, before, steps, model = [await bucket.put(f"local/{job}/1", what) for what in (b"state", b"1", b"1 2", b"model")]
        await scribe.write(TrainingCheckpointed(job_id=job, attempt=1, step=1, state=state, steps=before))
        left[job] = [state, before, steps, model]
    await scribe.write(TrainingCheckpointed(job_id="goes-on", attempt=1, step=2, state=left["goes-on"][3], steps=left["goes-on"][2]))
    for job in ("completed", "completed-deleted"):
        await scribe.write(TrainingCompleted(job_id=job, attempt=1, step=2, artifacts={"model.onnx": left[job][3]}, steps=left[job][2]))
    for job in ("failed", "failed-deleted"):
        await scribe.write(TrainingFailed(job_id=job, code="crashed", message="It ended.", attempt=1, step=2, steps=left[job][2]))
    await scribe.write(TrainingCancelled(job_id="cancelled", attempt=1, step=2))  # the store was away: the log that counts is that of its checkpoint
    await scribe.write(DatasetDeleted(dataset_id="deleted", job_id="prepares-deleted"))

    await swept(here, bucket)

    stays = {"goes-on": [0, 1, 2, 3], "completed": [2, 3], "failed": [2], "cancelled": [1], "failed-deleted": [], "completed-deleted": [2, 3]}
    assert await there(bucket) == {*kept, source.key, *(left[job][n].key for job, which in stays.items() for n in which)}


async def test_what_is_outdated_stays_as_long_as_a_job_that_is_not_over_reads_it(here: World, bucket: Storage):
    """A language model takes hours: the chunks that it is given must outlive newer ones."""
    scribe = Scribe(here.log)
    await scribe.write(ProjectCreated(project_id="p", name="yard"))
    claims: list[Claim] = []
    for cut in (uuid4().hex, uuid4().hex):
        await scribe.write(
            ProjectWorkStarted(project_id="p", job_id=cut, kind="chunk"),
            JobCreated(job_id=cut, kind="chunk", stages=["preparation"], inputs={"project_id": "p"}, project_id="p"),
        )
        if not claims:
            reader = JobCreated(job_id="reads", kind="generate", stages=["preparation"], inputs={"project_id": "p", "chunks": cut}, project_id="p")
            await scribe.write(ProjectWorkStarted(project_id="p", job_id="reads", kind="generate"), reader)
        claims.append(await bucket.put(f"local/{cut}", b"chunks"))
        await scribe.write(PreparationProduced(job_id=cut, part=1, content=claims[-1], rows=1, valid=1))
        await scribe.write(PreparationCompleted(job_id=cut, parts=1, rows=1, valid=1))
    outdated, newest = claims

    kept = await cleared(here, bucket)
    await scribe.write(PreparationFailed(job_id="reads", code="x", message="over"))

    assert kept == {outdated.key, newest.key}
    assert await cleared(here, bucket) == {newest.key}


async def test_what_a_training_may_read_stays_until_it_has_its_rows(here: World, bucket: Storage):
    """It names no jobs: all that its project has may be among them."""
    scribe = Scribe(here.log)
    await scribe.write(ProjectCreated(project_id="p", name="yard"))
    made_by = [uuid4().hex, uuid4().hex]
    claims = [await bucket.put(f"local/{job}", b"examples") for job in made_by]
    for job, claim in zip(made_by, claims, strict=True):
        created = JobCreated(job_id=job, kind="generate", stages=["preparation"], inputs={"project_id": "p"}, project_id="p")
        await scribe.write(ProjectWorkStarted(project_id="p", job_id=job, kind="generate"), created)
        await scribe.write(PreparationProduced(job_id=job, part=1, content=claim, rows=1, valid=1), PreparationCompleted(job_id=job, parts=1, rows=1, valid=1))
        if job == made_by[0]:
            train = JobCreated(job_id="train", kind="train", stages=["preparation", "training"], inputs={"project_id": "p", "sources": []}, project_id="p")
            await scribe.write(ProjectRunStarted(project_id="p", job_id="train"), train)

    kept = await cleared(here, bucket)
    await scribe.write(TrainingCancelled(job_id="train"))

    assert kept == {claim.key for claim in claims}
    assert await cleared(here, bucket) == {claims[1].key}


async def cleared(here: World, bucket: Storage) -> set[str]:
    await swept(here, bucket)
    await chunks.clear(here.db)
    await swept(here, bucket)
    return await there(bucket)


async def a_whole_life(here: World, bucket: Storage) -> list[Claim]:
    """A project from its file to its export, with an object for everything that can have one."""
    names = ("upload", "part", "snapshot", "state-1", "steps-1", "state-2", "steps-2", "model", "config", "steps-3", "report")
    made = {name: await bucket.put("local/train", name.encode()) for name in names}
    scribe = Scribe(here.log)
    upload = made["upload"]
    file = File(file_id="f", filename="a", kind="dataset_upload", mime_type="text/csv", size=6, sha256=upload.sha256, key=upload.key, job_id="ingest")
    train = JobCreated(job_id="train", kind="train", stages=["preparation", "training"], inputs={}, project_id="p")
    export = JobCreated(job_id="export", kind="export", stages=["export"], inputs={"training_job_id": "train"}, project_id="p")
    await scribe.write(ProjectCreated(project_id="p", name="yard"))
    await scribe.write(
        ProjectFilesAdded(project_id="p", files=[file]), JobCreated(job_id="ingest", kind="ingest", stages=["preparation"], inputs={}, project_id="p")
    )
    await scribe.write(PreparationProduced(job_id="ingest", part=1, content=made["part"], rows=1, valid=1))
    await scribe.write(ProjectRunStarted(project_id="p", job_id="train"), train)
    await scribe.write(PreparationCompleted(job_id="train", parts=0, rows=1, valid=1, snapshot=made["snapshot"]))
    for attempt in (1, 2):
        await scribe.write(TrainingStarted(job_id="train", attempt=attempt))
        await scribe.write(TrainingCheckpointed(job_id="train", attempt=attempt, step=attempt, state=made[f"state-{attempt}"], steps=made[f"steps-{attempt}"]))
    artifacts = {"adapter_model.safetensors": made["model"], "adapter_config.json": made["config"]}
    await scribe.write(TrainingCompleted(job_id="train", attempt=2, step=3, artifacts=artifacts, steps=made["steps-3"]))
    await scribe.write(ProjectWorkStarted(project_id="p", job_id="export", kind="export"), export)
    await scribe.write(ExportCompleted(job_id="export", files=[ExportedFile(name="report.md", content=made["report"], crc32=1)]))
    return list(made.values())


async def swept(here: World, bucket: Storage) -> int:
    progress = Progress()
    async with running(here.projector()):
        progress.reached(Step(seq=await here.caught_up()))
    return await Sweep(here.log, here.db, bucket, progress, holder="tests", older_than=AT_ONCE).once()


async def there(bucket: Storage) -> set[str]:
    return {key for key, _ in await bucket.keys(most=1000)}
