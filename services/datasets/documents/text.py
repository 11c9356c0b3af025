"""Text and markdown: paragraphs between blank lines, in UTF-8, or in UTF-16 or -32 where a byte order mark says so."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from typing import IO

from .blocks import LONGEST, Block, Found, Limits, Path, Progress, Refusal, divided, storable

PIECE = 64 * 1024
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
FEW = 4
NO_TEXT = 0.01
"""Besides a few, the share of control characters from which on it is no text but something else."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(?:(=+)|-{2,})[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def read_text(file: IO[bytes], limits: Limits) -> Iterator[Found]:
    """Paragraphs. A blank line ends one."""
    paragraph = _Paragraph()
    for line in _lines(file):
        if isinstance(line, Progress):
            yield line
        elif line.strip():
            yield from paragraph.add(line)
        else:
            yield from paragraph.end()
    yield from paragraph.end()


def read_markdown(file: IO[bytes], limits: Limits) -> Iterator[Found]:
    """As it is written, marks and all; headings are told, and blank lines in fenced code don't divide it."""
    path, paragraph, fence = Path(), _Paragraph(), ""
    for line in _lines(file):
        if isinstance(line, Progress):
            yield line
        elif fence:
            yield from paragraph.add(line)
            fence = "" if line.strip().startswith(fence) and not line.strip(f" \t\n{fence[0]}") else fence
        elif not line.strip():
            yield from paragraph.end()
        elif found := _FENCE.match(line):
            fence = found[1]
            yield from paragraph.add(line)
        elif found := _HEADING.fullmatch(line.rstrip("\n")):
            yield from paragraph.end()
            paragraph.headings = path.enter(len(found[1]), found[2] or "")
            yield Block(text=line.strip()[:LONGEST], headings=paragraph.headings, is_heading=True)
        elif (found := _UNDERLINE.fullmatch(line.rstrip("\n"))) and (title := paragraph.only_line()):
            paragraph.headings = path.enter(1 if found[1] else 2, title)
            yield Block(text=f"{title}\n{line.strip()[:LONGEST]}", headings=paragraph.headings, is_heading=True)
        else:
            yield from paragraph.add(line)
    yield from paragraph.end()


class _Paragraph:
    """Lines that belong together, handed on before they are too many."""

    def __init__(self) -> None:
        self.headings: tuple[str, ...] = ()
        self._lines: list[str] = []
        self._length = 0
        self._before = "\n\n"

    def add(self, line: str) -> Iterator[Block]:
        if self._lines and self._length + len(line) > LONGEST:
            yield from self._hand_on(then="\n" if self._lines[-1].endswith("\n") else "")
        self._lines.append(line)
        self._length += len(line)

    def end(self) -> Iterator[Block]:
        yield from self._hand_on(then="\n\n")

    def only_line(self) -> str:
        """Taken out, if there is one and no more."""
        if len(self._lines) != 1 or self._before != "\n\n" or self._length > 500:
            return ""
        self._length = 0
        return self._lines.pop().strip()

    def _hand_on(self, *, then: str) -> Iterator[Block]:
        if self._lines:
            yield from divided("".join(self._lines).removesuffix("\n"), before=self._before, headings=self.headings)
        self._lines, self._length, self._before = [], 0, then


def _lines(file: IO[bytes]) -> Iterator[str | Progress]:
    """Each with its end; what has none goes on in the next."""
    total = os.fstat(file.fileno()).st_size
    held = ""
    for text in _decoded(file):
        *whole, held = (held + text).splitlines(keepends=True) or [""]
        yield from whole
        if held.endswith("\n") or len(held) > LONGEST:
            yield held
            held = ""
        yield Progress(done=file.tell(), total=total)
    if held:
        yield held


def _decoded(file: IO[bytes]) -> Iterator[str]:
    head = file.read(PIECE)
    mark, encoding = next(((mark, name) for mark, name in MARKS if head.startswith(mark)), (b"", "utf-8"))
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    piece, first = head[len(mark) :], True
    while piece:
        text = _decoded_piece(newlines, piece, encoding)
        if first:
            _check(text)
        yield storable(text)
        piece, first = file.read(PIECE), False
    yield storable(_decoded_piece(newlines, b"", encoding))


def _decoded_piece(decoder: io.IncrementalNewlineDecoder, piece: bytes, encoding: str) -> str:
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise Refusal("encoding_invalid", f"The file begins like {encoding.upper()}, but isn't valid; save it as UTF-8 and upload it again.") from None
        _check(piece.decode("latin-1"))
        raise Refusal("encoding_invalid", "The file is not valid UTF-8; save it as UTF-8 and upload it again.") from None


def _check(text: str) -> None:
    if len(_CONTROL.findall(text)) > FEW + NO_TEXT * len(text):
        raise Refusal("binary", "The file is no text: it is full of characters that text doesn't have.")
