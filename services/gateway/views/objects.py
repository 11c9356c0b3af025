"""Everything in the object store that a fact refers to, so that the sweep knows what it may remove."""

from collections.abc import Iterable, Iterator

import asyncpg

from libs.events import (
    Claim,
    DatasetDeleted,
    ExportCompleted,
    ModelDeleted,
    PreparationCompleted,
    ProjectDeleted,
    Recorded,
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
)
from services.gateway.views.jobs import jobs
from services.gateway.views.rows import Drop, DropOf, Operation, Put
from services.gateway.views.schema import Column, Index, Table, Text, views

objects = Table(
    "objects",
    views,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Index("objects_of_job", "job_id"),
)
"""By key. Uploads and parts have tables of their own: `files` and `parts`."""


def project(recorded: Recorded) -> Iterator[Operation]:
    match recorded.event:
        case PreparationCompleted(job_id=job, snapshot=Claim() as snapshot):
            yield from _kept(recorded, job, [snapshot])
        case TrainingCheckpointed(job_id=job, state=state, steps=steps):
            yield from _kept(recorded, job, [state, steps])
        case TrainingCompleted(job_id=job, artifacts=artifacts, steps=steps):
            yield from _kept(recorded, job, [*artifacts.values(), steps])
        case TrainingFailed(job_id=job, steps=Claim() as steps) | TrainingCancelled(job_id=job, steps=Claim() as steps):
            yield from _kept(recorded, job, [steps])
        case ExportCompleted(job_id=job, files=files):
            yield from _kept(recorded, job, [file.content for file in files])
        case ProjectDeleted(project_id=project_id):
            yield DropOf(objects, "job_id", jobs, "project_id", [project_id])
        case DatasetDeleted(job_id=job) | ModelDeleted(model_id=job):
            yield Drop(objects, "job_id", [job])
        case _:
            return


def _kept(recorded: Recorded, job: str, claims: Iterable[Claim]) -> Iterator[Put]:
    for claim in claims:
        yield Put(objects, {"id": claim.key, "tenant": recorded.tenant, "job_id": job})


async def referred(db: asyncpg.Pool, keys: list[str]) -> set[str]:
    """Those of the keys that facts refer to. What a job wrote after its project or data set was deleted belongs to nobody; what newer rows took the place of stays as long as
    a job that is not over may read it. Of a run on a data set that has ended, its model stays and its newest step log: of one without a model, as long as the data set does."""
    rows = await db.fetch(
        """with at_work as materialized (select inputs::text as reads, case kind when 'train' then nullif(project_id, '') end as reads_all_of
                                          from jobs where status in ('queued', 'preparing', 'running') and inputs::text <> '{}')
           select key from files where key = any($1)
            union select key from parts where key = any($1)
            union select key from unnest($1::text[]) key join jobs j on j.id = split_part(key, '/', 2) where exists (select from at_work where strpos(reads, j.id) > 0 or reads_all_of = j.project_id)
            union select o.id from objects o
                   where o.id = any($1)
                     and not exists (select from jobs j where j.id = o.job_id and j.project_id <> '' and not exists (select from projects p where p.id = j.project_id))
                     and not exists (select from jobs j where j.id = split_part(o.id, '/', 2) and j.kind = 'prepare' and not exists (select from datasets d where d.job_id = j.id))
                     and not exists (select from jobs j join runs r on r.id = j.id
                                      where j.id = split_part(o.id, '/', 2) and j.inputs ->> 'dataset_id' <> '' and j.status in ('succeeded', 'failed', 'cancelled')
                                        and not exists (select from json_each(r.artifacts) a where a.value ->> 'key' = o.id)
                                        and not (o.id = coalesce(r.steps ->> 'key', '')
                                                 and (j.status = 'succeeded' or exists (select from datasets d where d.id = j.inputs ->> 'dataset_id'))))""",
        keys,
    )
    return {row["key"] for row in rows}
