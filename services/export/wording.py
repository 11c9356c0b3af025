"""Figures and settings in the words of a report."""

from typing import Any

from .markdown import text
from .run import Run

SMOKE = "This is a smoke run"
"""As the trainer's own warning begins, which says no more than ours."""


def method(run: Run) -> str:
    match run.tuning.method:
        case "lora":
            return f"LoRA of rank {run.tuning.lora_r}"
        case "qlora":
            return f"QLoRA of rank {run.tuning.lora_r}"
        case "full":
            return "All weights trained"


def cautions(run: Run) -> list[str]:
    """What whoever uses the model should know first."""
    warnings = run.summary.get("warnings")
    said = [text(str(warning), most=500) for warning in warnings] if isinstance(warnings, list) else []
    if run.tuning.smoke:
        said = [warning for warning in said if not warning.startswith(SMOKE)]
        said.insert(0, "**The weights are worthless.** This was a smoke run: the base model was replaced by a tiny random one of the same architecture.")
    if not run.preparation.splits.get("eval"):
        said.append("No rows were held out, so nothing says how the model does on text that it was not trained on.")
    return said


def spelled(value: Any) -> str:
    match value:
        case str():
            return text(value)
        case bool() | None:
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case dict():
            return ", ".join(f"{text(str(name).replace('_', ' '))}: {spelled(one)}" for name, one in value.items())
        case list():
            return ", ".join(spelled(one) for one in value)
        case _:
            return text(str(value))


def number(value: Any) -> str:
    match value:
        case bool() | None:
            return "—"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
        case _:
            return text(str(value))


def change(old: float | None, new: float | None) -> str:
    if old is None or new is None or old == 0:
        return ""
    return f"{(new - old) / abs(old):+.1%}"


def duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{seconds:.1f} s"


def block(language: str, *content: str) -> str:
    return "\n".join([f"```{language}", *content, "```"])
