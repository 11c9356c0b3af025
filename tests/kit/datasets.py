"""Data sets for the datasets service: what its reader makes of them, said here, and prepare and train jobs on them."""

import io
import json
import struct
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryFile
from typing import Any

import msgspec
import polars as pl
from PIL import Image

from libs.events import (
    Column,
    DatasetInputs,
    DatasetSpec,
    File,
    Fit,
    FitInputs,
    JobCreated,
    Origin,
    PreparationCompleted,
    PreparationFailed,
    PreparationProduced,
    Recorded,
)
from libs.events.log import EventLog, Write
from libs.storage import Storage
from services.datasets.confined import child
from services.datasets.confined.frames import Described, Frame, Limits, Order, Prepared, Refused
from tests.kit.preparing import facts


class Read:
    """What the process would make of a file."""

    def __init__(self, data: bytes, *, dataset_type: str = "", target: str = "", limits: Limits | None = None) -> None:
        said: list[Frame] = []
        with TemporaryFile() as file, TemporaryFile() as draft, TemporaryFile() as snapshot:
            file.write(data)
            file.seek(0)
            order = Order(parent=0, draft=draft.fileno(), snapshot=snapshot.fileno(), dataset_type=dataset_type, target=target, limits=limits or Limits())
            child.answer(file, order, said.append)
            snapshot.seek(0)
            self.bytes = snapshot.read()
        self.end = said[-1]
        self.columns = {frame.column.name: frame.column for frame in said if isinstance(frame, Described)}

    @property
    def prepared(self) -> Prepared:
        assert isinstance(self.end, Prepared), self.end
        return self.end

    @property
    def table(self) -> pl.DataFrame:
        assert self.prepared.contents == "table"
        return pl.read_parquet(self.bytes)

    @property
    def code(self) -> str:
        assert isinstance(self.end, Refused), self.end
        assert self.end.message[0].isupper(), self.end.message
        assert self.end.message[-1] in ".?", self.end.message
        return self.end.code

    @property
    def message(self) -> str:
        assert self.code
        assert isinstance(self.end, Refused)
        return self.end.message

    @property
    def manifest(self) -> list[dict[str, Any]]:
        with zipfile.ZipFile(io.BytesIO(self.bytes)) as archive:
            return [json.loads(line) for line in archive.read("manifest.jsonl").splitlines()]

    def image(self, number: int = 0) -> Image.Image:
        with zipfile.ZipFile(io.BytesIO(self.bytes)) as archive:
            return Image.open(io.BytesIO(archive.read(self.manifest[number]["file"])))


def csv_of(rows: int, *, columns: int = 3) -> bytes:
    """Numbers, and a label that follows from them."""
    lines = [",".join([*(f"n{n}" for n in range(columns)), "label"])]
    for row in range(rows):
        numbers = [row * 37 * (n + 1) % 97 + n / 8 for n in range(columns)]
        lines.append(",".join([*map(str, numbers), "high" if numbers[0] > 48 else "low"]))
    return "\n".join(lines).encode() + b"\n"


def picture(format: str = "PNG", *, size: tuple[int, int] = (8, 6), color: Any = (200, 30, 60), mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, format, **options)
    return out.getvalue()


def zipped(files: Mapping[str, bytes], *, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, data)
    return out.getvalue()


def classes(*names: str, each: int = 2, **others: bytes) -> dict[str, bytes]:
    """A folder of images for each."""
    return {f"{name}/{n}.png": picture(color=(40 * n, len(name) * 20, 10)) for name in names for n in range(each)} | others


def huge_png(width: int, height: int) -> bytes:
    """A header that promises much, and nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


def of_entries(count: int) -> bytes:
    """A ZIP of so many empty files, put together by hand: the library takes seconds."""
    body, central = bytearray(), bytearray()
    for number in range(count):
        name = b"a/%d.png" % number
        central += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, len(body)) + name
        body += struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    at, size = len(body), len(central)
    zip64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, at) + struct.pack("<4sIQI", b"PK\x06\x07", 0, at + size, 1)
    return bytes(body + central + zip64 + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


async def dataset(storage: Storage, log: EventLog, origin: Origin, data: bytes, *, dataset_type: str = "", target: str = "", **changed: Any) -> Recorded:
    """The fact that the gateway appends once the bytes are stored."""
    job_id = str(uuid.uuid4())
    claim = await storage.put(f"{origin.tenant}/files", data)
    fields = {"filename": "data.csv", "kind": "dataset", "mime_type": "text/csv", "size": claim.size, "sha256": claim.sha256, "key": claim.key, **changed}
    inputs = DatasetInputs(dataset_id="d", file=File(file_id=str(uuid.uuid4()), job_id=job_id, **fields))
    spec = DatasetSpec(dataset_type=dataset_type, target=target)
    return await _created(log, origin, job_id, "prepare", ["preparation"], inputs, spec)


async def fit(log: EventLog, origin: Origin, source: Recorded) -> Recorded:
    """The fact that the gateway appends when somebody starts a run on a data set."""
    assert isinstance(source.event, JobCreated)
    inputs = FitInputs(dataset_id="d", source=source.event.job_id)
    return await _created(log, origin, str(uuid.uuid4()), "train", ["preparation", "training"], inputs, Fit(model_type="mlp"))


async def _created(log: EventLog, origin: Origin, job_id: str, kind: str, stages: Sequence[str], inputs: Any, spec: Any) -> Recorded:
    job = JobCreated(job_id=job_id, kind=kind, stages=list(stages), inputs=msgspec.to_builtins(inputs), spec=msgspec.to_builtins(spec))
    (created,) = await log.append([Write(events=[job], after=0)], origin=origin)
    return created


async def prepared(log: EventLog, created: Recorded) -> PreparationCompleted:
    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationCompleted), end
    return end


async def failed(log: EventLog, created: Recorded) -> PreparationFailed:
    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed), end
    return end


async def columns(log: EventLog, storage: Storage, created: Recorded) -> list[Column]:
    """As the gateway reads them; whatever is claimed of a part holds."""
    found: list[Column] = []
    for fact in await facts(log, created):
        if isinstance(fact.event, PreparationProduced):
            lines = msgspec.json.Decoder(Column).decode_lines(await storage.get(fact.event.content))
            assert fact.event.rows == fact.event.valid == len(lines)
            found += lines
    return found
