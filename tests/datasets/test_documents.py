"""Documents are read: what comes out of good ones, what is said of bad ones, and what the process that reads them may do."""

import asyncio
import os
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from services.datasets.documents import child
from services.datasets.documents.blocks import Block, End, Limits, Order, Progress, Refusal, Refused, written
from services.datasets.documents.parsing import Broken, parse
from tests.kit.documents import (
    DOCX,
    MARKDOWN,
    PDF,
    TEXT,
    encrypted,
    one_page,
    overlapping,
    part,
    pdf,
    pdf_bomb,
    put_together,
    repacked,
    scan,
    word,
)
from tests.kit.eventually import eventually

MAIN = "word/document.xml"


def read(data: bytes, mime_type: str, limits: Limits | None = None) -> tuple[list[Block], End | Refused]:
    """What the process would say, said here."""
    with TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        *said, last = [
            frame for frame in child.frames(file, Order(parent=0, mime_type=mime_type, limits=limits or Limits())) if not isinstance(frame, Progress)
        ]
    assert isinstance(last, End | Refused)
    return [block for block in said if isinstance(block, Block)], last


def texts(data: bytes, mime_type: str) -> list[str]:
    found, end = read(data, mime_type)
    assert end == End(), end
    return [block.text for block in found]


def refusal(data: bytes, mime_type: str, limits: Limits | None = None) -> str:
    _, end = read(data, mime_type, limits)
    assert isinstance(end, Refused), end
    assert end.message.endswith((".", ").")), end.message
    return end.code


async def parsed(data: bytes, mime_type: str, limits: Limits | None = None) -> list[Block]:
    """By a process of its own."""
    with TemporaryFile() as file, TemporaryFile() as spool:
        file.write(data)
        file.flush()
        await parse(file, spool, mime_type=mime_type, limits=limits or Limits(), heard=lambda progress: None)
        spool.seek(0)
        return list(written(spool))


def damaged_main(document: bytes, old: bytes, new: bytes) -> bytes:
    main = part(document, MAIN)
    assert old in main
    return repacked(document, {MAIN: main.replace(old, new, 1)})


# PDF


def test_a_pdf_gives_its_text_page_by_page_under_its_bookmarks():
    found, _ = read(pdf(["Preface\nHello (there).", "First\nOn the second page.", "On the third."], bookmarks=[("First", 2)]), PDF)

    assert [(block.text, block.page, block.headings, block.is_heading) for block in found] == [
        ("Preface\nHello (there).", 1, (), False),
        ("First", 2, ("First",), True),
        ("On the second page.", 2, ("First",), False),
        ("On the third.", 3, ("First",), False),
    ]


def test_a_bookmark_that_no_line_repeats_holds_from_its_page_on():
    found, _ = read(pdf(["One.", "Two."], bookmarks=[("Elsewhere", 2)]), PDF)

    assert [block.headings for block in found] == [(), ("Elsewhere",)]


def test_pages_without_text_among_others_are_told():
    _, end = read(pdf(["Text.", "", ""]), PDF)

    assert end == End(notes=("2 of 3 pages hold no text",))


def test_a_page_that_cant_be_read_is_left_out_and_told():
    bad = pdf(["First.", "Second.", "Third."]).replace(b"/Contents 7 0 R", b"/Contents (bad)")

    found, end = read(bad, PDF)

    assert [block.text for block in found] == ["First.", "Third."]
    assert isinstance(end, End)
    assert "1 of 3 pages" in end.notes[0]


def test_pages_that_the_pdf_speaks_of_and_doesnt_have_are_told():
    _, end = read(pdf(["First.", "Second."]).replace(b"/Count 2", b"/Count 7"), PDF)

    assert end == End(notes=("5 of 7 pages are missing",))


def test_a_pdf_with_an_owner_but_no_password_to_open_it_is_read():
    assert texts(encrypted(pdf(["Open."]), password=""), PDF) == ["Open."]


def test_a_document_that_speaks_of_pdf_is_text():
    assert texts(b"A file that begins with %PDF-1.7 is a PDF.", TEXT) == ["A file that begins with %PDF-1.7 is a PDF."]


LONG = pdf(["Words on a page. " * 20] * 10)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encrypted(pdf(["Closed."]), password="secret"), "encrypted"),
        (LONG[: len(LONG) // 2], "truncated"),
        (LONG[:-20], "truncated"),
        (b"%PDF-1.7\n" + b"\0" * 1000 + b"startxref\n9\n%%EOF", "damaged"),
        (scan(), "image_only"),
        (pdf([""]), "empty"),
        (put_together([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"]), "empty"),
        (put_together([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"]), "damaged"),
        (b"", "empty"),
        (b"only text", "wrong_type"),
        (word("Word."), "wrong_type"),
    ],
)
def test_what_is_said_of_a_bad_pdf(data: bytes, code: str):
    assert refusal(data, PDF) == code


def test_a_pdf_bomb_is_refused():
    assert refusal(pdf_bomb(), PDF) == "bomb"


def test_a_pdf_with_too_many_pages_is_refused_before_one_is_read():
    _, end = read(pdf(["x"] * 10_000), PDF)

    assert end == Refused(code="too_many_pages", message="The PDF has 10,000 pages; at most 5,000 are read of one. Divide it and upload its parts.")


def test_a_claimed_number_of_pages_that_is_too_small_doesnt_help():
    assert refusal(pdf(["x"] * 30).replace(b"/Count 30", b"/Count 01"), PDF, Limits(pages=20)) == "too_many_pages"


# DOCX


def test_a_word_document_gives_paragraphs_headings_and_tables_in_their_order():
    found, _ = read(word(("Title", 0), "Intro.", ("Part", 1), ("Chapter", 2), "Text.", table=[["a", "b"], ["c", "d"]]), DOCX)

    assert [(block.text, block.headings, block.before) for block in found] == [
        ("Title", ("Title",), "\n\n"),
        ("Intro.", ("Title",), "\n\n"),
        ("Part", ("Title", "Part"), "\n\n"),
        ("Chapter", ("Title", "Part", "Chapter"), "\n\n"),
        ("Text.", ("Title", "Part", "Chapter"), "\n\n"),
        ("a | b", ("Title", "Part", "Chapter"), "\n\n"),
        ("c | d", ("Title", "Part", "Chapter"), "\n"),
    ]


def test_what_is_inserted_or_within_a_control_is_read_and_what_is_deleted_isnt():
    run = "<w:r><w:t>{}</w:t></w:r>"
    tracked = f"<w:p><w:ins>{run.format('kept ')}</w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>{run.format('too')}</w:p>"
    control = f"<w:sdt><w:sdtContent><w:p>{run.format('controlled')}</w:p></w:sdtContent></w:sdt>"
    document = damaged_main(word("Plain."), b"<w:sectPr", f"{tracked}{control}<w:sectPr".encode())

    assert texts(document, DOCX) == ["Plain.", "kept too", "controlled"]


def test_pages_are_counted_where_the_word_processor_left_marks():
    document = damaged_main(word("One.", "Two."), b"<w:t>Two.", b"<w:lastRenderedPageBreak/><w:t>Two.")
    third = damaged_main(document, b"<w:sectPr", b"<w:p><w:r><w:t>Three.</w:t></w:r></w:p><w:sectPr")

    assert [block.page for block in read(third, DOCX)[0]] == [1, 1, 2]
    assert [block.page for block in read(word("One."), DOCX)[0]] == [None]


GOOD = word(("Head", 1), "Good words.")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (GOOD[:-100], "truncated"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (overlapping(GOOD), "bomb"),
        (repacked(GOOD, {"word/media/zeros.bin": b"\0" * 30_000_000}), "bomb"),
        (damaged_main(GOOD, b"<w:document", b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><w:document'), "bomb"),
        (repacked(GOOD, {"word/extra.xml": "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE d><d/>".encode("utf-16")}), "bomb"),
        (repacked(GOOD, {"word/extra.xml": b"<?xml version='1.0' encoding='utf-7'?><d/>"}), "damaged"),
        (repacked(GOOD, {"word/vbaProject.bin": b"program"}), "macros"),
        (damaged_main(GOOD, b"<w:body>", b"<w:body>" + b"<w:sdt><w:sdtContent>" * 600 + b"</w:sdtContent></w:sdt>" * 600), "damaged"),
        (damaged_main(GOOD, b"<w:body>", b"<w:body>" + b"<w:sdt><w:sdtContent>" * 120 + b"</w:sdtContent></w:sdt>" * 120), "damaged"),
        (damaged_main(GOOD, b"</w:body>", b"</w:bodi>"), "damaged"),
        (repacked(GOOD, {"[Content_Types].xml": b"<Types/>"}), "wrong_type"),
        (word(""), "empty"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "encrypted"),
        (b"PK\x03\x04" + b"no archive" * 50, "truncated"),
        (pdf(["x"]), "wrong_type"),
        (b"", "empty"),
    ],
)
def test_what_is_said_of_a_bad_word_document(data: bytes, code: str):
    assert refusal(data, DOCX) == code


def test_a_part_that_lies_about_its_size_or_content_is_refused(tmp_path: Path):
    """Its first byte is changed, so that what comes out isn't what the directory says."""
    document = bytearray(GOOD)
    with zipfile.ZipFile(_file(tmp_path, GOOD)) as archive:
        info = archive.getinfo(MAIN)
    document[info.header_offset + 30 + len(MAIN) + 40] ^= 0xFF

    assert refusal(bytes(document), DOCX) in ("damaged", "wrong_type")


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


# Text and markdown


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_decoded_as_its_byte_order_mark_says(encoding: str):
    assert texts("Premier café.\r\n\r\nSecond : 東京.\rEnd.".encode(encoding), TEXT) == ["Premier café.", "Second : 東京.\nEnd."]


def test_what_cant_be_stored_is_replaced():
    assert texts(b"one\0two \x01three", TEXT) == ["one\ufffdtwo three"]
    assert texts("one \U0001f600 two".encode("utf-16"), TEXT) == ["one \U0001f600 two"]


def test_a_paragraph_without_end_comes_in_pieces_that_join():
    text = "".join(f"word{n} " for n in range(40_000))

    found, _ = read(text.encode(), TEXT)

    assert "".join((block.before if n else "") + block.text for n, block in enumerate(found)) == text.rstrip() + " "
    assert len(found) > 10


def test_markdown_keeps_its_marks_and_tells_its_headings():
    found, _ = read(b"# Top #\n\nIntro.\n\nPart\n----\n```sh\n# no heading\n\nrun\n```\n### Deep\nText.\n\n# Other\nMore.", MARKDOWN)

    assert [(block.text, block.headings) for block in found] == [
        ("# Top #", ("Top",)),
        ("Intro.", ("Top",)),
        ("Part\n----", ("Top", "Part")),
        ("```sh\n# no heading\n\nrun\n```", ("Top", "Part")),
        ("### Deep", ("Top", "Part", "Deep")),
        ("Text.", ("Top", "Part", "Deep")),
        ("# Other", ("Other",)),
        ("More.", ("Other",)),
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(range(256)) * 50, "binary"),
        (b"\x7fELF\x02\x01\x01" + bytes(500), "binary"),
        ("Déjà vu".encode("latin-1"), "encoding_invalid"),
        (b"Good.\n" * 20_000 + "Déjà".encode("latin-1"), "encoding_invalid"),
        (b"\xff\xfe" + b"a", "encoding_invalid"),
        (b"", "empty"),
        (b" \n\t\r\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (pdf(["x"]), "wrong_type"),
        (GOOD, "wrong_type"),
    ],
)
def test_what_is_said_of_a_bad_text(data: bytes, code: str):
    assert refusal(data, TEXT) == code
    assert refusal(data, MARKDOWN) == code


def test_a_document_with_too_much_text_is_refused():
    assert refusal(b"words " * 200, TEXT, Limits(text=1_000)) == "too_much_text"


def test_a_type_that_nobody_reads_is_refused():
    assert refusal(b"a,b", "image/png") == "wrong_type"


# The process


async def test_a_document_is_read_by_a_process_of_its_own():
    found = await parsed(pdf(["One.", "Two."]), PDF)

    assert [(block.text, block.page) for block in found] == [("One.", 1), ("Two.", 2)]


SLOW = pdf(["Words on a page that take a while to read. \n" * 50] * 1_500)
LARGE = damaged_main(GOOD, b"<w:body>", b"<w:body>" + b"<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 200_000)


@pytest.mark.parametrize(
    ("data", "mime_type", "limits"),
    [
        (SLOW, PDF, Limits(cpu_seconds=1)),
        (SLOW, PDF, Limits(silence=0.05)),
        (SLOW, PDF, Limits(seconds=0.3)),
        (LARGE, DOCX, Limits(memory=100 * 1024**2)),
    ],
    ids=["computing", "silence", "time", "memory"],
)
async def test_what_takes_more_than_it_may_is_refused(data: bytes, mime_type: str, limits: Limits):
    with pytest.raises(Refusal) as refused:
        await parsed(data, mime_type, limits)

    assert refused.value.code == "out_of_bounds"


async def test_a_process_that_cant_start_is_the_platforms_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("services.datasets.documents.parsing.COMMAND", ("-c", "raise SystemExit(7)"))

    with pytest.raises(Broken):
        await parsed(b"text", TEXT)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' prctl")
async def test_it_ends_with_the_process_that_started_it(tmp_path: Path):
    code = (
        "import asyncio, tempfile; from services.datasets.documents.blocks import Limits; from services.datasets.documents.parsing import parse; "
        f"asyncio.run(parse(open({str(_file(tmp_path, SLOW))!r}, 'rb'), tempfile.TemporaryFile(), mime_type='{PDF}', limits=Limits(), "
        "heard=lambda progress: print(progress, flush=True)))"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert parent.stdout
    await parent.stdout.readline()
    (pid,) = _children(parent.pid)

    parent.kill()
    await parent.wait()

    await eventually(lambda: not _lives(pid), patience=5)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' namespaces")
async def test_it_can_neither_write_files_nor_see_what_the_service_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TRAINYARD_S3_SECRET_KEY", "secret")
    probe = (
        "import os, sys, msgspec; sys.argv.pop(0) if sys.argv[0] == '-c' else None; sys.argv.insert(0, ''); "
        "from services.datasets.documents import child; from services.datasets.documents.blocks import Order, Refused, packed\n"
        "child.confine(msgspec.json.decode(sys.argv[1].encode(), type=Order))\n"
        f"try: open({str(tmp_path / 'x')!r}, 'wb', buffering=0).write(b'x'); wrote = 'wrote'\n"
        "except OSError: wrote = 'not'\n"
        "sys.stdout.buffer.write(packed(Refused(code=wrote, message=','.join(sorted(os.environ)))))"
    )
    monkeypatch.setattr("services.datasets.documents.parsing.COMMAND", ("-c", probe))

    with pytest.raises(Refusal) as said:
        await parsed(one_page(b""), PDF)

    assert said.value.code == "not"
    assert set(said.value.message.split(",")) <= {"PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HOME", "LC_ALL", "LC_CTYPE"}
    assert os.environ["TRAINYARD_S3_SECRET_KEY"] == "secret"
