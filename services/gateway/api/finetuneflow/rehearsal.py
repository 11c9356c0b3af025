"""A dry run before a training: examples as the model would be given them, and what a run would make of the data set."""

import logging
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from libs.config import Gateway
from libs.events import FineTune
from libs.events.log import EventLog
from libs.rehearsal import SECONDS, SUBJECT, Answer, Line, Question, Refusal, Seen
from libs.storage import Storage
from services.gateway.api.finetuneflow.training import HYPERPARAMS, TrainStart, own_base, wanted
from services.gateway.api.problems import Refused
from services.gateway.api.requests import ONLY_ASKS, AnyRequest, tenant
from services.gateway.commands import Commands
from services.gateway.domain.errors import ExamplesStillRead, ModelNotUsable, NotFound, NoTrainingData
from services.gateway.domain.project import Project, StartTraining, planned, still_coming
from services.gateway.questions import NoAnswer, Questions
from services.gateway.views import examples, projects
from services.gateway.views.examples import Row, Wanted

logger = logging.getLogger(__name__)

MOST_ROWS = 200
MOST_BYTES = 512 * 1024
"""Of examples in one question: with all around them they are still one message on the bus."""
LARGEST = 128 * 1024
PATIENCE = SECONDS + 2
USABLE = Wanted(split="train", is_valid=True)


class DryRunAsked(TrainStart, kw_only=True):
    """What a start would be sent."""

    example_id: UUID | UnsetType = UNSET
    """The example to be shown; otherwise three of the sample are."""


class DryRun(Seen, frozen=True, kw_only=True):
    base_model_id: str
    method: str
    preset: str
    smoke: bool
    hyperparams: dict[str, Any]
    """All that a run would use, under the names that were sent."""


@post("/projects/{project_id:uuid}/dataset/dry-run", status_code=200, summary="See what a training would learn, before it is started", opt=ONLY_ASKS)
async def dry_run(
    request: AnyRequest,
    project_id: FromPath[UUID],
    data: JSONBody[DryRunAsked],
    db: NamedDependency[asyncpg.Pool],
    commands: NamedDependency[Commands],
    questions: NamedDependency[Questions],
    settings: NamedDependency[Gateway],
    log: NamedDependency[EventLog],
    storage: NamedDependency[Storage],
) -> DryRun:
    """Takes what `train/start` takes and changes nothing. Up to 200 examples, evenly over the data set, are rendered by the model's own chat template and tokenizer,
    as a run would; `segments` say what of it is learned. 422 where no token is, 409 while the first examples are still being read."""
    id, here = str(project_id), tenant(request)
    project, _ = await commands.newest(Project, id, tenant=here, known=await projects.load(db, here, id))
    if project is None or project.deleted:
        raise NotFound(what="Project", id=id)
    own = await own_base(id, here, db=db, log=log, storage=storage, commands=commands, smoke=settings.smoke)
    tuning = planned(project, StartTraining(project_id=id, job_id="", **wanted(data), own=own, smoke=settings.smoke))
    coming = still_coming(project)
    shown = None if data.example_id is UNSET else await _shown(db, id, str(data.example_id))
    async with examples.looking(db) as session:
        dataset = await examples.dataset(session, id)
        count = dataset.count(USABLE)
        rows = await examples.sample(session, id, dataset, USABLE, most_rows=MOST_ROWS, most_bytes=MOST_BYTES, largest=LARGEST) if count else []
    if not count:
        raise ExamplesStillRead() if coming else NoTrainingData(project_id=id)
    if not rows:
        raise Refused(422, f"The examples are larger than the {LARGEST // 1024} KiB that a dry run looks at", code="examples_too_large")
    seen = await _asked(questions, Question(tuning=tuning, rows=[_line(row) for row in rows], of=count, shown=shown, workspace=here))
    notes = ["More examples are still to come: files are being read, or examples made."] if coming else []
    return DryRun(
        **msgspec.structs.asdict(msgspec.structs.replace(seen, warnings=[*notes, *seen.warnings])),
        base_model_id=tuning.base_model,
        method=tuning.method,
        preset=tuning.preset,
        smoke=tuning.smoke,
        hyperparams=HYPERPARAMS.echoed(msgspec.to_builtins(tuning), data.hyperparams),
    )


handlers: list[Any] = [dry_run]


async def _shown(db: asyncpg.Pool, project_id: str, example_id: str) -> Line:
    if (row := await examples.get(db, project_id, example_id)) is None:
        raise NotFound(what="Example", id=example_id)
    if not row.is_valid:
        raise Refused(422, f"example_id: this example is refused ({row.reason}), nothing is learned from it: {row.message}", field="example_id")
    if len(row.data) > LARGEST:
        raise Refused(422, f"example_id: this example is larger than the {LARGEST // 1024} KiB that a dry run looks at", field="example_id")
    return _line(row)


def _line(row: Row) -> Line:
    return Line(id=row.id, split=row.split, format=row.format, data=row.data)


async def _asked(questions: Questions, question: Question) -> Seen:
    try:
        answer = await questions.ask(SUBJECT, question, answer=Answer, patience=PATIENCE)
    except NoAnswer as error:
        logger.warning("dry run: %s", error)
        raise _down("the training service", "the training service does not answer", retry_after=2) from error
    if answer.refusal:
        raise _refused(answer.refusal, question.tuning)
    assert answer.seen
    return answer.seen


def _refused(why: Refusal, tuning: FineTune) -> Exception:
    match why.code:
        case "data":
            return Refused(422, why.message, code="nothing_to_learn")
        case "hub":
            return _down("the model hub", why.message.rstrip("."), retry_after=5)
        case "model" | "model_not_found" | "model_not_accessible":
            return ModelNotUsable(base_model_id=tuning.base_model, reason=why.message)
        case _:
            return _down("the training service", why.message.rstrip("."), retry_after=5)


def _down(part: str, why: str, *, retry_after: int) -> Refused:
    return Refused(503, f"Service unavailable: {why}. Try again in a moment", context={"part": part}, headers={"Retry-After": str(retry_after)})
