"""DOCX: paragraphs, tables and notes in their order, with the headings that they stand under."""

import re
from collections.abc import Iterator
from typing import IO, Any

import docx
from docx.opc.exceptions import OpcError
from docx.oxml.parser import parse_xml
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # written in C, without types

from . import archive
from .blocks import Block, End, Found, Limits, Path, Progress, Refusal, divided, storable

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
LEFT_OUT = {f"{W}{name}" for name in ("del", "moveFrom", "delText", "instrText", "delInstrText", "pPr", "rPr", "tblPr", "trPr", "tcPr", "sdtPr")} | {FALLBACK}
"""What was deleted, what is said twice, and what is no text."""
WRITTEN = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
DEEPEST = 200
"""Elements within elements."""
OFTEN = 100
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)


def read(file: IO[bytes], limits: Limits) -> Iterator[Found]:
    archive.check(file, limits)
    try:
        document = docx.Document(file)
        body: Any = document.element.body
        levels = _levels(document.styles.element)
        notes = [part.blob for part in _parts(document, "footnotes", "endnotes")]
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from None
        raise _damaged() from None
    except (OpcError, etree.LxmlError, KeyError, ValueError, AttributeError, TypeError, IndexError):
        raise _damaged() from None
    try:
        yield from _read(body, levels, notes)
    except (RecursionError, etree.LxmlError):
        raise Refusal("damaged", "The Word document is nested too deeply to be read.") from None


def _damaged() -> Refusal:
    return Refusal("damaged", "The Word document is damaged: what is in it can't be made out. Save it anew and upload that.")


def _read(body: Any, levels: dict[str, int], notes: list[bytes]) -> Iterator[Found]:
    path, words = Path(), False
    page = 1 if next(body.iter(f"{W}lastRenderedPageBreak"), None) is not None else None
    total = len(body)
    for number, element in enumerate(body, start=1):
        for block in _blocks(element, path, levels, page):
            words = True
            yield block
        if page:
            page += sum(1 for _ in element.iter(f"{W}lastRenderedPageBreak"))
        if number % OFTEN == 0:
            yield Progress(done=number, total=total)
    for note in _notes(notes):
        words = True
        yield from divided(note, page=page)
    if not words:
        pictures = next(body.iter("{*}blip"), None) is not None
        raise Refusal("image_only" if pictures else "empty", _NO_TEXT if pictures else "The Word document has no text.")
    yield End()


_NO_TEXT = "The Word document holds pictures, but no text. Text is not recognised in pictures (OCR) here; do that elsewhere first."


def _blocks(element: Any, path: Path, levels: dict[str, int], page: int | None, depth: int = 0) -> Iterator[Block]:
    if depth > DEEPEST:
        raise RecursionError
    if element.tag == f"{W}p":
        yield from _paragraph(element, path, levels, page)
    elif element.tag == f"{W}tbl":
        yield from _table(element, path, page)
    elif isinstance(element.tag, str) and element.tag not in LEFT_OUT:
        for child in element:  # content controls, insertions, whatever else is put around paragraphs
            yield from _blocks(child, path, levels, page, depth + 1)


def _paragraph(element: Any, path: Path, levels: dict[str, int], page: int | None) -> Iterator[Block]:
    text = storable(_text(element)).strip()
    if not text:
        return
    level = _level(element, levels)
    headings = path.now if level is None else path.enter(level, text)
    in_list = element.find(f"{W}pPr/{W}numPr") is not None and level is None
    if level is not None and len(text) < 1_000:
        yield Block(text=text, page=page, headings=headings, is_heading=True)
    else:
        yield from divided(text, before="\n" if in_list else "\n\n", page=page, headings=headings)


def _table(element: Any, path: Path, page: int | None) -> Iterator[Block]:
    """A line for each row."""
    before = "\n\n"
    for row in element.iter(f"{W}tr"):
        if next(row.iterancestors(f"{W}tbl")) is not element:
            continue  # of a table within: it stands in a cell of ours
        cells = [" ".join(storable(_text(cell)).split()) for cell in row.findall(f".//{W}tc") if next(cell.iterancestors(f"{W}tr")) is row]
        if any(cells):
            yield from divided(" | ".join(cells), before=before, page=page, headings=path.now)
            before = "\n"


def _text(element: Any) -> str:
    pieces: list[str] = []
    _collect(element, pieces, 0)
    return "".join(pieces)


def _collect(element: Any, pieces: list[str], depth: int) -> None:
    if depth > DEEPEST:
        raise RecursionError
    for child in element:
        if child.tag == f"{W}t":
            pieces.append(child.text or "")
        elif child.tag in WRITTEN:
            pieces.append(WRITTEN[child.tag])
        elif isinstance(child.tag, str) and child.tag not in LEFT_OUT:
            _collect(child, pieces, depth + 1)
            if child.tag == f"{W}p":
                pieces.append("\n")  # in a cell or a text box


def _levels(styles: Any) -> dict[str, int]:
    """From 0, the title, by the id of the style. What a style doesn't say is said by the one that it is based on."""
    based: dict[str, str] = {}
    own: dict[str, int] = {}
    for style in styles.iter(f"{W}style"):
        name, key = style.find(f"{W}name"), style.get(f"{W}styleId", "")
        named = name.get(f"{W}val", "") if name is not None else ""
        if found := _HEADING.fullmatch(named):
            own[key] = int(found[1])
        elif named.casefold() == "title":
            own[key] = 0
        elif (level := _outline(style)) is not None:
            own[key] = level
        if (parent := style.find(f"{W}basedOn")) is not None:
            based[key] = parent.get(f"{W}val", "")
    return {key: level for key in {*own, *based} if (level := _inherited(key, own, based)) is not None}


def _inherited(key: str, own: dict[str, int], based: dict[str, str]) -> int | None:
    for _ in range(20):
        if key in own:
            return own[key]
        key = based.get(key, "")
    return None


def _level(paragraph: Any, levels: dict[str, int]) -> int | None:
    if (level := _outline(paragraph)) is not None:
        return level
    style = paragraph.find(f"{W}pPr/{W}pStyle")
    return levels.get(style.get(f"{W}val", "")) if style is not None else None


def _outline(element: Any) -> int | None:
    """Word counts from 0, and 9 is the text."""
    level = element.find(f"{W}pPr/{W}outlineLvl")
    said = level.get(f"{W}val", "") if level is not None else ""
    return int(said) + 1 if said in tuple("012345678") else None


def _parts(document: Any, *kinds: str) -> Iterator[Any]:
    for relation in document.part.rels.values():
        if not relation.is_external and relation.reltype.rsplit("/", 1)[-1] in kinds:
            yield relation.target_part


def _notes(parts: list[bytes]) -> Iterator[str]:
    for part in parts:
        for note in parse_xml(part):
            if note.get(f"{W}type") is None and (text := storable(_text(note)).strip()):  # those with a type are lines between notes
                yield text
