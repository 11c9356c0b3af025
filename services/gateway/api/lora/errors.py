"""`{code, message, timestamp}`; 400 for the shape of a body."""

from datetime import UTC, datetime
from typing import Any

from services.gateway.api.problems import Problem

CODES = {"rate_limit_exceeded": "RATE_LIMITED"}
"""What the document words otherwise than we do."""


def dress(problem: Problem) -> tuple[int, dict[str, Any]]:
    status = 400 if problem.status == 422 else problem.status
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return status, {"code": CODES.get(problem.code) or problem.code.upper(), "message": problem.message, "timestamp": now}
