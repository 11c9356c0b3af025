"""Everything that can go wrong with a request, in one shape; the families dress it in theirs."""

import logging
import re
from http import HTTPStatus
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from litestar.exceptions import HTTPException, SerializationException, ValidationException
from litestar.handlers import HTTPRouteHandler

from libs.events import NotStorable
from libs.events.log import Full, Unavailable
from libs.storage import Missing, StorageDown
from services.gateway.accounts import WrongCredentials
from services.gateway.attempts import TooMany
from services.gateway.audience import Crowded
from services.gateway.bus_access import NoIssuer
from services.gateway.domain import errors
from services.gateway.passwords import Busy
from services.gateway.tokens import Bad
from services.gateway.views.database import DOWN, UNFIT

log = logging.getLogger(__name__)

_HUNG_UP = "client disconnected prematurely"
"""Litestar's words for a client that went away: its trouble, not ours."""

STATUS: dict[type[errors.DomainError], int] = {
    errors.NotFound: 404,
    errors.Conflicted: 409,
    errors.StaleVersion: 412,
    errors.IdempotencyKeyReused: 422,
    errors.ProjectBusy: 409,
    errors.FileBusy: 409,
    errors.ProjectFull: 413,
    errors.TrainingAlreadyRunning: 409,
    errors.ChunkingAlreadyRunning: 409,
    errors.GenerationAlreadyRunning: 409,
    errors.ModelNotResolved: 400,
    errors.ModelNotUsable: 400,
    errors.NoTrainingData: 400,
    errors.ExamplesStillRead: 409,
    errors.ExampleUnreadable: 409,
    errors.PreviewStays: 409,
    errors.NoSuccessfulRun: 404,
    errors.JobEnded: 409,
    errors.WebhookInactive: 409,
    errors.UnknownEvents: 400,
    errors.DatasetBusy: 409,
    errors.MonitorUnfit: 422,
    errors.LogFull: 507,
    errors.UsernameTaken: 409,
    errors.EmailTaken: 409,
    errors.PasswordChangedMeanwhile: 409,
    errors.TooManyKeys: 409,
    errors.TooManyBusCredentials: 409,
    errors.RoleMissing: 403,
    errors.AlreadyMember: 409,
    errors.OwnerStays: 409,
    errors.TooManyMembers: 409,
    errors.TooManyMemberships: 409,
    errors.UnknownUser: 422,
    errors.TooManyWebhooks: 409,
    errors.InsufficientCredits: 402,
    errors.TooManyActiveJobs: 429,
}
AGAIN: dict[type[errors.DomainError], int] = {errors.TooManyActiveJobs: 60}
"""Seconds after which it is worth another try. When a run ends nobody knows: as often as its document has it."""
CODES = {
    400: "bad_request",
    401: "unauthorized",
    402: "insufficient_credits",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    429: "rate_limit_exceeded",
    501: "not_implemented",
    503: "service_unavailable",
    507: "storage_full",
}


class Field(msgspec.Struct, frozen=True):
    """A field that is wrong, by its path in the body, and what is wrong with it."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    code: str
    message: str
    fields: list[Field] = []
    context: dict[str, Any] = {}
    headers: dict[str, str] = {}
    request_id: str = ""


class Refused(Exception):
    """A request that is wrong before any rule of the domain is asked."""

    def __init__(
        self, status: int, message: str, *, code: str = "", field: str = "", context: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.problem = Problem(
            status=status,
            code=code or CODES.get(status, "error"),
            message=message,
            fields=[Field(field, message.removeprefix(f"{field}: "))] if field else [],
            context=context or {},
            headers=headers or {},
        )


def problem(error: Exception, handler: HTTPRouteHandler | None = None) -> Problem:
    """`handler`: of the route, where one was found. It knows what values there are."""
    match error:
        case Refused():
            return error.problem
        case errors.DomainError():
            fields = [Field(error.field, str(error))] if error.field else []
            later = {"Retry-After": str(AGAIN[type(error)])} if type(error) in AGAIN else {}
            return Problem(status=STATUS.get(type(error), 400), code=error.code, message=str(error), context=error.context, fields=fields, headers=later)
        case Bad():
            return Problem(status=401, code="unauthorized", message="Invalid or expired token")
        case WrongCredentials():
            return Problem(status=401, code="invalid_credentials", message="Invalid username or password")
        case TooMany(retry_after=seconds):
            message = f"Too many attempts: try again in {seconds} seconds"
            return Problem(status=429, code="rate_limit_exceeded", message=message, headers={"Retry-After": str(seconds)})
        case Crowded():
            return Problem(status=429, code="too_many_streams", message=str(error), headers={"Retry-After": "10"})
        case Busy():
            message = "Too many people are logging in at once: try again in a moment"
            return Problem(status=503, code="service_unavailable", message=message, headers={"Retry-After": "2"})
        case NoIssuer():
            message = "TRAINYARD_NATS_ISSUER_SEED is not set: without it the gateway can let nobody onto the bus. Ask the operator"
            return Problem(status=503, code="no_issuer", message=message)
        case NotStorable():
            return _invalid(str(error), named=str(error))
        case RecursionError():
            return _invalid("The body is nested too deeply")
        case ValidationException():
            return _validation(error, handler)
        case HTTPException():
            return _http(error)
        case UnicodeDecodeError():
            return _invalid("The body is not valid JSON: it is not UTF-8")
        case Full():
            return Problem(status=507, code="storage_full", message="The event log is full: nothing was changed. Ask the operator for room")
        case Unavailable():
            return _down("the event log (NATS)")
        case StorageDown() | Missing():
            return _down("the object store (S3)")
        case _ if isinstance(error, DOWN) and not isinstance(error, UNFIT):
            return _down("the database (PostgreSQL)")
        case _:
            log.error("unexpected", exc_info=error)
            return Problem(status=500, code="internal_error", message="An unexpected error occurred")


def media_type(body: dict[str, Any]) -> str:
    """RFC 9457 has one of its own."""
    return "application/problem+json" if "title" in body else "application/json"


def _down(part: str) -> Problem:
    return Problem(
        status=503,
        code="service_unavailable",
        message=f"Service unavailable: {part} does not answer. Try again in a moment",
        context={"part": part},
        headers={"Retry-After": "2"},
    )


def _invalid(message: str, named: str = "") -> Problem:
    field = found[1] if (found := re.match(r"'([^']+)'", named)) else ""
    return Problem(status=422, code="validation_error", message=message, fields=[Field(field, message)] if field else [])


def _http(error: HTTPException) -> Problem:
    if isinstance(error.__cause__, RecursionError) or isinstance(error.__context__, RecursionError):
        return _invalid("The body is nested too deeply")
    if isinstance(error.__cause__, SerializationException):
        reason = re.sub(r"^JSON is malformed: | - at `.*`$", "", str(error.__cause__))
        return _invalid(f"The body is not valid JSON: {reason}")
    status = error.status_code
    if error.detail == _HUNG_UP:
        return Problem(status=400, code="hung_up", message="The body never came to its end")
    if status >= 500 and status != 501:
        log.error("unexpected", exc_info=error)
        return Problem(status=500, code="internal_error", message="An unexpected error occurred")
    message = _without_prefix(error.detail) or HTTPStatus(status).phrase
    return Problem(status=status, code=CODES.get(status, "error"), message=message, headers=dict(error.headers or {}))


def _validation(error: ValidationException, handler: HTTPRouteHandler | None) -> Problem:
    """The validator stops at the first error; its field is in the path of the message or, when missing, in its text."""
    fields = []
    for extra in error.extra if isinstance(error.extra, list) else []:
        text = str(extra.get("message", ""))
        if text == "'data'":  # what is left of a KeyError when there is no body at all
            return _invalid("The request needs a JSON body")
        missing = re.search(r"missing required (?:field|parameter|query parameter) `?'?([^`']+)", text, re.IGNORECASE)
        name = missing[1] if missing else str(extra.get("key", "")).removeprefix("data.")
        fields.append(Field("" if name == "data" else name, "This field is required" if missing else with_choices(text, _kind(handler, name))))
    named = [field for field in fields if field.field]
    if not fields:
        return Problem(status=422, code="validation_error", message=_without_prefix(error.detail))
    first = fields[0]
    return Problem(status=422, code="validation_error", message=f"{first.field}: {first.message}" if first.field else first.message, fields=named)


def with_choices(message: str, kind: Any) -> str:
    """The validator says that a value is none of the allowed ones, but not which those are."""
    choices = _choices(kind) if message.startswith("Invalid enum value") else []
    return f"{message}: it must be one of {', '.join(map(str, choices))}" if choices else message


def _choices(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) is Literal else [choice for part in get_args(kind) for choice in _choices(part)]


def _kind(handler: HTTPRouteHandler | None, name: str) -> Any:
    """Of what the route takes in its address, or of a field of its body, which may be one of a field's."""
    taken = {} if handler is None else {name: field.annotation for name, field in handler.parsed_fn_signature.parameters.items()}
    kinds = taken | _fields(taken.get("data"))
    *outer, last = name.split(".")
    for field in outer:
        kinds = _fields(kinds.get(field))
    return kinds.get(last)


def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else {}


def _without_prefix(detail: str) -> str:
    return re.sub(r"^\d{3}:\s*", "", detail or "")
