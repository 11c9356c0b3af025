"""Endpoints get what they asked for: signed, in the order of the log, at least once, whatever fails; and nobody is made to call where he must not."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from nats.aio.client import Client
from standardwebhooks import WebhookVerificationError

from infra.embedded import Servers
from libs.events import (
    Claim,
    Event,
    JobCreated,
    ModelRegistered,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    ProjectCreated,
    ProjectUpdated,
    TrainingCompleted,
    TrainingEvaluated,
    TrainingFailed,
    TrainingProgressed,
    TrainingStarted,
    UserDeleted,
    WebhookDelivered,
    WebhookDisabled,
    address,
)
from libs.events.log import Write
from libs.runtime import bus as runtime
from services.gateway import migrations
from services.gateway.commands import Commands
from services.gateway.domain.webhook import ChangeWebhook, CreateWebhook, DeleteWebhook, PingWebhook, ReplayWebhook
from services.gateway.rebuild import rebuild
from services.gateway.rooms import rooms
from services.gateway.views import webhooks
from services.gateway.views.database import LIVE, ensure_views, pool
from services.gateway.views.progress import Progress
from services.gateway.views.runner import Projector
from services.gateway.webhooks import sender
from services.gateway.webhooks.addresses import networks
from services.gateway.webhooks.posting import Poster
from services.gateway.webhooks.sender import Sender
from services.gateway.webhooks.signing import Seal, new_secret
from tests.kit.eventually import eventually
from tests.kit.receiver import OK, Got, Receiver, receiving, status
from tests.kit.servers import bus_alone
from tests.kit.views import ORIGIN, World, database, world

SECRET = new_secret(b"s" * 32)
SEAL = Seal("a secret of the gateway")
NOTHING = Claim(key="local/x", sha256="0" * 64, size=1)
SOON = (0.05, 0.05, 0.05)
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass
class Yard:
    """Views, commands and one that sends, in this process."""

    world: World
    progress: Progress = field(default_factory=Progress)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    last: dict[tuple[str, ...], int] = field(default_factory=dict)

    @property
    def commands(self) -> Commands:
        return Commands(self.world.log, self.progress, rooms(self.world.db), fill=lambda: 0.0)

    def project(self) -> None:
        async def tell(step: Any) -> None:
            self.progress.reached(step)

        self._start(Projector(self.world.log, self.world.db, self.world.url, tell=tell, holder="first").run())

    def send(self, *, allow: str = "127.0.0.0/8", patience: float = 2.0, holder: str = "sender", **options: Any) -> "asyncio.Task[None]":
        options = {"retries": SOON, "report": 3600.0, "poll": 0.05} | options
        made = Sender(self.world.db, self.commands, self.progress, Poster(networks(allow), patience=patience), SEAL, holder=holder, **options)
        return self._start(made.run())

    def _start(self, work: Any) -> "asyncio.Task[None]":
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()

    async def register(self, url: str, *events: str, format: str = "cloudevents", tenant: str = "local") -> str:
        id = str(uuid4())
        secret = SEAL.close(SECRET, about=id)
        made = CreateWebhook(webhook_id=id, url=url, secret=secret, events=list(events), format=format, description="", request="")
        await self.run(made, tenant=tenant)
        return id

    async def run(self, command: Any, *, tenant: str = "local") -> int:
        """The position at which the views have it."""
        outcome = await self.commands.run(command, origin=msgspec.structs.replace(ORIGIN, tenant=tenant))
        await self.world.caught_up()
        return outcome.seq

    async def add(self, event: Event, tenant: str = "local") -> int:
        where = address(tenant, event)
        key = (tenant, where.category, *where.key)
        (fact,) = await self.world.log.append(
            [Write(events=[event], after=self.last.get(key, 0))], origin=ORIGIN if tenant == "local" else type(ORIGIN)(tenant=tenant)
        )
        self.last[key] = fact.seq
        return fact.seq

    async def many(self, count: int) -> list[int]:
        return [await self.add(ProjectCreated(project_id=uuid4().hex, name="n")) for _ in range(count)]

    async def row(self, id: str) -> webhooks.Row:
        row = await webhooks.get(self.world.db, "local", id)
        assert row
        return row

    async def deliveries(self, id: str) -> list[webhooks.Delivery]:
        return list(reversed(await webhooks.deliveries(self.world.db, id, state=None, before=2**62, limit=1000)))


@pytest.fixture(scope="module")
def bus() -> Iterator[Servers]:
    with bus_alone() as bus:
        yield bus


@pytest.fixture(scope="module")
async def bus_nc(bus: Servers) -> AsyncIterator[Client]:
    nc = await runtime.connect(bus.nats_url("infra"), name="infra")
    yield nc
    await nc.close()


@pytest.fixture
async def yard(servers: Servers, bus: Servers, bus_nc: Client) -> AsyncIterator[Yard]:
    async with world(servers, bus, bus_nc) as world_:
        yard = Yard(world_)
        yard.project()
        await eventually(lambda: world_.db.fetchval("select true from core.checkpoints where name = 'webhooks'"))
        yield yard
        await yard.stop()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


# ---- what arrives


async def test_facts_arrive_signed_in_the_order_of_the_log(yard: Yard, receiver: Receiver):
    yard.send()
    id = await yard.register(receiver.url())

    written = await yard.many(50)

    got = await eventually(lambda: receiver.got, of=50)
    assert [one.seq for one in got] == written
    for one in got:
        one.verify(SECRET)
        assert one.json["id"] == one.id
        assert one.headers["content-type"] == "application/cloudevents+json"
    assert [(one.state, one.attempts, one.status) for one in await eventually(lambda: _settled(yard, id))] == [("delivered", 1, 200)] * 50


async def _settled(yard: Yard, id: str) -> list[webhooks.Delivery]:
    rows = await yard.deliveries(id)
    return rows if rows and all(row.state != "pending" for row in rows) else []


async def test_only_what_was_asked_for_of_the_own_workspace_and_no_secrets(yard: Yard, receiver: Receiver):
    yard.send()
    await yard.register(receiver.url("/some"), "project.updated", "training.*")
    await yard.register(receiver.url("/all"))
    project = uuid4().hex

    await yard.add(ProjectCreated(project_id=uuid4().hex, name="foreign"), tenant="others")
    await yard.add(ProjectCreated(project_id=project, name="a"))
    await yard.add(ProjectUpdated(project_id=project, name="b"))
    await yard.add(TrainingStarted(job_id=uuid4().hex, attempt=1))

    got = await eventually(lambda: receiver.at("/all"), of=3)
    assert [one.json["type"] for one in got] == ["project.created", "project.updated", "training.started"]
    assert [one.json["type"] for one in await eventually(lambda: receiver.at("/some"), of=2)] == ["project.updated", "training.started"]


async def test_a_deleted_users_webhooks_end_with_the_user_also_where_something_waits_to_be_sent_again(yard: Yard, receiver: Receiver):
    receiver.answer = lambda got: status(500) if got.path == "/waits" else OK
    yard.send(retries=(0.3,) * 20)
    told, waits = [await yard.register(receiver.url(path), tenant="ann") for path in ("/told", "/waits")]
    other = await yard.register(receiver.url("/other"))

    await yard.add(ProjectCreated(project_id=uuid4().hex, name="before"), tenant="ann")
    await eventually(lambda: receiver.at("/told") and receiver.at("/waits"))
    await yard.add(UserDeleted(user_id="ann"), tenant="ann")
    late = await yard.register(receiver.url("/late"), tenant="ann")
    await yard.add(ProjectCreated(project_id=uuid4().hex, name="after"), tenant="ann")
    await yard.world.caught_up()
    tried = len(receiver.at("/waits"))
    await yard.many(1)
    await eventually(lambda: receiver.at("/other"))
    await asyncio.sleep(0.7)  # twice as long as a retry would wait

    assert (len(receiver.at("/told")), receiver.at("/late")) == (1, [])
    assert len(receiver.at("/waits")) <= tried + 1  # one may have been on its way
    assert {row["id"] for row in await yard.world.db.fetch("select id from core.webhook_endpoints")} == {other}
    for gone in (told, waits):
        assert await webhooks.get(yard.world.db, "ann", gone) is None
    assert await yard.world.db.fetchval("select count(*) from core.webhook_deliveries where endpoint = $1", late) == 0


async def test_the_contracts_names_and_bodies(yard: Yard, receiver: Receiver):
    yard.send()
    await yard.register(receiver.url(), format="contract")
    run, ingest, table, doomed, lost = (str(uuid4()) for _ in range(5))
    await yard.add(JobCreated(job_id=ingest, kind="ingest", stages=["preparation"], inputs={"file": {"file_id": "file-1"}}))
    await yard.add(JobCreated(job_id=table, kind="prepare", stages=["preparation"], inputs={"dataset_id": "dataset-1", "file": {"file_id": "file-2"}}))
    for job in (run, doomed, lost):
        await yard.add(JobCreated(job_id=job, kind="train", stages=["preparation", "training"], inputs={}))

    await yard.add(PreparationCompleted(job_id=ingest, parts=1, rows=9, valid=9))
    await yard.add(PreparationCompleted(job_id=table, parts=1, rows=13, valid=12, contents="table"))
    await yard.add(PreparationCompleted(job_id=run, parts=0, rows=0, valid=0))
    merged = str(uuid4())  # what an export merges is no training of anybody's
    await yard.add(JobCreated(job_id=merged, kind="export", stages=["training", "export"], inputs={"training_job_id": run}))
    await yard.add(TrainingStarted(job_id=merged, attempt=1, merge=True))
    await yard.add(TrainingProgressed(job_id=merged, attempt=1, step=50, total_steps=200, doing="writing"))
    await yard.add(TrainingCompleted(job_id=merged, attempt=1, step=0, artifacts={}, steps=NOTHING, merge=True))
    await yard.add(TrainingStarted(job_id=run, attempt=1))
    for step in (1, 5, 10, 11, 35):
        await yard.add(TrainingProgressed(job_id=run, attempt=1, step=step, total_steps=100, epoch=1.5, metrics={"loss": 0.5}))
    await yard.add(TrainingStarted(job_id=run, attempt=2, resumed_from=20))
    for step in (20, 30, 40, 100):
        await yard.add(TrainingProgressed(job_id=run, attempt=2, step=step, total_steps=100))
    await yard.add(TrainingCompleted(job_id=run, attempt=2, step=100, artifacts={}, steps=NOTHING, metrics={"val_accuracy": 0.912}))
    await yard.add(PreparationFailed(job_id=doomed, code="no_examples", message="nothing to train on"))
    await yard.add(TrainingFailed(job_id=lost, code="oom", message="too large"))
    ragged = str(uuid4())
    await yard.add(JobCreated(job_id=ragged, kind="prepare", stages=["preparation"], inputs={"dataset_id": "dataset-2"}))
    last = await yard.add(PreparationFailed(job_id=ragged, code="one_class", message="All rows are of one class"))

    got = await eventually(lambda: receiver.got if receiver.got and receiver.got[-1].seq == last else [])
    bodies = [one.json for one in got]
    assert all(set(body) == {"event", "timestamp", "data"} and STAMP.fullmatch(body["timestamp"]) for body in bodies)
    assert [(body["event"], body["data"].get("progress")) for body in bodies] == [
        ("dataset.processed", None),
        ("dataset.processed", None),
        ("training.started", None),
        ("training.progress", 10),
        ("training.progress", 35),
        ("training.progress", 40),
        ("training.progress", 100),
        ("training.completed", None),
        ("training.failed", None),
        ("training.failed", None),
        ("dataset.failed", None),
    ]
    assert bodies[0]["data"] == {"dataset_id": "file-1", "job_id": ingest, "rows": 9}
    assert bodies[1]["data"] == {"dataset_id": "dataset-1", "job_id": table, "rows": 12}  # as its metadata has it
    assert bodies[3]["data"] == {"job_id": run, "progress": 10, "current_epoch": 1, "total_epochs": 0, "metrics": {"loss": 0.5}}
    assert bodies[-4]["data"] == {"job_id": run, "model_id": run, "accuracy": 0.912}
    assert [body["data"] for body in bodies[-3:]] == [
        {"job_id": doomed, "error": "nothing to train on"},
        {"job_id": lost, "error": "too large"},
        {"dataset_id": "dataset-2", "job_id": ragged, "error": "All rows are of one class"},
    ]


async def test_progress_of_a_fit_tells_its_latest_epoch_as_its_status_does(yard: Yard, receiver: Receiver):
    """The same each time it is sent: as it was at that place of the log."""
    yard.send()
    await yard.register(receiver.url(), "training.progress", format="contract")
    fit = str(uuid4())
    await yard.add(JobCreated(job_id=fit, kind="train", stages=["preparation", "training"], inputs={"dataset_id": "data"}, spec={"epochs": 10}))
    await yard.add(TrainingStarted(job_id=fit, attempt=1))
    epochs: list[dict[str, float | None]] = [{"epoch": float(n), "loss": 1 / n, "val_loss": 2 / n, "val_accuracy": 0.1 * n} for n in (1, 2, 3)]
    for step, evaluated in zip((2, 4, 6), epochs, strict=True):
        await yard.add(TrainingProgressed(job_id=fit, attempt=1, step=step, total_steps=20, epoch=step / 2, metrics={"train_loss": 0.5}))
        await yard.add(TrainingEvaluated(job_id=fit, attempt=1, step=step, metrics=evaluated))
    await yard.add(TrainingProgressed(job_id=fit, attempt=1, step=20, total_steps=20, epoch=10.0, metrics={"train_loss": 0.4}))
    first = [one.json["data"] for one in await eventually(lambda: receiver.got, of=4)]
    (endpoint,) = [row["id"] for row in await yard.world.db.fetch("select id from webhooks")]
    await yard.run(ReplayWebhook(webhook_id=endpoint, start=1))
    again = [one.json["data"] for one in (await eventually(lambda: receiver.got, of=8))[4:]]

    def metrics(n: int) -> dict[str, float | None]:
        return {name: value for name, value in epochs[n - 1].items() if name != "epoch"}

    assert first[0] == {"job_id": fit, "progress": 10, "current_epoch": 1, "total_epochs": 10, "metrics": {"train_loss": 0.5, "loss": 0.5}}
    assert first[2] == {"job_id": fit, "progress": 30, "current_epoch": 2, "total_epochs": 10, "metrics": {"train_loss": 0.5, **metrics(2)}}
    assert first[3] == {"job_id": fit, "progress": 100, "current_epoch": 3, "total_epochs": 10, "metrics": {"train_loss": 0.4, **metrics(3)}}
    assert again == first


async def test_what_an_endpoint_is_told_of_is_there_to_be_found(yard: Yard, receiver: Receiver):
    """A data set's columns, and the model of a run: whoever hears of them asks for them at once. Other endpoints are told the facts as they come."""
    yard.send()
    await yard.register(receiver.url("/contract"), format="contract")
    await yard.register(receiver.url("/facts"), "preparation.completed", "training.completed")
    table, fit = str(uuid4()), str(uuid4())
    await yard.add(JobCreated(job_id=table, kind="prepare", stages=["preparation"], inputs={"dataset_id": "data"}))
    await yard.add(JobCreated(job_id=fit, kind="train", stages=["preparation", "training"], inputs={"dataset_id": "data"}))
    await yard.add(PreparationProduced(job_id=table, part=1, content=NOTHING, rows=2, valid=2))
    await yard.add(PreparationCompleted(job_id=table, parts=1, rows=9, valid=9))
    await yard.add(TrainingCompleted(job_id=fit, attempt=1, step=9, artifacts={}, steps=NOTHING, metrics={"val_accuracy": 0.5}))

    def told() -> list[str]:
        return [one.json["event"] for one in receiver.at("/contract")]

    await eventually(lambda: receiver.at("/facts"), of=2)
    before = told()
    await yard.world.db.execute("update parts set state = 'loaded' where job_id = $1", table)
    await eventually(told)
    loaded = told()
    await yard.add(ModelRegistered(model_id=fit, name="MLP_v1", model_type="mlp"))

    assert (before, loaded) == ([], ["dataset.processed"])
    assert await eventually(told, of=2) == ["dataset.processed", "training.completed"]


async def test_a_rotated_secret_and_the_old_one_both_sign_for_a_while(yard: Yard, receiver: Receiver):
    yard.send()
    id = await yard.register(receiver.url())
    newer, newest = new_secret(b"n" * 32), new_secret(b"m" * 32)

    await yard.run(ChangeWebhook(webhook_id=id, secret=SEAL.close(newer, about=id), overlap=timedelta(hours=1)))
    await yard.many(1)
    overlapping = (await eventually(lambda: receiver.got, of=1))[0]
    await yard.run(ChangeWebhook(webhook_id=id, secret=SEAL.close(newest, about=id)))
    await yard.many(1)
    after = (await eventually(lambda: receiver.got, of=2))[1]

    overlapping.verify(SECRET)
    overlapping.verify(newer)
    after.verify(newest)
    with pytest.raises(WebhookVerificationError):
        after.verify(newer)


async def test_neither_the_log_nor_the_views_hold_a_secret_that_can_be_read(yard: Yard, receiver: Receiver):
    await yard.register(receiver.url())

    stored = b"".join(row["body"] for row in await yard.world.db.fetch("select body from core.event_log"))
    shown = str(await yard.world.db.fetch("select * from webhooks"))

    assert SECRET.removeprefix("whsec_") not in stored.decode() + shown
    assert b"webhook.created" in stored
    assert not [raw async for raw in yard.world.log.scan_raw("ev.local.webhook.>")]


# ---- what fails


async def test_what_fails_is_tried_again_and_holds_up_only_what_comes_behind_it(yard: Yard, receiver: Receiver):
    refused: list[str] = []

    def answer(got: Got) -> bytes:
        if got.path == "/bad" and len(refused) < 2:
            refused.append(got.id)
            return status(500)
        return OK

    receiver.answer = answer
    yard.send()
    bad, _ = await yard.register(receiver.url("/bad")), await yard.register(receiver.url("/good"))

    written = await yard.many(5)

    assert [one.seq for one in await eventually(lambda: receiver.at("/good"), of=5)] == written
    got = await eventually(lambda: receiver.at("/bad"), of=7)
    assert [one.seq for one in got] == [written[0]] * 2 + written
    assert len({one.id for one in got}) == 5, "the id stays the same"
    assert (await eventually(lambda: _settled(yard, bad)))[0].attempts == 3


async def test_a_delivery_is_given_up_after_its_last_retry_and_the_next_is_sent(yard: Yard, receiver: Receiver):
    receiver.answer = lambda got: OK if got.seq != first else status(400)
    first = (await yard.world.log.position()).last + 2
    yard.send()
    id = await yard.register(receiver.url())

    written = await yard.many(2)

    assert written[0] == first
    await eventually(lambda: receiver.got, of=len(SOON) + 2)
    rows = await eventually(lambda: _settled(yard, id))
    assert [(row.state, row.attempts, row.status) for row in rows] == [("failed", len(SOON) + 1, 400), ("delivered", 1, 200)]


async def test_retry_after_is_heeded(yard: Yard, receiver: Receiver):
    receiver.answer = lambda _: status(429, "Retry-After: 1800")
    yard.send()
    id = await yard.register(receiver.url())

    await yard.many(1)

    row = await eventually(lambda: _failing(yard, id))
    assert row
    assert row.next_at
    assert timedelta(minutes=29) < row.next_at - datetime.now(UTC) < timedelta(minutes=31)


async def _failing(yard: Yard, id: str) -> webhooks.Row | None:
    row = await yard.row(id)
    return row if row.fails else None


async def test_gone_disables_and_enabling_sets_out_from_now(yard: Yard, receiver: Receiver):
    receiver.answer = lambda _: status(410)
    yard.send()
    id = await yard.register(receiver.url())
    await yard.many(3)
    await eventually(lambda: _inactive(yard, id))
    receiver.answer = lambda _: OK
    await yard.many(2)

    await yard.run(ChangeWebhook(webhook_id=id, active=True))
    last = await yard.many(1)

    got = await eventually(lambda: receiver.got, of=2)
    assert [one.seq for one in got[1:]] == last
    facts = [recorded.event async for recorded in yard.world.log.scan(f"sec.local.webhook.*.{id}")]
    assert [event.reason for event in facts if isinstance(event, WebhookDisabled)] == ["gone"]
    assert [row.state for row in await yard.deliveries(id)][:3] == ["dropped"] * 3


async def _inactive(yard: Yard, id: str) -> bool:
    return not (await yard.row(id)).active


async def test_who_fails_for_days_is_disabled(yard: Yard, receiver: Receiver):
    receiver.answer = lambda _: status(503)
    yard.send(give_up=timedelta(seconds=0.1))
    id = await yard.register(receiver.url())

    await yard.many(1)

    await eventually(lambda: _inactive(yard, id))
    assert (await yard.row(id)).why_inactive == "failing"


# ---- asked for


async def test_a_ping_comes_in_its_turn(yard: Yard, receiver: Receiver):
    yard.send()
    contract = await yard.register(receiver.url("/contract"), format="contract")
    cloudevents = await yard.register(receiver.url("/cloudevents"))

    await yard.run(PingWebhook(webhook_id=contract))
    await yard.run(PingWebhook(webhook_id=cloudevents))

    (one,) = await eventually(lambda: receiver.at("/contract"), of=1)
    (other,) = await eventually(lambda: receiver.at("/cloudevents"), of=1)
    assert (one.json["event"], one.json["data"]) == ("webhook.test", {"webhook_id": contract})
    assert other.json["type"] == "webhook.test_requested"
    one.verify(SECRET)


async def test_a_replay_sends_everything_from_a_position_on_once_more_in_order(yard: Yard, receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sender, "PAGE", 3)
    before = await yard.many(5)
    yard.send()
    id = await yard.register(receiver.url())
    after = await yard.many(5)
    await eventually(lambda: receiver.got, of=5)

    await yard.run(ReplayWebhook(webhook_id=id, start=before[2]))
    newer = await yard.many(1)

    got = await eventually(lambda: receiver.got, of=5 + 3 + 5 + 1)
    assert [one.seq for one in got[5:]] == before[2:] + after + newer


async def test_a_deleted_endpoint_gets_nothing_more(yard: Yard, receiver: Receiver):
    yard.send()
    gone, stays = await yard.register(receiver.url("/gone")), await yard.register(receiver.url("/stays"))

    await yard.run(DeleteWebhook(webhook_id=gone))
    await yard.many(2)

    await eventually(lambda: receiver.at("/stays"), of=2)
    assert receiver.at("/gone") == []
    assert stays


# ---- what dies


async def test_a_lost_database_does_not_send_the_history_again(yard: Yard, servers: Servers, receiver: Receiver):
    yard.send(report=0.1)
    id = await yard.register(receiver.url())
    written = await yard.many(30)
    await eventually(lambda: _reported(yard, id, written[-1]))
    await yard.stop()
    unsent = await yard.many(3)

    async with _second_life(servers, yard) as again:
        await eventually(lambda: receiver.got, of=33)
        newer = await again.many(1)

        got = await eventually(lambda: receiver.got, of=34)
        assert [one.seq for one in got] == written + unsent + newer


async def _reported(yard: Yard, id: str, up_to: int) -> bool:
    facts = [recorded.event async for recorded in yard.world.log.scan(f"sec.local.webhook.delivered.{id}")]
    return any(isinstance(event, WebhookDelivered) and event.up_to >= up_to for event in facts)


@asynccontextmanager
async def _second_life(servers: Servers, yard: Yard) -> AsyncIterator[Yard]:
    """An empty database under the same log."""
    async with database(servers) as url:
        await migrations.upgrade(url)
        db = await pool(url)
        await ensure_views(db, LIVE)
        again = Yard(World(nc=yard.world.nc, log=yard.world.log, url=url, db=db, storage=yard.world.storage))
        again.project()
        again.send()
        try:
            yield again
        finally:
            await again.stop()
            db.terminate()


async def test_a_rebuild_of_the_views_sends_nothing_again(yard: Yard, receiver: Receiver):
    yard.send()
    await yard.register(receiver.url())
    written = await yard.many(5)
    await eventually(lambda: receiver.got, of=5)

    await rebuild(yard.world.log, yard.world.storage, yard.world.url, tell=lambda _: None)
    newer = await yard.many(1)

    got = await eventually(lambda: receiver.got, of=6)
    assert [one.seq for one in got] == written + newer


async def test_what_a_sender_held_is_taken_over_when_it_is_gone_and_nothing_is_lost(yard: Yard, receiver: Receiver):
    receiver.answer = lambda _: None
    first = yard.send(patience=60, holder="first sender")
    id = await yard.register(receiver.url())
    written = await yard.many(3)
    await eventually(lambda: receiver.got, of=1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    receiver.answer = lambda _: OK

    yard.send(holder="second sender")

    got = await eventually(lambda: receiver.got, of=4)
    assert [one.seq for one in got] == [written[0], *written]
    assert (await eventually(lambda: _settled(yard, id)))[-1].state == "delivered"


# ---- where it may go


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]", "[::1]"])
async def test_not_a_single_packet_goes_to_a_forbidden_address(yard: Yard, receiver: Receiver, host: str):
    """Registered past the check of URLs, as a name would be whose address changes after it."""
    yard.send(allow="")
    id = await yard.register(receiver.url(host=host))

    await yard.many(1)

    await eventually(lambda: _failing(yard, id))
    why = (await yard.deliveries(id))[0].error
    assert "no public address" in why or "not a canonical" in why
    assert receiver.connections == 0


async def test_a_redirect_is_a_failure_and_not_followed(yard: Yard, receiver: Receiver):
    async with receiving() as trap:
        receiver.answer = lambda _: status(307, f"Location: {trap.url()}")
        yard.send()
        id = await yard.register(receiver.url())

        await yard.many(1)

        await eventually(lambda: _failing(yard, id))
        assert trap.connections == 0


async def test_bodies_that_never_end_and_answers_that_never_come_are_cut_off(yard: Yard, receiver: Receiver):
    receiver.answer = lambda got: None if got.path == "/silent" else b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" + b"x" * 0xFFFFF
    yard.send(patience=0.3)
    silent, endless = await yard.register(receiver.url("/silent")), await yard.register(receiver.url("/endless"))

    await yard.many(1)

    await eventually(lambda: _failing(yard, silent))
    await eventually(lambda: _failing(yard, endless))
    assert "no answer" in (await yard.deliveries(silent))[0].error
    assert len((await yard.deliveries(endless))[0].response) <= 1024
