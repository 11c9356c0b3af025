"""The invariants of credits and quotas, proved like all others: from the JSON of the facts, with plain numbers."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.kit.evidence import Evidence, Fact
from tests.kit.run_checker import ends

BESIDES = ("credit", "quota")
"""What a start may carry between the fact that announces its job and the job itself."""


@dataclass
class Purse:
    balance: int = 0
    aside: dict[str, int] = field(default_factory=dict)
    grants: set[str] = field(default_factory=set)


def money_adds_up(evidence: Evidence) -> Iterator[str]:
    """granted - captured - reserved is each user's balance, as the facts say it themselves, and never negative; what is settled was put aside before, once."""
    purses: dict[str, Purse] = defaultdict(Purse)
    for fact in evidence.facts:
        if fact.category != "credit":
            continue
        user, amount = fact.data["user_id"], fact.data["amount"]
        purse = purses[user]
        yield from (f"fact {fact.seq} {fact.type} of {user}: {what}" for what in _moved(purse, fact, amount))
        if purse.balance < 0:
            yield f"fact {fact.seq} {fact.type}: {user} has {purse.balance} credits"
        if fact.data["balance"] != purse.balance:
            yield f"fact {fact.seq} {fact.type}: says that {user} has {fact.data['balance']} credits, it is {purse.balance}"
        if fact.tenant != user:
            yield f"fact {fact.seq} {fact.type}: the credits of {user} lie in the workspace {fact.tenant}"


def _moved(purse: Purse, fact: Fact, amount: int) -> Iterator[str]:
    job = fact.data.get("job_id", "")
    if amount <= 0:
        yield f"{amount} credits are moved"
    match fact.type:
        case "credit.granted":
            purse.balance += amount
            if fact.data["grant_id"] in purse.grants:
                yield f"the grant {fact.data['grant_id']} is there twice"
            purse.grants.add(fact.data["grant_id"])
        case "credit.reserved":
            purse.balance -= amount
            purse.aside[job] = purse.aside.get(job, 0) + amount
        case _:
            if purse.aside.pop(job, None) != amount:
                yield f"{amount} credits of job {job} were not put aside, or are settled already"
            purse.balance += amount if fact.type == "credit.released" else 0


def jobs_are_paid_for_as_they_end(evidence: Evidence) -> Iterator[str]:
    """What a job costs is put aside in its own batch, and settled once it has ended: kept if it completed or was cancelled after a worker had begun, else given back."""
    created = {fact.data["job_id"]: fact for fact in evidence.facts if fact.type == "job.created"}
    said: dict[str, list[Fact]] = defaultdict(list)
    begun: set[str] = set()
    due: dict[str, tuple[str, int]] = {}
    for fact in evidence.facts:
        job = fact.data.get("job_id", "")
        if fact.category == "credit" and job:
            said[job].append(fact)
        elif fact.type == "training.started":
            begun.add(job)
        elif job in created and ends(fact, created[job].data["stages"]):
            how = fact.type.partition(".")[2]
            kept = how == "completed" or (how == "cancelled" and job in begun)
            due[job] = ("credit.captured" if kept else "credit.released", fact.seq)
    for job in said.keys() - created.keys():
        yield f"credits were put aside for job {job}, which was never created"
    for job, made in created.items():
        yield from (f"job {job}: {what}" for what in _paid(made, said[job], due.get(job)))


def _paid(created: Fact, said: list[Fact], due: tuple[str, int] | None) -> Iterator[str]:
    price, payer = created.data.get("price", 0), created.data.get("payer", "")
    reserved, settled = [fact for fact in said if fact.type == "credit.reserved"], [fact for fact in said if fact.type != "credit.reserved"]
    if [(fact.data["user_id"], fact.data["amount"]) for fact in reserved] != ([(payer, price)] if price else []):
        yield f"costs {payer or 'nobody'} {price} credits, {[fact.data['amount'] for fact in reserved]} were put aside"
    if any(fact.correlation != created.correlation or fact.seq > created.seq for fact in reserved):
        yield "its credits were not put aside in its own batch"
    if not price or due is None:
        if settled:
            yield f"{settled[0].type} at {settled[0].seq}, but it {'has not ended' if price else 'costs nothing'}"
        return
    wanted, ended = due
    if [fact.type for fact in settled] != [wanted]:
        yield f"ended at {ended}, which asks for one {wanted}; there are {[fact.type for fact in settled]}"
    yield from (f"was settled at {fact.seq}, before it ended at {ended}" for fact in settled if fact.seq < ended)


def nobody_has_more_runs_than_he_may(evidence: Evidence) -> Iterator[str]:
    """Where a start was limited, the user had no more active jobs with it than that; each place that is taken is one of a job in the same batch."""
    stages: dict[str, list[str]] = {fact.data["job_id"]: fact.data["stages"] for fact in evidence.facts if fact.type == "job.created"}
    active: dict[str, set[str]] = defaultdict(set)
    taken: Counter[str] = Counter()
    for fact in evidence.facts:
        job = fact.data.get("job_id", "")
        if fact.type == "quota.taken":
            user, most = fact.data["user_id"], fact.data.get("most", 0)
            active[user].add(job)
            taken[job] += 1
            if most and len(active[user]) > most:
                yield f"fact {fact.seq}: {user} has {len(active[user])} active jobs, {most} are the most"
            if job not in stages or taken[job] > 1:
                yield f"fact {fact.seq}: {user} takes a place for job {job}, which {'was never created' if job not in stages else 'has one'}"
        elif job in stages and ends(fact, stages[job]):
            for jobs in active.values():
                jobs.discard(job)
