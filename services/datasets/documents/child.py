"""The process that reads one document: `parsing.py` starts it with the file as its stdin, and reads frames from its stdout."""

import logging
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import IO

import msgspec

from libs.runtime import network, orphan
from libs.sniff import PARQUET
from services.datasets.documents.blocks import OUT_OF_BOUNDS, Block, End, Found, Limits, Order, Refusal, Refused, packed

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
PDF_WITHIN = 1024
"""Bytes in which a PDF begins."""
NAMES = {
    "application/pdf": "a PDF",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "a Word document (.docx)",
    "text/plain": "text",
    "text/markdown": "markdown",
    PARQUET: "a Parquet file",
}

Reader = Callable[[IO[bytes], Limits], Iterator[Found]]


def main() -> None:
    order = msgspec.json.decode(sys.argv[1].encode(), type=Order)
    confine(order)
    try:
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            for frame in frames(file, order):
                sys.stdout.buffer.write(packed(frame))
        sys.stdout.buffer.flush()
    except MemoryError:
        sys.exit(OUT_OF_BOUNDS)


def frames(file: IO[bytes], order: Order) -> Iterator[Found | Refused]:
    """Ends with an End or a Refused."""
    characters, ended = 0, False
    try:
        for found in reader(file, order.mime_type)(file, order.limits):
            if isinstance(found, Block):
                characters += len(found.text)
                if characters > order.limits.text:
                    raise Refusal("too_much_text", f"The document holds more than {order.limits.text:,} characters of text. Divide it and upload its parts.")
            ended = ended or isinstance(found, End)
            yield found
        if not characters:
            raise Refusal("empty", "The file holds no text.")
        if not ended:
            yield End()
    except Refusal as why:
        yield Refused(code=why.code, message=why.message)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001  # strangers' files break libraries in every possible way
        yield Refused(code="damaged", message=f"The document can't be made out ({type(error).__name__}). Save it anew and upload that.")


def reader(file: IO[bytes], mime_type: str) -> Reader:
    """What the file is must be what it was uploaded as. The libraries are imported behind the bounds, and only where they are needed."""
    head = file.read(PDF_WITHIN)
    file.seek(0)
    if not head:
        raise Refusal("empty", "The file is empty.")
    mime_type = mime_type.partition(";")[0].strip().lower()
    wanted = "text" if mime_type.startswith("text/") else mime_type
    found = kind(head, wanted)
    if found == "application/pdf" == wanted:
        from services.datasets.documents import pdf

        return pdf.read
    if found == "application/zip" and NAMES.get(wanted, "").endswith("(.docx)"):
        from services.datasets.documents import word

        return word.read
    if found == PARQUET == wanted:
        from services.datasets.documents import columns

        return columns.read
    if found == "text" == wanted:
        from services.datasets.documents import text

        return text.read_markdown if mime_type == "text/markdown" else text.read_text
    raise _wrong(found, mime_type)


def kind(head: bytes, wanted: str) -> str:
    """A PDF may begin with something else, and a text may speak of PDFs."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "application/zip"
    if head.startswith(OLD_OFFICE):
        return "old office"
    if head.startswith(b"PAR1"):
        return PARQUET
    return "application/pdf" if head.startswith(b"%PDF-") or (b"%PDF-" in head and wanted == "application/pdf") else "text"


def _wrong(found: str, mime_type: str) -> Refusal:
    if found == "old office" and NAMES.get(mime_type, "").endswith("(.docx)"):
        return Refusal("encrypted", "The Word document is encrypted, or in the old format .doc. Save it as .docx without a password and upload that.")
    is_a = {"application/pdf": "a PDF", "application/zip": "a ZIP archive", "old office": "in an old Office format"}.get(found, "none")
    return Refusal("wrong_type", f"The file was uploaded as {NAMES.get(mime_type, mime_type[:100])}, but is {is_a}.")


def confine(order: Order) -> None:
    network.leave()
    orphan.die_with_parent(order.parent)  # behind it: another user namespace would clear it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()  # libraries say a line for each oddity of a file
    limits = order.limits
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 5))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))


if __name__ == "__main__":
    main()
