"""Three of our operations as a good team would write them with FastAPI, pydantic and SQLAlchemy's ORM: `python -m bench.reference.app PORT DATABASE_URL SECRET`."""

import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import BaseModel, ConfigDict, Field
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.schema import CreateSchema

from bench.reference.tables import SCHEMA, Base, Event, Project

DEFAULTS = {"num_examples_target": 2000, "max_seq_length": 2048, "train_eval_split": 0.9}
LIMIT = "6000000/minute"
"""Counted at every request, and above what this machine can do: what is measured is the counting."""


class Config(BaseModel):
    model_config = ConfigDict(extra="allow")

    num_examples_target: int = Field(DEFAULTS["num_examples_target"], ge=1, le=1_000_000)
    max_seq_length: int = Field(DEFAULTS["max_seq_length"], ge=16, le=10_000_000)
    train_eval_split: float = Field(DEFAULTS["train_eval_split"], gt=0, le=1)


class ProjectNew(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=10_000)
    task_type: Literal["qa", "instruction", "summarization", "summarisation", "chat"] = "instruction"
    config: Config = Config()


class Stats(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    file_count: int = 0
    chunk_count: int = 0
    example_count: int = 0
    last_job_status: str | None = None


class ProjectOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    description: str
    task_type: str
    base_model_id: str | None
    model_info: dict[str, Any] | None
    status: str
    config: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    stats: Stats


class ProjectPage(BaseModel):
    items: list[ProjectOut]
    total: int
    limit: int
    offset: int


class User(BaseModel):
    id: uuid.UUID


bearer = HTTPBearer()


async def current_user(request: Request, credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> User:
    try:
        claims = jwt.decode(credentials.credentials, request.app.state.secret, algorithms=["HS256"])
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "Invalid or expired token", headers={"WWW-Authenticate": "Bearer"}) from error
    request.state.user = User(id=claims["sub"])
    return request.state.user


async def session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as opened:
        yield opened


CurrentUser = Annotated[User, Depends(current_user)]
Session = Annotated[AsyncSession, Depends(session)]
limiter = Limiter(key_func=lambda request: str(request.state.user.id), headers_enabled=True)


def too_many(request: Request, error: Exception) -> Response:
    raise HTTPException(429, "Too many requests") from error


def create_app(database_url: str, secret: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=10, max_overflow=0)
        async with engine.begin() as connection:
            await connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
            await connection.run_sync(Base.metadata.create_all)
        app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
        yield
        await engine.dispose()

    app = FastAPI(title="reference", lifespan=lifespan)
    app.state.secret, app.state.limiter = secret, limiter
    app.add_exception_handler(RateLimitExceeded, too_many)
    Instrumentator().instrument(app).expose(app)
    app.post("/projects", status_code=201, response_model=ProjectOut)(create_project)
    app.get("/projects", response_model=ProjectPage)(list_projects)
    app.get("/projects/{project_id}", response_model=ProjectOut)(get_project)
    return app


@limiter.limit(LIMIT)
async def create_project(request: Request, response: Response, data: ProjectNew, user: CurrentUser, db: Session) -> Any:
    now = datetime.now(UTC)
    project = Project(
        id=uuid.uuid4(),
        owner_id=user.id,
        name=data.name,
        description=data.description,
        task_type=data.task_type,
        base_model_id=None,
        model_info=None,
        status="draft",
        config=data.config.model_dump(),
        created_at=now,
        updated_at=now,
    )
    db.add(project)
    db.add(Event(aggregate=project.id, type="project.created", data={"owner_id": str(user.id), **data.model_dump(mode="json")}, created_at=now))
    await db.commit()
    response.headers["Location"] = f"/projects/{project.id}"
    return {column.name: getattr(project, column.name) for column in Project.__table__.columns} | {"stats": Stats()}


@limiter.limit(LIMIT)
async def list_projects(
    request: Request,
    response: Response,
    user: CurrentUser,
    db: Session,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> Any:
    wanted = Project.owner_id == user.id
    rows = await db.scalars(select(Project).where(wanted).order_by(Project.created_at.desc(), Project.id.desc()).limit(limit).offset(offset))
    total = await db.scalar(select(func.count()).select_from(Project).where(wanted))
    return {"items": rows.all(), "total": total, "limit": limit, "offset": offset}


@limiter.limit(LIMIT)
async def get_project(request: Request, response: Response, project_id: uuid.UUID, user: CurrentUser, db: Session) -> Any:
    project = await db.scalar(select(Project).where(Project.owner_id == user.id, Project.id == project_id))
    if project is None:
        raise HTTPException(404, "Project not found")
    return project


def token(user_id: str, secret: str) -> str:
    now = datetime.now(UTC)
    return jwt.encode({"sub": user_id, "iat": now, "exp": now + timedelta(minutes=30)}, secret, algorithm="HS256")


if __name__ == "__main__":
    port, database_url, secret = sys.argv[1:]
    uvicorn.run(create_app(database_url, secret), host="127.0.0.1", port=int(port), loop="uvloop", http="httptools")
