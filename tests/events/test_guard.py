"""The promise everything rests on, under fire: each position of a guard has one winner, and what was acknowledged is there, once."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest
from nats.aio.client import Client

from libs.events import JobCreated, Origin, ProjectCreated, ProjectUpdated, Recorded, address, decode
from libs.events.log import Conflict, EventLog, RawFact, Unavailable, Write
from tests.kit.buses import Bus
from tests.kit.eventually import eventually
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway
CONNECTIONS, WRITERS, AGGREGATES = 4, 24, 6
KILLS = {1: 6, 3: 3}
"""By the number of servers: a cluster takes seconds to be whole again."""
BETWEEN_KILLS = 60
"""Appends that must come through before the next server is killed."""


@dataclass
class Campaign:
    """What the writers tried and what they were told, by the token that each try leaves in its facts."""

    origin: Origin
    tried: dict[str, int] = field(default_factory=dict)
    """How many facts each try is made of."""
    returned: dict[str, list[Recorded]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    over: bool = False


@asynccontextmanager
async def connections(bus: Bus) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        clients = [await bus.connect(node=n % len(bus.nodes)) for n in range(CONNECTIONS)]
        for client in clients:
            stack.push_async_callback(client.close)
        yield clients


@pytest.mark.alone
async def test_servers_die_and_no_fact_is_lost_doubled_or_forged(bus: Bus, origin: Origin):
    campaign = Campaign(origin)
    start = (await bus.log.position()).last
    heard: list[RawFact] = []

    async with connections(bus) as clients:
        following = await EventLog(clients[0], source="/tests").follow(after=start, deliver=_into(heard))
        numbers = count()
        writers = [asyncio.create_task(_write(campaign, clients[n % CONNECTIONS], numbers, rng=random.Random(n))) for n in range(WRITERS)]
        for n in range(KILLS[len(bus.nodes)]):
            await _progress(campaign)
            node = bus.nodes[n % len(bus.nodes)]
            node.kill()
            await revive(node)
        await _progress(campaign)
        campaign.over = True
        await asyncio.gather(*writers)
        facts = await _everything(bus, after=start)
        await eventually(lambda: heard[-1].seq >= facts[-1].seq)
        await following.close()

    _check(campaign, facts, start=start)
    assert heard == facts


@pytest.mark.parametrize("apart", [0, 0.002], ids=["together", "staggered"])
async def test_of_four_starts_at_once_one_wins(bus: Bus, origin: Origin, apart: float):
    """A rule of the project, guarded by a fact of the project in the same batch as the new job."""
    rounds = 30

    async with connections(bus) as clients:

        async def start(number: int, n: int) -> list[Recorded] | Conflict:
            await asyncio.sleep(apart * n)
            job = JobCreated(job_id=f"j-{number}-{n}", kind="train", stages=["training"], inputs={})
            started = _fact(n % 2, f"p-{number}", {"run": n})
            try:
                return await EventLog(clients[n], source="/tests").append([Write(events=[started], after=0), Write(events=[job], after=0)], origin=origin)
            except Conflict as conflict:
                return conflict

        outcomes = [await asyncio.gather(*(start(number, n) for n in range(4))) for number in range(rounds)]

    for number, outcome in enumerate(outcomes):
        (winner,) = [written for written in outcome if isinstance(written, list)]
        there = await eventually(lambda number=number: bus.log.read(f"ev.{origin.tenant}.project.*.p-{number}"))
        assert there == winner[:1]
    assert len(await eventually(lambda: bus.log.read(f"ev.{origin.tenant}.job.>"), of=rounds)) == rounds


# The writers


async def _write(campaign: Campaign, nc: Client, numbers: "count[int]", *, rng: random.Random) -> None:
    """Reads how far one or two aggregates are, appends right behind, as everyone else does; now and then with little patience."""
    log = EventLog(nc, source="/tests")
    known: dict[str, int] = defaultdict(int)
    while not campaign.over:
        token = f"try-{next(numbers)}"
        projects = rng.sample([f"p-{n}" for n in range(AGGREGATES)], k=rng.choice((1, 1, 2)))
        try:
            for project in projects:
                guard = address(campaign.origin.tenant, ProjectUpdated(project_id=project))
                known[project] = max([known[project], *(fact.seq for fact in await log.read(guard, after=known[project]))])
        except Unavailable:
            continue
        writes = [_guarded(project, known[project], token, rng=rng) for project in projects]
        if rng.random() < 0.3:
            writes.append(Write(events=[JobCreated(job_id=token, kind="train", stages=[], inputs={})], after=0))
        campaign.tried[token] = sum(len(write.events) for write in writes)
        try:
            campaign.returned[token] = await log.append(writes, origin=campaign.origin, budget=rng.choice((0.5, 5, 10)))
        except Conflict:
            campaign.refused.add(token)
        except Unavailable:
            campaign.unknown.add(token)


def _guarded(project: str, after: int, token: str, *, rng: random.Random) -> Write:
    return Write(events=[_fact(rng.randrange(2), project, {"after": after, "token": token, "n": n}) for n in range(rng.choice((1, 1, 1, 2)))], after=after)


def _fact(which: int, project: str, config: dict[str, Any]) -> ProjectCreated | ProjectUpdated:
    """Of two types, since a guard is about all that happens to an aggregate."""
    return ProjectUpdated(project_id=project, config=config) if which else ProjectCreated(project_id=project, name="", config=config)


async def _progress(campaign: Campaign) -> None:
    goal = len(campaign.returned) + BETWEEN_KILLS
    await eventually(lambda: len(campaign.returned) >= goal, patience=40)


def _into(heard: list[RawFact]) -> Callable[[RawFact], Awaitable[None]]:
    async def note(fact: RawFact) -> None:
        heard.append(fact)

    return note


# What the log must look like


async def _everything(bus: Bus, *, after: int) -> list[RawFact]:
    """As each server has it: they must all have the same."""
    last = await eventually(lambda: _end(bus))
    copies = []
    for node in range(len(bus.nodes)):
        nc = await bus.connect(node=node)
        log = EventLog(nc, source="/tests")
        copies.append(await eventually(lambda log=log: _copy(log, after=after, last=last), patience=20))
        await nc.close()
    assert all(copy == copies[0] for copy in copies)
    return copies[0]


async def _end(bus: Bus) -> int:
    try:
        return (await bus.log.position()).last
    except Unavailable:
        return 0


async def _copy(log: EventLog, *, after: int, last: int) -> list[RawFact]:
    try:
        facts = [fact async for fact in log.scan_raw("ev.>", after=after)]
    except Unavailable:
        return []
    return facts if facts and facts[-1].seq >= last else []


def _check(campaign: Campaign, facts: list[RawFact], *, start: int) -> None:
    log = [decode(fact.data, seq=fact.seq, subject=fact.subject) for fact in facts]
    by_token: dict[str, list[Recorded]] = defaultdict(list)
    by_guard: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for fact in log:
        by_token[_token(fact)].append(fact)
        if isinstance(fact.event, ProjectCreated | ProjectUpdated):
            by_guard[fact.event.project_id].append((fact.seq, fact.event.config or {}))

    assert [fact.seq for fact in log] == list(range(start + 1, start + 1 + len(log))), "a gap"
    assert len({fact.id for fact in log}) == len(log), "a fact is there twice"
    assert by_token.keys() <= campaign.tried.keys(), "a fact that nobody wrote"
    for token, written in campaign.returned.items():
        assert by_token[token] == written, "what was returned is not what is there"
    assert not by_token.keys() & campaign.refused, "a conflict, and yet it is there"
    assert by_token.keys() <= campaign.returned.keys() | campaign.unknown
    for token, there in by_token.items():
        assert len(there) == campaign.tried[token], "half a batch"
        assert all(later.seq == earlier.seq + 1 for earlier, later in pairwise(there)), "a batch with something between"
    for chain in by_guard.values():
        for (before, _), (_, expected) in pairwise([(0, {}), *chain]):
            assert expected["n"] or expected["after"] == before, "two winners at one position"
    assert len(by_guard) == AGGREGATES


def _token(fact: Recorded) -> str:
    match fact.event:
        case ProjectCreated(config={"token": str(token)}) | ProjectUpdated(config={"token": str(token)}):
            return token
        case JobCreated(job_id=token):
            return token
        case other:
            raise AssertionError(f"nobody writes {other}")
