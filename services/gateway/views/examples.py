"""The rows of data sets: parts that wait to be loaded, examples with all that people did to them, and how many there are of each."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import DatasetDeleted, ExampleDeleted, ExampleEdited, ExampleMarked, PreparationProduced, ProjectDeleted, ProjectFileDeleted, Recorded
from libs.rows import REFUSED_BY_PERSON
from services.gateway.domain.example import Example
from services.gateway.views.chunks import HIDDEN, OUTDATED
from services.gateway.views.jobs import jobs
from services.gateway.views.rows import Change, Drop, DropOf, Operation, Put
from services.gateway.views.schema import JSON, SEEN, BigInteger, Boolean, Column, DateTime, Index, Integer, Table, Text, views

parts = Table(
    "parts",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("part", Integer, nullable=False),
    Column("key", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("valid", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("parts_of_job", "job_id", "state"),
    Index("parts_of_file", "file_id"),
    Index("parts_pending", "seq", postgresql_where="state = 'pending'"),
    Index("parts_by_key", "key"),
)
examples = Table(
    "examples",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("row", Integer, nullable=False),
    Column("split", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Column("is_valid", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("token_count", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("deleted", Boolean, nullable=False, server_default="false"),
    Column("judged", Boolean, nullable=False, server_default="false"),
    Column("version", BigInteger, nullable=False, server_default="0"),
    Index("examples_of_project", "project_id", "position", "row", postgresql_where="not deleted"),
    Index("examples_refused", "project_id", "position", "row", postgresql_where="not deleted and not is_valid"),
    Index("examples_held_out", "project_id", "split", "position", "row", postgresql_where="not deleted and split <> 'train'"),
    Index("examples_of_job", "job_id", "split", "is_valid", "token_count"),
    Index("examples_of_file", "file_id", "position", "row"),
)
edits = Table(
    "example_edits",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("format", Text),
    Column("data", JSON),
    Column("token_count", Integer),
    Column("split", Text),
    Column("is_valid", Boolean),
    Column("message", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("example_edits_of_project", "project_id"),
    Index("example_edits_of_job", "job_id"),
)
totals = Table(
    "example_totals",
    views,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("is_valid", Boolean, nullable=False),
    Column("format", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Index("example_totals_of_project", "project_id"),
    Index("example_totals_of_job", "job_id"),
)

_GROUP = "project_id, job_id, file_id, split, is_valid, format, reason"
_OF_GROUP = "concat_ws('/', job_id, file_id, split, is_valid, format, reason)"

SEEN += [
    f"""create function overlay_examples(wanted text[]) returns void language sql as $$
update examples x
   set format = coalesce(e.format, x.format), data = coalesce(e.data, x.data), token_count = coalesce(e.token_count, x.token_count),
       split = coalesce(e.split, x.split), deleted = e.deleted, judged = e.is_valid is not null, version = e.version,
       is_valid = coalesce(e.is_valid, e.data is not null or x.is_valid),
       reason = case when e.is_valid is not null then case when e.is_valid then '' else '{REFUSED_BY_PERSON}' end when e.data is not null then '' else x.reason end,
       message = case when e.is_valid is not null then e.message when e.data is not null then '' else x.message end
  from example_edits e where e.id = any(wanted) and x.id = e.id
$$""",
    """create function alone_with_examples(projects text[]) returns void language plpgsql as $$
begin
  perform pg_advisory_xact_lock(7215003, hashed) from (select distinct hashtext(project) & 63 as hashed from unnest(projects) project order by 1) hashes;
end $$""",
    """create function overlay_edited() returns trigger language plpgsql as $$
begin
  perform alone_with_examples(array(select project_id from changed));
  perform overlay_examples(array(select id from changed));
  return null;
end $$""",
    "create trigger example_edited after insert on example_edits referencing new table as changed for each statement execute function overlay_edited()",
    "create trigger example_edited_again after update on example_edits referencing new table as changed for each statement execute function overlay_edited()",
    f"""create function count_examples() returns trigger language plpgsql as $$
begin
  if tg_op <> 'INSERT' then
    update example_totals t set count = t.count - g.count, tokens = t.tokens - g.tokens
      from (select {_OF_GROUP} as id, count(*) as count, sum(token_count) as tokens from gone where not deleted group by 1) g where t.id = g.id;
  end if;
  if tg_op <> 'DELETE' then
    insert into example_totals as t (id, {_GROUP}, count, tokens)
      select {_OF_GROUP}, {_GROUP}, count(*), sum(token_count) from added where not deleted group by {_GROUP} order by 1
      on conflict (id) do update set count = t.count + excluded.count, tokens = t.tokens + excluded.tokens;
  end if;
  if tg_op <> 'INSERT' then
    delete from example_totals where count = 0 and job_id in (select job_id from gone);
  end if;
  return null;
end $$""",
    "create trigger example_added after insert on examples referencing new table as added for each statement execute function count_examples()",
    "create trigger example_gone after delete on examples referencing old table as gone for each statement execute function count_examples()",
    """create trigger example_changed after update on examples referencing old table as gone new table as added
           for each statement execute function count_examples()""",
]
"""What people did is laid over the rows, whichever of the two comes first; who writes either waits for the other. And how many examples there are is kept:
counting 100,000 took far longer than reading the 50 that are shown."""


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case PreparationProduced(job_id=job_id, part=part, content=content) as event:
            yield Put(
                parts,
                {
                    "id": f"{job_id}/{part}",
                    "tenant": recorded.tenant,
                    "job_id": job_id,
                    "file_id": event.file_id,
                    "part": part,
                    "key": content.key,
                    "sha256": content.sha256,
                    "size": content.size,
                    "rows": event.rows,
                    "valid": event.valid,
                    "state": "pending",
                    "seq": recorded.seq,
                    "created_at": recorded.at,
                },
            )
        case ExampleEdited(data=data, split=split) as event:
            content = {} if data is None else {"format": event.format, "data": data, "token_count": event.tokens}
            yield from _edited(recorded, event, **content, **({"split": split} if split else {}))
        case ExampleMarked() as event:
            yield from _edited(recorded, event, is_valid=event.is_valid, message=event.message)
        case ExampleDeleted() as event:
            yield from _edited(recorded, event, deleted=True)
        case ProjectFileDeleted(file_id=file_id, job_id=job_id):
            yield Drop(parts, "job_id", [job_id] if job_id else [])
            yield Drop(parts, "file_id", [file_id])
            yield Drop(examples, "file_id", [file_id])
            yield Drop(edits, "job_id", [job_id] if job_id else [])
        case DatasetDeleted(job_id=job_id):
            yield Drop(parts, "job_id", [job_id])
        case ProjectDeleted(project_id=project_id):
            yield DropOf(parts, "job_id", jobs, "project_id", [project_id])
            yield Drop(examples, "project_id", [project_id])
            yield Drop(edits, "project_id", [project_id])
        case _:
            return


def _edited(recorded: Recorded, event: ExampleEdited | ExampleMarked | ExampleDeleted, **columns: Any) -> Iterator[Operation]:
    untouched = {"deleted": False, "format": None, "data": None, "token_count": None, "split": None, "is_valid": None, "message": ""}
    whose = {"id": event.example_id, "tenant": recorded.tenant, "project_id": event.project_id, "job_id": event.job_id}
    yield Put(edits, {**whose, **untouched, "version": recorded.seq})
    yield Change(edits, event.example_id, {**columns, "version": recorded.seq})


class Row(msgspec.Struct, frozen=True):
    """An example as people see it; one that its form refused holds what was in the file, with the reason. Fields in the order of the query's columns."""

    id: str
    split: str
    data: Any
    is_valid: bool
    token_count: int
    created_at: datetime
    file_id: str
    row: int
    format: str
    reason: str
    message: str
    version: int
    position: int


_COLUMNS = ", ".join(f"x.{name}" for name in Row.__struct_fields__)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """How many examples are alike in what can be asked for, and how long they are in all."""

    job_id: str
    file_id: str
    split: str
    is_valid: bool
    format: str
    reason: str
    count: int
    tokens: int


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which examples of a project; None is any. `text` is looked for in what they say."""

    split: str | None = None
    is_valid: bool | None = None
    reason: str | None = None
    file_id: str | None = None
    format: str | None = None
    text: str | None = None
    previews: bool = True

    def has(self, group: Group) -> bool:
        """But for its text."""
        return (
            self.split in (None, group.split)
            and self.is_valid in (None, group.is_valid)
            and self.reason in (None, group.reason)
            and self.file_id in (None, group.file_id)
            and self.format in (None, group.format)
            and (self.previews or group.split != "preview")
        )


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    split: str
    least: int
    most: int


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a project's examples."""

    groups: list[Group]
    hidden: bool
    """There are others too, which are not shown."""

    @property
    def jobs(self) -> list[str]:
        return list({group.job_id: None for group in self.groups})

    def count(self, wanted: Wanted) -> int:
        return sum(group.count for group in self.groups if wanted.has(group))


@asynccontextmanager
async def looking(db: asyncpg.Pool) -> AsyncIterator[Any]:
    """At one state of the views. Planned for what is asked for: one plan for all would read a tenth of the examples for every page, and before the database
    has its statistics it would rather sort them than go along an index."""
    async with db.acquire() as session, session.transaction(isolation="repeatable_read", readonly=True):
        await session.execute("set local plan_cache_mode = force_custom_plan; set local enable_sort = off")
        yield session


async def dataset(db: Any, project_id: str) -> Dataset:
    """What is outdated is there until it is removed, and not shown meanwhile."""
    rows = await db.fetch(
        f"""select t.job_id, t.file_id, t.split, t.is_valid, t.format, t.reason, t.count, t.tokens,
                   t.job_id in {HIDDEN} as hidden from example_totals t where t.project_id = $1 order by t.id""",
        project_id,
    )
    shown = [Group(**{name: row[name] for name in Group.__struct_fields__}) for row in rows if not row["hidden"]]
    return Dataset(groups=shown, hidden=len(shown) < len(rows))


async def page(db: Any, project_id: str, data: Dataset, wanted: Wanted, *, limit: int, offset: int) -> list[Row]:
    """In the order of the files they came from. What lies in the second half is counted from the end: half of the way at most is gone over."""
    count = data.count(wanted)
    if not wanted.text and offset >= count:
        return []
    where, arguments = _where(project_id, data, wanted)
    backwards = not wanted.text and offset > count // 2
    if backwards:
        limit = min(limit, count - offset)
        offset = count - offset - limit
    direction = " desc" if backwards else ""
    arguments += [limit, offset]
    found = f"""select x.position, x.row from examples x where {where} order by x.position{direction}, x.row{direction}
                 limit ${len(arguments) - 1} offset ${len(arguments)}"""
    rows = await db.fetch(
        f"""select {_COLUMNS} from ({found}) f join examples x on x.project_id = $1 and x.position = f.position and x.row = f.row and not x.deleted
             order by f.position{direction}, f.row{direction}""",
        *arguments,
        timeout=PATIENCE,
    )
    return [Row(*row) for row in (reversed(rows) if backwards else rows)]


PATIENCE = 10.0
"""Seconds for one look at the examples: to search them all can take that long."""


async def count_found(db: Any, project_id: str, data: Dataset, wanted: Wanted) -> int:
    if not wanted.text:
        return data.count(wanted)
    where, arguments = _where(project_id, data, wanted)
    return await db.fetchval(f"select count(*) from examples x where {where}", *arguments, timeout=PATIENCE)


async def behind(db: Any, project_id: str, data: Dataset, wanted: Wanted, *, after: tuple[int, int], most_rows: int, most_bytes: int) -> list[Row]:
    """The next ones behind a place, as many as fit, but at least one."""
    where, arguments = _where(project_id, data, wanted)
    arguments += [*after, most_rows, most_bytes]
    position, row, rows, size = (f"${len(arguments) - n}" for n in (3, 2, 1, 0))
    found = await db.fetch(
        f"""select {_COLUMNS} from (
              select x.*, sum(octet_length(x.data::text)) over (order by x.position, x.row) - octet_length(x.data::text) as before from (
                select * from examples x where {where} and (x.position, x.row) > ({position}, {row}) order by x.position, x.row limit {rows}) x) x
             where x.before < {size} order by x.position, x.row""",
        *arguments,
    )
    return [Row(*row) for row in found]


async def sample(db: Any, project_id: str, data: Dataset, wanted: Wanted, *, most_rows: int, most_bytes: int, largest: int) -> list[Row]:
    """Every so manieth, evenly over all of them; fewer where they are long, and none that is larger than `largest` bytes."""
    where, arguments = _where(project_id, data, wanted)
    arguments += [most_rows, data.count(wanted), largest, most_bytes]
    rows, count, each, size = (f"${len(arguments) - n}::bigint" for n in (3, 2, 1, 0))
    found = await db.fetch(
        f"""with numbered as (select x.*, row_number() over (order by x.position, x.row) - 1 as n from examples x where {where}),
                 taken as materialized (select x.*, octet_length(x.data::text) as size from numbered x where n = 0 or n * {rows} / {count} > (n - 1) * {rows} / {count}),
                 fit as (select x.*, row_number() over (order by n) - 1 as k, sum(size) over () as whole from taken x where size <= {each}),
                 kept as (select x.*, sum(size) over (order by n) as through from fit x where k % (1 + whole / {size}) = 0)
            select {_COLUMNS} from kept x where through <= {size} order by n""",
        *arguments,
        timeout=PATIENCE,
    )
    return [Row(*row) for row in found]


def _where(project_id: str, data: Dataset, wanted: Wanted) -> tuple[str, list[Any]]:
    """One statement for each set of filters: what is not asked for is not in it, so that each finds its index."""
    conditions, arguments = ["x.project_id = $1", "not x.deleted"], [project_id]

    def given(condition: str, value: Any) -> None:
        arguments.append(value)
        conditions.append(condition.format(f"${len(arguments)}"))

    if data.hidden:
        given("x.job_id = any({})", data.jobs)
    if wanted.split is not None:
        given("x.split = {}" if wanted.split == "train" else "x.split <> 'train' and x.split = {}", wanted.split)
    if wanted.is_valid is not None:
        conditions.append("x.is_valid" if wanted.is_valid else "not x.is_valid")
    if wanted.reason is not None:
        given("not x.is_valid and x.reason = {}", wanted.reason)
    if wanted.file_id is not None:
        given("x.file_id = {}", wanted.file_id)
    if wanted.format is not None:
        given("x.format = {}", wanted.format)
    if wanted.text:
        given(
            "x.data::text ilike {}", _like(msgspec.json.encode(wanted.text).decode()[1:-1])
        )  # first, since it is quickly seen; but it sees names of fields too
        given(_SAID, _like(wanted.text))
    return " and ".join(conditions), arguments


_SAID = "exists (select from jsonb_path_query(x.data::jsonb, '$.** ? (@.type() == \"string\")') t (said) where t.said #>> '{{}}' ilike {})"
_WILD = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def _like(text: str) -> str:
    return f"%{text.translate(_WILD)}%"


_LENGTH = "select token_count from examples x where x.job_id = g.job_id and x.split = g.split and x.is_valid and not x.deleted order by token_count"


async def lengths(db: Any, data: Dataset) -> dict[str, Lengths]:
    """The shortest and the longest that can be learned from, of each split."""
    alike = {(group.job_id, group.split): None for group in data.groups if group.is_valid}
    rows = await db.fetch(
        f"""select g.split, min(l.token_count) as least, max(m.token_count) as most
              from unnest($1::text[], $2::text[]) g (job_id, split), lateral ({_LENGTH} limit 1) l, lateral ({_LENGTH} desc limit 1) m group by 1""",
        [job for job, _ in alike],
        [split for _, split in alike],
    )
    return {row["split"]: Lengths(**row) for row in rows}


async def get(db: asyncpg.Pool, project_id: str, example_id: str) -> Row | None:
    row = await db.fetchrow(
        f"select {_COLUMNS} from examples x where x.project_id = $1 and x.id = $2 and not x.deleted and x.job_id not in {HIDDEN}", project_id, example_id
    )
    return Row(*row) if row else None


async def load(db: asyncpg.Pool, tenant: str, project_id: str, example_id: str) -> tuple[Example | None, int]:
    row = await db.fetchrow(
        f"""select x.id, x.job_id, x.file_id, x.row, x.split, x.format, x.data, x.is_valid, x.reason, x.message, x.token_count as tokens, x.created_at, x.judged,
                   x.version from examples x where x.project_id = $1 and x.id = $2 and x.tenant = $3 and not x.deleted and x.job_id not in {HIDDEN}""",
        project_id,
        example_id,
        tenant,
    )
    if row is None:
        return None, 0
    columns = dict(row)
    version = columns.pop("version")
    return Example(**{**columns, "data": msgspec.json.decode(columns["data"])}), version


async def next_part(db: asyncpg.Pool) -> asyncpg.Record | None:
    """The oldest that waits to be loaded, whether what it was made from is still there, and whether anybody wants it any more."""
    return await db.fetchrow(
        f"""select p.*, j.kind, j.project_id, j.inputs ->> 'dataset_id' as dataset_id, {OUTDATED} and j.status in ('succeeded', 'failed', 'cancelled') as outdated,
                  case when j.kind in ('ingest', 'prepare') then exists (select from files f where f.job_id = p.job_id)
                              else exists (select from projects o where o.id = j.project_id)
                                   and (p.file_id = '' or exists (select from files f where f.id = p.file_id)) end as owned
             from parts p left join jobs j on j.id = p.job_id where p.state = 'pending' order by p.seq limit 1"""
    )
