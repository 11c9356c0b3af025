"""Parquet: its rows are those that the same table gives as JSON lines, and hostile files are refused by a process that may do little."""

import struct
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from tempfile import TemporaryFile
from typing import Any

import msgspec
import polars as pl
import pytest

from libs.events import Origin, PreparationCompleted, PreparationFailed, PreparationProduced, Recorded
from libs.events.log import EventLog
from libs.sniff import PARQUET, sniff
from libs.storage import Storage
from services.datasets.documents import child, columns
from services.datasets.documents.blocks import Limits, Order, Refusal, Refused
from services.datasets.documents.parsing import parse
from services.datasets.handlers import Preparations
from services.datasets.ingest import UNPACKING
from tests.kit.preparing import alpaca, facts, job_id, names, uploaded

COMPRESSIONS: tuple[Any, ...] = ("snappy", "zstd", "gzip", "uncompressed")


def parquet(*rows: dict[str, Any], **options: Any) -> bytes:
    return written_by(pl.DataFrame(rows, infer_schema_length=None), **options)


def written_by(frame: pl.DataFrame, **options: Any) -> bytes:
    file = BytesIO()
    frame.write_parquet(file, **options)
    return file.getvalue()


def refusal(data: bytes, limits: Limits = UNPACKING) -> str:
    """What the process would say, said here."""
    *_, last = child.frames(BytesIO(data), Order(parent=0, mime_type=PARQUET, limits=limits))
    assert isinstance(last, Refused), last
    assert last.message.endswith("."), last.message
    return last.code


async def rows(log: EventLog, storage: Storage, created: Recorded) -> list[dict[str, Any]]:
    claims = [fact.event.content for fact in await facts(log, created) if isinstance(fact.event, PreparationProduced)]
    return [line for claim in claims for line in msgspec.json.Decoder(dict[str, Any]).decode_lines(await storage.get(claim))]


# What comes out


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_table_gives_the_examples_of_its_rows(service: Preparations, storage: Storage, log: EventLog, origin: Origin, compression: str):
    given = [msgspec.json.decode(row) for row in alpaca(30)]
    created = await uploaded(storage, log, origin, parquet(*given, compression=compression, row_group_size=7), mime_type=PARQUET)
    same = await uploaded(storage, log, origin, alpaca(30))

    for job in (created, same):
        await service.prepare(job)

    found, expected = [[{**row, "id": ""} for row in await rows(log, storage, job)] for job in (created, same)]
    assert found == expected
    assert (await facts(log, created))[-1].event == PreparationCompleted(job_id=job_id(created), parts=1, rows=30, valid=30)


async def test_conversations_and_what_else_a_table_holds_come_as_json(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is four."}]
    others = {"price": Decimal("1.5"), "at": datetime(2026, 11, 5, tzinfo=UTC), "raw": b"\0\1", "score": float("nan"), "tags": ["a", "b"], "none": None}
    created = await uploaded(storage, log, origin, parquet({"messages": messages, **others}, {"messages": None, "none": "only this"}), mime_type=PARQUET)

    await service.prepare(created)

    first, second = await rows(log, storage, created)
    assert (first["valid"], first["format"], first["data"]["messages"]) == (True, "messages", messages)
    assert first["data"]["meta"] == {"price": "1.5", "at": "2026-11-05T00:00:00Z", "raw": "AAE=", "score": None, "tags": ["a", "b"]}
    assert second["valid"] is False


async def test_a_large_table_comes_in_parts_and_none_of_its_rows_is_lost(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    given = [{**msgspec.json.decode(row), "n": n} for n, row in enumerate(alpaca(2_500))]
    given[7]["output"] = "x" * 400_000
    given[9]["output"] = ""
    created = await uploaded(storage, log, origin, parquet(*given, row_group_size=999), mime_type=PARQUET)

    await service.prepare(created)
    await service.prepare(created)

    found = await rows(log, storage, created)
    assert await names(log, created) == ["started", "produced", "produced", "produced", "completed"]
    assert [row["row"] for row in found] == list(range(1, 2_501))
    assert [row["row"] for row in found if not row["valid"]] == [8, 10]
    assert found[7]["reason"] == "row_too_large"


# What is refused


def claiming(rows: int) -> bytes:
    """A table of zeros, which pack well."""
    return written_by(pl.select(pl.repeat("0" * 100, rows).alias("text")), compression="zstd")


def nested(depth: int) -> bytes:
    kind: Any = pl.Int64
    for _ in range(depth):
        kind = pl.List(kind)
    return written_by(pl.DataFrame({"text": ["a"], "deep": pl.Series([None], dtype=kind)}))


GOOD = parquet({"text": "Some words."})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (GOOD[:-20], "damaged"),
        (b"PAR1", "damaged"),
        (b"PAR1" + bytes(1_000) + b"PAR1", "damaged"),
        (GOOD[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1", "damaged"),
        (GOOD[:4] + b"\xff" * (len(GOOD) // 2) + GOOD[4 + len(GOOD) // 2 :], "damaged"),
        (written_by(pl.DataFrame({"text": pl.Series([], dtype=pl.String)})), "empty"),
        (written_by(pl.DataFrame({f"c{n}": [n] for n in range(1_001)})), "too_complex"),
        (nested(9), "too_complex"),
        (b'{"text": "no parquet"}\n', "wrong_type"),
    ],
    ids=["cut off", "only its mark", "zeros", "an enormous footer", "noise", "no rows", "too wide", "too deep", "other content"],
)
def test_what_is_said_of_a_bad_table(data: bytes, code: str):
    assert refusal(data) == code


@pytest.mark.parametrize("far", [pl.Datetime("us"), pl.Date], ids=["a time", "a day"])
def test_dates_that_no_calendar_has_are_said_to_be_a_damage_of_the_table(far: Any):
    column = pl.Series([2**62 if far != pl.Date else 2**30]).cast(pl.Int64 if far != pl.Date else pl.Int32).cast(far)

    *_, last = child.frames(BytesIO(written_by(pl.DataFrame({"text": ["a"], "at": column}))), Order(parent=0, mime_type=PARQUET, limits=UNPACKING))

    assert isinstance(last, Refused)
    assert (last.code, last.message.startswith("The Parquet file can't be made out")) == ("damaged", True)


def test_a_table_that_unpacks_to_too_much_is_refused():
    bomb = claiming(400_000)

    assert len(bomb) < 400_000
    assert refusal(bomb, Limits(text=1_000_000)) == "too_much_text"


async def test_a_cell_that_no_memory_holds_is_refused():
    bomb = written_by(pl.DataFrame({"text": ["0" * 200_000_000] * 2}), compression="zstd")

    with TemporaryFile() as file, TemporaryFile() as spool:
        file.write(bomb)
        file.flush()
        with pytest.raises(Refusal) as refused:
            await parse(file, spool, mime_type=PARQUET, limits=Limits(memory=1024**3), heard=lambda progress: None)

    assert len(bomb) < 1_000_000
    assert refused.value.code == "out_of_bounds"


async def test_a_table_of_too_many_rows_is_refused_before_one_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(columns, "MOST_ROWS", 99)

    with pytest.raises(Refusal) as refused:
        list(columns.read(BytesIO(claiming(100)), Limits()))

    assert refused.value.code == "too_many_rows"


async def test_a_bad_table_fails_its_job_and_says_why(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await uploaded(storage, log, origin, GOOD[:-20], mime_type=PARQUET)

    await service.prepare(created)

    end = (await facts(log, created))[-1].event
    assert isinstance(end, PreparationFailed)
    assert end.code == "damaged"
    assert "Parquet" in end.message


def test_a_table_is_known_by_its_first_bytes():
    assert sniff(GOOD) == PARQUET
