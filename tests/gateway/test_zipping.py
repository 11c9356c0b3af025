"""The ZIP that is never stored: any reader takes it, however large, and its bytes never change."""

import hashlib
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from libs.events import Claim, ExportedFile
from services.gateway.api.zipping import layout

GIB = 1024**3


def file(name: str, data: bytes) -> ExportedFile:
    content = Claim(key=f"t/j/{name}", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    return ExportedFile(name=name, content=content, crc32=zlib.crc32(data))


def filled(parts: list[bytes | Claim], contents: dict[str, bytes]) -> bytes:
    return b"".join(part if isinstance(part, bytes) else contents[part.key.rpartition("/")[2]] for part in parts)


CONTENTS = {"report.md": b"# Report\n" * 100, "adapter_config.json": b"{}", "empty.txt": b"", "résumé.md": "été".encode()}


def zipped() -> bytes:
    return filled(layout([file(name, data) for name, data in CONTENTS.items()]), CONTENTS)


def test_python_reads_what_was_put_in_in_the_order_of_names(tmp_path: Path):
    path = tmp_path / "all.zip"
    path.write_bytes(zipped())

    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(CONTENTS)
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.skipif(shutil.which("unzip") is None, reason="there is no unzip")
def test_unzip_finds_no_fault(tmp_path: Path):
    path = tmp_path / "all.zip"
    path.write_bytes(zipped())

    assert subprocess.run(["unzip", "-t", str(path)], capture_output=True, check=False).returncode == 0


def test_the_order_in_which_files_are_named_changes_nothing():
    files = [file(name, data) for name, data in CONTENTS.items()]

    assert layout(files) == layout(files[::-1])


def test_only_what_is_too_large_for_the_old_numbers_is_written_with_the_new():
    assert b"PK\6\6" not in zipped()
    assert b"PK\6\6" not in b"".join(part for part in layout([_of_size("a", 3 * GIB)]) if isinstance(part, bytes))
    assert b"PK\6\6" in b"".join(part for part in layout([_of_size("a", 5 * GIB)]) if isinstance(part, bytes))


@pytest.mark.parametrize("sizes", [(3 * GIB, 2 * GIB, 5), (5 * GIB, 7, 7), (2**32 - 1, 1), (2**32 - 2, 1)])
def test_files_beyond_four_gigabytes_are_found_again(tmp_path: Path, sizes: tuple[int, ...]):
    files = [_of_size(f"{n}.bin", size) for n, size in enumerate(sizes)]
    last = file(f"{len(sizes)}.md", b"the last one")
    path = tmp_path / "large.zip"
    with path.open("wb") as sparse:
        for part in layout([*files, last]):
            if isinstance(part, bytes):
                sparse.write(part)
            elif part == last.content:
                sparse.write(b"the last one")
            else:
                sparse.seek(part.size, 1)

    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [*sizes, 12]
        assert archive.read(last.name) == b"the last one"
        for n in range(len(sizes)):
            archive.open(f"{n}.bin").close()
    path.unlink()


def _of_size(name: str, size: int) -> ExportedFile:
    return ExportedFile(name=name, content=Claim(key=f"t/j/{name}", sha256="0" * 64, size=size), crc32=0)


def test_seventy_thousand_files_are_found_again(tmp_path: Path):
    path = tmp_path / "many.zip"
    path.write_bytes(filled(layout([file(f"{n:05}", b"") for n in range(70_000)]), {f"{n:05}": b"" for n in range(70_000)}))

    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 70_000
