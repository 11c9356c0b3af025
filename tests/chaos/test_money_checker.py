"""The checker sees each kind of wrong money: what can't fail proves nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.kit import money_checker as money
from tests.kit.evidence import Evidence, Fact
from tests.kit.trained import trained

ANN = "ann"
CASES: dict[str, tuple[str, ...]] = {
    "done": ("training.started", "training.completed"),
    "broken": ("training.started", "training.failed"),
    "early": ("preparation.cancelled",),
    "late": ("training.started", "training.cancelled"),
    "running": ("training.started",),
}
SETTLED = {"done": "captured", "broken": "released", "early": "released", "late": "captured"}


def sound() -> Evidence:
    """One job of each ending, one that still runs, and one that costs nothing."""
    book = Book()
    book.credit("granted", 100, grant_id="g")
    for job, story in CASES.items():
        book.start(job, 10)
        for type in story:
            book.say(type, job_id=job)
        if job in SETTLED:
            book.credit(SETTLED[job], 10, job_id=job)
    book.start("free", 0)
    book.say("training.failed", job_id="free")
    evidence = trained()
    evidence.facts = book.facts
    return evidence


class Book:
    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.balance = 0

    def start(self, job: str, price: int) -> None:
        batch = str(uuid4())
        if price:
            self.credit("reserved", price, correlation=batch, job_id=job)
        self.say("quota.taken", correlation=batch, user_id=ANN, job_id=job, most=5)
        self.say("job.created", correlation=batch, job_id=job, stages=["preparation", "training"], price=price, payer=ANN if price else "")

    def credit(self, kind: str, amount: int, *, correlation: str = "", **data: Any) -> None:
        self.balance += {"granted": amount, "released": amount, "reserved": -amount, "captured": 0}[kind]
        self.say(f"credit.{kind}", correlation=correlation, user_id=ANN, amount=amount, balance=self.balance, **data)

    def say(self, type: str, *, correlation: str = "", **data: Any) -> None:
        seq = len(self.facts) + 1
        subject = f"ev.{ANN}.{type}.x"
        fact = Fact(seq, subject, b"", str(uuid4()), type, ANN, datetime(2026, 1, 1, tzinfo=UTC), correlation or str(uuid4()), data)
        self.facts.append(fact)


def found(evidence: Evidence, type: str, job: str = "") -> Fact:
    return next(fact for fact in evidence.facts if fact.type == type and fact.data.get("job_id", "") == job)


def again(evidence: Evidence, fact: Fact, **changed: Any) -> None:
    """As the last of all."""
    evidence.facts.append(replace(fact, seq=len(evidence.facts) + 1, **changed))


def a_settlement_that_is_missing(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "credit.released", "broken"))


def a_settlement_that_is_done_twice(evidence: Evidence) -> None:
    again(evidence, found(evidence, "credit.released", "broken"))


def a_failure_that_is_paid_for(evidence: Evidence) -> None:
    swap(evidence, fact := found(evidence, "credit.released", "broken"), replace(fact, type="credit.captured"))


def a_result_that_is_given_away(evidence: Evidence) -> None:
    swap(evidence, fact := found(evidence, "credit.captured", "done"), replace(fact, type="credit.released"))


def a_job_that_is_settled_while_it_runs(evidence: Evidence) -> None:
    again(evidence, found(evidence, "credit.released", "broken"), data={**found(evidence, "credit.released", "broken").data, "job_id": "running"})


def a_free_job_that_is_paid_for(evidence: Evidence) -> None:
    again(evidence, found(evidence, "credit.captured", "done"), data={**found(evidence, "credit.captured", "done").data, "job_id": "free"})


def a_job_that_nobody_paid_for(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "credit.reserved", "running"))


def a_job_that_costs_less_than_it_says(evidence: Evidence) -> None:
    found(evidence, "job.created", "running").data["price"] = 11


def money_that_was_put_aside_elsewhere(evidence: Evidence) -> None:
    swap(evidence, fact := found(evidence, "credit.reserved", "running"), replace(fact, correlation="another"))


def money_for_a_job_that_is_not_there(evidence: Evidence) -> None:
    evidence.facts.remove(found(evidence, "job.created", "running"))


def a_debt(evidence: Evidence) -> None:
    found(evidence, "credit.granted").data["amount"] = 15


def a_balance_that_is_wrong(evidence: Evidence) -> None:
    found(evidence, "credit.captured", "late").data["balance"] += 1


def a_release_of_more_than_was_put_aside(evidence: Evidence) -> None:
    found(evidence, "credit.released", "early").data["amount"] = 11


def a_grant_that_is_made_twice(evidence: Evidence) -> None:
    again(evidence, found(evidence, "credit.granted"))


def credits_in_somebody_elses_workspace(evidence: Evidence) -> None:
    swap(evidence, fact := found(evidence, "credit.granted"), replace(fact, tenant="ben"))


def one_run_more_than_allowed(evidence: Evidence) -> None:
    found(evidence, "quota.taken", "free").data["most"] = 1


def two_places_for_one_job(evidence: Evidence) -> None:
    again(evidence, found(evidence, "quota.taken", "done"))


def swap(evidence: Evidence, fact: Fact, other: Fact) -> None:
    evidence.facts[evidence.facts.index(fact)] = other


BUGS: dict[Callable[[Evidence], Any], list[Callable[[Evidence], None]]] = {
    money.jobs_are_paid_for_as_they_end: [
        a_settlement_that_is_missing,
        a_settlement_that_is_done_twice,
        a_failure_that_is_paid_for,
        a_result_that_is_given_away,
        a_job_that_is_settled_while_it_runs,
        a_free_job_that_is_paid_for,
        a_job_that_nobody_paid_for,
        a_job_that_costs_less_than_it_says,
        money_that_was_put_aside_elsewhere,
        money_for_a_job_that_is_not_there,
    ],
    money.money_adds_up: [
        a_debt,
        a_balance_that_is_wrong,
        a_release_of_more_than_was_put_aside,
        a_settlement_that_is_done_twice,
        a_grant_that_is_made_twice,
        credits_in_somebody_elses_workspace,
    ],
    money.nobody_has_more_runs_than_he_may: [one_run_more_than_allowed, two_places_for_one_job],
}


def test_sound_money_has_nothing_against_it():
    assert [what for invariant in BUGS for what in invariant(sound())] == []


@pytest.mark.parametrize(
    ("invariant", "bug"), [(invariant, bug) for invariant, bugs in BUGS.items() for bug in bugs], ids=lambda case: getattr(case, "__name__", "")
)
def test_wrong_money_is_seen(invariant: Callable[[Evidence], Any], bug: Callable[[Evidence], None]):
    evidence = sound()

    bug(evidence)

    assert list(invariant(evidence))
