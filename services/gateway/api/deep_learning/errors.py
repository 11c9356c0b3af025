"""`{error, message}` with details, retry_after or request_id where they help; 400 for the shape of a body, and the document's one word for each status that it names."""

import re
from typing import Any

from services.gateway.api.problems import Problem

WORDS = {400: "validation_error", 401: "unauthorized", 403: "forbidden", 429: "rate_limit_exceeded"}
_KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "object": "an object", "array": "a list"}
_PARTS = {"str": "characters", "array": "entries"}
_COMPARED = {">=": "at least", "<=": "at most", ">": "greater than", "<": "less than"}


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    status = 400 if problem.status == 422 else problem.status
    body: dict[str, Any] = {"error": WORDS.get(status, problem.code), "message": plain(problem.message)}
    if problem.fields:
        body["details"] = [{"field": field.field, "message": plain(field.message)} for field in problem.fields]
    if "Retry-After" in problem.headers:
        body["retry_after"] = int(problem.headers["Retry-After"])
    if status >= 500:
        body["request_id"] = problem.request_id
    return status, body


def plain(message: str) -> str:
    """What the validator says of types and bounds, as the document says it."""
    message = re.sub(r"Expected `(?:int|float)` ([<>]=?) (\S+?)(?:\.0)?$", lambda said: f"Must be {_COMPARED[said[1]]} {said[2]}", message)
    message = re.sub(r"Expected `(str|array)` of length ([<>]=) (\d+)$", lambda said: f"Must have {_COMPARED[said[2]]} {said[3]} {_PARTS[said[1]]}", message)
    return re.sub(r"Expected `(\w+)(?: \| null)?`, got `\w+`$", lambda said: f"Must be {_KINDS[said[1]]}" if said[1] in _KINDS else said[0], message)
