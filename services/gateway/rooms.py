"""Every kind of aggregate that commands may change: the one place where domain and views meet."""

from functools import partial
from typing import Any

import asyncpg

from libs.events import Address, Event, story
from services.gateway.commands import Beside, Room
from services.gateway.domain import bus, credit, dataset, example, jobs, model, project, quota, user, webhook, workspace
from services.gateway.domain.bus import BusAccess, CreateCredential, RevokeCredential
from services.gateway.domain.credit import Grant, Purse, Settle
from services.gateway.domain.dataset import CreateDataset, Dataset, DeleteDataset, StartFit
from services.gateway.domain.example import ChangeExample, DeleteExample, Example
from services.gateway.domain.jobs import CancelJob, Job
from services.gateway.domain.model import DeleteModel, Model
from services.gateway.domain.project import (
    AddFiles,
    ChangeProject,
    ChunkDocuments,
    CreateProject,
    DeleteFile,
    DeleteProject,
    ExportRun,
    GenerateExamples,
    Project,
    ResolveModel,
    StartTraining,
)
from services.gateway.domain.quota import Quota, Starter
from services.gateway.domain.user import ChangePassword, ChangeRole, CreateKey, DeleteUser, LogIn, LogOut, RevokeKey, User
from services.gateway.domain.webhook import (
    ChangeWebhook,
    CreateWebhook,
    DeleteWebhook,
    DisableWebhook,
    PingWebhook,
    ReplayWebhook,
    ReportDelivered,
    Webhook,
)
from services.gateway.domain.workspace import AddMember, ChangeMember, RemoveMember, Workspace
from services.gateway.views import bus as bus_views
from services.gateway.views import credits as credit_views
from services.gateway.views import datasets as dataset_views
from services.gateway.views import examples as example_views
from services.gateway.views import jobs as job_views
from services.gateway.views import models as model_views
from services.gateway.views import projects as project_views
from services.gateway.views import users as user_views
from services.gateway.views import webhooks as webhook_views
from services.gateway.views import workspaces as workspace_views


def rooms(db: asyncpg.Pool) -> list[Room[Any]]:
    return [
        Room(
            category="project",
            state=Project,
            commands=(
                CreateProject,
                ChangeProject,
                DeleteProject,
                AddFiles,
                DeleteFile,
                ResolveModel,
                ChunkDocuments,
                GenerateExamples,
                StartTraining,
                ExportRun,
            ),
            founders=(CreateProject,),
            endings=(DeleteProject, DeleteFile),
            key=lambda command: (command.project_id,),
            load=partial(project_views.load, db),
            evolve=project.evolve,
            decide=_on_project,
            beside=_beside_project,
        ),
        Room(
            category="dataset",
            state=Dataset,
            commands=(CreateDataset, DeleteDataset, StartFit),
            founders=(CreateDataset,),
            endings=(DeleteDataset,),
            key=lambda command: (command.dataset_id,),
            load=partial(dataset_views.load, db),
            evolve=dataset.evolve,
            decide=dataset.decide,
            beside=lambda command: _money_and_place(command.starter) if isinstance(command, StartFit) else (),
        ),
        Room(
            category="model",
            state=Model,
            commands=(DeleteModel,),
            endings=(DeleteModel,),
            key=lambda command: (command.model_id,),
            load=partial(model_views.load, db),
            evolve=model.evolve,
            decide=model.decide,
        ),
        Room(
            category="credit",
            state=Purse,
            commands=(Grant, Settle),
            endings=(Settle,),
            key=lambda command: (command.user_id,),
            load=partial(credit_views.purse, db),
            evolve=credit.evolve,
            decide=credit.decide,
        ),
        Room(
            category="quota",
            state=Quota,
            commands=(),
            key=lambda command: (command.user_id,),
            load=partial(credit_views.quota, db),
            evolve=quota.evolve,
            decide=lambda *_: [],
        ),
        Room(
            category="job",
            state=Job,
            commands=(CancelJob,),
            endings=(CancelJob,),
            key=lambda command: (command.job_id,),
            load=partial(job_views.load, db),
            evolve=jobs.evolve,
            decide=jobs.decide,
            pattern=_story,
        ),
        Room(
            category="example",
            state=Example,
            commands=(ChangeExample, DeleteExample),
            key=lambda command: (command.project_id, command.example_id),
            load=partial(example_views.load, db),
            evolve=example.evolve,
            decide=example.decide,
        ),
        Room(
            category="webhook",
            state=Webhook,
            commands=(CreateWebhook, ChangeWebhook, DeleteWebhook, PingWebhook, ReplayWebhook, DisableWebhook, ReportDelivered),
            founders=(CreateWebhook,),
            endings=(DeleteWebhook, DisableWebhook),
            key=lambda command: (command.webhook_id,),
            load=partial(webhook_views.load, db),
            evolve=webhook.evolve,
            decide=webhook.decide,
        ),
        Room(
            category="workspace",
            state=Workspace,
            commands=(AddMember, ChangeMember, RemoveMember),
            endings=(RemoveMember,),
            key=lambda command: (command.workspace_id,),
            load=partial(workspace_views.load, db),
            evolve=workspace.evolve,
            decide=workspace.decide,
        ),
        Room(
            category="bus",
            state=BusAccess,
            commands=(CreateCredential, RevokeCredential),
            endings=(RevokeCredential,),
            key=lambda command: (command.user_id,),
            load=partial(bus_views.load, db),
            evolve=bus.evolve,
            decide=bus.decide,
        ),
        Room(
            category="user",
            state=User,
            commands=(LogIn, LogOut, ChangePassword, ChangeRole, CreateKey, RevokeKey, DeleteUser),
            endings=(LogIn, LogOut, ChangePassword, RevokeKey, DeleteUser),  # who is to make room must get in
            key=lambda command: (command.user_id,),
            load=partial(user_views.load, db),
            evolve=user.evolve,
            decide=user.decide,
        ),
    ]


def _beside_project(command: Any) -> tuple[Beside, ...]:
    if not isinstance(command, StartTraining):
        return ()
    money, own = _money_and_place(command.starter), command.own
    if own is None:
        return money
    return (*money, *(Beside(kind=Project, tenant=own.tenant, key=(id,)) for id in own.lenders if id != command.project_id))


def _on_project(state: Project | None, command: Any, *beside: Any) -> list[Event]:
    """Its lenders come last."""
    if not isinstance(command, StartTraining):
        return project.decide(state, command)
    money = len(_money_and_place(command.starter))
    return project.decide(state, command, *(beside[:money] or (None, None)), lenders=beside[money:])


def _money_and_place(starter: Starter) -> tuple[Beside, ...]:
    """Of who starts something, in his own workspace."""
    if not starter.user_id:
        return ()
    return tuple(Beside(kind=kind, tenant=starter.user_id, key=(starter.user_id,)) for kind in (Purse, Quota))


def _story(where: Address) -> str:
    return story(where.tenant, where.key[-1])
