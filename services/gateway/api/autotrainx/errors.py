"""`{success: false, error_code, message, details, timestamp}`; 422 for the shape of a body."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from services.gateway.api.problems import Problem


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    details = problem.context | ({"errors": msgspec.to_builtins(problem.fields)} if problem.fields else {})
    now = datetime.now(UTC).isoformat()
    return problem.status, {"success": False, "error_code": _code(problem), "message": problem.message, "details": details, "timestamp": now}


def _code(problem: Problem) -> str:
    """What is not there is named: JOB_NOT_FOUND."""
    what = f"{problem.context.get('what', '')}_" if problem.code == "not_found" else ""
    return (what.replace(" ", "_") + problem.code).removeprefix("_").upper()
