"""What the model says to a few prompts, before and after, side by side: for the report and for the model card."""

from collections.abc import Iterator
from typing import Any

import msgspec

from .markdown import lines, table
from .run import Run

MOST = 10
"""Prompts that are shown."""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
    before: str | None
    after: str
    expected: str


def said(run: Run) -> list[Said]:
    """Runs of earlier versions told what came before in a fact of its own."""
    if not run.samples:
        return []
    last = run.samples[-1].samples
    earlier = {_prompt(sample): _text(sample, "completion") for sample in run.samples[0].samples} if len(run.samples) > 1 else {}
    return [
        Said(
            prompt=(prompt := _prompt(sample)),
            before=_text(sample, "before") if "before" in sample else earlier.get(prompt),
            after=_text(sample, "completion"),
            expected=_text(sample, "expected"),
        )
        for sample in last[:MOST]
    ]


def shown(run: Run) -> Iterator[str]:
    told = said(run)
    if told:
        yield _table(told)
    if run.withheld:
        yield f"Left out: {run.withheld} whose examples were deleted, or taken out of the data set, since the training."


def _table(told: list[Said]) -> str:
    compared = any(one.before is not None for one in told)
    columns = [
        ("Prompt", [lines(one.prompt, most=1000) for one in told]),
        ("Before", ["—" if one.before is None else lines(one.before) for one in told] if compared else []),
        ("After" if compared else "Says", [lines(one.after) for one in told]),
        ("Expected", [lines(one.expected) for one in told]),
    ]
    there = [(name, cells) for name, cells in columns if any(cells)]
    return table([name for name, _ in there], zip(*(cells for _, cells in there), strict=True))


def _text(sample: dict[str, Any], name: str) -> str:
    return str(sample.get(name) or "")


def _prompt(sample: dict[str, Any]) -> str:
    match sample.get("prompt", sample.get("messages", "")):
        case str(prompt):
            return prompt
        case list(messages):
            return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" if isinstance(message, dict) else str(message) for message in messages)
        case other:
            return str(other)
