"""Predictions: what was sent is asked of whichever training service is there, and its answer told as the document has it."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from litestar import post
from litestar.di import NamedDependency
from litestar.openapi.spec import Example, OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath
from msgspec import UNSET, Meta, UnsetType

from libs.events import uuid7
from libs.prediction import INLINE, MOST_INPUTS, SUBJECT, Answer, Prediction, Question, Refusal
from libs.storage import Storage, StorageDown
from services.gateway.api import uploads
from services.gateway.api.problems import Refused
from services.gateway.api.requests import ONLY_ASKS, AnyRequest, tenant
from services.gateway.api.uploads import Limits
from services.gateway.domain.errors import NotFound
from services.gateway.questions import NoAnswer, Questions
from services.gateway.views import models

logger = logging.getLogger(__name__)

MB = 1024 * 1024
MOST_JSON = 16 * MB
IMAGE_MB, IMAGES_MB = 16, 64
IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/tiff", "application/octet-stream"})
"""Who decodes an image finds out what it is."""
INSTEAD = "send images (PNG, JPEG, GIF, WEBP, BMP, TIFF); rows of a table are JSON"
GRACE = 0.5
BREATH = 0.1
"""Seconds until another one is asked where the first is busy, or nobody there."""
REFUSALS = 2
"""Of those, until the client hears it."""
MODEL, PREPARATION = "model.onnx", "preprocess.json"


class Patience(NamedTuple):
    again: float
    """Seconds of silence after which others are asked too; then twice as long, and so on."""
    seconds: float
    """Until nobody waits any more."""


PATIENCE, LONG_PATIENCE = Patience(1.0, 10.0), Patience(5.0, 30.0)
"""With much to look at the latter."""


class PredictAsked(msgspec.Struct, kw_only=True):
    """What an input is only the model's preparation can tell."""

    input: msgspec.Raw | UnsetType = UNSET
    inputs: list[msgspec.Raw] | UnsetType = UNSET
    probabilities: bool = False


class Predictions(msgspec.Struct, kw_only=True, omit_defaults=True):
    predictions: Annotated[list[Prediction], Meta(description="One for each input, in their order")]
    notes: Annotated[list[str], Meta(description="What was taken otherwise than it may have been meant, such as a category that the model has never seen")] = []


@dataclass
class Predicting(Operation):
    """JSON or a form, so the framework can't tell."""

    def __post_init__(self) -> None:
        value = Schema(one_of=[Schema(type=[OpenAPIType.NUMBER, OpenAPIType.STRING, OpenAPIType.BOOLEAN, OpenAPIType.NULL])])
        by_place = Schema(type=OpenAPIType.ARRAY, items=value, description="The values in the features' order; null where one isn't known")
        by_name = Schema(type=OpenAPIType.OBJECT, additional_properties=value, description="A value for each feature by its name")
        image = Schema(type=OpenAPIType.STRING, description="An image in base64")
        one = Schema(any_of=[by_place, by_name, image])
        many = Schema(type=OpenAPIType.ARRAY, items=one, min_items=1, max_items=MOST_INPUTS)
        flag = Schema(type=OpenAPIType.BOOLEAN, default=False, description="With the probability of every class")
        body = Schema(type=OpenAPIType.OBJECT, properties={"input": one, "inputs": many, "probabilities": flag}, description="Either `input` or `inputs`")
        examples: dict[str, Any] = {
            "one": Example(summary="One", value={"input": [0.5, 0.3, 0.2, 0.1]}),
            "several": Example(summary="Several", value={"inputs": [[0.5, 0.3, 0.2, 0.1], [0.4, 0.2, 0.3, 0.1]]}),
            "by name": Example(summary="By name, with all probabilities", value={"input": {"age": 41, "city": "Oslo"}, "probabilities": True}),
        }
        files = Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        form = Schema(type=OpenAPIType.OBJECT, required=["file"], properties={"file": files, "probabilities": flag})
        content = {"application/json": OpenAPIMediaType(schema=body, examples=examples), "multipart/form-data": OpenAPIMediaType(schema=form)}
        self.request_body = RequestBody(content=content, required=True)


@post(
    "/models/{model_id:uuid}/predict",
    status_code=200,
    request_max_body_size=None,
    summary="Predict with a model",
    operation_class=Predicting,
    opt=ONLY_ASKS,
)
async def predict(
    request: AnyRequest, model_id: FromPath[UUID], db: NamedDependency[asyncpg.Pool], questions: NamedDependency[Questions], storage: NamedDependency[Storage]
) -> Predictions:
    """One `input`, or up to 1,000 `inputs`. A table's row is a list of values in the features' order or an object by name, null where a value isn't known; an image is
    base64, or a `file` of a form, of which there may be several. At most 16 MB of JSON, or files of 16 MB each and 64 MB together.

    Of a regression `class` and `confidence` are null and `value` is what is predicted. 503 with Retry-After when nobody answers.
    """
    here = tenant(request)
    if (artifacts := await models.artifacts(db, here, str(model_id))) is None:
        raise NotFound(what="Model", id=str(model_id))
    if MODEL not in artifacts or PREPARATION not in artifacts:
        raise Refused(409, "This model can't predict here: its run has left no ONNX file", code="model_not_usable")
    question = Question(tenant=here, model=artifacts[MODEL], preparation=artifacts[PREPARATION], folder=f"{here}/{_fresh()}", seconds=0.0)
    async with _tidied(storage, question.folder) as used:
        if request.content_type[0] == "multipart/form-data":
            used.append("files")
            question, names = await _of_files(request, storage, question)
        else:
            question, names = await _of_json(request, question)
            if sum(map(len, question.inputs)) > INLINE:
                used.append("inputs")
                claim = await storage.put(question.folder, msgspec.json.encode(question.inputs))
                question = msgspec.structs.replace(question, inputs=[], elsewhere=claim)
        answer = await asked(questions, question, patience=LONG_PATIENCE if used else PATIENCE)
        if answer.elsewhere:
            used.append("answer")
            answer = msgspec.json.decode(await storage.get(answer.elsewhere), type=Answer)
    if answer.refusal:
        if answer.refusal.code == "model" and await models.artifacts(db, here, str(model_id)) is None:
            raise NotFound(what="Model", id=str(model_id))  # deleted meanwhile
        raise _refused(answer.refusal, names)
    return Predictions(predictions=answer.predictions, notes=answer.notes)


handlers: list[Any] = [predict]


async def asked(questions: Questions, question: Question, *, patience: Patience = PATIENCE) -> Answer:
    """Who has the question may have been killed with it: while it is silent others are asked too, and the first answer counts."""
    end, pause = time.monotonic() + patience.seconds, patience.again
    asking: set[asyncio.Task[Answer | None]] = set()
    busy: Answer | None = None
    refusals = 0
    again = False
    try:
        while (left := end - time.monotonic()) > 0 and (asking or refusals < REFUSALS):
            if refusals < REFUSALS:
                asking.add(asyncio.create_task(_ask(questions, msgspec.structs.replace(question, seconds=left, again=again))))
            done, asking = await asyncio.wait(asking, timeout=min(pause, left + GRACE), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                answer = task.result()
                if answer and not (answer.refusal and answer.refusal.code == "busy"):
                    return answer
                busy, refusals = answer or busy, refusals + 1
            again = True
            if done:
                await asyncio.sleep(BREATH)
            else:
                pause *= 2
    finally:
        for task in asking:
            task.cancel()
    if busy:
        return busy
    raise _down("the training service does not answer", retry_after=2)


async def _ask(questions: Questions, question: Question) -> Answer | None:
    try:
        return await questions.ask(SUBJECT, question, answer=Answer, patience=question.seconds + GRACE)
    except NoAnswer as error:
        logger.warning("prediction: %s", error)
        return None


async def _of_json(request: AnyRequest, question: Question) -> tuple[Question, list[str]]:
    """With the name of each input, for who sent it."""
    body = await _body(request)
    try:
        data = msgspec.json.decode(body, type=PredictAsked)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        field = path.strip("`.")
        raise Refused(422, f"{field}: {problem}" if field else problem, field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(
            422, f"The body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}" if body else "The request needs a JSON body"
        ) from error
    if (data.input is UNSET) == (data.inputs is UNSET):
        raise Refused(422, "input: send either input, or several as inputs", field="input")
    if isinstance(data.input, msgspec.Raw):
        return msgspec.structs.replace(question, inputs=[data.input], probabilities=data.probabilities), ["input"]
    assert data.inputs is not UNSET
    if not 1 <= len(data.inputs) <= MOST_INPUTS:
        raise Refused(422, f"inputs: {len(data.inputs):,} were sent, and one request may have 1 to {MOST_INPUTS:,}", field="inputs")
    return msgspec.structs.replace(question, inputs=data.inputs, probabilities=data.probabilities), [f"inputs[{n}]" for n in range(len(data.inputs))]


async def _body(request: AnyRequest) -> bytes:
    stream, body = request.stream(), bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > MOST_JSON:
            await uploads.drain(stream)
            raise Refused(413, f"A request may have {MOST_JSON // MB} MB: send fewer inputs at once, or images as files of a form")
    return bytes(body)


async def _of_files(request: AnyRequest, storage: Storage, question: Question) -> tuple[Question, list[str]]:
    limits = Limits(file_mb=IMAGE_MB, total_mb=IMAGES_MB, accepted=IMAGES, files_field="file", instead=INSTEAD)
    form = await uploads.receive(request, storage, limits=limits, new_key=lambda: f"{question.folder}/{_fresh()}")
    if not form.files:
        raise Refused(422, "file: at least one image is required", field="file")
    probabilities = form.fields.get("probabilities", "false").strip().lower()
    if probabilities not in ("true", "false", "1", "0"):
        raise Refused(422, "probabilities: must be true or false", field="probabilities")
    names = ["file"] if len(form.files) == 1 else [f"file[{n}]" for n in range(len(form.files))]
    return msgspec.structs.replace(question, files=[file.content for file in form.files], probabilities=probabilities in ("true", "1")), names


@asynccontextmanager
async def _tidied(storage: Storage, folder: str) -> AsyncIterator[list[str]]:
    """What was stored for one question is gone with its answer."""
    used: list[str] = []
    try:
        yield used
    finally:
        if used:
            await asyncio.shield(_removed(storage, folder))


async def _removed(storage: Storage, folder: str) -> None:
    try:
        await storage.delete_folder(folder)
    except StorageDown as error:
        logger.warning("left to the sweep: %s", error, extra={"key": folder})


def _refused(why: Refusal, names: list[str]) -> Exception:
    match why.code:
        case "input":
            field = names[why.row] + why.at
            return Refused(422, f"{field}: {why.message}", field=field)
        case "busy":
            return _down(f"{why.message[0].lower()}{why.message[1:]}", retry_after=1)
        case "late":
            return _down(f"{why.message[0].lower()}{why.message[1:]}, send fewer inputs at once", retry_after=5)
        case "storage":
            return StorageDown(why.message)
        case "model" | "too_large":
            logger.error("a model can't predict: %s", why.message)
            return Refused(503, f"This model can't predict: {why.message}", code="model_not_usable")
        case _:
            return _down(why.message, retry_after=5)


def _down(why: str, *, retry_after: int) -> Refused:
    return Refused(503, f"Service unavailable: {why}. Try again in a moment", headers={"Retry-After": str(retry_after)})


def _fresh() -> str:
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
