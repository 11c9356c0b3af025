"""The reference's tables, as an ORM sees them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, ForeignKey, Identity, Index, Text, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

SCHEMA = "reference"


class Base(DeclarativeBase):
    __table_args__: Any = {"schema": SCHEMA}
    type_annotation_map = {str: Text, datetime: DateTime(timezone=True), dict[str, Any]: JSONB}


class File(Base):
    __tablename__ = "files"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey(f"{SCHEMA}.projects.id"), index=True)
    examples: Mapped[int]


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_of_project", "project_id", "created_at"), {"schema": SCHEMA})

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey(f"{SCHEMA}.projects.id"))
    status: Mapped[str]
    created_at: Mapped[datetime]


class Project(Base):
    __tablename__ = "projects"
    __table_args__ = (Index("projects_newest", "owner_id", "created_at", "id"), {"schema": SCHEMA})

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID]
    name: Mapped[str]
    description: Mapped[str]
    task_type: Mapped[str]
    base_model_id: Mapped[str | None]
    model_info: Mapped[dict[str, Any] | None]
    status: Mapped[str]
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    @property
    def stats(self) -> dict[str, Any]:
        return {"file_count": self.file_count, "example_count": self.example_count, "last_job_status": self.last_job_status}


class Event(Base):
    """What happened, in the same transaction as the row that shows it."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    aggregate: Mapped[UUID] = mapped_column(index=True)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


Project.file_count = column_property(select(func.count(File.id)).where(File.project_id == Project.id).correlate_except(File).scalar_subquery())
Project.example_count = column_property(
    select(func.coalesce(func.sum(File.examples), 0)).where(File.project_id == Project.id).correlate_except(File).scalar_subquery()
)
Project.last_job_status = column_property(
    select(Job.status).where(Job.project_id == Project.id).order_by(Job.created_at.desc()).limit(1).correlate_except(Job).scalar_subquery()
)
