"""As Django REST framework says it: `{field: [message]}` or `{detail}`; 400 for the shape of a body."""

from typing import Any

from services.gateway.api.problems import Problem


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    status = 400 if problem.status == 422 else problem.status
    if problem.fields:
        return status, {field.field: [field.message] for field in problem.fields}
    body = {"detail": problem.message}
    if status == 401:
        body["code"] = "token_not_valid" if problem.code == "unauthorized" else problem.code
    return status, body
