"""Sends what is due: each endpoint in the order of the log, many at once, and none waits for another."""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
from prometheus_client import Counter

from libs.events import NotStorable, Origin, Recorded, Unreadable, decode
from libs.events.log import Full, Unavailable
from libs.runtime.waiting import within
from services.gateway.commands import Commands
from services.gateway.domain.errors import DomainError
from services.gateway.domain.webhook import DisableWebhook, ReportDelivered
from services.gateway.views import leases
from services.gateway.views.database import DOWN
from services.gateway.views.progress import Progress
from services.gateway.webhooks import bodies
from services.gateway.webhooks.fan_out import again
from services.gateway.webhooks.posting import Attempt, Poster
from services.gateway.webhooks.signing import Seal, Unsealable, sign

log = logging.getLogger(__name__)

RETRIES = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 14400.0, 21600.0, 36000.0)
"""Seconds between the attempts at one delivery: about a day, then it is given up and the next one's turn."""
JITTER = 0.2
LONGEST_RETRY_AFTER = 3600.0
GIVE_UP = timedelta(days=5)
"""An endpoint that did nothing but fail for so long is disabled."""
SLOTS, FOR_FAILING = 128, 32
"""Endpoints served at once by one process, and how many of them may be such as failed last time."""
BATCH = 20
PAGE = 2000
EXPIRY = 10.0
"""Seconds after which what a silent process holds is taken by others; it lets go itself a little before."""
POLL = 1.0
REPORT = 60.0
KEEP = timedelta(days=30)
SOON = timedelta(seconds=0.1)
HELD_BACK = timedelta(seconds=30)
"""At most: what a data set holds, or the model that a run has made, is to be found by whoever hears of it."""
GONE = 410

_sent = Counter("trainyard_webhook_attempts_total", "Requests to webhook endpoints", ["outcome"])


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    tenant: str
    cursor: int
    newest: int
    replay_from: int | None
    replay_until: int | None
    url: str
    format: str
    secret: str
    previous_secret: str
    previous_until: datetime | None


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt at one delivery, and what that makes of it."""

    seq: int
    state: str
    attempt: Attempt
    before: int = 0
    """Attempts that it had before this one."""


class Sender:
    """One in every gateway. What it holds is its own as long as it renews one lease."""

    def __init__(
        self,
        db: asyncpg.Pool,
        commands: Commands,
        progress: Progress,
        poster: Poster,
        seal: Seal,
        *,
        holder: str,
        retries: Sequence[float] = RETRIES,
        give_up: timedelta = GIVE_UP,
        report: float = REPORT,
        poll: float = POLL,
    ) -> None:
        self._db = db
        self._commands = commands
        self._progress = progress
        self._poster = poster
        self._seal = seal
        self._holder = holder
        self._retries = retries
        self._give_up = give_up
        self._report = report
        self._poll = poll
        self._active: dict[str, bool] = {}
        """The endpoints that are being served, and whether they failed last time."""
        self._renewed = -EXPIRY

    async def run(self) -> None:
        """Until cancelled. Outages are waited out."""
        try:
            await self._run()
        finally:
            await asyncio.shield(self._let_go())

    async def _let_go(self) -> None:
        try:
            await leases.release(self._db, f"webhooks/{self._holder}", self._holder)
        except DOWN as error:
            log.warning("webhooks: lease runs out by itself: %s", error)

    async def _run(self) -> None:
        async with self._poster, asyncio.TaskGroup() as tasks:
            tasks.create_task(_every(EXPIRY / 5, self._renew))
            tasks.create_task(_every(min(5.0, self._report), self._tell))
            tasks.create_task(_every(3600.0, self._clean))
            while True:
                try:
                    claimed = await self._claim() if self._holds() else []
                except DOWN as error:
                    log.warning("webhooks: %s", str(error) or type(error).__name__)
                    await asyncio.sleep(self._poll / 2)
                    continue
                for endpoint in claimed:
                    tasks.create_task(self._serve(endpoint))
                if claimed:
                    continue
                try:
                    await within(self._poll if self._holds() else 0.05, self._progress.moved.wait())
                except TimeoutError:
                    continue
                self._progress.moved.clear()

    def _holds(self) -> bool:
        return time.monotonic() - self._renewed < 0.8 * EXPIRY

    async def _renew(self) -> None:
        asked = time.monotonic()
        if await leases.hold(self._db, f"webhooks/{self._holder}", self._holder, expiry=EXPIRY):
            self._renewed = asked

    async def _claim(self) -> list[Endpoint]:
        failing = sum(self._active.values())
        claimed: list[Endpoint] = []
        for failed, room in ((False, SLOTS - FOR_FAILING - (len(self._active) - failing)), (True, FOR_FAILING - failing)):
            if room <= 0:
                continue
            rows = await self._db.fetch(
                """with due as (
                     select e.id from webhook_endpoints e join webhooks w on w.id = e.id and w.active
                      where e.next_at <= clock_timestamp() and (e.newest > e.cursor or e.replay_from is not null) and (e.fails > 0) = $3
                        and (e.holder is null or e.holder = $1 and e.id <> all ($4)
                             or e.holder <> $1 and not exists (select from leases l where l.name = 'webhooks/' || e.holder and l.until > clock_timestamp()))
                      order by e.next_at limit $2 for update of e skip locked)
                   update webhook_endpoints e set holder = $1 from due, webhooks w where e.id = due.id and w.id = e.id
                   returning e.id, e.tenant, e.cursor, e.newest, e.replay_from, e.replay_until,
                             w.url, w.format, w.secret, w.previous_secret, w.previous_until""",
                self._holder,
                room,
                failed,
                list(self._active),
            )
            for row in rows:
                self._active[row["id"]] = failed
                claimed.append(Endpoint(**row))
        return claimed

    async def _serve(self, endpoint: Endpoint) -> None:
        try:
            if endpoint.replay_from is not None:
                await self._page_of_the_past(endpoint)
            else:
                await self._settle(endpoint, await self._send(endpoint))
        except (*DOWN, DomainError, Full, Unavailable) as error:
            log.warning("webhooks: %s: %s", endpoint.id, str(error) or type(error).__name__)
        except Exception:
            log.exception("webhooks: %s waits a minute", endpoint.id)  # one endpoint's trouble is not the others'
            await asyncio.sleep(60)
        finally:
            self._active.pop(endpoint.id, None)
            self._progress.moved.set()

    async def _page_of_the_past(self, endpoint: Endpoint) -> None:
        """Nothing newer is sent before all of it is written down: that keeps the order."""
        assert endpoint.replay_from is not None
        assert endpoint.replay_until is not None
        last = min(endpoint.replay_until, endpoint.replay_from + PAGE - 1)
        rows = await self._db.fetch(
            "select seq, subject, body from event_log where seq between $1 and $2 and split_part(subject, '.', 2) = $3 order by seq",
            endpoint.replay_from,
            last,
            endpoint.tenant,
        )
        facts = [recorded for row in rows if (recorded := _readable(row))]
        async with self._db.acquire() as session, session.transaction():
            mine = await session.execute(
                """update webhook_endpoints set replay_from = case when $3::bigint < replay_until then $3 + 1 end, holder = null
                    where id = $1 and holder = $2 and replay_from = $4""",
                endpoint.id,
                self._holder,
                last,
                endpoint.replay_from,
            )
            if mine == "UPDATE 1":
                await again(session, endpoint.id, facts)
            else:  # another replay was asked for meanwhile
                await session.execute("update webhook_endpoints set holder = null where id = $1 and holder = $2", endpoint.id, self._holder)

    async def _send(self, endpoint: Endpoint) -> list[Sent]:
        """Until one fails, or enough for once."""
        rows = await self._db.fetch(
            """select d.seq, d.attempts, l.subject, l.body, coalesce(j.kind, '') as kind,
                      coalesce(j.inputs ->> 'dataset_id', j.inputs -> 'file' ->> 'file_id', '') as dataset_id,
                      coalesce(r.spec ->> 'epochs', r.spec ->> 'num_epochs', '0')::float8 as epochs,
                      coalesce((select e.metrics from epochs e where e.job_id = j.id and e.seq < d.seq order by e.epoch desc limit 1), '{}') as evaluation,
                      d.created_at > clock_timestamp() - $5::interval and case split_part(l.subject, '.', 3) || '.' || split_part(l.subject, '.', 4)
                        when 'preparation.completed' then j.kind = 'prepare' and exists (select from parts p where p.job_id = j.id and p.state = 'pending')
                        when 'training.completed' then j.inputs ->> 'dataset_id' <> '' and not exists (select from models m where m.id = j.id) end as too_soon
                 from webhook_deliveries d join event_log l on l.seq = d.seq
                      left join jobs j on $4 and j.id = split_part(l.aggregate, '/', 2) left join runs r on r.id = j.id
                where d.endpoint = $1 and d.seq > $2 order by d.seq limit $3""",
            endpoint.id,
            endpoint.cursor,
            BATCH,
            endpoint.format == "contract",
            HELD_BACK,
        )
        sent: list[Sent] = []
        for row in rows:
            if row["too_soon"] or not self._holds():
                break
            attempt = await self._attempt(endpoint, row)
            _sent.labels("delivered" if attempt.ok else "failed").inc()
            given_up = not attempt.ok and row["attempts"] >= len(self._retries)
            sent.append(Sent(seq=row["seq"], state="delivered" if attempt.ok else "failed" if given_up else "pending", attempt=attempt, before=row["attempts"]))
            if not attempt.ok:
                break
        if not rows:
            sent.append(Sent(seq=endpoint.newest, state="delivered", attempt=Attempt(status=200)))
        return sent

    async def _attempt(self, endpoint: Endpoint, row: asyncpg.Record) -> Attempt:
        try:
            recorded = decode(row["body"], seq=row["seq"], subject=row["subject"])
            secrets = self._secrets(endpoint)
        except (Unreadable, Unsealable) as broken:
            return Attempt(error=str(broken)[:500])
        cloudevents = endpoint.format == "cloudevents"
        body = row["body"] if cloudevents else bodies.contract_body(recorded, _about(row))
        stamp = int(time.time())
        headers = {
            "Content-Type": bodies.CLOUDEVENTS if cloudevents else bodies.JSON,
            "webhook-id": recorded.id,
            "webhook-timestamp": str(stamp),
            "webhook-signature": sign(secrets, id=recorded.id, timestamp=stamp, body=body),
            "trainyard-sequence": str(row["seq"]),
        }
        return await self._poster.post(endpoint.url, body, headers)

    def _secrets(self, endpoint: Endpoint) -> list[str]:
        sealed = [endpoint.secret]
        if endpoint.previous_until and endpoint.previous_until > datetime.now(UTC):
            sealed.append(endpoint.previous_secret)
        return [self._seal.open(secret, about=endpoint.id) for secret in sealed]

    async def _settle(self, endpoint: Endpoint, sent: list[Sent]) -> None:
        """Whose cursor was moved meanwhile (a replay, a disabling) keeps it; who holds it no more changes nothing."""
        if not sent:  # it is too soon for the next; or our lease ran out, and whoever has it now begins where we did
            await self._db.execute(
                "update webhook_endpoints set holder = null, next_at = clock_timestamp() + $3::interval where id = $1 and holder = $2",
                endpoint.id,
                self._holder,
                SOON,
            )
            return
        last = sent[-1].attempt
        failed = not last.ok
        cursor = max((one.seq for one in sent if one.state != "pending"), default=endpoint.cursor)
        wait = self._wait(sent[-1]) if failed else 0.0
        failing_since = await self._db.fetchval(
            """with told as (
                 update webhook_deliveries d set state = s.state, attempts = d.attempts + 1, status = s.status, error = s.error, response = s.response,
                        milliseconds = s.milliseconds, attempted_at = clock_timestamp()
                   from unnest($4::bigint[], $5::text[], $6::int[], $7::text[], $8::text[], $9::int[]) s (seq, state, status, error, response, milliseconds)
                  where d.endpoint = $1 and d.seq = s.seq and exists (select from webhook_endpoints e where e.id = $1 and e.holder = $2))
               update webhook_endpoints
                  set holder = null, cursor = case when cursor = $3 then $10 else cursor end, fails = case when $11 then fails + 1 else 0 end,
                      failing_since = case when $11 then coalesce(failing_since, clock_timestamp()) end,
                      next_at = clock_timestamp() + make_interval(secs => $12)
                where id = $1 and holder = $2
               returning failing_since""",
            endpoint.id,
            self._holder,
            endpoint.cursor,
            [one.seq for one in sent],
            [one.state for one in sent],
            [one.attempt.status for one in sent],
            [one.attempt.error for one in sent],
            [one.attempt.response for one in sent],
            [round(1000 * one.attempt.seconds) for one in sent],
            cursor,
            failed,
            wait,
        )
        if not failed:
            return
        if last.status == GONE:
            await self._disable(endpoint, "gone", "The receiver answered 410 Gone")
        elif failing_since and datetime.now(UTC) - failing_since >= self._give_up:
            await self._disable(endpoint, "failing", f"Nothing could be delivered since {failing_since:%Y-%m-%d %H:%M} UTC; at last: {last.error}")

    def _wait(self, sent: Sent) -> float:
        """Seconds until the next attempt; behind one that was given up the schedule begins anew."""
        if sent.attempt.status == GONE:
            return POLL  # by then it is disabled
        jittered = self._retries[0 if sent.state == "failed" else sent.before] * random.uniform(1 - JITTER, 1 + JITTER)
        return max(jittered, min(sent.attempt.retry_after, LONGEST_RETRY_AFTER))

    async def _disable(self, endpoint: Endpoint, reason: str, message: str) -> None:
        await self._commands.run(DisableWebhook(webhook_id=endpoint.id, reason=reason, message=message), origin=_origin(endpoint.tenant))

    async def _tell(self) -> None:
        """How far each has come becomes a fact: a database that is lost starts again from there."""
        if not await leases.hold(self._db, "webhooks", self._holder, expiry=EXPIRY):
            return
        rows = await self._db.fetch(
            """select id, tenant, cursor from webhook_endpoints
                where cursor <> reported and reported_at < clock_timestamp() - make_interval(secs => $1) order by reported_at limit 500""",
            self._report,
        )
        for row in rows:
            try:
                await self._commands.run(ReportDelivered(webhook_id=row["id"], up_to=row["cursor"]), origin=_origin(row["tenant"]))
            except (DomainError, NotStorable) as refused:
                log.info("webhooks: %s: %s", row["id"], refused)  # deleted meanwhile
            await self._db.execute("update webhook_endpoints set reported = $2, reported_at = clock_timestamp() where id = $1", row["id"], row["cursor"])

    async def _clean(self) -> None:
        """What was settled long ago, or was for somebody who is gone."""
        await self._db.execute(
            """delete from webhook_deliveries d using (
                 select d.endpoint, d.seq from webhook_deliveries d left join webhook_endpoints e on e.id = d.endpoint
                  where e.id is null or d.created_at < clock_timestamp() - $1::interval and d.seq <= e.cursor limit 100000) old
                where d.endpoint = old.endpoint and d.seq = old.seq""",
            KEEP,
        )
        await self._db.execute("delete from leases where name like 'webhooks/%' and until < clock_timestamp() - interval '1 hour'")


async def _every(seconds: float, once: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await once()
        except (*DOWN, DomainError, Full, Unavailable) as error:
            log.warning("webhooks: %s", str(error) or type(error).__name__)
        await asyncio.sleep(seconds)


def _origin(tenant: str) -> Origin:
    return Origin(tenant=tenant, actor="gateway", correlation=str(uuid.uuid4()))


def _about(row: asyncpg.Record) -> bodies.About:
    return bodies.About(kind=row["kind"], dataset_id=row["dataset_id"], epochs=row["epochs"], evaluation=msgspec.json.decode(row["evaluation"]))


def _readable(row: asyncpg.Record) -> Recorded | None:
    """None for what is parked."""
    try:
        return decode(row["body"], seq=row["seq"], subject=row["subject"])
    except Unreadable:
        return None
