"""`{error, message}` with details, retry_after or request_id where they help; 400 for the shape of a body, one word for all 400 and one for all 429."""

from typing import Any

import msgspec

from services.gateway.api.problems import Problem

WORDS = {400: "validation_error", 429: "rate_limit_exceeded"}


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    status = 400 if problem.status == 422 else problem.status
    body: dict[str, Any] = {"error": WORDS.get(status, problem.code), "message": problem.message}
    if problem.fields:
        body["details"] = msgspec.to_builtins(problem.fields)
    if "Retry-After" in problem.headers:
        body["retry_after"] = int(problem.headers["Retry-After"])
    if status >= 500:
        body["request_id"] = problem.request_id
    return status, body
