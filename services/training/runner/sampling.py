"""What a model says to a few prompts: greedy and short, so that two moments of a run can be compared."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .examples import Prompt
from .outcome import plain

NEW_TOKENS = 48
LONGEST_PROMPT = 1024
CUT_SHORT = " …"
"""Behind a completion for which the time was up."""


class OutOfTime(Exception):
    """What was said so far must do."""


def samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], *, longest: int, seconds: float, heed: Callable[[], None]
) -> list[dict[str, Any]]:
    """Each prompt has its share of the time, and what the ones before it left of theirs."""
    training = model.training
    model.eval()
    ends = time.monotonic() + seconds
    said: list[dict[str, Any]] = []
    try:
        for left, prompt in zip(range(len(prompts), 0, -1), prompts, strict=True):
            now = time.monotonic()
            completion = _completion(model, tokenizer, prompt.text, longest, _until(now + (ends - now) / left, heed))
            said.append({"prompt": prompt.asked, "completion": completion, "expected": prompt.expected, "example_id": prompt.row})
        return said
    finally:
        model.train(training)


def _until(deadline: float, heed: Callable[[], None]) -> Callable[[], None]:
    def look() -> None:
        heed()
        if time.monotonic() > deadline:
            raise OutOfTime

    return look


def _completion(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, longest: int, heed: Callable[[], None]) -> str:
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"].long()
    room = max(1, min(LONGEST_PROMPT, longest - NEW_TOKENS))
    asked = ids[:, -room:].to(model.device)
    most = min(NEW_TOKENS, longest - asked.shape[1])
    ends = _ends(model, tokenizer)
    said: list[int] = []
    over = ""
    try:
        try:
            _greedy(model, asked, ends, most, heed, said, cached=True)
        except (TypeError, ValueError, AttributeError):  # not every architecture has a cache that can be handed around like this
            said.clear()
            _greedy(model, asked, ends, most, heed, said, cached=False)
    except OutOfTime:
        over = CUT_SHORT
    return plain(str(tokenizer.decode(said, skip_special_tokens=True))) + over


@torch.no_grad()
def _greedy(model: PreTrainedModel, ids: Tensor, ends: set[int], most: int, heed: Callable[[], None], said: list[int], *, cached: bool) -> None:
    cache: Any = None
    for _ in range(most):
        heed()
        out = model(input_ids=ids, use_cache=cached) if cache is None else model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = getattr(out, "past_key_values", None) if cached else None
        token = int(out.logits[0, -1].argmax())
        if token in ends:
            break
        said.append(token)
        ids = torch.cat([ids, ids.new_tensor([[token]])], dim=1)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    several = configured if isinstance(configured, list) else [configured]
    return {end for end in (*several, tokenizer.eos_token_id) if isinstance(end, int)}
