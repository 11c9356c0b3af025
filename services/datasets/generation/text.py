"""A chunk's text as a reader sees it: sections with their headings, paragraphs and lists, without tables and code."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from .language import sentences

_MARKED = re.compile(r"^#{1,6}\s+(.+?)\s*#*$")
_NUMBERED = re.compile(
    r"^(?:(?:chapter|chapitre|section|article|annexe?|kapitel|part|partie)\s+\S+|\d+(?:\.\d+)*\.?|[IVX]+\.)\s*[-–—:.]?\s*(\S.{1,80})$", re.IGNORECASE
)
_COUNTED = re.compile(r"^(?:\d+(?:\.\d+)*[.)]?|[IVX]+\.)\s+(?=\S)")
_UNDERLINE = re.compile(r"^[=-]{3,}$")
_ITEM = re.compile(r"^\s*(?:[-*•‣▪–—+]|\(?\d{1,2}[.)]|[a-z]\))\s+(\S.*)$")
_EMPHASIS = re.compile(r"(\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w))")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\([^()]{0,300}\)")
_DRAWN = re.compile(r"([^\w\s])\1{4,}")
"""Lines of dots, dashes or stars, as in tables of contents."""
_WHOLE = re.compile(r"^[\"“«(]?\s?[A-ZÀ-ÖØ-ÞĀ-Ž0-9].*[.!?…][\"”»)]?$", re.DOTALL)
_SENTENCE_END = (".", "!", "?", "…", ":", ";", ",")
HEADING = 90
"""Characters that one has at most."""


class Paragraph(msgspec.Struct, frozen=True, kw_only=True):
    sentences: list[str]


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What several lines in a row enumerate."""

    lead: str
    """The sentence before it."""
    items: list[str]

    @property
    def prose(self) -> list[str]:
        return [sentence for item in self.items for sentence in sentences(item) if is_whole(sentence)]


class Section(msgspec.Struct, kw_only=True):
    heading: str
    """Empty where the text has none."""
    blocks: list[Paragraph | Listing]
    starts: bool = True
    """Its heading is in the text."""

    @property
    def sentences(self) -> list[str]:
        """Of its paragraphs, and of its lists as far as they are prose."""
        return [sentence for block in self.blocks for sentence in (block.sentences if isinstance(block, Paragraph) else block.prose)]


def read(text: str, *, headings: Sequence[str] = ()) -> list[Section]:
    """`headings` are those that the chunk is known to stand under or to hold; the last one of those that aren't in the text opens it."""
    known = {_plain(heading).casefold() for heading in headings}
    above = [heading for heading in headings if heading not in text]
    sections = [Section(heading=_title(above[-1]) if above else "", blocks=[], starts=False)]
    for block in _blocks(text, known):
        if isinstance(block, str):
            sections.append(Section(heading=_title(block), blocks=[]))
        else:
            sections[-1].blocks.append(block)
    return [section for section in sections if section.blocks]


def is_whole(sentence: str) -> bool:
    """Neither its beginning nor its end is in another chunk, and it is prose."""
    letters = sum(character.isalpha() or character.isspace() for character in sentence)
    return bool(_WHOLE.match(sentence)) and letters >= 0.75 * len(sentence) and 4 <= len(sentence.split()) <= 90


def _blocks(text: str, known: set[str]) -> Iterator[str | Paragraph | Listing]:
    held: list[str] = []
    items: list[str] = []
    lead = ""
    lines = _without_code(_DRAWN.sub(r"\1\1\1 ", text).splitlines())
    behind = _following(lines)
    for n, line in enumerate([*lines, ""]):
        stripped = line.strip()
        following = behind[n]
        alone = (n == 0 or not lines[n - 1].strip()) and (n + 1 >= len(lines) or not lines[n + 1].strip())
        item = _ITEM.match(line)
        heading = _heading(stripped, following, known, alone=alone) if not item or (alone and len(stripped) <= HEADING and _NUMBERED.match(stripped)) else ""
        if item and not heading:
            if held:
                lead = _flushed(held)[-1]
                yield Paragraph(sentences=_flushed(held))
                held = []
            items.append(_plain(item.group(1)))
            continue
        if items and stripped and line[:1].isspace() and lines[n - 1].strip() and not heading:
            items[-1] += f" {_plain(stripped)}"
            continue
        if items and (stripped or n == len(lines)):
            yield Listing(lead=lead, items=items)
            items, lead = [], ""
        if held and (heading or not stripped):
            lead = _flushed(held)[-1]
            yield Paragraph(sentences=_flushed(held))
            held = []
        if heading:
            lead = ""
            yield heading
        elif stripped and not stripped.startswith("|") and not _UNDERLINE.match(stripped):
            held.append(_plain(stripped))


def _following(lines: list[str]) -> list[str]:
    """For each line, and for the end, the next that isn't empty."""
    found = [""]
    for line in reversed(lines[1:]):
        found.append(line.strip() or found[-1])
    return [*reversed(found), ""] if lines else found


def _heading(line: str, following: str, known: set[str], *, alone: bool) -> str:
    if len(line) > 2 * HEADING:
        return ""
    if marked := _MARKED.match(line):
        return _plain(marked.group(1))
    plain = _plain(line)
    if alone and following and len(plain.split()) <= 8 and plain.endswith(".") and _NUMBERED.match(plain):
        return plain.rstrip(".")
    if not plain or len(plain) > HEADING or plain.endswith(_SENTENCE_END):
        return ""
    if plain.casefold() in known or _UNDERLINE.match(following):
        return plain
    if alone and following and len(plain.split()) <= 12 and (plain[0].isupper() or plain[0].isdigit()):
        return plain
    return ""


def _flushed(lines: list[str]) -> list[str]:
    """Words that were divided at the end of a line are whole again."""
    return sentences(re.sub(r"(?<=[^\W\d_])-\n(?=[a-zà-ÿ])", "", "\n".join(lines)))


def _without_code(lines: list[str]) -> list[str]:
    kept: list[str] = []
    fenced = False
    for line in lines:
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced:
            kept.append(line)
    return kept


def _title(heading: str) -> str:
    """Without its number."""
    return _COUNTED.sub("", _plain(heading)) or _plain(heading)


def _plain(text: str) -> str:
    """Without markdown."""
    return " ".join(_EMPHASIS.sub("", _LINK.sub(r"\1", text)).split()).replace("\0", "")
