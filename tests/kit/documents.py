"""Documents as people upload them, and as they shouldn't: PDF and DOCX, written by hand."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import docx
from pypdf import PdfReader, PdfWriter

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TEXT, MARKDOWN = "text/plain", "text/markdown"


def pdf(pages: Sequence[str], *, bookmarks: Sequence[tuple[str, int]] = ()) -> bytes:
    """A page for each text, a line for each line. Bookmarks are (title, page from 1)."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    outline = 4 + 2 * len(pages)
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R{f' /Outlines {outline} 0 R' if bookmarks else ''} >>".encode(),
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for n, text in enumerate(pages):
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>".encode(),
            stream(shown(text)),
        ]
    if bookmarks:
        last = outline + len(bookmarks)
        objects.append(f"<< /Type /Outlines /First {outline + 1} 0 R /Last {last} 0 R /Count {len(bookmarks)} >>".encode())
        for n, (title, page) in enumerate(bookmarks, start=outline + 1):
            following = f" /Next {n + 1} 0 R" if n < last else ""
            objects.append(f"<< /Title ({title}) /Parent {outline} 0 R /Dest [{2 + 2 * page} 0 R /Fit]{following} >>".encode())
    return put_together(objects)


def shown(text: str) -> bytes:
    """The operators that show some lines."""
    lines = b" ".join(b"(" + _escaped(line) + b") Tj T*" for line in text.splitlines())
    return b"BT /F1 11 Tf 14 TL 50 740 Td " + lines + b" ET"


def stream(content: bytes, more: str = "") -> bytes:
    packed = zlib.compress(content)
    return f"<< /Length {len(packed)} /Filter /FlateDecode{more} >>\nstream\n".encode() + packed + b"\nendstream"


def put_together(objects: Sequence[bytes]) -> bytes:
    out, places = bytearray(b"%PDF-1.7\n"), list[int]()
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    at = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{at}\n%%EOF\n".encode()
    return bytes(out)


def one_page(content: bytes, *, resources: str = "", others: Sequence[bytes] = ()) -> bytes:
    """A page with these operators; `others` are the objects from 5 on."""
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << {resources} >> /Contents 4 0 R >>".encode()
    return put_together(
        [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", page, stream(content), *others],
    )


def scan() -> bytes:
    """A picture of a page."""
    picture = stream(b"\0" * 64, " /Type /XObject /Subtype /Image /Width 8 /Height 8 /ColorSpace /DeviceGray /BitsPerComponent 8")
    return one_page(b"q 612 0 0 792 0 0 cm /Im1 Do Q", resources="/XObject << /Im1 5 0 R >>", others=[picture])


def pdf_bomb() -> bytes:
    """A page whose operators unpack to 100 MB."""
    font = "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
    return one_page(b"0 0 m " * (100_000_000 // 6), resources=font)


def encrypted(data: bytes, *, password: str) -> bytes:
    """An empty password is one that no reader asks for."""
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(user_password=password, owner_password="of the owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def word(*paragraphs: str | tuple[str, int], table: Sequence[Sequence[str]] = ()) -> bytes:
    """(text, level) is a heading."""
    document = docx.Document()
    for paragraph in paragraphs:
        if isinstance(paragraph, tuple):
            document.add_heading(paragraph[0], paragraph[1])
        else:
            document.add_paragraph(paragraph)
    if table:
        grid = document.add_table(len(table), len(table[0]))
        for row, cells in zip(grid.rows, table, strict=True):
            for cell, text in zip(row.cells, cells, strict=True):
                cell.text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def repacked(data: bytes, changed: Mapping[str, bytes]) -> bytes:
    """The same ZIP with some of its parts replaced, or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in dict.fromkeys([*old.namelist(), *changed]):
            new.writestr(name, changed[name] if name in changed else old.read(name))
    return out.getvalue()


def part(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name)


def overlapping(data: bytes) -> bytes:
    """The directory says that one part lies where another does."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first, second = sorted(archive.infolist(), key=lambda entry: entry.header_offset)[:2]
    start = data.index(b"PK\x01\x02")
    at = data.index(second.filename.encode(), start) - 46
    return data[: at + 42] + first.header_offset.to_bytes(4, "little") + data[at + 46 :]


def _escaped(line: str) -> bytes:
    return line.encode("cp1252", "replace").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
