"""Examples made out of chunks: a few to look at, or the whole data set."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from libs.events.log import EventLog
from services.gateway.api.finetuneflow.jobs import enqueued
from services.gateway.api.finetuneflow.words import Queued
from services.gateway.api.requests import AnyRequest, fingerprint, new_id
from services.gateway.commands import Commands
from services.gateway.domain.project import GenerateExamples

Model = Annotated[str, Meta(max_length=300)]


class PreviewAsked(msgspec.Struct, kw_only=True):
    num_examples: Annotated[int, Meta(ge=1, le=100)] = 10
    ollama_model: Model = ""
    """A name that the configured LLM endpoint knows; empty: its default."""


class ExamplesAsked(msgspec.Struct, kw_only=True):
    num_examples_target: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """None: the project's config says it."""
    examples_per_chunk: Annotated[int, Meta(ge=1, le=50)] | None = None
    ollama_model: Model = ""


@post("/projects/{project_id:uuid}/dataset/preview", status_code=202, summary="Make a few examples to look at")
async def preview(
    request: AnyRequest,
    project_id: FromPath[UUID],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    data: JSONBody[PreviewAsked | None] = None,
) -> Response[Queued]:
    """Spread over the documents, in the split `preview`, which is never trained on."""
    asked = data or PreviewAsked()
    command = GenerateExamples(
        project_id=str(project_id),
        job_id=new_id(request),
        preview=True,
        num_examples=asked.num_examples,
        model=asked.ollama_model,
        request=fingerprint(asked),
    )
    return await enqueued(request, commands, log, command, message="Dataset preview job enqueued")


@post("/projects/{project_id:uuid}/dataset/generate", status_code=202, summary="Make the data set out of the project's chunks")
async def generate(
    request: AnyRequest,
    project_id: FromPath[UUID],
    commands: NamedDependency[Commands],
    log: NamedDependency[EventLog],
    data: JSONBody[ExamplesAsked | None] = None,
) -> Response[Queued]:
    """By the configured LLM endpoint; without one by the built-in generator, out of the text itself. Chunks that are still being cut are waited for."""
    asked = data or ExamplesAsked()
    command = GenerateExamples(
        project_id=str(project_id),
        job_id=new_id(request),
        preview=False,
        num_examples=asked.num_examples_target,
        examples_per_chunk=asked.examples_per_chunk,
        model=asked.ollama_model,
        request=fingerprint(asked),
    )
    return await enqueued(request, commands, log, command, message="Dataset generation job enqueued")


handlers: list[Any] = [preview, generate]
