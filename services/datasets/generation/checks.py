"""What an example must be before anything learns from it: long enough, about its text, in its language, and no repetition."""

from collections.abc import Iterable

import msgspec

from libs.events.storable import why_not_storable

from .example import Example
from .language import is_telling, numbers, tell, words

SHORTEST = {"qa": 1, "instruction": 3, "summarization": 5, "summarisation": 5, "chat": 1}
"""Words of an answer."""
LONGEST = 6_000
"""Characters of an answer."""
LONGEST_QUESTION = 2_000
GROUNDED = {"qa": 0.6, "instruction": 0.55, "summarization": 0.6, "summarisation": 0.6, "chat": 0.5}
"""Share of an answer's words that its text must hold; models explain in words of their own."""
STEM = 5
"""Letters by which a word is known in another form."""


class Wrong(msgspec.Struct, frozen=True):
    """Why an example can't be used, and what the model said."""

    reason: str
    message: str
    raw: str = ""


class Ground:
    """A chunk's text, as far as answers are measured by it."""

    def __init__(self, text: str) -> None:
        self.language = tell(text, least=5)
        heard = words(text)
        self._stems = {_stem(word) for word in heard}
        self._numbers = set(numbers(text))
        self._size = len(text)

    def why_not(self, example: Example, task_type: str) -> Wrong | None:
        """The first rule that the example breaks."""
        if why := why_not_storable(example.data(task_type)):
            return Wrong("not_storable", f"{why}.")
        return (
            _first_that_is(self._too_short(turn.asked, turn.answered, task_type) for turn in example.turns)
            or _first_that_is(self._too_long(turn.asked, turn.answered, task_type) for turn in example.turns)
            or self._ungrounded(example, task_type)
            or self._foreign(example)
        )

    def _too_short(self, asked: str, answered: str, task_type: str) -> Wrong | None:
        if len(words(asked)) < 2:
            return Wrong("question_too_short", "What is asked is not even two words long.")
        if len(words(answered)) < SHORTEST[task_type]:
            return Wrong("output_too_short", f"The answer is shorter than {SHORTEST[task_type]} word(s).")
        return None

    def _too_long(self, asked: str, answered: str, task_type: str) -> Wrong | None:
        most = min(LONGEST, max(200, int(self._size * 0.8))) if task_type.startswith("summari") else LONGEST
        if len(answered) > most:
            return Wrong("output_too_long", f"The answer has {len(answered)} characters; {most} are the most here.")
        if len(asked) > LONGEST_QUESTION:
            return Wrong("output_too_long", f"What is asked has {len(asked)} characters; {LONGEST_QUESTION} are the most.")
        return None

    def _ungrounded(self, example: Example, task_type: str) -> Wrong | None:
        invented = [number for turn in example.turns for number in numbers(turn.answered) if number not in self._numbers and not _counts(number, turn.answered)]
        if invented:
            return Wrong("not_grounded", f"The text doesn't hold the number {invented[0][:40]}.")
        asked = {_stem(word) for word in words(example.asked)}
        told = [word for word in words(example.answered) if is_telling(word)]
        held = sum(_stem(word) in self._stems or _stem(word) in asked for word in told)
        if told and held < GROUNDED[task_type] * len(told):
            return Wrong("not_grounded", f"Only {held} of the answer's {len(told)} telling words are in the text.")
        if told and not any(_stem(word) in self._stems for word in told):
            return Wrong("not_grounded", "No telling word of the answer is in the text.")
        return None

    def _foreign(self, example: Example) -> Wrong | None:
        language = tell(example.answered, least=5)
        if language and self.language and language != self.language:
            return Wrong("language_mismatch", f"The answer is in another language ({language}) than the text ({self.language}).")
        return None


def _first_that_is(found: Iterable[Wrong | None]) -> Wrong | None:
    return next((wrong for wrong in found if wrong), None)


def _counts(number: str, answer: str) -> bool:
    """It numbers the lines of a list, and says nothing."""
    return any(line.strip().startswith((f"{number}. ", f"{number}) ")) for line in answer.splitlines())


def _stem(word: str) -> str:
    return word if len(word) <= STEM else word[:STEM]
