"""What a ZIP holds: one table, or images."""

from tempfile import TemporaryFile
from typing import IO

from services.datasets.confined.frames import Order, Prepared, Refusal, Say
from services.datasets.confined.package import IMAGES, TABLES, Entry, Package, unpacked

OFFICE = {"xl": "a spreadsheet of Excel. Save it as CSV", "word": "a Word document. Upload a table", "ppt": "a presentation. Upload a table"}


def read(file: IO[bytes], order: Order, say: Say) -> Prepared:
    package = Package(file, order.limits)
    if not package.entries:
        why = "".join(f" {times:,} files were left out: {reason}." for reason, times in package.skipped.items())
        if package.skipped["encrypted"]:
            raise Refusal("encrypted", "The ZIP is encrypted and asks for a password. Upload it without one.")
        raise Refusal("empty", f"The ZIP holds no files that can be used.{why}")
    tables = [entry for entry in package.entries if entry.extension in TABLES]
    images = [entry for entry in package.entries if entry.extension in IMAGES]
    _check_office(package)
    if tables and not images:
        return _table(package, tables, order, say)
    from services.datasets.images import collection

    return collection.read(package, order, say)


def _table(package: Package, tables: list[Entry], order: Order, say: Say) -> Prepared:
    if len(tables) > 1:
        readable = [entry for entry in tables if entry.extension != ".txt"]  # the others may be about it
        if len(readable) != 1:
            listed = ", ".join(repr(entry.name[:100]) for entry in tables[:5])
            raise Refusal("several_tables", f"The ZIP holds {len(tables)} tables ({listed}). Upload one.")
        tables = readable
    from services.datasets.tables import table

    with TemporaryFile() as file:
        unpacked(package, tables[0], file, order.limits)
        prepared = table.read(file, order, say)
    if others := len(package.entries) - 1 + package.skipped.total():
        prepared.notes.append(f"{others} other files of the ZIP were left out.")
    return prepared


def _check_office(package: Package) -> None:
    names = {entry.name for entry in package.entries}
    if "[Content_Types].xml" in names:
        for folder, what in OFFICE.items():
            if any(name.startswith(f"{folder}/") for name in names):
                raise Refusal("unsupported_format", f"The file is {what} and upload that.")
