"""Projects: their table, what fills it, what reads it."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from libs.events import (
    File,
    JobCreated,
    ProjectCreated,
    ProjectDeleted,
    ProjectFileDeleted,
    ProjectFilesAdded,
    ProjectModelResolved,
    ProjectRunStarted,
    ProjectUpdated,
    ProjectWorkStarted,
    Recorded,
)
from services.gateway.domain.jobs import CHUNK, GENERATE, INGEST, PREVIEW
from services.gateway.domain.project import LEND, Project
from services.gateway.views.rows import Change, Drop, Merge, Operation, Put
from services.gateway.views.schema import JSON, SEEN, BigInteger, Boolean, Column, DateTime, Index, Table, Text, views

projects = Table(
    "projects",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("task_type", Text, nullable=False),
    Column("config", JSON, nullable=False),
    Column("base_model_id", Text),
    Column("model_info", JSON),
    Column("revision", Text, nullable=False),
    Column("furnished", Boolean, nullable=False),
    Column("last_job", Text, nullable=False),
    Column("last_ingest", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("run_seq", BigInteger, nullable=False),
    Column("chunking", Text, nullable=False),
    Column("generating", Text, nullable=False),
    Column("lent", JSON, nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("projects_newest", "tenant", "created_at", "id"),
)
totals = Table("project_totals", views, Column("tenant", Text, primary_key=True), Column("projects", BigInteger, nullable=False))
files = Table(
    "files",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("files_of_project", "project_id", "created_at", "id"),
    Index("files_by_job", "job_id"),
    Index("files_by_key", "key"),
)

SEEN += [
    """create function count_projects() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into project_totals as t (tenant, projects) select tenant, count(*) from changed group by tenant
        on conflict (tenant) do update set projects = t.projects + excluded.projects;
  else
    update project_totals t set projects = t.projects - gone.projects from (select tenant, count(*) as projects from changed group by tenant) gone
     where t.tenant = gone.tenant;
  end if;
  return null;
end $$""",
    "create trigger project_added after insert on projects referencing new table as changed for each statement execute function count_projects()",
    "create trigger project_gone after delete on projects referencing old table as changed for each statement execute function count_projects()",
]
"""How many a workspace has is kept, and not counted anew for each list: counting 10,000 took longer than reading the 50 that are shown."""


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case ProjectCreated() as event:
            yield Put(
                projects,
                {
                    "id": event.project_id,
                    "tenant": recorded.tenant,
                    "name": event.name,
                    "description": event.description,
                    "task_type": event.task_type,
                    "config": event.config,
                    "base_model_id": None,
                    "model_info": None,
                    "revision": "",
                    "furnished": False,
                    "last_job": "",
                    "last_ingest": "",
                    "run": "",
                    "run_seq": 0,
                    "chunking": "",
                    "generating": "",
                    "lent": {},
                    "request": event.request,
                    "created_at": recorded.at,
                    "updated_at": recorded.at,
                    "version": recorded.seq,
                },
            )
        case ProjectUpdated() as event:
            changed = {field: value for field in ("name", "description", "task_type") if (value := getattr(event, field)) is not None}
            yield _touched(recorded, event.project_id, **changed)
            if event.config:
                yield Merge(projects, event.project_id, "config", event.config)
        case ProjectFilesAdded() as event:
            yield _touched(recorded, event.project_id, furnished=True)
            for file in event.files:
                yield Put(files, file_row(recorded, event.project_id, file))
        case ProjectFileDeleted() as event:
            yield _touched(recorded, event.project_id)
            yield Drop(files, "id", [event.file_id])
        case ProjectModelResolved() as event:
            yield _touched(recorded, event.project_id, base_model_id=event.base_model_id, model_info=event.model_info, revision=event.revision)
        case ProjectRunStarted(project_id=id, job_id=job):
            yield _touched(recorded, id, run=job, run_seq=recorded.seq)
        case ProjectWorkStarted(project_id=id, job_id=job, kind="chunk"):
            yield _touched(recorded, id, chunking=job)
        case ProjectWorkStarted(project_id=id, job_id=job, kind="generate"):
            yield _touched(recorded, id, generating=job)
        case ProjectWorkStarted(project_id=id, job_id=job, kind=kind) if kind == LEND:
            yield Change(projects, id, {"version": recorded.seq})
            yield Merge(projects, id, "lent", {job: True})
        case ProjectWorkStarted(project_id=id):
            yield _touched(recorded, id)
        case JobCreated(project_id=id, job_id=job, kind=kind) if id:
            yield Change(projects, id, {"last_job": job, "last_ingest": job} if kind == INGEST else {"last_job": job})
        case ProjectDeleted() as event:
            yield Drop(files, "project_id", [event.project_id])
            yield Drop(projects, "id", [event.project_id])
        case _:
            return


def _touched(recorded: Recorded, project_id: str, **columns: Any) -> Change:
    return Change(projects, project_id, {**columns, "updated_at": recorded.at, "version": recorded.seq})


def file_row(recorded: Recorded, project_id: str, file: File) -> dict[str, Any]:
    row = msgspec.structs.asdict(file)
    return {"id": row.pop("file_id"), "tenant": recorded.tenant, "project_id": project_id, **row, "seq": recorded.seq, "created_at": recorded.at}


class Row(msgspec.Struct, frozen=True):
    """A project as people see it; its fields stand in the order of the query's columns."""

    id: str
    name: str
    description: str
    task_type: str
    config: Any
    base_model_id: str | None
    model_info: Any
    created_at: str
    updated_at: str
    """Times as PostgreSQL writes them, in UTC."""
    version: int
    file_count: int = 0
    example_count: int = 0
    chunk_count: int = 0
    last_job_status: str | None = None
    run_status: str | None = None
    ingest_status: str | None = None
    chunking_status: str | None = None
    generating_status: str | None = None
    run_is_newer: bool | None = None
    """Than what was uploaded, cut and generated last."""


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    filename: str
    kind: str
    mime_type: str
    size: int
    sha256: str
    job_id: str
    created_at: datetime


def _seen(chosen: str, more: str = "") -> str:
    """Of the rows that are chosen; times as text, which takes a quarter of what it does to make Python's of them.

    A project's own row says what there is to look for: where it names no job and no files, nothing else is read.
    """
    return f"""
select p.id, p.name, p.description, p.task_type, p.config, p.base_model_id, p.model_info, p.created_at::text, p.updated_at::text, p.version,
       case when p.furnished then (select count(*) from files f where f.project_id = p.id) else 0 end as file_count,
       case when p.furnished then (select coalesce(sum(t.count), 0)::bigint from files f join example_totals t on t.job_id = f.job_id
                                    where f.project_id = p.id and t.is_valid) else 0 end
         + case p.generating when '' then 0
                else (select coalesce(sum(t.count), 0)::bigint from example_totals t where t.is_valid and t.job_id = {_done("generate")}) end as example_count,
       case p.chunking when '' then 0 else (select coalesce(sum(t.rows), 0) from parts t where t.state = 'loaded' and t.job_id = {_done("chunk")}) end as chunk_count,
       j.shown as last_job_status, r.shown as run_status, i.shown as ingest_status, c.shown as chunking_status, g.shown as generating_status,
       r.created_at > greatest(i.created_at, c.created_at, g.created_at) or coalesce(i.created_at, c.created_at, g.created_at) is null as run_is_newer{more}
  from (select * from projects {chosen}) p
  left join {_job("last_job")} j on true
  left join {_job("last_ingest")} i on true
  left join {_job("run")} r on true
  left join {_job("chunking")} c on true
  left join {_job("generating")} g on true
"""


def _job(column: str) -> str:
    return f"lateral (select shown, created_at from jobs_seen where p.{column} <> '' and id = p.{column} limit 1)"


def _done(kind: str) -> str:
    return f"(select id from jobs where project_id = p.id and kind = '{kind}' and status = 'succeeded' order by created_at desc, id desc limit 1)"


_ONE = _seen("where tenant = $1 and id = $2")
_NEWEST = (
    _seen("where tenant = $1 order by created_at desc, id desc limit $2 offset $3", ", (select projects from project_totals where tenant = $1) as total")
    + "order by p.created_at desc, p.id desc"
)
_NEWEST_OF_SEVERAL = (
    _seen(
        """where id in (select n.id
                 from unnest($1::text[]) t (tenant),
                      lateral (select id, created_at from projects where tenant = t.tenant order by created_at desc, id desc limit $2::bigint + $3::bigint) n
                order by n.created_at desc, n.id desc limit $2::bigint offset $3::bigint)""",
        ", (select sum(projects)::bigint from project_totals where tenant = any($1::text[])) as total",
    )
    + "order by p.created_at desc, p.id desc"
)
_ALL = _seen("where tenant = any($1)")


async def get(db: asyncpg.Pool, tenant: str, project_id: str) -> Row | None:
    row = await db.fetchrow(_ONE, tenant, project_id)
    return Row(*row) if row else None


async def page(db: asyncpg.Pool, tenants: list[str], *, status: str | None, limit: int, offset: int) -> tuple[list[Row], int]:
    """Newest first, with the number of all that match."""
    if status is None:
        rows = await (db.fetch(_NEWEST, *tenants, limit, offset) if len(tenants) == 1 else db.fetch(_NEWEST_OF_SEVERAL, tenants, limit, offset))
        total = rows[0]["total"] if rows else await db.fetchval("select sum(projects)::bigint from project_totals where tenant = any($1)", tenants) or 0
        return [Row(*row[:-1]) for row in rows], total
    wanted = f"select * from ({_ALL}) p where {STATUS} = $2"
    rows = await db.fetch(f"{wanted} order by created_at::timestamptz desc, id desc limit $3 offset $4", tenants, status, limit, offset)
    return [Row(*row) for row in rows], await db.fetchval(f"select count(*) from ({wanted}) counted", tenants, status)


STATUS = """(case when run_status in ('queued', 'preparing', 'running') then 'training'
                  when generating_status in ('queued', 'preparing', 'running') then 'generating'
                  when chunking_status in ('queued', 'preparing', 'running') then 'chunking'
                  when ingest_status in ('queued', 'preparing', 'running') then 'uploading'
                  when run_is_newer and run_status = 'succeeded' then 'completed'
                  when run_is_newer and run_status = 'failed' then 'failed'
                  when example_count > 0 then 'ready_to_train'
                  when 'failed' in (ingest_status, chunking_status, generating_status) then 'failed'
                  else 'draft' end)"""
"""Follows from the latest run and from what was uploaded since: newer data waits to be trained on. `status()` says the same of a Row."""


def status(row: Row) -> str:
    if row.last_job_status is None:  # most of a long list
        return "ready_to_train" if row.example_count > 0 else "draft"
    if row.run_status in _ACTIVE:
        return "training"
    for status, word in ((row.generating_status, "generating"), (row.chunking_status, "chunking"), (row.ingest_status, "uploading")):
        if status in _ACTIVE:
            return word
    if row.run_is_newer and row.run_status in _VERDICTS:
        return _VERDICTS[row.run_status]
    if row.example_count > 0:
        return "ready_to_train"
    return "failed" if "failed" in (row.ingest_status, row.chunking_status, row.generating_status) else "draft"


_ACTIVE = ("queued", "preparing", "running")
_VERDICTS = {"succeeded": "completed", "failed": "failed"}


async def exists(db: asyncpg.Pool, tenant: str, project_id: str) -> bool:
    return await db.fetchval("select true from projects where tenant = $1 and id = $2", tenant, project_id) is not None


async def list_files(db: asyncpg.Pool, tenant: str, project_id: str, *, kind: str | None) -> list[FileRow] | None:
    """None when there is no such project."""
    rows = await db.fetch(
        """select f.id, f.filename, f.kind, f.mime_type, f.size, f.sha256, f.job_id, f.created_at
             from projects p left join files f on f.project_id = p.id and ($3::text is null or f.kind = $3)
            where p.tenant = $1 and p.id = $2 order by f.created_at, f.id""",
        tenant,
        project_id,
        kind,
    )
    return [FileRow(**row) for row in rows if row["id"]] if rows else None


async def load(db: asyncpg.Pool, tenant: str, project_id: str) -> tuple[Project | None, int]:
    """The state that decides, and the position it has. A job that has ended stays ended, so a stale answer only errs towards "busy".
    A batch may have been projected in two pieces: work that the project was told of goes on, also where its job is not there yet."""
    row = await db.fetchrow(
        """select p.*,
                  (select json_agg(json_build_object('file_id', f.id, 'filename', f.filename, 'kind', f.kind, 'mime_type', f.mime_type,
                                                     'size', f.size, 'sha256', f.sha256, 'key', f.key, 'job_id', f.job_id) order by f.created_at, f.id)
                     from files f where f.project_id = p.id) as files,
                  (select json_agg(j.id) from jobs j
                    where j.project_id = p.id and j.status not in ('succeeded', 'failed', 'cancelled')) as active_jobs,
                  (select json_agg(told.id) from unnest(array[p.run, p.chunking, p.generating]) told (id)
                    where told.id <> '' and not exists (select from jobs j where j.id = told.id)) as just_begun,
                  (select json_agg(lent.id) from json_object_keys(p.lent) lent (id)
                    where not exists (select from jobs j where j.id = lent.id and j.status in ('succeeded', 'failed', 'cancelled'))) as lent_to,
                  (select json_agg(j.id) from jobs j
                    where j.project_id = p.id and j.kind in ('ingest', 'generate')
                      and (j.status in ('failed', 'cancelled')
                        or j.status = 'succeeded' and j.result ->> 'valid' = '0'
                           and not exists (select from example_totals t where t.job_id = j.id and t.is_valid))) as barren_jobs,
                  (select json_agg(j.id) from jobs j where j.project_id = p.id and j.kind <> 'ingest') as works,
                  (select json_agg(f.job_id) from files f
                    where f.project_id = p.id and f.job_id <> '' and f.seq < p.run_seq
                      and not exists (select from jobs j where j.id = p.run and (j.status not in ('queued', 'preparing') or j.phase = 'completed'))) as read_by_run,
                  t.id as trained,
                  (select json_object_agg(kind, id) from (select distinct on (kind) kind, id from jobs where project_id = p.id
                                                           order by kind, created_at desc, id desc) j) as latest,
                  (select json_object_agg(kind, id) from (select distinct on (kind) kind, id from jobs where project_id = p.id and status = 'succeeded'
                                                           order by kind, created_at desc, id desc) j) as done,
                  (select j.id from jobs j
                    where j.project_id = p.id and j.kind = 'export' and j.inputs ->> 'training_job_id' = t.id
                      and j.status not in ('succeeded', 'failed', 'cancelled')
                    order by j.created_at desc, j.id desc limit 1) as exporting,
                  (select j.id from jobs j
                    where j.project_id = p.id and j.kind = 'export' and j.inputs ->> 'training_job_id' = t.id and j.stages ->> 0 = 'training'
                      and j.status not in ('succeeded', 'failed', 'cancelled')
                    order by j.created_at desc, j.id desc limit 1) as merging,
                  (select r.method = 'full' from runs r where r.id = t.id) as whole
             from projects p
             left join lateral (select id from jobs j where j.project_id = p.id and j.kind = 'train' and j.status = 'succeeded'
                                 order by created_at desc, id desc limit 1) t on true
            where p.tenant = $1 and p.id = $2""",
        tenant,
        project_id,
    )
    if row is None:
        return None, 0

    def jobs(column: str) -> frozenset[str]:
        return msgspec.json.decode(row[column], type=frozenset[str]) if row[column] else frozenset()

    held = msgspec.json.decode(row["files"], type=list[File]) if row["files"] else []
    latest, done = (msgspec.json.decode(row[column], type=dict[str, str]) if row[column] else {} for column in ("latest", "done"))
    state = Project(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        task_type=row["task_type"],
        config=msgspec.json.decode(row["config"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        files={file.file_id: file for file in held},
        active_jobs=jobs("active_jobs") | jobs("just_begun") | jobs("lent_to"),
        barren_jobs=jobs("barren_jobs"),
        works=jobs("works") | jobs("just_begun"),
        base_model_id=row["base_model_id"] or "",
        model_info=msgspec.json.decode(row["model_info"]) if row["model_info"] else {},
        revision=row["revision"],
        run=row["run"],
        read_by_run=jobs("read_by_run") - jobs("barren_jobs"),
        trained=row["trained"] or "",
        exporting=row["exporting"] or "",
        merging=row["merging"] or "",
        whole=bool(row["whole"]),
        chunking=row["chunking"],
        chunked=done.get(CHUNK, ""),
        generating=row["generating"],
        generated=done.get(GENERATE, ""),
        previewing=latest.get(PREVIEW, ""),
        request=row["request"],
    )
    return state, row["version"]
