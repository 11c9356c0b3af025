"""The rules of credits and quotas, and that no order of starts, ends and repetitions breaks them."""

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import reduce

import msgspec
import pytest

from libs.events import (
    CreditCaptured,
    CreditGranted,
    CreditReleased,
    CreditReserved,
    Event,
    JobCreated,
    PreparationCancelled,
    PreparationFailed,
    ProjectRunStarted,
    QuotaTaken,
    Recorded,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
)
from services.gateway.domain import credit, quota
from services.gateway.domain.credit import FAMILIES, Grant, Purse, Settle, price, prices, settlement
from services.gateway.domain.errors import DomainError, IdempotencyKeyReused, InsufficientCredits, TooManyActiveJobs, TrainingAlreadyRunning
from services.gateway.domain.project import StartTraining
from services.gateway.domain.project import decide as decide_project
from services.gateway.domain.project import evolve as evolve_project
from services.gateway.domain.quota import CONCURRENT, Quota, Starter, charged
from tests.gateway.test_project import ADDED, CREATED, RESOLVED, START, STARTED
from tests.kit.given import given, recorded

ANN = "ann"
PRICES = "lora-training:600=10, lora-training:1200=20, lora-training:2000=35, finetuneflow=5"
GRANTED = CreditGranted(user_id=ANN, grant_id="g", amount=100, balance=100, reason="registration", request="r")
RESERVED = CreditReserved(user_id=ANN, job_id="job", amount=30, balance=70)
DONE = TrainingCompleted(job_id="job", attempt=1, step=1, artifacts={}, steps={"key": "k", "sha256": "s", "size": 1})  # pyright: ignore[reportArgumentType]


def purse(*events: Event) -> Purse:
    return given(credit.evolve, *events)


# ---- what things cost


@pytest.mark.parametrize(
    ("family", "steps", "credits"),
    [
        ("lora-training", 600, 10),
        ("lora-training", 1200, 20),
        ("lora-training", 2000, 35),
        ("lora-training", 601, 20),
        ("lora-training", 5000, 35),
        ("finetuneflow", 0, 5),
        ("finetuneflow", 70, 5),
        ("autotrainx", 600, 0),
    ],
)
def test_a_start_costs_what_the_first_tier_with_so_many_steps_says(family: str, steps: int, credits: int):
    assert price(PRICES, family, steps=steps) == credits


def test_without_a_price_list_nothing_costs_anything():
    assert {price("", family) for family in FAMILIES} == {0}


@pytest.mark.parametrize(
    "text",
    ["ten", "lora-training=", "lora-training=-1", "lora=10", "lora-training=10,lora-training=20", "lora-training=10,lora-training:5=1", "datagen=1000001"],
)
def test_a_price_list_that_nobody_can_read_is_refused_with_its_reason(text: str):
    with pytest.raises(ValueError, match=text.rpartition(",")[2].partition("=")[0]):
        prices(text)


# ---- granting


def test_a_grant_adds_up_and_is_answered_once():
    first = Grant(user_id=ANN, grant_id="g", amount=100, reason="registration", request="r")

    assert credit.decide(None, first) == [GRANTED]
    assert credit.decide(purse(GRANTED), first) == []
    assert credit.decide(purse(GRANTED), Grant(user_id=ANN, grant_id="h", amount=1)) == [CreditGranted(user_id=ANN, grant_id="h", amount=1, balance=101)]
    with pytest.raises(IdempotencyKeyReused):
        credit.decide(purse(GRANTED), Grant(user_id=ANN, grant_id="g", amount=1, request="other"))


def test_a_new_user_begins_with_what_the_settings_say():
    assert credit.welcome(ANN, 0) == []
    assert credit.welcome(ANN, 100) == [CreditGranted(user_id=ANN, grant_id=ANN, amount=100, balance=100, reason="registration")]


# ---- starting


def test_a_start_puts_aside_what_it_costs():
    assert credit.reserve(purse(GRANTED), user_id=ANN, job_id="job", amount=30, reason="") == [RESERVED]
    assert (purse(GRANTED, RESERVED).balance, purse(GRANTED, RESERVED).reserved) == (70, {"job": 30})


def test_what_costs_nothing_needs_no_money_and_leaves_no_trace():
    assert credit.reserve(None, user_id=ANN, job_id="job", amount=0, reason="") == []


@pytest.mark.parametrize(("held", "cost", "missing"), [((), 1, 1), ((GRANTED,), 101, 1), ((GRANTED, RESERVED), 71, 1)])
def test_a_start_that_costs_more_than_there_is_says_what_is_missing(held: tuple[Event, ...], cost: int, missing: int):
    with pytest.raises(InsufficientCredits) as refused:
        credit.reserve(purse(*held), user_id=ANN, job_id="next", amount=cost, reason="")

    assert refused.value.context == {"price": cost, "balance": cost - missing, "missing": missing}


def test_a_sixth_active_run_is_refused_where_the_family_says_so_and_counted_everywhere():
    five = given(quota.evolve, *(QuotaTaken(user_id=ANN, job_id=f"job-{n}") for n in range(CONCURRENT)))

    assert quota.take(five, user_id=ANN, job_id="sixth") == [QuotaTaken(user_id=ANN, job_id="sixth")]
    assert quota.take(Quota(user_id=ANN, active=frozenset({"job-1"})), user_id=ANN, job_id="sixth", most=CONCURRENT)
    with pytest.raises(TooManyActiveJobs) as refused:
        quota.take(five, user_id=ANN, job_id="sixth", most=CONCURRENT)
    assert refused.value.context["job_ids"] == [f"job-{n}" for n in range(5)]


def test_a_start_is_one_batch_of_the_run_the_money_the_place_and_the_job():
    ready = given(evolve_project, CREATED, ADDED, RESOLVED)
    start = start_of(Starter(user_id=ANN, price=30, what="finetuneflow: training"))

    run, reserved, taken, job = decide_project(ready, start, purse(GRANTED), None)

    assert (run, taken) == (STARTED, QuotaTaken(user_id=ANN, job_id="train-1"))
    assert reserved == CreditReserved(user_id=ANN, job_id="train-1", amount=30, balance=70, reason="finetuneflow: training")
    assert isinstance(job, JobCreated)
    assert (job.payer, job.price) == (ANN, 30)


def test_the_owner_of_this_machine_pays_nothing_and_queues_for_nothing():
    ready = given(evolve_project, CREATED, ADDED, RESOLVED)

    run, job = decide_project(ready, START)

    assert isinstance(run, ProjectRunStarted)
    assert isinstance(job, JobCreated)
    assert (job.payer, job.price) == ("", 0)


def test_the_projects_own_rules_are_told_before_the_money_and_the_money_before_the_place():
    ready, busy = given(evolve_project, CREATED, ADDED, RESOLVED), given(evolve_project, CREATED, ADDED, RESOLVED, STARTED)
    start = start_of(Starter(user_id=ANN, price=1, most=1), job_id="train-2")
    full = Quota(user_id=ANN, active=frozenset({"job"}))

    for project, money, refusal in ((busy, None, TrainingAlreadyRunning), (ready, None, InsufficientCredits), (ready, purse(GRANTED), TooManyActiveJobs)):
        with pytest.raises(refusal):
            decide_project(project, start, money, full)


def start_of(starter: Starter, **changed: str) -> StartTraining:
    return msgspec.structs.replace(START, starter=starter, **changed)


# ---- settling


@pytest.mark.parametrize(
    ("end", "begun", "spent"),
    [
        (DONE, True, True),
        (TrainingFailed(job_id="job", code="oom", message=""), True, False),
        (TrainingFailed(job_id="job", code="oom", message=""), False, False),
        (PreparationFailed(job_id="job", code="no_examples", message=""), False, False),
        (TrainingCancelled(job_id="job"), False, False),
        (TrainingCancelled(job_id="job", attempt=1), True, True),
        (PreparationCancelled(job_id="job"), False, False),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, Event) else str(case),
)
def test_only_a_run_that_completes_or_is_cancelled_while_it_trains_is_paid_for(end: Event, begun: bool, spent: bool):
    assert settlement(end, begun=begun)[0] is spent


def test_what_was_put_aside_is_spent_or_given_back_once():
    held = purse(GRANTED, RESERVED)
    captured = CreditCaptured(user_id=ANN, job_id="job", amount=30, balance=70, reason="completed")
    released = CreditReleased(user_id=ANN, job_id="job", amount=30, balance=100, reason="failed")

    assert credit.decide(held, Settle(user_id=ANN, job_id="job", spent=True, reason="completed")) == [captured]
    assert credit.decide(held, Settle(user_id=ANN, job_id="job", spent=False, reason="failed")) == [released]
    for end in (captured, released):
        for spent in (True, False):
            assert credit.decide(purse(GRANTED, RESERVED, end), Settle(user_id=ANN, job_id="job", spent=spent, reason="again")) == []
    assert credit.decide(None, Settle(user_id=ANN, job_id="never", spent=True, reason="")) == []


# ---- all of it at once


@dataclass
class Ledger:
    """A guarded log of one user's credits and places, and gateways that see it late, crash, and are told of ends again and again."""

    rng: random.Random
    facts: list[Recorded] = field(default_factory=list)
    views: list[int] = field(default_factory=lambda: [0, 0, 0])
    """How far each gateway sees."""
    prices: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    ends: dict[str, Event] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """Ends that a reaction still has to hear of, in whatever order."""
    starts: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        job, cost, gateway = f"job-{len(self.prices)}", self.rng.choice((0, 1, 7, 30)), self.rng.randrange(3)
        starter = Starter(user_id=ANN, price=cost, most=self.rng.choice((0, CONCURRENT)))
        self.prices[job] = cost
        seen = self.views[gateway]
        while True:
            try:
                facts = charged(starter, self._purse(seen), self._quota(seen), job_id=job)
            except DomainError as refused:
                if seen == len(self.facts):
                    self.starts[refused.code] += 1
                    return
            else:
                if seen == len(self.facts):
                    self._append(facts)
                    self.starts["accepted"] += 1
                    active = [job for job in self._started() if job not in self.ends]
                    assert not starter.most or len(active) <= starter.most
                    return
                self.starts["conflict"] += 1
            seen = len(self.facts)

    def settle(self) -> None:
        """Some appends land though nobody hears of it, and the end comes again; some never land."""
        if not self.told:
            return
        job = self.told.pop(self.rng.randrange(len(self.told)))
        seen = self.rng.randrange(self.views[0], len(self.facts) + 1) if self.rng.random() < 0.5 else len(self.facts)
        spent, reason = settlement(self.ends[job], begun=job in self.begun)
        facts = credit.decide(self._purse(seen), Settle(user_id=ANN, job_id=job, spent=spent, reason=reason))
        if not facts and seen == len(self.facts):
            return  # acknowledged
        fate = self.rng.random()
        if seen == len(self.facts) and fate < 0.8:
            self._append(facts)
        if fate >= 0.6 or seen != len(self.facts):
            self.told.append(job)  # crashed before it was acknowledged, or met a moved guard

    def end(self, job: str) -> None:
        if self.rng.random() < 0.5:
            self.begun.add(job)
        attempt = int(job in self.begun)
        cancelled, failed = TrainingCancelled(job_id=job, attempt=attempt), TrainingFailed(job_id=job, code="oom", message="")
        self.ends[job] = self.rng.choice([cancelled, failed, *([DONE] if attempt else [PreparationCancelled(job_id=job)])])
        self.told += [job] * self.rng.choice((1, 1, 2, 3))

    def live(self, steps: int) -> None:
        for _ in range(steps):
            match self.rng.randrange(12):
                case 0 | 1 | 2 | 3:
                    self.start()
                case 4 | 5 | 6:
                    if running := [job for job in self._started() if job not in self.ends]:
                        self.end(self.rng.choice(running))
                case 7 | 8 | 9:
                    self.settle()
                case 10:
                    gateway = self.rng.randrange(3)
                    self.views[gateway] = self.rng.randrange(self.views[gateway], len(self.facts) + 1)
                case _:
                    grant = Grant(user_id=ANN, grant_id=f"grant-{self.rng.randrange(5)}", amount=40)
                    self._append(credit.decide(self._purse(len(self.facts)), grant))
        for job in self._started():
            if job not in self.ends:
                self.end(job)
        while self.told:
            self.settle()

    def _append(self, events: list[Event]) -> None:
        self.facts += recorded(events, after=len(self.facts), tenant=ANN)

    def _purse(self, seen: int) -> Purse | None:
        return reduce(credit.evolve, self.facts[:seen], None)

    def _quota(self, seen: int) -> Quota | None:
        """As the view has it: jobs that have ended are left out."""
        taken: Quota | None = reduce(quota.evolve, self.facts[:seen], None)
        return Quota(user_id=ANN, active=taken.active - self.ends.keys()) if taken else None

    def _started(self) -> list[str]:
        return [fact.event.job_id for fact in self.facts if isinstance(fact.event, QuotaTaken)]


@pytest.mark.parametrize("seed", range(24))
def test_money_adds_up_at_every_position_whatever_crashes_and_is_repeated(seed: int):
    """Counted with plain numbers, not with our own states."""
    ledger = Ledger(random.Random(seed))
    ledger.live(250)

    balance, aside, settled, ever = 0, {}, Counter[str](), Counter[str]()
    for fact in ledger.facts:
        match fact.event:
            case CreditGranted(amount=amount):
                balance += amount
            case CreditReserved(job_id=job, amount=amount):
                assert amount == ledger.prices[job] > 0
                balance, aside[job] = balance - amount, amount
                ever[job] += 1
            case CreditCaptured(job_id=job, amount=amount):
                assert aside.pop(job) == amount
                settled[job] += 1
                assert job in ledger.begun
                assert not isinstance(ledger.ends[job], TrainingFailed)
            case CreditReleased(job_id=job, amount=amount):
                assert aside.pop(job) == amount
                balance += amount
                settled[job] += 1
                assert job not in ledger.begun or isinstance(ledger.ends[job], TrainingFailed)
            case _:
                continue
        assert balance >= 0
        assert fact.event.balance == balance
    assert aside == {}
    assert settled == ever
    assert set(ever.values()) <= {1}
    assert {"accepted", "conflict"} <= set(ledger.starts)


def test_the_random_lives_meet_all_that_can_happen():
    ledgers = [Ledger(random.Random(seed)) for seed in range(10)]
    for ledger in ledgers:
        ledger.live(250)

    assert set().union(*(ledger.starts for ledger in ledgers)) == {"accepted", "conflict", "insufficient_credits", "too_many_active_jobs"}
    kinds = {type(fact.event) for ledger in ledgers for fact in ledger.facts}
    assert kinds == {CreditGranted, CreditReserved, CreditCaptured, CreditReleased, QuotaTaken}
    assert sum(ledger.starts["accepted"] for ledger in ledgers) > 300
