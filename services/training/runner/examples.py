"""Rows as tokens, and which of them are learned."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from . import chat
from .outcome import Failure, plain
from .rows import Row

AT_ONCE = 256
SAMPLES = 3


class Example(NamedTuple):
    ids: Tensor
    """int32."""
    learned: Tensor
    """Positions in `ids` of the tokens that the model learns to foretell; never 0."""


class Prompt(NamedTuple):
    asked: str
    """As a person reads it."""
    text: str
    """As the model sees it."""
    expected: str
    row: str
    """The example's id."""


class Examples(NamedTuple):
    train: list[Example]
    held_out: list[Example]
    prompts: list[Prompt]
    counts: dict[str, int]
    warnings: list[str]


class Reading(NamedTuple):
    """A row as it was read: what of it is learned, and whatever of it is not."""

    row: Row
    text: chat.Written
    tokens: "Tokens"
    learned: list[int]
    """Empty: the row is left out."""


Progress = Callable[[int, int], None]


def examples(
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    everything: bool,
    heed: Callable[[], None],
    progress: Progress,
    seen: Callable[[Reading], None] = lambda _: None,
) -> Examples:
    """Refuses what nothing can be learned from, before a model is loaded. `seen` is told of each row that the chat template takes."""
    counts: Counter[str] = Counter()
    warnings: list[str] = []
    if any(isinstance(row.content, list) for row in rows) and chat.give_template(tokenizer):
        warnings.append("The model has no chat template; a plain one is used and saved with it: 'User: …', 'Assistant: …'.")
    if any(isinstance(row.content, str) for row in rows) and not isinstance(tokenizer.eos_token_id, int):
        warnings.append("The model's tokenizer has no end-of-text token, so texts are learned without an end.")
    found: dict[str, list[Example]] = {"train": [], "eval": []}
    prompts: dict[str, list[Prompt]] = {"train": [], "eval": []}
    done, refusal = 0, ""
    for part in _parts(_texts(rows, tokenizer, heed), AT_ONCE):
        heed()
        for row, text, tokens in _encoded(part, tokenizer):
            split = "eval" if row.split == "eval" else "train"
            if text.refused:
                counts["refused"] += 1
                refusal = refusal or text.refused
                continue
            learned = tokens.learned(text, everything=everything)
            if learned is None:
                counts["unstable"] += 1
                learned = range(1, len(tokens.ids))
            elif text.untold and not everything:
                counts["untold"] += 1
            within = [place for place in learned if 0 < place < longest]
            counts["system_moved"] += text.system_moved
            counts["truncated"] += len(tokens.ids) > longest
            seen(Reading(row, text, tokens, within))
            if not within:
                counts["unsupervised"] += 1
                continue
            found[split].append(Example(torch.tensor(tokens.ids[:longest], dtype=torch.int32), torch.tensor(within, dtype=torch.int32)))
            if len(prompts[split]) < SAMPLES:
                prompts[split] += _prompts(row, text)
        done += len(part)
        progress(done, len(rows))
    if not found["train"]:
        raise Failure("data", _nothing(len(rows), counts, longest, refusal))
    counts["train_rows"], counts["eval_rows"] = len(found["train"]), len(found["eval"])
    counts["train_tokens"] = sum(len(example.ids) for example in found["train"])
    counts["supervised_tokens"] = sum(len(example.learned) for example in found["train"])
    warnings += _warnings(counts, longest, refusal)
    return Examples(found["train"], found["eval"], prompts["eval"] or prompts["train"], dict(counts), warnings)


def _texts(rows: list[Row], tokenizer: PreTrainedTokenizerBase, heed: Callable[[], None]) -> Iterator[tuple[Row, chat.Written]]:
    conversations: list[chat.Conversation] = [(row.content, row.tools) for row in rows if isinstance(row.content, list)]
    written = chat.write(conversations, tokenizer, heed=heed) if conversations else iter(())
    for row in rows:
        yield row, chat.Written(text=row.content) if isinstance(row.content, str) else next(written)


def _parts(items: Iterator[tuple[Row, chat.Written]], size: int) -> Iterator[list[tuple[Row, chat.Written]]]:
    part: list[tuple[Row, chat.Written]] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _encoded(part: list[tuple[Row, chat.Written]], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Row, chat.Written, "Tokens"]]:
    """Plain text begins and ends with the tokenizer's own marks; a conversation has those of the template."""
    texts = [text.text for _, text in part]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for n, (row, text) in enumerate(part):
        if isinstance(row.content, list):
            yield row, text, Tokens(tokenizer, encoded, n, texts[n])
        else:
            own = tokenizer([text.text], return_attention_mask=False, verbose=False)
            yield row, text, Plain(tokenizer, own, 0, text.text)


class Tokens:
    """One row of an encoded batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, n: int, text: str) -> None:
        self.ids: list[int] = encoded["input_ids"][n]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
        self._encoded_length = len(self.ids)
        self._tokenizer = tokenizer
        self._encoded = encoded
        self._n = n
        self._text = text

    def learned(self, written: chat.Written, *, everything: bool) -> Iterable[int] | None:
        """None when what the assistant said can't be told from the rest."""
        if everything:
            return range(len(self.ids))
        of = self._by_place if self._encoded.is_fast else self._by_counting
        return [place for start, end in written.said for place in range(*of(start, end))] or None

    def begins(self, written: chat.Written) -> dict[int, int]:
        """Where in the text tokens begin, of all that stand for some of it; with tokenizers that don't tell, of those at the borders of what the assistant said."""
        if not self._encoded.is_fast:
            return {token: place for start, end in written.said for token, place in zip(self._by_counting(start, end), (start, end), strict=True) if token}
        spans = enumerate(self._encoded.token_to_chars(self._n, token) for token in range(self._encoded_length))
        return {token: span.start for token, span in spans if span}

    def mark(self, token: int, begins: dict[int, int]) -> str:
        """What this token stands for, if that is not in the text."""
        return ""

    def _by_place(self, start: int, end: int) -> tuple[int, int]:
        """The tokens of text[start:end]. One that reaches over the beginning belongs to what came before."""
        first = self._at(start)
        if first is None:
            return 0, 0
        span = self._encoded.token_to_chars(self._n, first)
        if span is not None and span.start < start:
            first += 1
        after = self._at(end)
        return first, len(self.ids) if after is None else after

    def _at(self, start: int) -> int | None:
        """White space may belong to no token."""
        places = range(start, len(self._text))
        return next((token for place in places if (token := self._encoded.char_to_token(self._n, place)) is not None), None)

    def _by_counting(self, start: int, end: int) -> tuple[int, int]:
        """For tokenizers that don't tell where a token comes from."""
        before = self._tokenizer(self._text[:start], add_special_tokens=False).input_ids
        through = self._tokenizer(self._text[:end], add_special_tokens=False).input_ids
        return (len(before), len(through)) if self.ids[: len(before)] == before and self.ids[: len(through)] == through else (0, 0)


class Plain(Tokens):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, n: int, text: str) -> None:
        super().__init__(tokenizer, encoded, n, text)
        end = tokenizer.eos_token_id
        if isinstance(end, int) and self.ids[-1:] != [end]:
            self.ids = [*self.ids, end]

    def mark(self, token: int, begins: dict[int, int]) -> str:
        added = token >= self._encoded_length or (self._encoded.is_fast and token not in begins)
        return str(self._tokenizer.convert_ids_to_tokens(self.ids[token])) if added else ""

    def learned(self, written: chat.Written, *, everything: bool) -> Iterable[int]:
        return range(len(self.ids))


def _prompts(row: Row, text: chat.Written) -> Iterator[Prompt]:
    if isinstance(row.content, str):
        half = row.content[: max(1, min(200, len(row.content) // 2))]
        yield Prompt(asked=plain(half), text=half, expected=plain(row.content[len(half) :][:500]), row=row.id)
    elif text.prompt and row.content[-1]["role"] == "assistant":
        asked, expected = (plain(str(turn["content"]))[:2000] for turn in row.content[-2:])
        yield Prompt(asked=asked, text=text.prompt, expected=expected, row=row.id)


def _nothing(rows: int, counts: Counter[str], longest: int, refusal: str) -> str:
    if not rows:
        return "The dataset has no rows."
    if counts["refused"]:
        return f"The model's chat template refuses the rows: {refusal}"
    if counts["truncated"]:
        return f"No row has a token to learn from within the first {longest} tokens; raise max_seq_length or shorten the prompts."
    return "No row of the split 'train' has a token to learn from."


def _warnings(counts: Counter[str], longest: int, refusal: str) -> Iterator[str]:
    if counts["truncated"]:
        yield f"{counts['truncated']} rows are longer than {longest} tokens; what is beyond is left out."
    if counts["unsupervised"]:
        yield f"{counts['unsupervised']} rows have no token to learn from and are left out."
    if counts["refused"]:
        yield f"The model's chat template refuses {counts['refused']} rows, which are left out: {refusal}"
    if counts["unstable"]:
        yield f"The model's chat template doesn't write turn by turn, so {counts['unstable']} rows are learned whole, prompts too."
    if counts["untold"]:
        yield f"In {counts['untold']} rows the model's chat template writes some earlier turns of the assistant in two ways, so these turns are not learned."
    if counts["system_moved"]:
        yield f"The model's chat template knows no system message; in {counts['system_moved']} rows it was put before the first question."
