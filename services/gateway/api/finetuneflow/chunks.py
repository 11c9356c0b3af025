"""Documents cut into chunks: started, and read."""

from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta

from libs.events.log import EventLog
from services.gateway.api.finetuneflow.jobs import enqueued
from services.gateway.api.finetuneflow.projects import known
from services.gateway.api.finetuneflow.words import Queued, stamp
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, Limit, Offset, fingerprint, new_id
from services.gateway.commands import Commands
from services.gateway.domain.project import ChunkDocuments
from services.gateway.views import chunks


class ChunksAsked(msgspec.Struct, kw_only=True):
    chunk_size_tokens: Annotated[int, Meta(ge=16, le=8192)] = 512
    chunk_overlap_tokens: Annotated[int, Meta(ge=0, le=4096)] | None = None
    """None: 50, or half of a size that is smaller than 100."""


class ChunkOut(msgspec.Struct, kw_only=True):
    id: str
    source_file_id: str
    chunk_index: int
    content: str
    token_count: int
    metadata: Any
    created_at: str


class ChunkPage(msgspec.Struct, kw_only=True):
    items: list[ChunkOut]
    total: int
    limit: int
    offset: int


@post("/projects/{project_id:uuid}/chunks/generate", status_code=202, summary="Cut the project's documents into chunks")
async def cut(
    request: AnyRequest,
    project_id: FromPath[UUID],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    data: JSONBody[ChunksAsked | None] = None,
) -> Response[Queued]:
    """At headings and sentences where it can be, counted in tokens of the project's base model. The chunks before stay until the new ones are there."""
    asked = data or ChunksAsked()
    size = asked.chunk_size_tokens
    overlap = min(50, size // 2) if asked.chunk_overlap_tokens is None else asked.chunk_overlap_tokens
    if overlap * 2 > size:
        message = f"chunk_overlap_tokens: can be at most half of chunk_size_tokens: {size // 2} here"
        raise Refused(422, message, field="chunk_overlap_tokens")
    command = ChunkDocuments(project_id=str(project_id), job_id=new_id(request), size=size, overlap=overlap, request=fingerprint(asked))
    return await enqueued(request, commands, log, command, message="Chunking job enqueued")


@get("/projects/{project_id:uuid}/chunks", summary="Chunks, in the order of their documents")
async def list_chunks(
    request: AnyRequest,
    project_id: FromPath[UUID],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    source_file_id: Annotated[UUID | None, QueryParameter(name="source_file_id")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> ChunkPage:
    id = await known(request, project_id, db, commands)
    rows, total = await chunks.page(db, id, file_id=str(source_file_id) if source_file_id else None, limit=limit, offset=offset)
    return ChunkPage(items=[_out(row) for row in rows], total=total, limit=limit, offset=offset)


handlers: list[Any] = [cut, list_chunks]


def _out(row: chunks.Row) -> ChunkOut:
    return ChunkOut(
        id=row.id,
        source_file_id=row.file_id,
        chunk_index=row.chunk_index,
        content=row.content,
        token_count=row.token_count,
        metadata=row.metadata,
        created_at=stamp(row.created_at),
    )
