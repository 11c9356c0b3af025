"""The projector: the log becomes rows, a copy of itself and a checkpoint, all in one transaction per batch."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from prometheus_client import Counter, Gauge

from libs.events import PreparationProduced, Recorded, Unreadable, decode
from libs.events.log import EventLog, Misconfigured, Position, RawFact, Unavailable
from services.gateway.views import bus, chunks, credits, datasets, examples, jobs, leases, models, objects, projects, runs, users, webhooks, workspaces
from services.gateway.views.database import DOWN, LIVE, UNFIT, connection
from services.gateway.views.progress import Step, Tell
from services.gateway.views.rows import Batch, Operation
from services.gateway.webhooks import fan_out

log = logging.getLogger(__name__)

LEASE = "projector"
BATCH = 2000
AHEAD = 2 * BATCH
FEW = 50
PROJECTIONS: tuple[Callable[[Recorded], Iterator[Operation]], ...] = (
    projects.project,
    jobs.project,
    examples.project,
    chunks.project,
    runs.project,
    datasets.project,
    models.project,
    objects.project,
    users.project,
    webhooks.project,
    workspaces.project,
    bus.project,
    credits.project,
)

_projected = Counter("trainyard_projected_facts_total", "Facts written into the views by this process")
_unknown = Counter("trainyard_unknown_facts_total", "Facts of a type that this version doesn't know", ["type"])
_parked = Counter("trainyard_parked_facts_total", "Facts that no view could take: look into core.parked")
_checkpoint = Gauge("trainyard_checkpoint", "Position of the views, on the replica that projects")


POISON = (Unreadable, *UNFIT, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a fact can be wrong with. Anything else is the machine's or the code's trouble, and no fact is parked for it."""


class Fenced(Exception):
    """Another replica moved the checkpoint: this one leads no more."""


class Gap(Exception):
    """The log delivered something else than the next fact."""


class Projector:
    """One in every gateway; the lease elects the one that works, the checkpoint keeps out a leader that was asleep."""

    def __init__(self, event_log: EventLog, db: asyncpg.Pool, url: str, *, tell: Tell, holder: str) -> None:
        self._log = event_log
        self._db = db
        self._url = url
        self._tell = tell
        self._holder = holder
        self._mark: int | None = None

    async def run(self) -> None:
        """Until cancelled. Outages are waited out."""
        while True:
            try:
                if await leases.hold(self._db, LEASE, self._holder):
                    await self._lead()
            except (*DOWN, Unavailable, Fenced, Gap) as error:
                log.warning("projector: %s", str(error) or type(error).__name__)
            await asyncio.sleep(0.5)

    async def _lead(self) -> None:
        log.info("projector: leading")
        session = await connection(self._url)
        work = asyncio.create_task(self._project(session))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=leases.RENEW)
                if not work.done() and not await leases.hold(self._db, LEASE, self._holder):
                    raise Fenced("the lease went to another replica")
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            session.terminate()
            await asyncio.shield(self._let_go())

    async def _let_go(self) -> None:
        try:
            await leases.release(self._db, LEASE, self._holder)
        except DOWN as error:
            log.warning("projector: lease runs out by itself: %s", error)

    async def _project(self, session: asyncpg.Connection) -> None:
        """The next batch is folded while the database is busy with the one before."""
        checkpoint, position = await same_log(self._log, session)
        self._mark = await fan_out.mark(session, last=position.last)
        ahead = Ahead()
        following = await self._log.follow(after=checkpoint, deliver=ahead.put)
        writing = asyncio.create_task(asyncio.sleep(0))
        try:
            await self._tell(Step(seq=checkpoint, parts=True))
            while True:
                # After the log's server came back, a fresh delivery may repeat what is projected already.
                batch = [raw for raw in await ahead.take() if raw.seq > checkpoint]
                if not batch:
                    continue
                if batch[0].seq != checkpoint + 1 or batch[-1].seq != checkpoint + len(batch):
                    raise Gap(f"facts {batch[0].seq} to {batch[-1].seq} came after {checkpoint}, {len(batch)} of them")
                folded = _folded(batch)
                await writing
                writing = asyncio.create_task(self._write(session, batch, checkpoint, folded))
                checkpoint = batch[-1].seq
                if not ahead.plenty:
                    await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await following.close()

    async def _write(self, session: asyncpg.Connection, batch: list[RawFact], checkpoint: int, folded: "Folded | None") -> None:
        parts = await apply(session, batch, checkpoint, schema=LIVE, copy=True, folded=folded, mark=self._mark)
        _projected.inc(len(batch))
        _checkpoint.set(batch[-1].seq)
        await self._tell(Step(seq=batch[-1].seq, parts=parts))


class Ahead:
    """Facts that were delivered and wait to be projected. Who delivers waits when they are too many."""

    def __init__(self) -> None:
        self._facts: list[RawFact] = []
        self._some = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def plenty(self) -> bool:
        return len(self._facts) >= BATCH

    async def put(self, raw: RawFact) -> None:
        self._facts.append(raw)
        self._some.set()
        if len(self._facts) >= AHEAD:
            self._room.clear()
            await self._room.wait()

    async def take(self) -> list[RawFact]:
        await self._some.wait()
        batch, self._facts = self._facts[:BATCH], self._facts[BATCH:]
        if not self._facts:
            self._some.clear()
        self._room.set()
        return batch


async def same_log(event_log: EventLog, db: asyncpg.Pool | asyncpg.Connection) -> tuple[int, Position]:
    """The views' position and the log's. Refuses a log that is not the one these views were made from, or that has lost facts."""
    row = await db.fetchrow("select seq, log from checkpoints where name = $1", LIVE)
    if row is None:
        raise Fenced("the views have no checkpoint: they are being made")
    position = await event_log.position()  # after the checkpoint, which may move on meanwhile
    how = "Bring them back from the copy in the database: `python -m infra.embedded restore`, or `python -m infra.restore --help`."
    if row["log"] and row["log"] != position.created:
        raise Misconfigured(f"The event log was made at {position.created}, the views come from one made at {row['log']}: facts were lost. {how}")
    if position.last < row["seq"]:
        raise Misconfigured(f"The event log ends at {position.last}, the views are at {row['seq']}: facts were lost. {how}")
    if not row["log"]:
        await db.execute("update checkpoints set log = $2 where name = $1 and log = ''", LIVE, position.created)
    return row["seq"], position


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch of facts comes to, before the database has heard of it."""

    facts: list[Recorded]
    rows: Batch
    parts: bool


async def apply(
    session: asyncpg.Connection, batch: Sequence[RawFact], checkpoint: int, *, schema: str, copy: bool, folded: Folded | None = None, mark: int | None = None
) -> bool:
    """One transaction for the batch; a fact that can't be projected is bisected out and parked, the rest goes on. True when there are rows to load.

    With a `mark`, webhooks are told of what stands behind it.
    """
    try:
        return await _transaction(session, batch, folded or fold(batch), checkpoint, schema=schema, copy=copy, mark=mark)
    except POISON as error:
        if len(batch) == 1:
            await _park(session, batch[0], checkpoint, error, schema=schema, copy=copy, mark=mark)
            return False
        middle = len(batch) // 2
        first = await apply(session, batch[:middle], checkpoint, schema=schema, copy=copy, mark=mark)
        return await apply(session, batch[middle:], batch[middle - 1].seq, schema=schema, copy=copy, mark=mark) or first


def fold(batch: Sequence[RawFact]) -> Folded:
    rows, parts = Batch(), False
    facts = [decode(raw.data, seq=raw.seq, subject=raw.subject) for raw in batch]
    for fact in facts:
        if fact.event is None:
            _unknown.labels(fact.envelope.type).inc()
            continue
        parts = parts or isinstance(fact.event, PreparationProduced)
        for project in PROJECTIONS:
            rows.add(project(fact))
    return Folded(facts=facts, rows=rows, parts=parts)


def _folded(batch: Sequence[RawFact]) -> Folded | None:
    """None when a fact can't be projected: `apply` will find out which."""
    try:
        return fold(batch)
    except POISON:
        return None


async def _transaction(
    session: asyncpg.Connection, batch: Sequence[RawFact], folded: Folded, checkpoint: int, *, schema: str, copy: bool, mark: int | None
) -> bool:
    async with session.transaction():
        await _advance(session, schema, checkpoint, batch[-1].seq)  # first: whoever leads no more must find out before anything else
        if copy:
            await _copy(
                session, [(raw.seq, raw.subject, aggregate(raw.subject), _uuid(fact.id), raw.data) for raw, fact in zip(batch, folded.facts, strict=True)]
            )
        await folded.rows.write(session)
        if mark is not None:
            await fan_out.fan_out(session, folded.facts, mark=mark)
            if checkpoint < mark <= batch[-1].seq:
                await fan_out.catch_up(session, mark=mark)
    return folded.parts


async def _park(session: asyncpg.Connection, raw: RawFact, checkpoint: int, error: Exception, *, schema: str, copy: bool, mark: int | None) -> None:
    log.error("fact parked", extra={"seq": raw.seq, "subject": raw.subject}, exc_info=error)
    _parked.inc()
    async with session.transaction():
        await _advance(session, schema, checkpoint, raw.seq)
        if copy:
            await _copy(session, [(raw.seq, raw.subject, aggregate(raw.subject), _id(raw), raw.data)])
        await session.execute(
            "insert into parked (seq, subject, error, at) values ($1, $2, $3, $4) on conflict (seq) do update set error = excluded.error, at = excluded.at",
            raw.seq,
            raw.subject,
            f"{type(error).__name__}: {error}".replace("\0", "?")[:2000],
            datetime.now(UTC),
        )
        if raw.seq == mark:
            await fan_out.catch_up(session, mark=raw.seq)


async def _copy(session: asyncpg.Connection, rows: list[tuple[int, str, str, uuid.UUID | None, bytes]]) -> None:
    """COPY is faster per row but costs round trips of its own, which someone who waits for his write would feel."""
    if len(rows) < FEW:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await session.execute("insert into core.event_log select * from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::bytea[])", *columns)
        return
    await session.copy_records_to_table("event_log", schema_name="core", columns=("seq", "subject", "aggregate", "id", "body"), records=rows)


async def _advance(session: asyncpg.Connection, schema: str, old: int, new: int) -> None:
    if await session.execute("update checkpoints set seq = $3 where name = $1 and seq = $2", schema, old, new) != "UPDATE 1":
        raise Fenced(f"the checkpoint is no longer at {old}")


def aggregate(subject: str) -> str:
    """All facts of a thing under one name, whoever wrote them: `local/0192…`."""
    tokens = subject.split(".", 4)
    return f"{tokens[1]}/{tokens[4].replace('.', '/')}" if len(tokens) == 5 else subject


def _id(raw: RawFact) -> uuid.UUID | None:
    try:
        return _uuid(decode(raw.data, seq=raw.seq, subject=raw.subject).id)
    except Unreadable:
        return None


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def _nothing() -> None:
    """So that there is always a batch before the next."""
