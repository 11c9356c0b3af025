"""`{detail, error_code, context}`; 422 for the shape of a body."""

from typing import Any

import msgspec

from services.gateway.api.problems import Problem


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    context = problem.context | ({"errors": msgspec.to_builtins(problem.fields)} if problem.fields else {})
    return problem.status, {"detail": problem.message, "error_code": problem.code.upper(), "context": context}
