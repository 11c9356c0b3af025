"""The invariant of webhooks, proved from what their receivers got: from the JSON of the facts, and the bytes that came."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.kit.evidence import Delivery, Evidence, Fact

PRIVATE = frozenset({"user", "webhook", "bus", "credit", "quota"})
"""Categories of facts that nobody is told of."""


@dataclass(frozen=True)
class Endpoint:
    created: Fact
    wanted: list[tuple[Fact, str]]
    """What it asked for, in the order of the log, and under which name it is told of that: the document's, or the fact's own."""

    @property
    def url(self) -> str:
        return self.created.data["url"]

    @property
    def verbatim(self) -> bool:
        return self.created.data["format"] == "cloudevents"


def webhooks_are_told(evidence: Evidence) -> Iterator[str]:
    """An endpoint got every public fact of its workspace that it asked for, at least once and signed, in the order of the log, and nothing else.

    What comes again comes under the id that it had, and all that is behind it once more, or what comes next.
    """
    endpoints = _endpoints(evidence.facts)
    for endpoint in endpoints:
        got = [delivery for delivery in evidence.deliveries if delivery.url == endpoint.url]
        yield from (f"{endpoint.url}: {what}" for what in _wrong_with(endpoint, got))
    for url in {delivery.url for delivery in evidence.deliveries} - {endpoint.url for endpoint in endpoints}:
        yield f"{url} belongs to no endpoint and was told something"
    for fact in evidence.facts:
        if fact.type == "webhook.disabled":
            yield f"fact {fact.seq}: endpoint {fact.data['webhook_id']} was disabled, although its receiver was there"


def _wrong_with(endpoint: Endpoint, got: list[Delivery]) -> Iterator[str]:
    places = {fact.id: n for n, (fact, _) in enumerate(endpoint.wanted)}
    taken: set[int] = set()
    at = -1
    for delivery in got:
        place = places.get(delivery.id)
        if place is None:
            yield f"it was told something that it may not hear of, or did not ask for, under the id {delivery.id} at {delivery.seq}: {delivery.body[:300]!r}"
            continue
        fact, name = endpoint.wanted[place]
        if delivery.seq != fact.seq or not (delivery.body == fact.body if endpoint.verbatim else _tells(delivery, fact, name)):
            yield f"what it was told under the id of fact {fact.seq} is something else: {delivery.body[:300]!r}"
        if not delivery.signed:
            yield f"fact {fact.seq} was not signed with its secret"
        if place > at + 1:
            yield f"fact {fact.seq} {fact.type} came before fact {endpoint.wanted[at + 1][0].seq}"
        if delivery.taken:
            taken.add(place)
            at = place
    for place in sorted(set(places.values()) - taken):
        yield f"fact {endpoint.wanted[place][0].seq} {endpoint.wanted[place][0].type} was never delivered"


def _tells(delivery: Delivery, fact: Fact, name: str) -> bool:
    body = json.loads(delivery.body)
    return (body["event"], body["data"].get("job_id")) == (name, fact.data["job_id"])


def _endpoints(facts: list[Fact]) -> list[Endpoint]:
    documented = _documented(facts)
    ends = {fact.data["webhook_id"]: fact.seq for fact in facts if fact.type == "webhook.deleted"}
    found: list[Endpoint] = []
    for created in facts:
        if created.type != "webhook.created":
            continue
        end, patterns = ends.get(created.data["webhook_id"], facts[-1].seq + 1), created.data.get("events") or ["*"]
        wanted: list[tuple[Fact, str]] = []
        for fact in facts:
            name = fact.type if created.data["format"] == "cloudevents" else documented.get(fact.seq, "")
            hears = created.seq < fact.seq < end and fact.tenant == created.tenant and fact.category not in PRIVATE
            if hears and name and any(fnmatchcase(name, pattern) for pattern in patterns):
                wanted.append((fact, name))
        found.append(Endpoint(created, wanted))
    return found


def _documented(facts: list[Fact]) -> dict[int, str]:
    """The facts that deep-learning-platform's document has a name for, by position: of a run's progress the first in each tenth."""
    kinds = {fact.data["job_id"]: fact.data.get("kind", "") for fact in facts if fact.type == "job.created"}
    tenths: dict[str, int] = defaultdict(int)
    names: dict[int, str] = {}
    for fact in facts:
        match fact.type, kinds.get(fact.data.get("job_id", "")):
            case "training.started", "train" if fact.data["attempt"] == 1:
                names[fact.seq] = "training.started"
            case "training.progress", "train" if (tenth := _tenth(fact)) > tenths[fact.data["job_id"]]:
                tenths[fact.data["job_id"]] = tenth
                names[fact.seq] = "training.progress"
            case "training.completed" | "training.failed", "train":
                names[fact.seq] = fact.type
            case "preparation.failed", "train":
                names[fact.seq] = "training.failed"
            case "preparation.completed", "ingest" | "prepare":
                names[fact.seq] = "dataset.processed"
            case "preparation.failed", "ingest" | "prepare":
                names[fact.seq] = "dataset.failed"
            case _:
                continue
    return names


def _tenth(fact: Fact) -> int:
    total = fact.data["total_steps"]
    return min(10, 10 * fact.data["step"] // total) if total > 0 else 0


def heard(evidence: Evidence) -> Counter[str]:
    """How many deliveries there were, how many of them again, and how many were refused: so that a campaign shows that it tried."""
    seen: set[tuple[str, str]] = set()
    counts = Counter[str]()
    for delivery in evidence.deliveries:
        counts["refused" if not delivery.taken else "again" if (delivery.url, delivery.id) in seen else "first"] += 1
        seen.add((delivery.url, delivery.id))
    return counts
