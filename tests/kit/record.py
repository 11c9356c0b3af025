"""What clients sent and what they were answered: the other half of the truth, next to the log."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Op:
    """One command, sent until it was answered. `token` is what its fact can be told by: a unique name, a digest, an id."""

    kind: str
    token: str
    method: str
    path: str
    key: str = ""
    if_match: int | None = None
    body: Any = None
    of: str = ""
    """What it is about, where the path doesn't say it."""
    status: int = 0
    """Of the last answer that settles something; 0 when none came."""
    answer: Any = None
    version: int = 0
    """Of the answer's ETag."""
    doubtful: bool = False
    """At least one try may have come through although nobody said so."""
    tries: int = 0
    odd: list[str] = field(default_factory=list)
    """Answers that nobody should ever get."""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """Certainly not done: said so, and no earlier try was lost sight of."""
        return 400 <= self.status < 500 and not self.doubtful

    def __str__(self) -> str:
        return f"{self.method} {self.path} [{self.token[:60]}] -> {self.status or 'no answer'}{' (after doubtful tries)' if self.doubtful else ''}"
