"""`python -m tests.chaos.campaign --seeds 5 --seconds 60`: real processes are killed and paused under load; then the checker proves that nothing came of it."""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import httpx

from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis
from tests.kit.checker import Violation, check, summary
from tests.kit.hook_checker import heard
from tests.kit.hooks import EGRESS, hooks
from tests.kit.people import bearer, registered
from tests.kit.platform import Platform, client, platform
from tests.kit.processes import left_running

LIMIT_MB = 1
"""Of a project's files: so low that the load meets it."""
PATIENCE = {False: 60.0, True: 180.0}
"""Seconds until all has come to rest; where runs are trained, those that wait have to be."""
ENDING = 10.0
ENDPOINTS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("/all", (), "cloudevents", "ours"),
    ("/some", ("job.*", "preparation.completed", "training.*"), "cloudevents", "ours"),
    ("/document", (), "contract", "ours"),
    ("/theirs", (), "cloudevents", "theirs"),
)
"""Path, events, format, whose."""
ENVIRON = {
    "TRAINYARD_MAX_PROJECT_MB": str(LIMIT_MB),
    "TRAINYARD_LOG_LEVEL": "info",
    "TRAINYARD_PRICES": "finetuneflow=7",
    "TRAINYARD_NEW_USER_CREDITS": "150",
    "TRAINYARD_RATE_LIMITS": "0",
    "TRAINYARD_SMOKE": "true",
    **EGRESS,
}
"""Who trains has an account, pays for each run, and may run out of credits. Networks are tiny."""


@dataclass
class Outcome:
    seed: int
    violations: list[Violation]
    faults: Counter[str]
    fell: list[str]
    journal: list[str]
    answers: Counter[str]
    heard: Counter[str]
    """By webhooks."""
    facts: int
    ends: Counter[str]
    """Of jobs."""
    attempts: int
    rested_after: float
    logs: str
    """Where the processes' logs are kept when something is wrong."""

    def __str__(self) -> str:
        fell = "".join(f"\n  fell: {fell}" for fell in self.fell)
        return (
            f"seed {self.seed}: {self.faults.total()} faults {dict(self.faults)}, {self.answers.total()} commands {dict(sorted(self.answers.items()))}, "
            f"{self.facts} facts, {dict(self.heard)} deliveries, {self.attempts} attempts, ends {dict(sorted(self.ends.items()))}, at rest after {self.rested_after:.1f} s, {len(self.violations)} violations{fell}"
        )

    def report(self) -> str:
        return f"{self}\n{summary(self.violations)}\n" + "\n".join([*self.journal, f"logs: {self.logs}"])


async def campaign(platform: Platform, *, seed: int, seconds: float) -> Outcome:
    """Most people share a workspace; another's is there so that nothing of one can show in the other: there models are fitted to tables and to images. Webhooks follow both."""
    trains = bool(platform.training)
    async with client() as http, hooks() as following:
        ours, theirs = await _account(platform.urls[0]) if trains else {}, await _account(platform.urls[0])
        for path, events, format, whose in ENDPOINTS:
            await following.register(platform.urls[0], path, *events, format=format, headers=ours if whose == "ours" else theirs)
        loads = [
            Load(platform.urls, http, seed=seed, trains=trains, headers=ours),
            Load(platform.urls, http, seed=seed, people=2 if trains else 1, fits=trains, headers=theirs, names="theirs-"),
        ]
        for load in loads:
            await load.furnish()
        nemesis = Nemesis(platform, seed=seed)
        working = [asyncio.create_task(load.run()) for load in loads]
        try:
            await nemesis.run(seconds)
        finally:
            for load in loads:
                load.over = True
        healed = time.monotonic()
        await asyncio.gather(*working)
        violations = []
        patience = PATIENCE[trains]
        if restless := await platform.rest(patience):
            violations.append(Violation("comes_to_rest", f"not within {patience:.0f} s after all was healed: {restless}"))
            violations += [Violation("comes_to_rest", f"PostgreSQL is busy with {what}") for what in await _activity(platform)]
        rested_after = time.monotonic() - healed
        await following.end(platform.urls)
        await platform.rest(ENDING)
        with suppress(AssertionError):  # what was not swept is the checker's to say
            await platform.sweep()
    ops = [op for load in loads for op in load.ops]
    evidence = await platform.collect(ops, following.deliveries, limit_mb=LIMIT_MB)
    return Outcome(
        seed=seed,
        violations=violations + check(evidence),
        faults=nemesis.done,
        fell=nemesis.fell,
        journal=nemesis.journal,
        answers=Counter(f"{op.kind} {op.status or 'open'}" for op in ops),
        heard=heard(evidence),
        facts=len(evidence.facts),
        ends=Counter(
            f"{fact.type} {fact.data.get('code', '')}".strip()
            for fact in evidence.facts
            if fact.stage and fact.type.endswith((".completed", ".failed", ".cancelled"))
        ),
        attempts=sum(fact.type == "training.started" for fact in evidence.facts),
        rested_after=rested_after,
        logs=f"{tempfile.gettempdir()}/trainyard-chaos-{seed}",
    )


async def _account(url: str) -> dict[str, str]:
    """Somebody who pays, by a key that all gateways know and that outlives them."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as api:
        person = await registered(api)
        key = await api.post("/v2/keys", json={"name": "campaign"}, headers=person.headers)
    return bearer(key.json()["key"])


async def _activity(platform: Platform) -> list[str]:
    """For whoever looks for the reason."""
    async with platform.database() as session:
        rows = await session.fetch(
            """select pid, client_port, state, wait_event_type, wait_event, now() - state_change as since, pg_blocking_pids(pid) as blocked_by, query
                 from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"""
        )
    return [str(dict(row)) for row in rows]


def run(seed: int, seconds: float, *, training: int = 0) -> Outcome:
    """A platform of its own for each seed; with training services people also train and export."""
    with platform(gateways=2, datasets=2, training=training, export=min(1, training), environ=ENVIRON) as made:
        home = made.servers.home.path
        outcome = asyncio.run(campaign(made, seed=seed, seconds=seconds))
        if outcome.violations:
            shutil.copytree(made.servers.home.logs, outcome.logs, dirs_exist_ok=True)
    outcome.violations += [Violation("nothing_is_left_over", f"still running: {process}") for process in left_running(home)]
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many campaigns, each with the next seed")
    parser.add_argument("--first", type=int, default=int(os.environ.get("TRAINYARD_CHAOS_SEED", "1")), help="the first seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long things go wrong in each")
    parser.add_argument("--training", type=int, default=2, help="how many training services; none: nobody trains or exports")
    arguments = parser.parse_args()
    bad = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        outcome = run(seed, arguments.seconds, training=arguments.training)
        sys.stdout.write(f"{outcome.report() if outcome.violations else outcome}\n")
        sys.stdout.flush()
        bad += bool(outcome.violations)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
