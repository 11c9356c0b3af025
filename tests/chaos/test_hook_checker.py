"""The checker sees each kind of delivery that should not be, and each that should: what can't fail proves nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from tests.kit import hook_checker as hooks
from tests.kit.evidence import Delivery, Evidence, Fact
from tests.kit.trained import NOW, trained

ALL, SOME, DOCUMENT = "http://127.0.0.1:1/all", "http://127.0.0.1:1/some", "http://127.0.0.1:1/document"


def sound() -> Evidence:
    """A run of ours and a project of somebody else's, followed by three endpoints: told all in order, with one refusal and a stretch that came twice."""
    evidence = trained()
    endpoints = [
        _fact("webhook.created", webhook_id=url, url=url, events=events, format=format)
        for url, events, format in ((ALL, [], "cloudevents"), (SOME, ["job.*", "training.*"], "cloudevents"), (DOCUMENT, [], "contract"))
    ]
    others = [_fact("project.created", tenant="others", project_id="theirs"), _fact("credit.granted", user_id="ann")]
    ended = [_fact("webhook.deleted", webhook_id=ALL), _fact("project.deleted", project_id="late")]
    whole = [*endpoints, *evidence.facts, *others, *ended]
    evidence.facts = [replace(fact, seq=n, body=f"fact {n}".encode()) for n, fact in enumerate(whole, 1)]
    ours = evidence.facts[len(endpoints) : -len(others) - len(ended)]
    told = [_told(ALL, fact) for fact in ours]
    told[9:9] = [replace(told[9], taken=False)]
    told[20:20] = told[12:20]
    told += [_told(SOME, fact) for fact in ours if fact.category in ("job", "training")]
    told += [_documented(fact, name) for fact in ours if (name := _name(fact))]
    evidence.deliveries = told
    return evidence


def _fact(type: str, *, tenant: str = "local", **data: Any) -> Fact:
    return Fact(0, f"sec.{tenant}.{type}.x", b"", str(uuid4()), type, tenant, NOW, "", data)


def _told(url: str, fact: Fact) -> Delivery:
    return Delivery(url=url, id=fact.id, seq=fact.seq, body=fact.body, taken=True, signed=True)


def _documented(fact: Fact, name: str) -> Delivery:
    return replace(_told(DOCUMENT, fact), body=json.dumps({"event": name, "data": {"job_id": fact.data["job_id"]}}).encode())


def _name(fact: Fact) -> str:
    """Of this run's facts: its progress is at one fifth, three fifths and the end."""
    match fact.type:
        case "training.started":
            return fact.type if fact.data["attempt"] == 1 else ""
        case "training.progress" | "training.completed":
            return fact.type
        case "preparation.completed":
            return "dataset.processed" if fact.data.get("parts") else ""
        case _:
            return ""


def of(evidence: Evidence, url: str, n: int = 0) -> int:
    """Where the n-th delivery to an endpoint is."""
    return [place for place, delivery in enumerate(evidence.deliveries) if delivery.url == url][n]


def a_fact_that_is_never_delivered(evidence: Evidence) -> None:
    """The last one: nothing behind it is out of order."""
    del evidence.deliveries[of(evidence, ALL, -1)]


def a_fact_that_is_lost_between_others(evidence: Evidence) -> None:
    del evidence.deliveries[of(evidence, SOME, 3)]


def an_endpoint_that_is_told_nothing(evidence: Evidence) -> None:
    evidence.deliveries = [delivery for delivery in evidence.deliveries if delivery.url != SOME]


def a_fact_that_is_refused_and_does_not_come_again(evidence: Evidence) -> None:
    place = of(evidence, SOME, 3)
    evidence.deliveries[place] = replace(evidence.deliveries[place], taken=False)


def a_fact_that_is_told_again_under_a_new_id(evidence: Evidence) -> None:
    place = of(evidence, ALL, 3)
    evidence.deliveries.insert(place + 1, replace(evidence.deliveries[place], id=str(uuid4())))


def two_facts_in_the_wrong_order(evidence: Evidence) -> None:
    one, other = of(evidence, ALL, 3), of(evidence, ALL, 4)
    evidence.deliveries[one], evidence.deliveries[other] = evidence.deliveries[other], evidence.deliveries[one]


def a_repeat_that_leaves_something_out(evidence: Evidence) -> None:
    del evidence.deliveries[of(evidence, ALL, 22)]


def a_fact_of_another_workspace(evidence: Evidence) -> None:
    fact = next(fact for fact in evidence.facts if fact.tenant == "others")
    evidence.deliveries.append(_told(ALL, fact))


def a_fact_that_nobody_is_told_of(evidence: Evidence) -> None:
    evidence.deliveries.append(_told(ALL, next(fact for fact in evidence.facts if fact.category == "credit")))


def a_fact_that_was_not_asked_for(evidence: Evidence) -> None:
    evidence.deliveries.append(_told(SOME, next(fact for fact in evidence.facts if fact.type == "project.created")))


def a_fact_from_before_the_endpoint(evidence: Evidence) -> None:
    created = next(fact for fact in evidence.facts if fact.type == "webhook.created")
    evidence.facts.insert(0, early := replace(_fact("project.created", project_id="early"), seq=0))
    evidence.deliveries.insert(0, _told(created.data["url"], early))


def a_fact_that_happened_after_the_end(evidence: Evidence) -> None:
    evidence.deliveries.append(_told(ALL, evidence.facts[-1]))


def a_fact_that_is_changed_on_its_way(evidence: Evidence) -> None:
    place = of(evidence, ALL, 5)
    evidence.deliveries[place] = replace(evidence.deliveries[place], body=b"{}")


def a_position_that_is_wrong(evidence: Evidence) -> None:
    place = of(evidence, ALL, 5)
    evidence.deliveries[place] = replace(evidence.deliveries[place], seq=1)


def a_delivery_that_is_not_signed(evidence: Evidence) -> None:
    place = of(evidence, ALL, 5)
    evidence.deliveries[place] = replace(evidence.deliveries[place], signed=False)


def a_document_that_says_something_else(evidence: Evidence) -> None:
    place = of(evidence, DOCUMENT)
    evidence.deliveries[place] = replace(evidence.deliveries[place], body=b'{"event": "training.completed", "data": {}}')


def a_tenth_that_is_told_twice(evidence: Evidence) -> None:
    """Another fact about the same progress."""
    fact = next(fact for fact in evidence.facts if fact.type == "training.progress")
    evidence.facts.append(again := replace(fact, seq=evidence.facts[-1].seq + 1, id=str(uuid4())))
    evidence.deliveries.append(_documented(again, "training.progress"))


def a_receiver_that_nobody_registered(evidence: Evidence) -> None:
    evidence.deliveries.append(replace(evidence.deliveries[0], url="http://127.0.0.1:1/elsewhere"))


def an_endpoint_that_is_disabled(evidence: Evidence) -> None:
    evidence.facts.append(replace(_fact("webhook.disabled", webhook_id=SOME), seq=evidence.facts[-1].seq + 1))


BUGS: dict[Callable[[Evidence], Any], list[Callable[[Evidence], None]]] = {
    hooks.webhooks_are_told: [
        a_fact_that_is_never_delivered,
        a_fact_that_is_lost_between_others,
        an_endpoint_that_is_told_nothing,
        a_fact_that_is_refused_and_does_not_come_again,
        a_fact_that_is_told_again_under_a_new_id,
        two_facts_in_the_wrong_order,
        a_repeat_that_leaves_something_out,
        a_fact_of_another_workspace,
        a_fact_that_nobody_is_told_of,
        a_fact_that_was_not_asked_for,
        a_fact_from_before_the_endpoint,
        a_fact_that_happened_after_the_end,
        a_fact_that_is_changed_on_its_way,
        a_position_that_is_wrong,
        a_delivery_that_is_not_signed,
        a_document_that_says_something_else,
        a_tenth_that_is_told_twice,
        a_receiver_that_nobody_registered,
        an_endpoint_that_is_disabled,
    ],
}


def test_sound_deliveries_have_nothing_against_them():
    evidence = sound()

    assert list(hooks.webhooks_are_told(evidence)) == []
    assert hooks.heard(evidence)["again"] == 9  # and one of them is the one that was refused
    assert {name for fact in evidence.facts if (name := _name(fact))} > {"training.started", "training.progress", "dataset.processed"}


@pytest.mark.parametrize("bug", [pytest.param(bug, id=bug.__name__) for bugs in BUGS.values() for bug in bugs])
def test_a_wrong_delivery_is_seen(bug: Callable[[Evidence], None]):
    evidence = sound()

    bug(evidence)

    assert list(hooks.webhooks_are_told(evidence))
