"""Models that runs have made, and the epochs that it took: their tables, what fills them, what reads them."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, NamedTuple

import asyncpg
import msgspec

from libs.events import Claim, ModelDeleted, ModelRegistered, Recorded, TrainingEvaluated
from services.gateway.domain.jobs import Status
from services.gateway.domain.model import Model
from services.gateway.views.jobs import Paced
from services.gateway.views.natural import natural
from services.gateway.views.rows import Drop, Operation, Put
from services.gateway.views.schema import JSON, SEEN, BigInteger, Column, DateTime, Index, Integer, Table, Text, views

models = Table(
    "models",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sorts_as", Text(collation="C"), nullable=False),
    Column("model_type", Text, nullable=False),
    Column("dataset_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("models_newest", "tenant", "created_at", "id"),
)
epochs = Table(
    "epochs",
    views,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("epochs_of_job", "job_id", "epoch"),
)

SEEN.append("""create view models_seen as
select m.*, r.spec, r.summary, r.final, r.artifacts, coalesce(r.snapshot ->> 'sha256', '') as snapshot_sha256, (r.final ->> 'val_accuracy')::float8 as accuracy,
       (select coalesce(sum((a.value ->> 'size')::bigint), 0)::bigint from json_each(r.artifacts) a) as size
  from models m join runs r on r.id = m.id""")

Sort = Literal["created_at", "accuracy", "name"]
SORTED_BY: dict[Sort, str] = {"created_at": "created_at", "accuracy": "accuracy", "name": "sorts_as"}


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case ModelRegistered() as event:
            row = {"id": event.model_id, "tenant": recorded.tenant, "name": event.name, "model_type": event.model_type, "dataset_id": event.dataset_id}
            yield Put(models, {**row, "sorts_as": natural(event.name), "created_at": recorded.at, "version": recorded.seq})
        case ModelDeleted(model_id=id):
            yield Drop(models, "id", [id])
        case TrainingEvaluated(job_id=id, metrics={"epoch": float(epoch)} as metrics):
            yield Put(epochs, {"id": f"{id}/{epoch:.0f}", "job_id": id, "epoch": round(epoch), "metrics": metrics, "seq": recorded.seq})
        case _:
            return


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A model as people see it. `final` are the metrics that its run ended with; `size` is of all its files."""

    id: str
    tenant: str
    name: str
    model_type: str
    dataset_id: str
    created_at: datetime
    version: int
    spec: Any
    summary: Any
    final: Any
    artifacts: Any
    snapshot_sha256: str
    accuracy: float | None
    size: int


class FitRow(Paced, frozen=True, kw_only=True):
    """A run as people see it who fit models to data sets."""

    job_id: str
    dataset_id: str
    status: Status
    cancel_requested: bool
    message: str
    error: str | None
    progress: int
    spec: Any
    step: int
    total_steps: int
    metrics: Any
    evaluation: Any
    final: Any
    summary: Any
    has_model: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int


_ROW = ", ".join(Row.__struct_fields__)


async def get(db: asyncpg.Pool, tenant: str, model_id: str) -> Row | None:
    row = await db.fetchrow(f"select {_ROW} from models_seen where tenant = $1 and id = $2", tenant, model_id)
    return Row(**row) if row else None


async def page(db: asyncpg.Pool, tenants: list[str], *, model_type: str | None, sort: Sort, descending: bool, limit: int, offset: int) -> tuple[list[Row], int]:
    """With the number of all that match. Those without an accuracy, which regressions have not, come last."""
    order = "desc" if descending else "asc"
    by = f"{SORTED_BY[sort]} {order}{' nulls last' if sort == 'accuracy' else ''}, id {order}"
    where = "tenant = any($1) and ($2::text is null or model_type = $2)"
    rows = await db.fetch(  # the runs of all the others are not looked at, unless it takes them to tell which are the best
        f"""select {_ROW} from models_seen
             where id in (select id from {"models_seen" if sort == "accuracy" else "models"} where {where} order by {by} limit $3 offset $4)
             order by {by}""",
        tenants,
        model_type,
        limit,
        offset,
    )
    alone = offset == 0 and len(rows) < limit
    return [Row(**row) for row in rows], len(rows) if alone else await db.fetchval(f"select count(*) from models where {where}", tenants, model_type)


async def fit(db: asyncpg.Pool, tenant: str, job_id: str) -> FitRow | None:
    row = await db.fetchrow(
        """select r.id as job_id, coalesce(j.inputs ->> 'dataset_id', '') as dataset_id, j.status, j.cancel_requested, j.message, j.error, j.progress, r.spec, r.step,
                  r.total_steps, r.metrics, r.evaluation, r.final, r.summary, exists (select from models m where m.id = r.id) as has_model,
                  j.created_at, r.started_at, case when j.status in ('succeeded', 'failed', 'cancelled') then j.finished_at end as finished_at, j.version,
                  j.left_over, j.made, j.seconds, j.paced_at
             from runs r join jobs j on j.id = r.id where r.tenant = $1 and r.id = $2""",
        tenant,
        job_id,
    )
    return FitRow(**{**row, "status": Status(row["status"])}) if row else None


async def history(db: asyncpg.Pool, job_id: str) -> list[dict[str, float | None]]:
    """The metrics of each epoch, in their order."""
    rows = await db.fetch("select metrics from epochs where job_id = $1 order by epoch", job_id)
    return [msgspec.json.decode(row["metrics"]) for row in rows]


class Pace(NamedTuple):
    """In the median of some runs."""

    each: float
    """Seconds for a row in an epoch."""
    besides: float
    """Those in which nothing is learned."""
    rows: float


async def pace(db: asyncpg.Pool, tenants: list[str], model_type: str, *, rows: float) -> Pace | None:
    """As the latest runs with this type took it, those of them with about as many rows; None when there were none."""
    row = await db.fetchrow(
        """select percentile_cont(0.5) within group (order by learning / greatest(1, rows * epochs)) as each,
                  percentile_cont(0.5) within group (order by greatest(0, took - learning)) as besides, percentile_cont(0.5) within group (order by rows) as rows
             from (select took, learning, rows, epochs
                     from (select extract(epoch from r.finished_at - r.started_at)::float8 as took, (r.summary ->> 'training_seconds')::float8 as learning,
                                  (r.summary ->> 'rows')::float8 as rows, (r.summary ->> 'epochs')::float8 as epochs
                             from runs r join models m on m.id = r.id
                            where m.tenant = any($1) and m.model_type = $2 and r.summary ->> 'training_seconds' <> ''
                            order by m.created_at desc limit 20) latest
                    order by abs(ln(greatest(1, rows) / greatest(1, $3::float8))) limit 5) alike""",
        tenants,
        model_type,
        rows,
    )
    return None if row is None or row["each"] is None else Pace(**row)


async def taken(db: asyncpg.Pool, tenant: str, prefix: str) -> int:
    """The highest number of a name so far, as the view knows it."""
    return await db.fetchval(
        "select coalesce(max(substring(name from length($2) + 1)::int), 0) from models where tenant = $1 and name ~ ('^' || $3 || '[0-9]{1,6}$')",
        tenant,
        prefix,
        _quoted(prefix),
    )


def _quoted(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "_" else f"\\{letter}" for letter in text)


async def load(db: asyncpg.Pool, tenant: str, model_id: str) -> tuple[Model | None, int]:
    row = await db.fetchrow("select id, name, model_type, dataset_id, created_at, version from models where tenant = $1 and id = $2", tenant, model_id)
    if row is None:
        return None, 0
    columns = dict(row)
    version = columns.pop("version")
    return Model(**columns), version


async def artifacts(db: asyncpg.Pool, tenant: str, model_id: str) -> dict[str, Claim] | None:
    """By file name. None when there is no such model."""
    found = await db.fetchval("select r.artifacts from models m join runs r on r.id = m.id where m.tenant = $1 and m.id = $2", tenant, model_id)
    return None if found is None else msgspec.json.decode(found, type=dict[str, Claim])
