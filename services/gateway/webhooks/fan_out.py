"""Which facts are to be sent to which endpoints: written by the live projector with the views, in the same transaction."""

from collections.abc import Sequence

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from libs.events import (
    Recorded,
    TrainingProgressed,
    UserDeleted,
    WebhookCreated,
    WebhookDeleted,
    WebhookDelivered,
    WebhookDisabled,
    WebhookReplayRequested,
    WebhookTestRequested,
    WebhookUpdated,
)
from libs.events.subjects import PRIVATE_CATEGORIES
from services.gateway.webhooks.bodies import contract_names, decile

MARK = "webhooks"
"""Name of the checkpoint that tells where the log ended when this database was made: what is older has been sent already, but for what `catch_up` finds."""

Candidate = tuple[int, str, str, dict[str, str], str]


async def mark(session: asyncpg.Connection, *, last: int) -> int:
    await session.execute("insert into core.checkpoints (name, seq, log) values ($1, $2, '') on conflict do nothing", MARK, last)
    return int(await session.fetchval("select seq from core.checkpoints where name = $1", MARK) or 0)


async def fan_out(session: asyncpg.Connection, facts: Sequence[Recorded], *, mark: int) -> None:
    await _note_milestones(session, facts)
    for recorded in facts:
        if recorded.envelope.type.startswith(("webhook.", "user.deleted")):
            await _endpoint(session, recorded, live=recorded.seq > mark)
    if found := [candidate for recorded in facts if recorded.seq > mark and (candidate := _candidate(recorded))]:
        await _deliver(session, found)


async def catch_up(session: asyncpg.Connection, *, mark: int) -> None:
    """This database has just read all that there was when it was made: each endpoint goes on behind what it is known to have been sent."""
    await session.execute("update core.webhook_endpoints set replay_from = cursor + 1, replay_until = $1 where cursor < $1", mark)


async def again(session: "asyncpg.Connection | PoolConnectionProxy", endpoint: str, facts: Sequence[Recorded]) -> int:
    """Facts of the past, for one endpoint. How many of them it wants."""
    return await _deliver(session, [candidate for recorded in facts if (candidate := _candidate(recorded))], only=endpoint)


def _candidate(recorded: Recorded) -> Candidate | None:
    category = recorded.envelope.type.split(".", 1)[0]
    if recorded.event is None or category in PRIVATE_CATEGORIES:
        return None
    return (recorded.seq, recorded.tenant, recorded.envelope.type, contract_names(recorded), getattr(recorded.event, "job_id", ""))


async def _deliver(session: "asyncpg.Connection | PoolConnectionProxy", found: list[Candidate], *, only: str | None = None) -> int:
    if not found:
        return 0
    columns = [list(column) for column in zip(*found, strict=True)]
    return int(
        await session.fetchval(
            """with written as (
             insert into core.webhook_deliveries as d (endpoint, seq)
             select e.id, f.seq
               from (select c.*, c.names ->> j.kind as name
                       from unnest($1::bigint[], $2::text[], $3::text[], $4::json[], $5::text[]) c (seq, tenant, type, names, job_id)
                       left join jobs j on j.id = c.job_id and c.names::text <> '{}') f
               join core.webhook_endpoints e on e.tenant = f.tenant and case when $6::text is null then e.since < f.seq else e.id = $6 end
               join webhooks w on w.id = e.id and w.active
              where case w.format when 'cloudevents' then f.type else f.name end like any (w.patterns)
                and (w.format = 'cloudevents' or f.name <> 'training.progress' or exists (select from core.webhook_milestones m where m.seq = f.seq))
             on conflict (endpoint, seq) do update set state = 'pending', attempts = 0 where $6 is not null
             returning endpoint, seq),
           moved as (
             update core.webhook_endpoints e set newest = greatest(e.newest, n.seq)
               from (select endpoint, max(seq) as seq from written group by 1) n where e.id = n.endpoint)
           select count(*) from written""",
            *columns,
            only,
        )
        or 0
    )


async def _note_milestones(session: asyncpg.Connection, facts: Sequence[Recorded]) -> None:
    """The first fact of a run in each tenth: one that goes on from a checkpoint comes by some of them again."""
    highest: dict[str, int] = {}
    found: list[tuple[str, int, int]] = []
    for recorded in facts:
        if isinstance(event := recorded.event, TrainingProgressed) and (reached := decile(event)) > highest.get(event.job_id, 0):
            highest[event.job_id] = reached
            found.append((event.job_id, reached, recorded.seq))
    if not found:
        return
    columns = [list(column) for column in zip(*found, strict=True)]
    await session.execute(
        """insert into core.webhook_milestones (job_id, decile, seq)
           select n.* from unnest($1::text[], $2::int[], $3::bigint[]) n (job_id, decile, seq)
            where n.decile > coalesce((select max(m.decile) from core.webhook_milestones m where m.job_id = n.job_id), 0)""",
        *columns,
    )


async def _endpoint(session: asyncpg.Connection, recorded: Recorded, *, live: bool) -> None:
    """`cursor` is the last position that an endpoint has been sent; a change of it here makes whoever is sending just now leave it so."""
    match recorded.event:
        case WebhookCreated(webhook_id=id):
            await session.execute(
                """insert into core.webhook_endpoints (id, tenant, since, cursor, newest, reported) select $1, $2, $3, $3, $3, $3
                    where not exists (select from core.event_log where aggregate = concat($2::text, '/', $2) and subject like 'sec.%.user.deleted.%')
                   on conflict do nothing""",  # a token is believed for a moment longer than its user is there
                id,
                recorded.tenant,
                recorded.seq,
            )
        case WebhookUpdated(webhook_id=id, active=True):
            await _set_out(session, id, recorded.seq)
        case WebhookUpdated(webhook_id=id, active=False) | WebhookDisabled(webhook_id=id):
            await session.execute(
                "update core.webhook_endpoints set cursor = greatest(cursor, newest), replay_from = null, replay_until = null where id = $1", id
            )
        case WebhookUpdated(webhook_id=id):
            await session.execute("update core.webhook_endpoints set next_at = clock_timestamp() where id = $1", id)
        case WebhookReplayRequested(webhook_id=id, start=start):
            await session.execute(
                """update core.webhook_endpoints
                      set cursor = least(cursor, $2::bigint - 1),
                          replay_from = case when $4 then least(replay_from, $2) end, replay_until = case when $4 then $3::bigint end,
                          next_at = clock_timestamp()
                    where id = $1""",
                id,
                start,
                recorded.seq,
                live,
            )
        case WebhookTestRequested(webhook_id=id) if live:
            await session.execute("insert into core.webhook_deliveries (endpoint, seq) values ($1, $2) on conflict do nothing", id, recorded.seq)
            await session.execute(
                "update core.webhook_endpoints set newest = greatest(newest, $2), next_at = clock_timestamp() where id = $1", id, recorded.seq
            )
        case WebhookDelivered(webhook_id=id, up_to=up_to) if not live:
            await session.execute("update core.webhook_endpoints set cursor = $2, reported = $2 where id = $1", id, up_to)
        case WebhookDeleted(webhook_id=id):
            await session.execute("delete from core.webhook_endpoints where id = $1", id)
        case UserDeleted(user_id=id):
            await session.execute("delete from core.webhook_endpoints where tenant = $1", id)
        case _:
            return


async def _set_out(session: asyncpg.Connection, webhook_id: str, seq: int) -> None:
    """What happened while it was disabled is not sent, unless a replay is asked for."""
    await session.execute(
        """update core.webhook_endpoints
              set since = $2, cursor = greatest(cursor, $2), replay_from = null, replay_until = null, fails = 0, failing_since = null,
                  next_at = clock_timestamp()
            where id = $1""",
        webhook_id,
        seq,
    )
