"""How many tokens a text has, by a base model's tokenizer or by an estimate."""

import os
import re
from functools import lru_cache

import msgspec
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

ESTIMATE = "estimate"
WORD = 64
_PIECES = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"  # a token each
    r"|[\p{Latin}\p{M}]{1,4}"
    r"|[\p{L}\p{M}]{1,2}"
    r"|\p{N}"
    r"|[^\s\p{L}\p{M}\p{N}]"
    r"|\s*\n\s*"
    r"|[ \t]{2,}"
)
"""A little more than what tokenizers of today make of most languages: a chunk that is counted so fits them."""
_SAMPLE = "Hello, world! It's 12 345 tests: é à — “quoted” (ok) a_b c-d e/f 3.14 don't; 5 % of 20 € … and (so on). UPPER lower CamelCase 東京 x y"
_SINGLE_BLANK = re.compile(r"(?<=\S) (?=\S)")


class Unfit(Exception):
    """What is said to be a tokenizer is none."""


class Counting:
    """`local`: what is between two blanks makes the same tokens whatever is around it, so that tokens can be counted by their places."""

    def __init__(self, tokenizer: Tokenizer, *, name: str) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the library's threads gain nothing here, and make each fork of this process a risk
        self.name = name
        self.local = _is_local(tokenizer)
        self._encode = tokenizer.encode_batch  # `encode` would hold up all other threads until it is done
        self._count_word = lru_cache(maxsize=8192)(self._count)

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends. Those that share a character have the same."""
        return self._encode([text], add_special_tokens=False)[0].offsets

    def count(self, text: str) -> int:
        """Of a word or two it is remembered: a chunk's ends are looked at more than once."""
        return self._count_word(text) if len(text) <= WORD else self._count(text)

    def _count(self, text: str) -> int:
        return len(self._encode([text], add_special_tokens=False)[0])


def estimate() -> Counting:
    """For projects without a base model, and where its tokenizer is of a kind that can't be read."""
    tokenizer = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True)
    return Counting(tokenizer, name=ESTIMATE)


def read(data: bytes, *, name: str) -> Counting:
    """A tokenizer.json, less what would make it cut, fill or roll dice."""
    try:
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(parts["model"], type=dict[str, msgspec.Raw])
        if "dropout" in model:
            parts["model"] = msgspec.Raw(msgspec.json.encode({**model, "dropout": None}))
        tokenizer = Tokenizer.from_str(msgspec.json.encode({**parts, "truncation": None, "padding": None}).decode())
        return Counting(tokenizer, name=name)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # what the library, which isn't Python, calls an error of its own
            raise Unfit(str(error)[:200]) from None
        raise


def _is_local(tokenizer: Tokenizer) -> bool:
    """As far as a sample of all kinds of characters can tell."""
    before, normalizer = tokenizer.pre_tokenizer, tokenizer.normalizer
    if before is None:
        return False

    def words(text: str) -> list[str]:
        return [word for word, _ in before.pre_tokenize_str(normalizer.normalize_str(text) if normalizer else text)]

    whole = words(_SAMPLE)
    if any(blank in word[1:] for word in whole for blank in " \u0120\u2581"):
        return False
    return all(whole[-len(rest) :] == rest for found in _SINGLE_BLANK.finditer(_SAMPLE) if (rest := words(_SAMPLE[found.start() :])))
