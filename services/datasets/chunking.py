"""Blocks of text become chunks of at most so many tokens, cut where a reader would: the same chunks from the same blocks."""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from .counting import Counting
from .documents.blocks import Block

PIECE = 64 * 1024
"""Characters that are made into tokens at once, and once: the tokens of a chunk are counted by their places in it."""
AHEAD = 64
"""Tokens to be seen beyond a chunk's end."""
PER_TOKEN = 32
"""Most characters of a chunk for each of its tokens: tokenizers make one of a whole line of blanks."""
CONTEXT = 256
"""Characters from a chunk's end in which a blank is looked for."""
TRIES = 4
"""Of each kind of border, for where an overlap could begin."""
HEADING, PARAGRAPH, WITHIN = 2, 1, 0
"""What begins at a block. A block under its heading stays with it where it can."""

_SENTENCE = re.compile(r"""[.!?…؟۔।]+(?:[ \u00a0\u202f]?[»”"'’)\]])*\s+(?=\S)|[。！？｡]+[」』”’）】》]*\s*(?=\S)""")  # noqa: RUF001  # many scripts
"""Its end, up to where the next begins."""
_ABBREVIATION = re.compile(
    r"\b(?:[^\W\d_]|Mme|Mlle|MM|Mr|Mrs|Ms|Dr|Pr|Prof|Ste?|[Nn]os?|[Aa]rt|[Cc]hap|[Ff]ig|pp|vol|cf|vs|env|e\.g|i\.e|[Nn]r|[Aa]bb|bzw|ca|approx)\.\s+\Z"
)
_BLANKS = (" ", "\n", "\t", "\u3000")
_JOINERS = "\u200d\ufe0e\ufe0f"


class Chunk(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    content: str
    tokens: int
    page_start: int | None
    page_end: int | None
    headings: tuple[str, ...]


def chunks(blocks: Iterable[Block], counting: Counting, *, size: int, overlap: int) -> Iterator[Chunk]:
    """In order. Each but the first begins with up to `overlap` tokens of the one before, in whole sentences where there are any, but never across a heading."""
    window = _Window(blocks, counting, piece=max(PIECE, 16 * size))
    start = new = window.skip_blanks(0)
    while new < len(window.text):
        window.reach(start, size + AHEAD)
        start, new = window.forget(start, new)
        end, tokens = _end(window, start, new, size)
        if end <= new:  # the overlap left no room for anything new
            start = new
            end, tokens = _end(window, start, new, size)
        yield Chunk(
            content=window.text[start:end],
            tokens=tokens,
            page_start=window.block(start).page,
            page_end=window.block(end - 1).page,
            headings=window.block(new).headings,
        )
        new = window.skip_blanks(end)
        start = _start(window, start, end, new, overlap)


def _end(window: "_Window", start: int, new: int, size: int) -> tuple[int, int]:
    """The furthest good border that the size allows, and how many tokens there are up to it. `new` itself where there is none."""
    room = size
    while room > 0:
        end = _border(window, start, new, min(window.place(start, room), start + PER_TOKEN * size))
        tokens = window.count(start, end)
        if tokens <= size:
            return end, tokens
        room -= tokens - size
    end = new + (start == new)
    return end, window.count(start, end)


def _border(window: "_Window", start: int, new: int, last: int) -> int:
    """Up to `last`, and beyond `new`."""
    text = window.text
    if last >= len(text):
        return _stripped(text, new, len(text))
    until = last
    while until < len(text) and text[until].isspace():
        until += 1
    half, quarter = max(new, start + (last - start) // 2), max(new, start + (last - start) // 4)
    cut = (
        window.mark(HEADING, half, until)
        or window.mark(PARAGRAPH, half, until)
        or max(_sentences(text, quarter, until), default=0)
        or _line(text, quarter, until)
        or max(text.rfind(blank, new + 1, last + 1) for blank in _BLANKS)
    )
    return _stripped(text, new, cut if cut > new else _whole(text, new, last))


def _start(window: "_Window", start: int, end: int, new: int, overlap: int) -> int:
    """Where the next chunk begins: with the last sentences of this one, else with its last words, or where that isn't wanted with what is new."""
    text = window.text
    if not overlap or new >= len(text) or window.mark(HEADING, new - 1, new):
        return new
    low = window.place_back(end, overlap, above=start)
    sentences = sorted({*_sentences(text, low - 1, end - 1), *window.marks_within(low, end)})
    words = (found.end() for found in re.compile(r"\s+").finditer(text, max(low - 1, start), end))
    for borders in (sentences, words, range(low, end)):
        for _, border in zip(range(TRIES), borders, strict=False):
            if start < border < end and _whole(text, start, border) == border and window.count(border, end) <= overlap:
                return border
    return new


def _sentences(text: str, above: int, until: int) -> Iterator[int]:
    """Where sentences begin in ]above, until]."""
    for found in _SENTENCE.finditer(text, max(0, above - CONTEXT), until + 1):
        begins = found.end()
        if begins > above and begins <= until and not _goes_on(text, found):
            yield begins


def _goes_on(text: str, found: re.Match[str]) -> bool:
    """An abbreviation, or a full stop within a sentence."""
    if not text[found.end() - 1].isspace():
        return False
    return text[found.end()].islower() or (text[found.start()] == "." and _ABBREVIATION.search(text, max(0, found.start() - 12), found.end()) is not None)


def _line(text: str, above: int, until: int) -> int:
    """After the last line that ends there."""
    return text.rfind("\n", above + 1, until) + 1


def _whole(text: str, above: int, at: int) -> int:
    """Not within what looks like one character."""
    while at > above + 1 and at < len(text) and (unicodedata.combining(text[at]) or text[at] in _JOINERS or text[at - 1] == "\u200d"):
        at -= 1
    return at


def _stripped(text: str, above: int, end: int) -> int:
    while end > above + 1 and text[end - 1].isspace():
        end -= 1
    return end


class _Piece(msgspec.Struct, kw_only=True, gc=False):
    """Some text that was made into tokens at once."""

    base: int
    first: int
    """The number of its first token."""
    places: list[tuple[int, int]]
    """Of its tokens, counted from its own beginning."""


class _Window:
    """The part of the text that is looked at now, its tokens, and the blocks that it came in."""

    def __init__(self, blocks: Iterable[Block], counting: Counting, *, piece: int) -> None:
        self.text = ""
        self._coming = iter(blocks)
        self._counting = counting
        self._size = piece
        self._ended = False
        self._pieces: list[_Piece] = []
        self._bases: list[int] = []
        self._firsts: list[int] = []
        self._tokens = 0
        self._blocks: list[Block] = []
        self._begins: list[int] = []
        self._ranks: list[int] = []

    def reach(self, start: int, tokens: int) -> None:
        while not self._ended and self._tokens - self._number(start) < tokens:
            self._feed()

    def skip_blanks(self, at: int) -> int:
        while True:
            while at < len(self.text) and self.text[at].isspace():
                at += 1
            if at < len(self.text) or self._ended:
                return at
            self._feed()

    def forget(self, start: int, new: int) -> tuple[int, int]:
        """The pieces before `start`; both as they are called then."""
        gone = bisect_right(self._bases, start) - 1
        if gone <= 0:
            return start, new
        cut = self._bases[gone]
        self._pieces = self._pieces[gone:]
        for piece in self._pieces:
            piece.base -= cut
        self._bases, self._firsts = [piece.base for piece in self._pieces], self._firsts[gone:]
        first = bisect_right(self._begins, start) - 1
        self._blocks, self._ranks = self._blocks[first:], self._ranks[first:]
        self._begins = [place - cut for place in self._begins[first:]]
        self.text = self.text[cut:]
        return start - cut, new - cut

    def place(self, start: int, tokens: int) -> int:
        """Where so many tokens after `start` end; the end of it all where there aren't as many."""
        last = self._number(start) + tokens
        return self._token(last - 1)[1] if last <= self._tokens else len(self.text)

    def place_back(self, end: int, tokens: int, *, above: int) -> int:
        """Where so many tokens before `end` begin."""
        first = self._number(end) - tokens
        return max(above + 1, self._token(first)[0] if first >= self._firsts[0] else 0)

    def count(self, start: int, end: int) -> int:
        """Exactly what the tokenizer makes of this text alone: it is asked for its first and last words, or for all of it where that doesn't say enough."""
        text = self.text
        if self._counting.local and not self._joined(start, end):
            first, last = self._blank(range(start + 1, min(end - 1, start + CONTEXT))), self._blank(range(end - 2, max(start, end - CONTEXT), -1))
            if 0 < first <= last:
                return self._counting.count(text[start:first]) + self._number(last) - self._number(first) + self._counting.count(text[last:end])
        return self._counting.count(text[start:end])

    def block(self, at: int) -> Block:
        return self._blocks[max(0, bisect_right(self._begins, at) - 1)]

    def mark(self, rank: int, above: int, until: int) -> int:
        """The last beginning of this rank in ]above, until], or 0."""
        n = bisect_right(self._begins, until) - 1
        while n >= 0 and self._begins[n] > above:
            if self._ranks[n] >= rank:
                return self._begins[n]
            n -= 1
        return 0

    def marks_within(self, start: int, end: int) -> list[int]:
        first, last = bisect_left(self._begins, start), bisect_left(self._begins, end)
        return [self._begins[n] for n in range(first, last) if self._ranks[n] >= PARAGRAPH]

    def _feed(self) -> None:
        base, texts, length = len(self.text), list[str](), 0
        for block in self._coming:
            before = block.before if self._blocks else ""
            after_heading = bool(self._blocks) and self._blocks[-1].is_heading
            texts += (before, block.text)
            self._blocks.append(block)
            self._begins.append(base + length + len(before))
            self._ranks.append(WITHIN if after_heading or "\n\n" not in before else HEADING if block.is_heading else PARAGRAPH)
            length += len(before) + len(block.text)
            if length >= self._size:
                break
        else:
            self._ended = True
        if not length:
            return
        piece = "".join(texts)
        self.text += piece
        places = self._counting.places(piece)
        self._pieces.append(_Piece(base=base, first=self._tokens, places=places))
        self._bases.append(base)
        self._firsts.append(self._tokens)
        self._tokens += len(places)

    def _number(self, at: int) -> int:
        """Of the first token that begins there or later."""
        if not self._pieces:
            return 0
        piece = self._pieces[bisect_right(self._bases, at) - 1]
        return piece.first + bisect_left(piece.places, (at - piece.base,))

    def _token(self, number: int) -> tuple[int, int]:
        piece = self._pieces[bisect_right(self._firsts, number) - 1]
        start, end = piece.places[number - piece.first]
        return piece.base + start, piece.base + end

    def _joined(self, start: int, end: int) -> bool:
        """Whether pieces meet in there that were made into tokens each for itself."""
        n = bisect_right(self._bases, start)
        return n < len(self._bases) and self._bases[n] < end

    def _blank(self, places: range) -> int:
        """The first of them with a single blank between two words, where a token begins; 0 without one."""
        text = self.text
        for at in places:
            if text[at] == " " and not text[at - 1].isspace() and not text[at + 1].isspace():
                number = self._number(at)
                if number == self._firsts[0] or self._token(number - 1)[1] <= at:
                    return at
        return 0
