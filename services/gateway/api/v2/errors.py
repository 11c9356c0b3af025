"""RFC 9457: problem+json."""

from typing import Any

import msgspec

from services.gateway.api.problems import Problem


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    body: dict[str, Any] = {
        "type": f"urn:trainyard:problem:{problem.code}",
        "title": problem.code.replace("_", " "),
        "status": problem.status,
        "detail": problem.message,
    }
    if problem.fields:
        body["errors"] = msgspec.to_builtins(problem.fields)
    return problem.status, body
