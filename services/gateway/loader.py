"""Rows that services produced come into the views here, apart from the projector: it may wait for the object store."""

import logging
import time
from typing import Any

import asyncpg
import msgspec
from prometheus_client import Counter

from libs.events import Claim, Column
from libs.runtime.waiting import within
from libs.storage import Damaged, Missing, Storage, StorageDown
from services.gateway.domain.jobs import CHUNK, PREPARE
from services.gateway.views import chunks, examples, leases
from services.gateway.views.database import DOWN, UNFIT
from services.gateway.views.progress import Progress

log = logging.getLogger(__name__)

LEASE = "loader"
LARGEST = 8 * 1024 * 1024
"""Bytes of one part in memory: a service that wrote more than the promised 4 MB is refused well before it hurts."""

SHARE, LONGEST_PAUSE = 0.05, 60.0
"""Of the time that may go into looking for what is outdated, which takes longer the more jobs there ever were; and seconds between two looks."""

_loaded = Counter("trainyard_loaded_rows_total", "Rows of parts copied into the views by this process")

EXAMPLES = (
    "id",
    "tenant",
    "project_id",
    "file_id",
    "job_id",
    "position",
    "row",
    "split",
    "format",
    "data",
    "is_valid",
    "reason",
    "message",
    "token_count",
    "created_at",
)
COLUMNS = ("id", "dataset_id", "position", "name", "role", "about")
CHUNKS = ("id", "tenant", "project_id", "file_id", "job_id", "position", "chunk_index", "content", "token_count", "metadata", "created_at")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a part, as the datasets service writes it."""

    id: str
    row: int
    split: str
    format: str
    data: msgspec.Raw
    valid: bool
    reason: str
    message: str
    tokens: int
    file_id: str = ""
    """The document that a generated example was made from."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a part of a chunk job."""

    id: str
    file_id: str
    index: int
    content: str
    tokens: int
    metadata: msgspec.Raw


class Broken(Exception):
    """The part is there, but isn't what a part must be."""


_LINES = msgspec.json.Decoder(Line)
_OTHERS: dict[str, msgspec.json.Decoder[Any]] = {CHUNK: msgspec.json.Decoder(Chunk), PREPARE: msgspec.json.Decoder(Column)}
"""Kinds of jobs whose lines are no rows that could be learned from."""


class Loader:
    """One in every gateway; the lease elects the one that loads."""

    def __init__(self, db: asyncpg.Pool, storage: Storage, progress: Progress, *, holder: str) -> None:
        self._db = db
        self._storage = storage
        self._progress = progress
        self._holder = holder
        self._clear_at = 0.0

    async def run(self) -> None:
        """Until cancelled. Outages are waited out; only a part that is broken itself is given up."""
        while True:
            try:
                if await leases.hold(self._db, LEASE, self._holder):
                    await self._load_all()
            except (*DOWN, StorageDown) as error:
                log.warning("loader: %s", str(error) or type(error).__name__)
            try:
                await within(leases.RENEW, self._progress.parts.wait())
            except TimeoutError:
                continue
            self._progress.parts.clear()

    async def _load_all(self) -> None:
        while await load_next(self._db, self._storage):
            if not await leases.hold(self._db, LEASE, self._holder):
                return
        if (started := time.monotonic()) >= self._clear_at:
            try:
                await chunks.clear(self._db)
            finally:
                ended = time.monotonic()
                self._clear_at = ended + min((ended - started) / SHARE, LONGEST_PAUSE)


async def load_next(db: asyncpg.Pool, storage: Storage) -> bool:
    """The oldest part that waits. False when none does. Loading twice is harmless: the part's row says when it is done."""
    part = await examples.next_part(db)
    if part is None:
        return False
    if not part["owned"] or part["outdated"]:
        await db.execute("delete from example_edits where job_id = $1 and $2", part["job_id"], part["outdated"])
        await db.execute("delete from parts where id = $1", part["id"])  # what it was made from was deleted meanwhile, and its object goes too
        return True
    try:
        records = await _read(part, storage)
        error = ""
    except (Broken, Missing, Damaged) as broken:
        log.exception("part given up", extra={"part": part["id"], "error": str(broken)})
        records, error = [], str(broken)
    try:
        async with db.acquire() as session, session.transaction():
            await _write(session, part, records, error)
    except UNFIT as unfit:
        log.exception("part given up", extra={"part": part["id"]})
        async with db.acquire() as session, session.transaction():
            await _write(session, part, [], str(unfit))
    return True


async def _read(part: asyncpg.Record, storage: Storage) -> list[Any]:
    """Records, of the kind that the job makes."""
    if part["size"] > LARGEST:
        raise Broken(f"{part['size']} bytes are more than a part may have")
    data = await storage.get(Claim(key=part["key"], sha256=part["sha256"], size=part["size"]))
    try:
        records = _OTHERS.get(part["kind"], _LINES).decode_lines(data)
    except msgspec.MsgspecError as error:
        raise Broken(str(error)) from error
    if len(records) != part["rows"]:
        raise Broken(f"{len(records)} rows, {part['rows']} were announced")
    return records


async def _write(session: Any, part: asyncpg.Record, records: list[Any], error: str) -> None:
    """What the rows were made from may have been deleted meanwhile; then they aren't loaded and nothing remains."""
    made_from = {row["id"] for row in await session.fetch(_MADE_FROM, part["job_id"], part["project_id"], part["kind"])}  # before parts, as the projector does
    if not await session.fetchval("select true from parts where id = $1 and state = 'pending' for update", part["id"]):
        return
    if not made_from:
        await session.execute("delete from parts where id = $1", part["id"])
        return
    if not error:
        rows = [row for line in records if (row := _row(part, line, made_from))]
        if part["kind"] == PREPARE:
            await session.copy_records_to_table("dataset_columns", columns=COLUMNS, records=rows)
        elif part["kind"] == CHUNK:
            await session.copy_records_to_table("chunks", columns=CHUNKS, records=rows)
        else:
            await _add_examples(session, part["project_id"], rows)
        _loaded.inc(len(rows))
    await session.execute("update parts set state = $2 where id = $1", part["id"], "broken" if error else "loaded")


async def _add_examples(session: Any, project_id: str, rows: list[tuple[Any, ...]]) -> None:
    """With what people did to them, also where that was told before: after a rebuild, or when the views were far behind."""
    await session.execute("select alone_with_examples(array[$1])", project_id)
    await session.copy_records_to_table("examples", columns=EXAMPLES, records=rows)
    edited = "select id from example_edits where project_id = $1 and id = any($2)"
    await session.execute(f"select overlay_examples(array({edited}))", project_id, [row[0] for row in rows])


_MADE_FROM = "select id from files where case when $3 in ('ingest', 'prepare') then job_id = $1 else project_id = $2 end for share"
"""Held against the projector, which locks files first too: a file that is deleted from now on takes along what is loaded here."""


def _row(part: asyncpg.Record, line: Line | Chunk | Column, made_from: set[str]) -> tuple[Any, ...] | None:
    if isinstance(line, Column):
        return (f"{part['job_id']}/{line.index}", part["dataset_id"], line.index, line.name, line.role, line)
    file_id = line.file_id or next(iter(made_from))
    if file_id not in made_from:
        return None
    place = (part["tenant"], part["project_id"], file_id, part["job_id"], part["seq"])
    if isinstance(line, Chunk):
        return (line.id, *place, line.index, line.content, line.tokens, line.metadata, part["created_at"])
    told = (line.row, line.split, line.format, line.data, line.valid, line.reason, line.message, line.tokens, part["created_at"])
    return (line.id, *place, *told)
