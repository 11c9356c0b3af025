"""What a merge tells of itself, in words. Its figures come from a process that loads strangers' models, and are taken as figures only."""

from collections.abc import Iterator
from typing import Any

from .markdown import table, text
from .run import Run
from .wording import number


def told(run: Run) -> Iterator[str]:
    merge = run.merged
    precision = text(str(merge.get("dtype", "")))
    yield (
        f"The adapter was added to the {number(merge.get('layers'))} layers of the base model that it belongs to, in float32, and rounded once to {precision}, "
        "which is what the base model is published in. The folder was then loaded again, as somebody would who has nothing but transformers, and compared:"
    )
    rows = [
        ("Tensors, all as they were merged, none missing and none left over", number(merge.get("tensors"))),
        ("Logits, apart from base and adapter (relative)", _small(merge.get("logits_difference"))),
        (f"What rounding to {precision} may come to", _small(merge.get("tolerance"))),
        ("What the adapter changes (relative)", _small(merge.get("effect"))),
        ("Places where both find the same token the likeliest", _share(merge.get("same_first_choice"))),
        ("Tokens on which they were compared", number(merge.get("tokens_compared"))),
    ]
    yield table(["", ""], rows)
    if isinstance(seen := merge.get("seen_by_the_run"), dict):
        yield (
            "The run saw its base model in 4 bits; the merged model rests on the published one. "
            f"Its logits are {_small(seen.get('logits_difference'))} apart from those of base and adapter as the run had them (relative), "
            f"and both find the same token the likeliest at {_share(seen.get('same_first_choice'))} of the places. "
            "That is the difference between the two bases. Whether it is for the better, held-out rows say."
        )
    warnings = merge.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        yield f"Note: {text(str(warning), most=500)}"


def _small(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, int | float) else "—"


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "—"
