"""PDF: the text of each page, under the headings that its bookmarks name."""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import IO, Any

import pypdf
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

from .blocks import Block, End, Found, Limits, Path, Progress, Refusal, divided, storable

STREAM = 32 * 1024 * 1024
"""Most bytes that one stream of a page may unpack to. Pictures are not unpacked at all."""
BOOKMARKS = 5_000
FORGET = 64
"""Pages after which what was read of the file's objects is forgotten: it would grow with the document."""
TAIL = 64 * 1024
_SHOWN = 10

_Bookmarks = dict[int, list[tuple[int, str]]]
"""By page, from 0: the level, from 1, and the title of each."""


def read(file: IO[bytes], limits: Limits) -> Iterator[Found]:
    with pypdf.apply_configuration(
        zlib_maximum_output_length=STREAM,
        lzw_maximum_output_length=STREAM,
        run_length_maximum_output_length=STREAM,
        brotli_maximum_output_length=STREAM,
        stream_decoding_work_maximum_length=2 * STREAM,
        page_tree_maximum_entries=4 * limits.pages + 1_000,
        outline_maximum_entries=BOOKMARKS,
        jbig2dec_binary=None,
        disable_legacy_handling=True,
    ):
        try:
            yield from _read(file, limits)
        except LimitReachedError:
            raise Refusal("bomb", "The PDF unpacks to far more than a document needs, or its parts go round in circles. It is not read.") from None
        except (FileNotDecryptedError, DependencyError):
            raise _encrypted() from None
        except (PyPdfError, RecursionError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, AssertionError, OSError):
            raise _damaged(file) from None


def _read(file: IO[bytes], limits: Limits) -> Iterator[Found]:
    if not _has_end(file):
        raise _damaged(file)
    file.seek(0)
    reader = pypdf.PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(""):
        raise _encrypted()
    total, claimed = _page_count(reader, limits)
    bookmarks, path = _bookmarks(reader), Path()
    empty, unreadable, pictures = 0, list[int](), False
    for number in range(total):
        text = ""
        try:
            page = reader.pages[number]
            text = storable(page.extract_text()).strip()
            pictures = pictures or (not text and _has_pictures(page))
        except (MemoryError, LimitReachedError, FileNotDecryptedError, DependencyError):
            raise
        except Exception:  # noqa: BLE001  # strangers' pages break in every possible way; the others are still there
            unreadable.append(number + 1)
        else:
            empty += not text
        yield from _blocks(text, number + 1, bookmarks.get(number, []), path)
        yield Progress(done=number + 1, total=total)
        if number % FORGET == FORGET - 1:
            reader.resolved_objects.clear()
    if total and empty + len(unreadable) == total:
        raise _nothing(total, unreadable, pictures)
    missing = (f"{claimed - total:,} of {claimed:,} pages are missing",) if claimed > total else ()
    yield End(notes=(*missing, *_notes(total, empty, unreadable)))


def _page_count(reader: pypdf.PdfReader, limits: Limits) -> tuple[int, int]:
    """And how many the file claims to have, which is looked at first: it costs nothing."""
    told = reader.root_object["/Pages"].get("/Count", 0)  # pyright: ignore[reportAttributeAccessIssue]  # whatever else it is ends as damaged
    claimed = told if isinstance(told, int) else 0
    total = claimed if claimed > limits.pages else len(reader.pages)
    if total > limits.pages:
        raise Refusal("too_many_pages", f"The PDF has {total:,} pages; at most {limits.pages:,} are read of one. Divide it and upload its parts.")
    if not total:
        raise Refusal("empty", "The PDF has no pages.")
    return total, claimed


def _bookmarks(reader: pypdf.PdfReader) -> _Bookmarks:
    """None rather than a refusal where they are broken: the text doesn't need them."""
    found: _Bookmarks = defaultdict(list)

    def walk(items: list[Any], level: int) -> None:
        for item in items:
            if isinstance(item, list):
                walk(item, level + 1)
            elif (page := reader.get_destination_page_number(item)) is not None and (title := " ".join(storable(str(item.title)).split())):
                found[page].append((level, title))

    try:
        walk(reader.outline, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # as above
        return {}
    return found


def _blocks(text: str, page: int, bookmarks: list[tuple[int, str]], path: Path) -> Iterator[Block]:
    """Sentences go on from page to page, so that only a line ends with one. A bookmark's heading begins at the line that says the same, else with the page."""
    lines = text.splitlines(keepends=True)
    begins: list[tuple[int, int, str]] = []
    searched = 0
    for level, title in bookmarks:
        at = next((n for n in range(searched, len(lines)) if _same(lines[n], title)), None)
        begins.append((searched if at is None else at, level, title))
        searched = searched if at is None else at + 1
    held, before = 0, "\n"
    for at, level, title in begins:
        if body := "".join(lines[held:at]).strip():
            yield from divided(body, before=before, page=page, headings=path.now)
            before = "\n"
        held = at
        headings = path.enter(level, title)
        if at < len(lines) and _same(lines[at], title):
            yield Block(text=lines[at].strip(), page=page, headings=headings, is_heading=True)
            held, before = at + 1, "\n\n"
    if body := "".join(lines[held:]).strip():
        yield from divided(body, before=before, page=page, headings=path.now)


def _same(line: str, title: str) -> bool:
    return " ".join(line.split()).casefold() == title.casefold()


def _has_pictures(page: pypdf.PageObject) -> bool:
    resources: Any = page.get("/Resources", {})
    objects: Any = resources.get_object().get("/XObject", {}) if resources else {}
    return any(item.get_object().get("/Subtype") == "/Image" for item in objects.get_object().values()) if objects else False


def _has_end(file: IO[bytes]) -> bool:
    """Where the file's parts lie is said at its end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    return b"startxref" in file.read(TAIL)


def _damaged(file: IO[bytes]) -> Refusal:
    if not _has_end(file):
        return Refusal("truncated", "The PDF ends in the middle: its last part is missing. Upload it again.")
    return Refusal("damaged", "The PDF is damaged: what is in it can't be made out. Open it, save it anew and upload that.")


def _encrypted() -> Refusal:
    return Refusal("encrypted", "The PDF is encrypted and asks for a password. Upload it without one.")


def _nothing(total: int, unreadable: list[int], pictures: bool) -> Refusal:
    pages = f"None of its {total:,} pages holds" if total > 1 else "Its one page doesn't hold"
    if len(unreadable) == total:
        return Refusal("damaged", "The PDF is damaged: not one of its pages can be read. Open it, save it anew and upload that.")
    if pictures:
        return Refusal("image_only", f"{pages} text, but pictures: it is a scan. Text is not recognised in pictures (OCR) here; do that elsewhere first.")
    return Refusal("empty", f"{pages} any text.")


def _notes(total: int, empty: int, unreadable: list[int]) -> Iterator[str]:
    if empty:
        yield f"{empty:,} of {total:,} pages hold no text"
    if unreadable:
        which = ", ".join(map(str, unreadable[:_SHOWN])) + (", …" if len(unreadable) > _SHOWN else "")
        yield f"{len(unreadable):,} of {total:,} pages can't be read and were left out ({which})"
