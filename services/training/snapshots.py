"""What a data set's snapshot is, told by its first bytes."""

from pathlib import Path

TABLE, IMAGES = b"PAR1", b"PK"


def holds_table(path: str) -> bool:
    return _begins(path, TABLE)


def holds_images(path: str) -> bool:
    return _begins(path, IMAGES)


def _begins(path: str, magic: bytes) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(magic)) == magic
