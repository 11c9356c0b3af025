"""Conversations as a model's chat template writes them, and which part of the text the assistant said.

A template is a stranger's program: it runs in transformers' sandbox, in a process with little time and memory.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jinja2
import msgspec
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .limited import Broken, OutOfBounds, limited
from .outcome import Failure, plain
from .rows import Messages, Tools

Conversation = tuple[Messages, Tools | None]

PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models that come without a template: `User: …` and `Assistant: …`, the end-of-text token behind what the assistant says."""
MEGABYTES = 1024
SECONDS = 20
PER_MESSAGE = 0.0005
"""Seconds for writing one message: ten times what elaborate templates take."""
GROWTH = 50
"""A template may make a conversation this much longer, and a hundred thousand characters more."""


class Written(msgspec.Struct, frozen=True, array_like=True):
    """A conversation as text. `said` are the borders of what the assistant said; empty when the template doesn't let it be told."""

    text: str
    said: list[tuple[int, int]] = []
    prompt: str = ""
    """Everything up to the assistant's last turn, as the model will see it when it is asked."""
    refused: str = ""
    """Why the template doesn't want this conversation."""
    system_moved: bool = False
    untold: int = 0
    """Turns of the assistant whose borders can't be told, and that are not learned therefore."""


def give_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model came without one. From here on it has one, which is saved along with it."""
    if tokenizer.chat_template:
        return False
    first = tokenizer("").input_ids[:1]
    tokenizer.chat_template = ("{{ bos_token }}" if first and first[0] == tokenizer.bos_token_id else "") + PLAIN
    return True


def write(conversations: list[Conversation], tokenizer: PreTrainedTokenizerBase, *, heed: Callable[[], None]) -> Iterator[Written]:
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise Failure("model", f"The model's chat template can't be used: {error}") from error
    render = partial(_render, template=template, special=dict(tokenizer.special_tokens_map))
    seconds = SECONDS + int(PER_MESSAGE * sum(len(messages) ** 2 for messages, _ in conversations))
    try:
        yield from (
            msgspec.convert(item, Written)
            for item in limited(lambda: map(partial(_written, render=render), conversations), seconds=seconds, megabytes=MEGABYTES, heed=heed)
        )
    except OutOfBounds as why:
        raise Failure("model", f"The model's chat template can't be used: {why} on this dataset.") from why
    except Broken as why:
        raise Failure("model", f"The model's chat template can't be used: {plain(str(why))}") from why


Render = Callable[[Messages, bool], str]


def _render(messages: Messages, prompting: bool, *, tools: Tools | None, template: str, special: dict[str, str]) -> str:
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    names: dict[str, Any] = {**special, "tools": tools}
    ((text,), _) = render_jinja_template(conversations=[given], chat_template=template, add_generation_prompt=prompting, **names)
    if len(text) > 100_000 + GROWTH * sum(len(str(thing)) for thing in (*messages, *(tools or ()))):
        raise ValueError(f"it makes {len(text)} characters of a conversation with {len(messages)} messages")
    return text


def _written(conversation: Conversation, *, render: Callable[..., str]) -> Written:
    messages, tools = conversation
    render = partial(render, tools=tools)
    try:
        return _with_borders(messages, render)
    except (jinja2.TemplateSyntaxError, jinja2.exceptions.SecurityError):
        raise
    except jinja2.TemplateError as why:
        if messages[0]["role"] == "system" and len(messages) > 1:
            return _without_system(messages, render)
        return Written(text="", refused=plain(str(why))[:200])
    except (TypeError, AttributeError, LookupError) as why:  # as templates are, when a row has something that they didn't think of
        return Written(text="", refused=plain(f"{type(why).__name__}: {why}")[:200])


def _without_system(messages: Messages, render: Render) -> Written:
    """Some templates know no system: what it says goes before what the user says first."""
    system, first, *others = messages
    merged = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
    try:
        return msgspec.structs.replace(_with_borders(merged, render), system_moved=True)
    except jinja2.TemplateError as why:
        return Written(text="", refused=plain(str(why))[:200])


def _with_borders(messages: Messages, render: Render) -> Written:
    """By the difference of prefixes, which needs nothing of the template but that it writes turn by turn."""
    text = render(messages, False)
    said: list[tuple[int, int]] = []
    prompt = ""
    untold = 0
    for n, message in enumerate(messages):
        if message["role"] != "assistant" or n == 0:
            continue
        before = _prefix(text, messages[:n], render, prompting=True)
        through = text if n + 1 == len(messages) else _prefix(text, messages[: n + 1], render, prompting=False)
        prompt = before or ""
        if before is not None and through is not None and len(before) < len(through):
            said.append((len(before), len(through)))
        else:
            untold += 1
    return Written(text=text, said=said, prompt=prompt, untold=untold)


def _prefix(text: str, messages: Messages, render: Render, *, prompting: bool) -> str | None:
    """None when the whole doesn't begin so."""
    try:
        part = render(messages, prompting)
    except jinja2.TemplateError:
        return None
    return part if text.startswith(part) else None
