"""Models that were trained here, as bases of others: what one is made of, as the log says. A workspace sees its own only."""

from typing import Any, TypeVar

import asyncpg
import msgspec

from libs.events import Address, Ancestor, Claim, FineTune, JobCreated, ProjectModelResolved, TrainingCompleted
from libs.events.log import EventLog
from libs.storage import Damaged, Missing, Storage
from services.gateway import hub
from services.gateway.commands import Commands
from services.gateway.domain.project import OWN, OwnBase, Project
from services.gateway.hub import Model, NoSuchModel
from services.gateway.views import runs

T = TypeVar("T")

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
WEIGHTS = ("model.safetensors", "config.json", "generation_config.json")
NEXT_TO_IT = (".json", ".jinja", ".txt", ".model")
"""The tokenizer, its template, and the configuration: small, and of the last run only."""
LONGEST = 8
"""Runs on top of each other: a job carries what all of them left."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    model: Model
    base: OwnBase


async def find(model_id: str, *, tenant: str, db: asyncpg.Pool, log: EventLog, storage: Storage, commands: Commands, smoke: bool) -> Found:
    """By the id of a run or of its job. Raises NoSuchModel where no run of this workspace has completed under it, or its project is gone."""
    asked = model_id.removeprefix(OWN)
    try:
        job_id = await runs.job_of(db, tenant, asked) or asked
        created = await _only(log, Address(tenant=tenant, category="job", key=(job_id,)).under("created"), JobCreated)
        completed = await _only(log, Address(tenant=tenant, category="training", key=(job_id,)).under("completed"), TrainingCompleted)
        tuning = msgspec.convert(created.spec, FineTune)
    except (ValueError, LookupError, msgspec.ValidationError) as error:  # no id; no such run; one that is no fine-tune
        raise NoSuchModel(model_id) from error
    if await _project(commands, tenant, created.project_id) is None:
        raise NoSuchModel(model_id)
    last = Ancestor(job_id=job_id, project_id=created.project_id, method=tuning.method, files=_needed(completed, tuning.method))
    base = _on_top(tuning, last, tenant=tenant)
    obstacles = [] if smoke or not tuning.smoke else ["It comes from a smoke run: its weights are worthless"]
    if len(base.ancestors) > LONGEST:
        obstacles.append(f"More than {LONGEST} runs lie on top of each other: merge one of them, and begin with that")
    gone = [one.job_id for one in base.ancestors[:-1] if await _project(commands, tenant, one.project_id) is None]
    obstacles += [f"It is built on the run {job_id}, which was deleted with its project" for job_id in gone]
    known = await _known(log, tenant, created.project_id, tuning.base_model)
    return Found(model=await _model(base, completed, known, obstacles, storage), base=base)


def _on_top(tuning: FineTune, last: Ancestor, *, tenant: str) -> OwnBase:
    model_id = f"{OWN}{last.job_id}"
    if tuning.method == "full":
        return OwnBase(tenant=tenant, model_id=model_id, ancestors=[last])
    below = [msgspec.structs.replace(one, files={name: claim for name, claim in one.files.items() if name in (*ADAPTER, *WEIGHTS)}) for one in tuning.ancestors]
    root, revision = (tuning.root, tuning.root_revision) if tuning.ancestors else (tuning.base_model, tuning.revision)
    return OwnBase(tenant=tenant, model_id=model_id, root=root, root_revision=revision, ancestors=[*below, last])


def _needed(completed: TrainingCompleted, method: str) -> dict[str, Claim]:
    weights = WEIGHTS if method == "full" else ADAPTER
    return {name: claim for name, claim in completed.artifacts.items() if name in weights or name.endswith(NEXT_TO_IT)}


async def _model(base: OwnBase, completed: TrainingCompleted, known: dict[str, Any], obstacles: list[str], storage: Storage) -> Model:
    """As a folder with its configuration would be judged. Licence and number of parameters are those of what it was trained on."""
    last = base.ancestors[-1]
    config = completed.artifacts.get("config.json" if last.method == "full" else "base_config.json")
    weights = (WEIGHTS if last.method == "full" else ADAPTER)[0] in completed.artifacts
    try:
        data = await storage.get(config) if config and config.size <= hub.CONFIG else b""
    except (Missing, Damaged) as error:
        what = "are damaged in the object store" if isinstance(error, Damaged) else "are not in the object store any more"
        data, obstacles = b"", [*obstacles, f"Its files {what}"]
    licence, parameters = known.get("license"), known.get("num_parameters")
    return hub.judged(base.model_id, data, safetensors=weights, license=licence, parameters=parameters, obstacles=obstacles)


async def _project(commands: Commands, tenant: str, project_id: str) -> Project | None:
    project, _ = await commands.newest(Project, project_id, tenant=tenant)
    return None if project is None or project.deleted else project


async def _known(log: EventLog, tenant: str, project_id: str, model_id: str) -> dict[str, Any]:
    """Of a model that the project has trained, and perhaps left for another since."""
    told = await log.read(Address(tenant=tenant, category="project", key=(project_id,)).under("model_resolved"))
    resolved = [recorded.event for recorded in told if isinstance(recorded.event, ProjectModelResolved)]
    return next((event.model_info for event in reversed(resolved) if event.base_model_id == model_id), {})


async def _only(log: EventLog, subject: str, kind: type[T]) -> T:
    facts = [recorded.event for recorded in await log.read(subject) if isinstance(recorded.event, kind)]
    if not facts:
        raise LookupError(subject)
    return facts[-1]
