"""Credits over HTTP, with tokens: granted, put aside by a start, and settled once by whatever became of the job. The other services' facts are the test's."""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from nats.aio.client import Client

from infra.embedded import Process, Servers
from libs.config import Gateway, Refused, load
from libs.events import (
    Address,
    Claim,
    Event,
    Origin,
    PreparationCancelled,
    PreparationCompleted,
    PreparationFailed,
    PreparationStarted,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    TrainingStarted,
    UserRegistered,
    UserRoleChanged,
    address,
    kind,
)
from libs.events.log import EventLog, Write
from libs.runtime import bus
from libs.tiny import BASE
from services.gateway import people
from services.gateway.__main__ import refuse_bad_prices
from services.gateway.api.families import family
from services.gateway.api.problems import problem
from services.gateway.commands import Commands
from services.gateway.domain.errors import InsufficientCredits, TooManyActiveJobs
from services.gateway.domain.project import StartTraining
from services.gateway.domain.quota import CONCURRENT, Starter
from services.gateway.reactions import ENDS
from services.gateway.rebuild import rebuild
from services.gateway.rooms import rooms
from services.gateway.views.database import pool
from services.gateway.views.progress import Progress
from tests.kit import money_checker
from tests.kit.eventually import eventually
from tests.kit.evidence import consumers, fact_of, undone
from tests.kit.gateway import client, running
from tests.kit.people import JWT, PASSWORD, Person, bearer, registered
from tests.kit.servers import revive, storage_of
from tests.kit.trained import trained

PRICE = 30
BANK = {**JWT, "TRAINYARD_PRICES": f"lora-training:600=10,finetuneflow={PRICE}"}
CLAIM = Claim(key="none", sha256="0" * 64, size=1)
ROW = {"files": {"files": ("rows.jsonl", b'{"instruction": "Add 1 and 1.", "output": "2"}\n')}, "data": {"kind": "dataset_upload"}}


@pytest.fixture(scope="module")
def bank(mortal: Servers) -> Iterator[Process]:
    """The only gateway of its servers, so that nobody else settles anything."""
    with running(mortal, label="gateway-bank", environ=BANK) as process:
        yield process


@pytest.fixture(scope="module")
async def till(bank: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(bank) as api:
        yield api


@pytest.fixture(scope="module")
async def nc(mortal: Servers) -> AsyncIterator[Client]:
    """As `infra`, who may write whatever a service would."""
    nc = await bus.connect(mortal.nats_url("infra"), name="infra")
    yield nc
    await nc.close()


@pytest.fixture(scope="module")
def ledger(nc: Client) -> EventLog:
    return EventLog(nc, source="/tests")


@pytest.fixture
async def another_gateway(mortal: Servers, nc: Client) -> AsyncIterator[Callable[[EventLog], Commands]]:
    """As far as a start goes. Each has locks of its own."""
    db, progress = await pool(mortal.database_url), Progress()
    await progress.listen(nc)
    yield lambda log: Commands(log, progress, rooms(db), fill=lambda: 0.0)
    await db.close()


@pytest.fixture
def gateways(ledger: EventLog, another_gateway: Callable[[EventLog], Commands]) -> list[Commands]:
    return [another_gateway(ledger) for _ in range(2)]


@pytest.fixture
async def ann(till: httpx.AsyncClient) -> Person:
    return await registered(till)


@pytest.fixture(scope="module")
async def root(till: httpx.AsyncClient, ledger: EventLog) -> Person:
    """An admin, and with a token that nobody has shown before the role was changed."""
    person = await registered(till)
    last = (await ledger.read(Address(tenant=person.id, category="user", key=(person.id,))))[-1].seq
    await ledger.append([Write(events=[UserRoleChanged(user_id=person.id, role="admin")], after=last)], origin=Origin(tenant=person.id))

    async def entered() -> str:
        answer = await till.post("/auth/login", json={"username": person.username, "password": PASSWORD})
        seen = await till.get("/api/v1/auth/user/", headers=bearer(answer.json()["access_token"]))
        return answer.json()["access_token"] if seen.json()["role"] == "admin" else ""

    return replace(person, access=await eventually(entered))


# ---- what a user has


async def test_a_new_user_begins_with_the_configured_credits_in_the_batch_that_makes_him(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    (registration,) = [fact for fact in await ledger.read(Address(tenant=ann.id, category="user", key=(ann.id,))) if isinstance(fact.event, UserRegistered)]
    granted = await story(ledger, ann)

    assert [kind(fact.event) for fact in granted if fact.event] == ["credit.granted"]
    assert granted[0].envelope.correlationid == registration.envelope.correlationid
    assert granted[0].seq == registration.seq + 2
    assert await money(till, ann) == (100, 0)
    (entry,) = await entries(till, ann)
    assert {name: entry[name] for name in ("type", "amount", "balanceAfter", "jobId", "reason")} == {
        "type": "granted",
        "amount": 100,
        "balanceAfter": 100,
        "jobId": None,
        "reason": "registration",
    }


async def test_who_registered_before_there_were_credits_has_none_until_some_are_granted(till: httpx.AsyncClient, ledger: EventLog, root: Person):
    """As the log of an older version has it: the same user, and no grant."""
    old = str(uuid4())
    user = UserRegistered(user_id=old, username="old", email="old@example.com", password_hash="x")
    await ledger.append([Write(events=[user], after=0)], origin=Origin(tenant=old))

    given = await till.post(f"/v2/users/{old}/credits", json={"amount": 7}, headers=root.headers)

    assert (given.status_code, given.json()["balance"]) == (201, 7)


async def test_credits_are_for_people_with_a_token_and_only_their_own(till: httpx.AsyncClient, ann: Person):
    stranger = await registered(till)
    await started(till, await ready(till, ann), ann)

    for path, headers, status in (("", {}, 401), ("/history", {}, 401), ("/elsewhere", ann.headers, 404)):
        refused = await till.get(f"/api/credits{path}", headers=headers)
        assert (refused.status_code, set(refused.json())) == (status, {"code", "message", "timestamp"})
    assert await money(till, stranger) == (100, 0)
    assert [entry["type"] for entry in await entries(till, stranger)] == ["granted"]
    assert await money(till, ann) == (70, PRICE)


async def test_the_history_is_paged_newest_first(till: httpx.AsyncClient, root: Person, ann: Person):
    for amount in (1, 2, 3):
        await till.post(f"/v2/users/{ann.id}/credits", json={"amount": amount, "reason": f"no. {amount}"}, headers=root.headers)

    pages = [(await till.get(f"/api/credits/history?limit=2&offset={offset}", headers=ann.headers)).json() for offset in (0, 2, 4)]

    assert [page["total"] for page in pages] == [4, 4, 4]
    assert [[(entry["amount"], entry["balanceAfter"]) for entry in page["items"]] for page in pages] == [[(3, 106), (2, 103)], [(1, 101), (100, 100)], []]
    assert (await till.get("/api/credits/history?limit=0", headers=ann.headers)).status_code == 400


# ---- granting


async def test_an_admin_grants_once_for_a_key_and_it_is_kept_who_it_was(till: httpx.AsyncClient, ledger: EventLog, root: Person, ann: Person):
    path = f"/v2/users/{ann.id}/credits"
    once = {**root.headers, "Idempotency-Key": "a refund"}

    first, again = [await till.post(path, json={"amount": 5, "reason": "sorry"}, headers=once) for _ in range(2)]
    later = await till.post(path, json={"amount": 1}, headers=root.headers)
    repeated = await till.post(path, json={"amount": 5, "reason": "sorry"}, headers=once)
    other = await till.post(path, json={"amount": 6, "reason": "sorry"}, headers=once)

    assert [answer.status_code for answer in (first, again, later, repeated, other)] == [201, 201, 201, 201, 422]
    assert first.json() == again.json() == repeated.json() == {"id": first.json()["id"], "user_id": ann.id, "amount": 5, "balance": 105}
    assert await money(till, ann) == (106, 0)
    assert [fact.envelope.actor for fact in (await story(ledger, ann))[1:]] == [root.id, root.id]
    assert (await entries(till, ann))[1]["reason"] == "sorry"


async def test_a_grant_that_nobody_may_make_or_that_is_none_changes_nothing(till: httpx.AsyncClient, ledger: EventLog, root: Person, ann: Person):
    path = f"/v2/users/{ann.id}/credits"
    before = (await ledger.position()).last

    assert (await till.post(path, json={"amount": 5}, headers=ann.headers)).status_code == 403
    assert (await till.post(f"/v2/users/{uuid4()}/credits", json={"amount": 5}, headers=root.headers)).status_code == 404
    for amount in (0, -5, 1_000_001, 1.5, "many", None, 10**30):
        assert (await till.post(path, json={"amount": amount}, headers=root.headers)).status_code == 422, amount
    assert (await ledger.position()).last == before


async def test_an_operator_grants_on_the_command_line(till: httpx.AsyncClient, mortal: Servers, ann: Person):
    command = [sys.executable, "-m", "services.gateway", "users", "grant", ann.username, "11"]
    environ = {**mortal.environ("gateway", port=1), **BANK}

    granted = await asyncio.to_thread(subprocess.run, command, env=environ, capture_output=True, text=True, check=False)

    assert (granted.returncode, granted.stdout) == (0, f"{ann.username} has 111 credits now\n"), granted.stderr
    await eventually(lambda: _equal(lambda: money(till, ann), (111, 0)))


@pytest.mark.parametrize("amount", ["0", "-1", "1000001", "ten"])
def test_what_nobody_can_grant_is_refused_before_anything_is_asked(amount: str, capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser()
    people.arguments(parser.add_subparsers())

    with pytest.raises(SystemExit):
        parser.parse_args(["users", "grant", "ann", "--", amount])

    assert "1 to 1000000 credits can be granted at once" in capsys.readouterr().err


def test_a_price_list_that_nobody_can_read_does_not_start_and_is_named(mortal: Servers):
    with pytest.raises(Refused, match=r"TRAINYARD_PRICES: 'lora' is none of the families"):
        refuse_bad_prices(load(Gateway, {**mortal.environ("gateway", port=1), "TRAINYARD_PRICES": "lora=1"}))


# ---- starting


async def test_a_start_puts_its_price_aside_in_the_batch_that_makes_the_job(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    project = await ready(till, ann)

    job = await started(till, project, ann)

    (created,) = await ledger.read(f"ev.{ann.id}.job.created.{job}")
    batch = [fact for fact in await ledger.read(f"ev.{ann.id}.>") if fact.envelope.correlationid == created.envelope.correlationid]
    assert [fact.envelope.type for fact in batch] == ["project.run_started", "credit.reserved", "quota.taken", "job.created"]
    assert [fact.seq for fact in batch] == list(range(batch[0].seq, batch[0].seq + 4))
    assert await money(till, ann) == (70, PRICE)
    assert (await entries(till, ann))[0] | {"id": "", "createdAt": ""} == {
        "id": "",
        "type": "reserved",
        "amount": PRICE,
        "balanceAfter": 70,
        "jobId": job,
        "reason": "finetuneflow: training",
        "createdAt": "",
    }


async def test_a_start_that_is_repeated_pays_once(till: httpx.AsyncClient, ann: Person):
    project = await ready(till, ann)

    answers = await asyncio.gather(*(start(till, project, ann, key="once") for _ in range(4)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert await money(till, ann) == (70, PRICE)


async def test_a_start_that_costs_more_than_there_is_says_what_is_missing_and_changes_nothing(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    projects = [await ready(till, ann) for _ in range(4)]
    for project in projects[:3]:
        await started(till, project, ann)
    before = (await ledger.position()).last

    refused = await start(till, projects[3], ann)

    assert (refused.status_code, refused.json()["error_code"]) == (402, "INSUFFICIENT_CREDITS")
    assert refused.json()["detail"] == "This costs 30 credits and you have 10: 20 are missing"
    assert refused.json()["context"] == {"price": 30, "balance": 10, "missing": 20}
    assert (await ledger.position()).last == before
    assert (await till.get(f"/projects/{projects[3]}/train/status", headers=ann.headers)).json() == {"status": "no_runs"}


@pytest.mark.parametrize(
    ("path", "field", "code"),
    [
        ("/api/train/start", "code", "INSUFFICIENT_CREDITS"),
        ("/training/start", "error", "insufficient_credits"),
        ("/api/v1/training/single", "error_code", "INSUFFICIENT_CREDITS"),
        ("/v2/projects", "type", "urn:trainyard:problem:insufficient_credits"),
    ],
)
def test_each_family_says_it_in_its_own_form(path: str, field: str, code: str):
    status, body = family(path, path).dress(problem(InsufficientCredits(price=30, balance=10, missing=20)))

    assert (status, body[field]) == (402, code)
    assert "20 are missing" in str(body)


async def test_of_several_starts_at_once_with_money_for_three_three_win(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    projects = [await ready(till, ann) for _ in range(6)]

    answers = await asyncio.gather(*(start(till, project, ann) for project in projects))

    assert sorted(answer.status_code for answer in answers) == [202, 202, 202, 402, 402, 402]
    assert await money(till, ann) == (10, 3 * PRICE)
    assert [fact.envelope.type for fact in await story(ledger, ann)] == ["credit.granted", *["credit.reserved"] * 3]


async def test_a_gateway_that_is_overtaken_between_its_look_and_its_append_finds_out(
    till: httpx.AsyncClient, nc: Client, ledger: EventLog, another_gateway: Callable[[EventLog], Commands], ann: Person
):
    mine, yours = [await ready(till, ann) for _ in range(2)]
    starter = Starter(user_id=ann.id, price=60, most=1)
    late = Late(nc)
    overtaken = asyncio.create_task(begin(another_gateway(late), mine, starter))
    await late.looked.wait()

    await begin(another_gateway(ledger), yours, starter)
    late.go.set()

    with pytest.raises(InsufficientCredits):
        await overtaken
    assert [fact.envelope.type for fact in await story(ledger, ann)] == ["credit.granted", "credit.reserved"]
    assert await ledger.read(f"ev.{ann.id}.project.run_started.{mine}") == []


class Late(EventLog):
    """Once it has read of a quota, which is the last that a start looks at, it waits."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc, source="/late")
        self.looked, self.go = asyncio.Event(), asyncio.Event()

    async def read(self, where: Address | str, *, after: int = 0) -> list[Recorded]:
        found = await super().read(where, after=after)
        if ".quota." in str(where):
            self.looked.set()
            await self.go.wait()
        return found


async def test_two_gateways_at_once_let_in_what_the_money_is_for(till: httpx.AsyncClient, ledger: EventLog, gateways: list[Commands], ann: Person):
    projects = [await ready(till, ann) for _ in range(6)]
    starter = Starter(user_id=ann.id, price=45)

    outcomes = await asyncio.gather(*(begin(gateways[n % 2], project, starter) for n, project in enumerate(projects)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [InsufficientCredits] * 4
    assert [fact.envelope.type for fact in await story(ledger, ann)] == ["credit.granted", "credit.reserved", "credit.reserved"]
    assert len(await ledger.read(f"ev.{ann.id}.project.run_started.*")) == 2


async def test_a_sixth_active_run_is_refused_where_the_family_allows_five_until_one_has_ended(
    till: httpx.AsyncClient, ledger: EventLog, gateways: list[Commands], ann: Person
):
    """As the family's route will ask for it; the same person's runs of another family count, and are not refused."""
    projects = [await ready(till, ann) for _ in range(7)]
    limited, free = Starter(user_id=ann.id, most=CONCURRENT), Starter(user_id=ann.id)

    begun = [await begin(gateways[0], project, limited) for project in projects[:4]]
    fifth = await asyncio.gather(*(begin(gateway, project, limited) for gateway, project in zip(gateways, projects[4:6], strict=True)), return_exceptions=True)
    assert sorted(isinstance(outcome, TooManyActiveJobs) for outcome in fifth) == [False, True]
    await begin(gateways[0], projects[6], free)
    await tell(ledger, ann, begun[0], "training.cancelled")
    await tell(ledger, ann, begun[1], "preparation.failed")
    (refused,) = [project for project, outcome in zip(projects[4:6], fifth, strict=True) if isinstance(outcome, TooManyActiveJobs)]

    async def let_in() -> bool:
        try:
            return bool(await begin(gateways[1], refused, limited))
        except TooManyActiveJobs:
            return False

    assert await eventually(let_in)


# ---- what becomes of it


@pytest.mark.parametrize(
    ("ending", "settled", "balance"),
    [
        (("preparation.failed",), "released", 100),
        (("preparation.cancelled",), "released", 100),
        (("training.cancelled",), "released", 100),
        (("training.started", "training.cancelled"), "captured", 70),
        (("training.started", "training.failed"), "released", 100),
        (("training.started", "training.completed"), "captured", 70),
    ],
)
async def test_the_end_of_the_job_decides_what_becomes_of_the_money(
    till: httpx.AsyncClient, ledger: EventLog, ann: Person, ending: tuple[str, ...], settled: str, balance: int
):
    job = await started(till, await ready(till, ann), ann)

    await tell(ledger, ann, job, *ending)

    end = (await settled_once(ledger, ann, job))[-1]
    assert end.envelope.type == f"credit.{settled}"
    assert end.envelope.causationid == (await ledger.read(f"ev.{ann.id}.{ending[-1]}.{job}"))[0].id
    await eventually(lambda: _equal(lambda: money(till, ann), (balance, 0)))
    assert [(entry["type"], entry["jobId"]) for entry in (await entries(till, ann))[:2]] == [(settled, job), ("reserved", job)]


async def test_who_starts_in_somebody_elses_workspace_pays_himself(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    ben, project = await registered(till), await ready(till, ann)
    invited = await till.post(f"/v2/workspaces/{ann.id}/members", json={"username": ben.username, "role": "editor"}, headers=ann.headers)
    assert invited.status_code == 201, invited.text

    async def let_in() -> bool:
        return (await till.get(f"/projects/{project}", headers=ben.headers)).status_code == 200

    await eventually(let_in)

    job = await started(till, project, ben)
    assert (await money(till, ann), await money(till, ben)) == ((100, 0), (70, PRICE))

    await tell(ledger, ann, job, "training.started", "training.failed")
    assert (await settled_once(ledger, ben, job))[-1].envelope.type == "credit.released"
    assert [fact.envelope.type for fact in await story(ledger, ann)] == ["credit.granted"]


async def test_a_job_that_costs_nothing_moves_no_money(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    """The upload's own job, which fails."""
    project = await ready(till, ann)
    (file,) = (await till.get(f"/projects/{project}/files", headers=ann.headers)).json()["files"]
    paid = await started(till, project, ann)

    await tell(ledger, ann, file["job_id"], "preparation.failed")
    await tell(ledger, ann, paid, "preparation.failed")

    await settled_once(ledger, ann, paid)
    assert [fact.envelope.type for fact in await story(ledger, ann)] == ["credit.granted", "credit.reserved", "credit.released"]


async def test_the_money_of_somebody_who_was_deleted_meanwhile_is_settled_too(till: httpx.AsyncClient, ledger: EventLog, ann: Person):
    job = await started(till, await ready(till, ann), ann)
    assert (await till.delete(f"/v2/users/{ann.id}", headers=ann.headers)).status_code == 204

    await tell(ledger, ann, job, "training.started", "training.completed")

    assert (await settled_once(ledger, ann, job))[-1].envelope.type == "credit.captured"


async def test_credits_are_no_business_of_those_who_read_the_log(till: httpx.AsyncClient, ann: Person):
    await started(till, await ready(till, ann), ann)

    facts = (await till.get("/v2/events?limit=1000", headers=ann.headers)).json()["events"]

    assert "job.created" in {fact["event"]["type"] for fact in facts}
    assert {fact["event"]["type"].split(".")[0] for fact in facts} & {"credit", "quota", "user"} == set()


async def test_the_statistics_count_what_happened_also_after_a_rebuild(till: httpx.AsyncClient, ledger: EventLog, mortal: Servers, ann: Person):
    for ending in (("training.started", "training.completed"), ("preparation.failed",), ("training.cancelled",)):
        job = await started(till, await ready(till, ann), ann)
        await tell(ledger, ann, job, *ending)
        await settled_once(ledger, ann, job)
    await started(till, await ready(till, ann), ann)
    counted = {"runs_started": 4, "runs_completed": 1, "runs_failed": 1, "runs_cancelled": 1, "runs_active": 1}

    session = await asyncpg.connect(mortal.database_url)
    try:

        async def statistics() -> dict[str, int]:
            return dict(await session.fetchrow("select * from views.get_user_training_stats(user_id => $1)", ann.id) or {})

        expected = {**counted, "credits_used": PRICE, "credits_reserved": PRICE}
        await eventually(lambda: _equal(statistics, expected))
        storage = storage_of(mortal)
        await rebuild(ledger, storage, mortal.database_url, tell=lambda _: None)
        storage.close()
        assert await statistics() == expected
    finally:
        await session.close()


async def test_what_ended_while_no_gateway_lived_is_settled_once_one_is_back_and_what_is_told_again_moves_nothing(
    bank: Process, till: httpx.AsyncClient, nc: Client, ledger: EventLog, ann: Person
):
    """Without its durables the gateway hears every end that ever was, those of the tests above too."""
    failing, done = [await started(till, await ready(till, ann), ann) for _ in range(2)]
    bank.kill()
    await eventually(lambda: nobody_listens(nc))
    try:
        await tell(ledger, ann, failing, "training.started", "training.failed")
        await tell(ledger, ann, done, "training.started", "training.completed")
        assert [fact.envelope.type for fact in await story(ledger, ann)] == ["credit.granted", "credit.reserved", "credit.reserved"]
        for consumer in await settling(nc):
            await nc.jetstream().delete_consumer("EV", consumer["name"])
    finally:
        await revive(bank)

    assert (await settled_once(ledger, ann, failing))[-1].envelope.type == "credit.released"
    assert (await settled_once(ledger, ann, done))[-1].envelope.type == "credit.captured"
    await eventually(lambda: _equal(lambda: money(till, ann), (70, 0)))
    await eventually(lambda: all_heard(nc), patience=30)
    evidence = replace(trained(), facts=[fact_of(raw) async for raw in ledger.scan_raw(">")])
    invariants = (money_checker.money_adds_up, money_checker.jobs_are_paid_for_as_they_end, money_checker.nobody_has_more_runs_than_he_may)
    assert [what for invariant in invariants for what in invariant(evidence)] == []


# ---- helpers


async def ready(till: httpx.AsyncClient, person: Person) -> str:
    """A project that could be trained."""
    project = (await till.post("/projects", json={"name": "yard"}, headers=person.headers)).json()["id"]
    resolved = await till.post(f"/projects/{project}/model/resolve", json={"model_id": BASE}, headers=person.headers)
    uploaded = await till.post(f"/projects/{project}/files/upload", headers=person.headers, **ROW)
    assert (resolved.status_code, uploaded.status_code) == (200, 201), (resolved.text, uploaded.text)
    return project


async def start(till: httpx.AsyncClient, project: str, person: Person, *, key: str = "") -> httpx.Response:
    headers = {**person.headers, **({"Idempotency-Key": key} if key else {})}
    return await till.post(f"/projects/{project}/train/start", json={"method": "lora"}, headers=headers)


async def started(till: httpx.AsyncClient, project: str, person: Person) -> str:
    answer = await start(till, project, person)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


async def begin(gateway: Commands, project: str, starter: Starter) -> str:
    wanted = StartTraining(project_id=project, job_id=str(uuid4()), method="lora", starter=starter)
    await gateway.run(wanted, origin=Origin(tenant=starter.user_id, actor=starter.user_id, correlation=str(uuid4())))
    return wanted.job_id


async def tell(ledger: EventLog, person: Person, job: str, *endings: str) -> None:
    """What the services would say of a job up to this end of it."""
    facts: dict[str, list[Event]] = {
        "preparation.failed": [PreparationStarted(job_id=job), PreparationFailed(job_id=job, code="no_examples", message="no row is usable")],
        "preparation.cancelled": [PreparationCancelled(job_id=job)],
        "training.started": [
            PreparationStarted(job_id=job),
            PreparationCompleted(job_id=job, parts=0, rows=1, valid=1, snapshot=CLAIM),
            TrainingStarted(job_id=job, attempt=1),
        ],
        "training.failed": [TrainingFailed(job_id=job, code="oom", message="too small", attempt=1)],
        "training.cancelled": [TrainingCancelled(job_id=job)],
        "training.completed": [TrainingCompleted(job_id=job, attempt=1, step=1, artifacts={}, steps=CLAIM)],
    }
    for event in [event for ending in endings for event in facts[ending]]:
        before = await ledger.read(address(person.id, event))
        await ledger.append([Write(events=[event], after=before[-1].seq if before else 0)], origin=Origin(tenant=person.id))


async def story(ledger: EventLog, person: Person) -> list[Recorded]:
    return await ledger.read(Address(tenant=person.id, category="credit", key=(person.id,)))


async def nobody_listens(nc: Client) -> bool:
    """What is sent to somebody who was just killed would be his for another 20 seconds."""
    return not any(consumer["num_waiting"] for consumer in await consumers(nc, "EV"))


async def settling(nc: Client) -> list[dict[str, Any]]:
    return [consumer for consumer in await consumers(nc, "EV") if consumer["name"].startswith("gateway-settle-")]


async def all_heard(nc: Client) -> bool:
    found = await settling(nc)
    return len(found) == len(ENDS) and not any(undone(consumer) for consumer in found)


async def settled_once(ledger: EventLog, person: Person, job: str) -> list[Recorded]:
    """What was put aside for the job, and the one fact that settled it."""

    async def about() -> list[Recorded]:
        return [fact for fact in await story(ledger, person) if getattr(fact.event, "job_id", "") == job]

    found = await eventually(about, of=2, patience=30)
    assert len(found) == 2
    return found


async def money(till: httpx.AsyncClient, person: Person) -> tuple[int, int]:
    answer = (await till.get("/api/credits", headers=person.headers)).json()
    return answer["balance"], answer["reserved"]


async def entries(till: httpx.AsyncClient, person: Person) -> list[dict[str, Any]]:
    return (await till.get("/api/credits/history", headers=person.headers)).json()["items"]


async def _equal(look: Any, expected: Any) -> bool:
    return await look() == expected
