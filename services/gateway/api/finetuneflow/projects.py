"""Projects: made, listed, changed and deleted."""

from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from services.gateway.api.finetuneflow.words import stamp, stamp_of_text, word
from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest, InWorkspace, Limit, Offset, answered, fingerprint, if_match, new_id, origin, tenant, tenants
from services.gateway.commands import Commands
from services.gateway.domain.errors import NotFound
from services.gateway.domain.project import ChangeProject, CreateProject, DeleteProject, Project
from services.gateway.views import projects

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Description = Annotated[str, Meta(max_length=10_000)]
Task = Literal["qa", "instruction", "summarization", "summarisation", "chat"]
Status = Literal["draft", "uploading", "chunking", "generating", "ready_to_train", "training", "evaluating", "completed", "failed"]

DEFAULTS = {"num_examples_target": 2000, "max_seq_length": 2048, "train_eval_split": 0.9}


class Config(msgspec.Struct, kw_only=True):
    """What is checked of a project's config; further keys are kept as they are."""

    num_examples_target: Annotated[int, Meta(ge=1, le=1_000_000)] | UnsetType = UNSET
    max_seq_length: Annotated[int, Meta(ge=16, le=10_000_000)] | UnsetType = UNSET
    train_eval_split: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET


class ProjectNew(msgspec.Struct, kw_only=True):
    name: Name
    description: Description = ""
    task_type: Task = "instruction"
    config: dict[str, Any] = {}


class ProjectPatch(msgspec.Struct, kw_only=True):
    name: Name | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    task_type: Task | UnsetType = UNSET
    config: dict[str, Any] | UnsetType = UNSET


class Stats(msgspec.Struct, kw_only=True):
    file_count: int = 0
    chunk_count: int = 0
    example_count: int = 0
    last_job_status: str | None = None


class ProjectOut(msgspec.Struct, kw_only=True):
    id: str
    name: str
    description: str
    task_type: str
    base_model_id: str | None
    model_info: dict[str, Any] | None
    status: str
    config: Any
    created_at: str
    updated_at: str
    stats: Stats


class ProjectPage(msgspec.Struct, kw_only=True):
    items: list[ProjectOut]
    total: int
    limit: int
    offset: int


@post("/projects", status_code=201, summary="Create a project", operation_class=InWorkspace)
async def create_project(request: AnyRequest, data: JSONBody[ProjectNew], commands: NamedDependency[Commands]) -> Response[ProjectOut]:
    """With an Idempotency-Key a repeat gives the first answer again; another body under the same key is a 422.

    It is made in your own workspace, or in the one that the header X-Workspace names.
    """
    command = CreateProject(
        project_id=new_id(request),
        name=data.name,
        description=data.description,
        task_type=data.task_type,
        config=DEFAULTS | _checked(data.config),
        request=fingerprint(data),
    )
    outcome = await commands.run(command, origin=origin(request))
    return answered(outcome, _from_state(outcome.state), status=201, location=f"/projects/{outcome.state.id}")


@get("/projects", summary="List projects, newest first", operation_class=InWorkspace)
async def list_projects(
    request: AnyRequest,
    db: NamedDependency[asyncpg.Pool],
    status: Annotated[Status | None, QueryParameter(name="status")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> ProjectPage:
    rows, total = await projects.page(db, tenants(request), status=status, limit=limit, offset=offset)
    return ProjectPage(items=[_from_row(row) for row in rows], total=total, limit=limit, offset=offset)


@get("/projects/{project_id:uuid}", summary="One project")
async def get_project(
    request: AnyRequest, project_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[ProjectOut]:
    if row := await projects.get(db, tenant(request), str(project_id)):
        return Response(_from_row(row), headers={"ETag": f'"{row.version}"'})
    state, version = await commands.newest(Project, str(project_id), tenant=tenant(request))
    if state is None or state.deleted:
        raise NotFound(what="Project", id=str(project_id))
    return Response(_from_state(state), headers={"ETag": f'"{version}"'})


@patch("/projects/{project_id:uuid}", summary="Change some of a project")
async def change_project(
    request: AnyRequest, project_id: FromPath[UUID], data: JSONBody[ProjectPatch], db: NamedDependency[asyncpg.Pool], commands: NamedDependency[Commands]
) -> Response[ProjectOut]:
    """What is not sent stays; `config` is merged. With If-Match it is done only on the version you have seen."""
    command = ChangeProject(
        project_id=str(project_id),
        name=data.name or None,
        description=None if data.description is UNSET else data.description,
        task_type=data.task_type or None,
        config=_checked(data.config) if data.config else None,
    )
    outcome = await commands.run(command, origin=origin(request), if_match=if_match(request))
    row = await projects.get(db, tenant(request), command.project_id) if outcome.visible else None
    return answered(outcome, _from_row(row) if row else _from_state(outcome.state), status=200)


@delete("/projects/{project_id:uuid}", status_code=204, summary="Delete a project with its files and examples")
async def delete_project(
    request: AnyRequest, project_id: FromPath[UUID], commands: NamedDependency[Commands], cancel: FromQuery[bool] = False
) -> Response[None]:
    """409 while one of its jobs runs, unless `?cancel=true` cancels that first."""
    outcome = await commands.run(DeleteProject(project_id=str(project_id), cancel=cancel), origin=origin(request), if_match=if_match(request))
    return answered(outcome, None, status=204)


handlers = [create_project, list_projects, get_project, change_project, delete_project]


async def known(request: AnyRequest, project_id: UUID, db: asyncpg.Pool, commands: Commands) -> str:
    """Its id, also while the views don't show it yet."""
    id = str(project_id)
    if not await projects.exists(db, tenant(request), id):
        state, _ = await commands.newest(Project, id, tenant=tenant(request))
        if state is None or state.deleted:
            raise NotFound(what="Project", id=id)
    return id


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    try:
        msgspec.convert(config, Config)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        raise Refused(422, f"config.{path.rstrip('`')}: {problem}", field=f"config.{path.rstrip('`')}") from error
    return config


def _from_row(row: projects.Row) -> ProjectOut:
    return ProjectOut(
        id=row.id,
        name=row.name,
        description=row.description,
        task_type=row.task_type,
        base_model_id=row.base_model_id,
        model_info=msgspec.json.decode(row.model_info) if row.model_info else None,
        status=projects.status(row),
        config=row.config,
        created_at=stamp_of_text(row.created_at),
        updated_at=stamp_of_text(row.updated_at),
        stats=Stats(file_count=row.file_count, chunk_count=row.chunk_count, example_count=row.example_count, last_job_status=word(row.last_job_status)),
    )


def _from_state(state: Project) -> ProjectOut:
    """As the facts say, when the view doesn't show it yet."""
    return ProjectOut(
        id=state.id,
        name=state.name,
        description=state.description,
        task_type=state.task_type,
        base_model_id=state.base_model_id or None,
        model_info=state.model_info or None,
        status="training" if state.run in state.active_jobs else "uploading" if state.active_jobs else "draft",
        config=state.config,
        created_at=stamp(state.created_at),
        updated_at=stamp(state.updated_at),
        stats=Stats(file_count=len(state.files)),
    )
