"""Data sets and what is known of their columns: their tables, what fills them, what reads them."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import asyncpg
import msgspec

from libs.events import DatasetCreated, DatasetDeleted, DatasetUsed, File, Recorded
from services.gateway.domain.dataset import Dataset, named_task
from services.gateway.views.natural import natural
from services.gateway.views.projects import file_row, files
from services.gateway.views.rows import Change, Drop, Operation, Put
from services.gateway.views.schema import JSON, SEEN, BigInteger, Column, DateTime, Index, Integer, Table, Text, views

datasets = Table(
    "datasets",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sorts_as", Text(collation="C"), nullable=False),
    Column("description", Text, nullable=False),
    Column("dataset_type", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("datasets_newest", "tenant", "created_at", "id"),
    Index("datasets_by_job", "job_id"),
)
columns = Table(
    "dataset_columns",
    views,
    Column("id", Text, primary_key=True),
    Column("dataset_id", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("about", JSON, nullable=False),
    Index("dataset_columns_of_dataset", "dataset_id", "position"),
)
reads = Table(
    "dataset_runs",
    views,
    Column("id", Text, primary_key=True),
    Column("dataset_id", Text, nullable=False),
    Index("dataset_runs_of_dataset", "dataset_id"),
)
"""Train jobs by the data set that they read."""

SEEN.append("""create view datasets_seen as
select d.*, case j.shown when 'succeeded' then 'ready' when 'failed' then 'failed' when 'cancelled' then 'failed' else 'processing' end as status,
       case j.shown when 'cancelled' then 'Its preparation was cancelled.' else j.why end as why, j.progress, j.message, j.result
  from datasets d left join jobs_seen j on j.id = d.job_id""")
"""One whose columns are not loaded yet is still being processed."""

Sort = Literal["name", "created_at", "size"]
SORTED_BY: dict[Sort, str] = {"name": "sorts_as", "created_at": "created_at", "size": "size"}


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case DatasetCreated(dataset_id=id, file=file) as event:
            row = {"id": id, "tenant": recorded.tenant, "name": event.name, "description": event.description, "dataset_type": event.dataset_type}
            told = {"target": event.target, "size": file.size, "job_id": file.job_id, "request": event.request}
            yield Put(datasets, {**row, **told, "sorts_as": natural(event.name), "created_at": recorded.at, "version": recorded.seq})
            yield Put(files, file_row(recorded, id, file))
        case DatasetUsed(dataset_id=id, job_id=job):
            yield Put(reads, {"id": job, "dataset_id": id})
            yield Change(datasets, id, {"version": recorded.seq})
        case DatasetDeleted(dataset_id=id):
            yield Drop(files, "project_id", [id])
            yield Drop(columns, "dataset_id", [id])
            yield Drop(reads, "dataset_id", [id])
            yield Drop(datasets, "id", [id])
        case _:
            return


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A data set as people see it. `result` is what its preparation came to."""

    id: str
    name: str
    description: str
    dataset_type: str
    target: str
    size: int
    job_id: str
    created_at: datetime
    version: int
    status: str
    why: str | None
    progress: int | None
    message: str | None
    result: Any


_ROW = ", ".join(Row.__struct_fields__)


async def get(db: asyncpg.Pool, tenant: str, dataset_id: str) -> Row | None:
    row = await db.fetchrow(f"select {_ROW} from datasets_seen where tenant = $1 and id = $2", tenant, dataset_id)
    return Row(**row) if row else None


async def page(db: asyncpg.Pool, tenants: list[str], *, sort: Sort, descending: bool, limit: int, offset: int) -> tuple[list[Row], int]:
    """With the number of all."""
    order = "desc" if descending else "asc"
    by = f"{SORTED_BY[sort]} {order}, id {order}"
    rows = await db.fetch(
        f"""select {_ROW} from datasets_seen
             where id in (select id from datasets where tenant = any($1) order by {by} limit $2 offset $3)
             order by {by}""",
        tenants,
        limit,
        offset,
    )
    total = len(rows) if offset == 0 and len(rows) < limit else await db.fetchval("select count(*) from datasets where tenant = any($1)", tenants)
    return [Row(**row) for row in rows], total


class ColumnRow(msgspec.Struct, frozen=True):
    """Fields in the order of the query's columns."""

    name: str
    role: str
    about: msgspec.Raw


async def columns_of(db: asyncpg.Pool, dataset_id: str) -> list[ColumnRow]:
    """In the order that they have in the data set."""
    rows = await db.fetch("select name, role, about from dataset_columns where dataset_id = $1 order by position", dataset_id)
    return [ColumnRow(*row) for row in rows]


async def holds_images(db: asyncpg.Pool, dataset_id: str) -> bool:
    return await db.fetchval("select true from dataset_columns where dataset_id = $1 and about ->> 'type' = 'image' limit 1", dataset_id) is not None


async def features(db: asyncpg.Pool, dataset_id: str) -> int:
    return await db.fetchval("select count(*) from dataset_columns where dataset_id = $1 and about ->> 'role' = 'feature'", dataset_id)


async def load(db: asyncpg.Pool, tenant: str, dataset_id: str) -> tuple[Dataset | None, int]:
    """The state that decides, and the position it has. A job that has ended stays ended, so a stale answer only errs towards "busy"."""
    row = await db.fetchrow(
        """select d.*, f.id as file_id, f.filename, f.kind, f.mime_type, f.sha256, f.key, s.status, s.why, s.result ->> 'task' as task,
                  array(select id from dataset_runs where dataset_id = d.id) as runs,
                  array(select told.id from (select d.job_id union select id from dataset_runs where dataset_id = d.id) told (id)
                         where not exists (select from jobs j where j.id = told.id and j.status in ('succeeded', 'failed', 'cancelled'))) as active_jobs
             from datasets d join datasets_seen s on s.id = d.id join files f on f.job_id = d.job_id
            where d.tenant = $1 and d.id = $2""",
        tenant,
        dataset_id,
    )
    if row is None:
        return None, 0
    file = File(**{name: row[name] for name in ("file_id", "filename", "kind", "mime_type", "size", "sha256", "key", "job_id")})
    state = Dataset(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        dataset_type=row["dataset_type"],
        target=row["target"],
        task=row["task"] or named_task(row["dataset_type"]),
        file=file,
        created_at=row["created_at"],
        active_jobs=frozenset(row["active_jobs"]),
        runs=frozenset(row["runs"]),
        unusable=(row["why"] or "it could not be prepared") if row["status"] == "failed" else "",
        request=row["request"],
    )
    return state, row["version"]
