"""Tables are read: what comes out of good ones, what is said of bad ones, and what of both the log hears."""

import asyncio
import csv
import hashlib
import io
import math
import os
import string
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from infra.embedded import Servers
from libs.events import Origin, PreparationCompleted
from libs.events.log import EventLog
from libs.runtime.broker import HandedOver
from libs.runtime.waiting import within
from libs.storage import Storage
from services.datasets import preparation
from services.datasets.confined import process as confined
from services.datasets.confined.frames import Limits, Prepared, Refusal
from services.datasets.handlers import Preparations
from services.datasets.tables import delimited, readings
from tests.kit.datasets import Read, columns, csv_of, dataset, failed, fit, prepared, zipped
from tests.kit.eventually import eventually
from tests.kit.preparing import cancel, ended, facts, job_id, names, process
from tests.kit.processes import children, lives
from tests.kit.servers import revive

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway


def rows(data: bytes, **order: Any) -> list[dict[str, Any]]:
    return Read(data, **order).table.to_dicts()


def one(values: list[str], *, name: str = "v", others: int = 2) -> Read:
    """A table of one column to look at, and a label."""
    lines = [f"{name};label", *(f"{value};{'ab'[n % 2]}" for n, value in enumerate(values * others))]
    return Read("\n".join(lines).encode())


# Forms


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_a_csv_is_read_however_it_is_written(delimiter: str, encoding: str, line_end: str):
    lines = [["größe", "ort", "label"], ["1.5", "Köln", "ja"], ["2.5", "Bonn", "nein"], ["-3", "Köln", "nein"], ["4e2", "Bonn", "ja"]]

    found = Read(line_end.join(delimiter.join(line) for line in lines).encode(encoding))

    assert found.table.to_dict(as_series=False) == {
        "größe": [1.5, 2.5, -3, 400],
        "ort": ["Köln", "Bonn", "Köln", "Bonn"],
        "label": ["ja", "nein", "nein", "ja"],
    }


@pytest.mark.parametrize(
    "data",
    [
        b'[{"a": 1, "b": "x", "label": true}, {"a": 2.5, "label": false, "b": null}, {"label": true, "a": 3, "b": "x"}]',
        b'{"a": 1, "b": "x", "label": true}\n{"a": 2.5, "label": false, "b": null}\n\n{"label": true, "a": "3", "b": "x"}\n',
        b'{"data": [{"a": 1, "b": "x", "label": true}, {"a": 2.5, "label": false}, {"label": true, "a": 3, "b": "x"}]}',
    ],
    ids=["records", "lines", "wrapped"],
)
def test_json_is_read_as_records_and_as_lines(data: bytes):
    assert Read(data).table.to_dict(as_series=False) == {"a": [1.0, 2.5, 3.0], "b": ["x", None, "x"], "label": ["true", "false", "true"]}


def test_parquet_keeps_its_types_and_leaves_out_what_has_none_here():
    moments = [datetime(2024, 5, n + 1, 12) for n in range(4)]  # noqa: DTZ001  # a file says nothing of time zones
    table = pl.DataFrame(
        {
            "n": [1, 2, 3, None],
            "x": [0.5, math.inf, math.nan, 2],
            "when": moments,
            "tag": ["a", "NA", "b", "a"],
            "list": [[1], [2], [3], [4]],
            "y": [0.1, 0.2, 0.3, 0.4],
        }
    ).with_columns(pl.col("tag").cast(pl.Categorical))
    file = io.BytesIO()
    table.write_parquet(file)

    found = Read(file.getvalue())

    assert found.table.to_dict(as_series=False) == {
        "n": [1, 2, 3, None],
        "x": [0.5, None, None, 2],
        "when": moments,
        "tag": ["a", None, "b", "a"],
        "y": [0.1, 0.2, 0.3, 0.4],
    }
    assert found.prepared.task == "regression"
    assert (found.columns["list"].role, "List" in found.columns["list"].reason) == ("ignored", True)


def test_a_zip_of_one_table_is_that_table():
    packed = zipped({"data/rows.csv": csv_of(20), "data/README.md": b"About it.", "__MACOSX/data/._rows.csv": b"\0\1"})

    found = Read(packed)

    assert found.table.equals(Read(csv_of(20)).table)
    assert "1 other files of the ZIP were left out." in found.prepared.notes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.text(string.ascii_letters + " ,;|\t\"'äß€\n-", max_size=12),
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.integers(-(10**12), 10**12),
        ),
        min_size=4,
        max_size=30,
    ),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_was_written_as_csv_comes_back(table: list[tuple[str, float, int]], delimiter: str, quoting: Any, comma: bool, encoding: str):
    texts = [readings.is_missing(text) or text.strip() for text, _, _ in table]
    assume(len({text for text in texts if text is not True}) > 1)
    assume(len({number for _, number, _ in table}) > 1)
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerow(["name of it", "number", "whole", "label"])
    for n, (text, number, whole) in enumerate(table):
        shown = repr(number).replace(".", ",") if comma else number
        writer.writerow([text, shown, whole, "ab"[n % 2]])

    found = Read(out.getvalue().encode(encoding))

    column = found.columns["name of it"]
    if column.role == "feature" and column.type == "category":
        assert found.table["name of it"].to_list() == [None if text is True else text for text in texts]
    numbers = [number for _, number, _ in table]
    if not comma or delimiter != "," or any(len(repr(number).partition(".")[2]) != 3 for number in numbers):
        assert found.table["number"].to_list() == numbers
    if found.columns["whole"].role == "feature":
        assert found.table["whole"].to_list() == [whole for _, _, whole in table]
    assert found.prepared.refused == {}


# Columns


def test_missing_values_are_told_from_values():
    found = Read(b"n,t,label\n1,x,a\n,?,b\nNA,-,a\nnull,None,b\n?,n/a,a\n2.5,NaN,b\n-,y,a\n")

    assert found.table["n"].to_list() == [1, None, None, None, None, 2.5, None]
    assert found.table["t"].to_list() == ["x", None, None, None, None, None, "y"]
    assert (found.columns["n"].missing, found.columns["t"].missing) == (5, 5)
    assert any(note.startswith("Read as missing: ") and "'NA' (1)" in note and "'?' (2)" in note for note in found.prepared.notes)


@pytest.mark.parametrize(
    ("values", "type", "first"),
    [
        (["1", "2", "3"], "integer", 1),
        ([" 1", "2 ", "-3"], "integer", 1),
        (["1.5", "2", "1e3"], "numeric", 1.5),
        (["1,5", "2", "1.234,5"], "numeric", 1.5),
        (["yes", "no", "Yes"], "boolean", True),
        (["red", "blue", "red"], "category", "red"),
        (["01067", "80331", "10115"], "category", "01067"),
        (["2024-02-03", "2024-12-31", "2023-01-01"], "date", datetime(2024, 2, 3)),  # noqa: DTZ001
        (["2024-02-03T04:05:06", "2024-12-31 07:08", "2023-01-01"], "date", datetime(2024, 2, 3, 4, 5, 6)),  # noqa: DTZ001
        (["2024-02-03T04:05:06Z", "2024-02-03T04:05:06+02:00", "2024-02-03T04:05:06.5Z"], "date", datetime(2024, 2, 3, 4, 5, 6)),  # noqa: DTZ001
        (["3.2.2024", "31.12.2024", "1.1.2023"], "date", datetime(2024, 2, 3)),  # noqa: DTZ001
        (["03/02/2024", "31/12/2024", "01/01/2023"], "date", datetime(2024, 2, 3)),  # noqa: DTZ001
        (["02/03/2024", "12/31/2024", "01/01/2023"], "date", datetime(2024, 2, 3)),  # noqa: DTZ001
        (["2024-02-03", "31.12.2024", "01/01/2023"], "date", datetime(2024, 2, 3)),  # noqa: DTZ001
    ],
    ids=[
        "whole",
        "blanks",
        "decimals",
        "decimal-comma",
        "boolean",
        "category",
        "postal-code",
        "iso",
        "with-time",
        "with-zone",
        "points",
        "day-first",
        "month-first",
        "three-forms",
    ],
)
def test_a_column_has_the_type_that_all_its_values_have(values: list[str], type: str, first: Any):
    found = one(values)

    assert found.columns["v"].type == type
    assert found.table["v"][0] == first
    assert found.table["v"].null_count() == 0


def test_day_and_month_are_told_by_the_whole_column():
    """Also by its last value."""
    found = one([*["03/02/2024"] * 1500, "12/31/2024"])

    assert found.table["v"].to_list()[:2] == [datetime(2024, 3, 2)] * 2  # noqa: DTZ001
    assert found.prepared.rows == found.prepared.valid == 3002


def test_dates_that_dont_tell_day_from_month_are_noted_and_those_that_contradict_each_other_are_none():
    assert any("day/month" in note for note in one(["03/02/2024", "05/06/2024"]).prepared.notes)
    assert one(["03/02/2024", "31/12/2024", "12/31/2024"]).columns["v"].type == "category"


@pytest.mark.parametrize(
    ("late", "type"),
    [("0.5", "numeric"), ("1e999", "integer"), ("1,5", "numeric")],
    ids=["float", "infinite", "comma"],
)
def test_a_value_far_behind_changes_the_reading_of_its_column_and_loses_no_other(late: str, type: str):
    found = one([*map(str, [1, 2, 3] * 1000), late], others=1)

    assert found.columns["v"].type == type
    assert [str(value)[0] for value in found.table["v"].to_list()[:6]] == list("123123")
    assert found.prepared.rows == found.prepared.valid == 3001


@pytest.mark.parametrize("others", [["1", "2", "3"], ["0.5", "1", "2"], ["2024-01-01", "2024-05-06", "2023-01-01"]], ids=["integer", "numeric", "date"])
@pytest.mark.parametrize("at", [5, 1_700])
def test_a_typing_error_makes_no_column_useless_and_is_told(others: list[str], at: int):
    values = others * 600
    values[at] = "abc"

    found = one(values, others=1)

    assert found.table["v"].to_list() == [None if n == at else value for n, value in enumerate(one(others * 600, others=1).table["v"])]
    assert any(note.startswith("1 values of 'v', like 'abc', are none") for note in found.prepared.notes)


def test_many_of_them_are_none_and_the_target_has_none():
    assert one([*["1", "2", "3"] * 500, *["abc", "def"] * 100], others=1).columns["v"].type == "category"
    lines = ["x,y", *(f"{n},{'abc' if n == 40 else n % 2}" for n in range(90))]
    assert Read("\n".join(lines).encode()).prepared.classes == 3
    regression = Read("\n".join(lines).encode(), dataset_type="regression").prepared
    assert (regression.valid, regression.refused) == (89, {"target_unreadable": 1})


def test_infinite_values_are_missing_ones_with_a_note_and_unusable_as_a_target():
    found = Read(b"a,b,y\n1,inf,0.5\n2,-Infinity,0.25\n3,1e999,inf\n4,5,0.75\n5,6,0.1\n")

    assert found.table.to_dict(as_series=False) == {"a": [1, 2, 4, 5], "b": [None, None, 5.0, 6.0], "y": [0.5, 0.25, 0.75, 0.1]}
    assert found.prepared.refused == {"target_infinite": 1}
    assert "Infinite values were taken for missing ones: 'b' (3)." in found.prepared.notes


def test_columns_that_teach_nothing_are_left_out_with_the_reason():
    lines = ["id,PassengerId,empty,same,name,x,label"] + [f"{n + 1},{n + 100},,7,person {n} {n * n},{n % 7},{'ab'[n % 2]}" for n in range(60)]

    found = Read("\n".join(lines).encode())

    assert {name: (column.type, column.reason.partition(" ")[0]) for name, column in found.columns.items() if column.role == "ignored"} == {
        "id": ("integer", "It"),
        "PassengerId": ("integer", "It"),
        "empty": ("integer", "It"),
        "same": ("integer", "It"),
        "name": ("text", "Almost"),
    }
    assert found.table.columns == ["x", "label"]
    assert any("5 of 7 columns are left out: 'id', 'PassengerId', 'empty', 'same', 'name'." in note for note in found.prepared.notes)


def test_a_column_is_described():
    found = Read("\n".join(["x,c,label", *(f"{n},{'uvw'[n % 3]},{'ab'[n % 2]}" for n in range(100)), ",,a"]).encode())

    x, c, label = found.columns.values()
    assert (x.type, x.role, x.missing, x.distinct, x.minimum, x.maximum, x.mean) == ("integer", "feature", 1, 100, 0, 99, 49.5)
    assert x.deviation == pytest.approx(28.866, abs=0.001)
    assert [times for _, times in x.histogram] == [5] * 20 or sum(times for _, times in x.histogram) == 100
    assert (len(x.histogram), x.histogram[0][0]) == (20, 0)
    assert (c.type, c.missing, c.distinct, c.categories) == ("category", 1, 3, [("u", 34), ("v", 33), ("w", 33)])
    assert (label.role, label.categories) == ("target", [("a", 51), ("b", 50)])


def test_headers_that_are_there_twice_or_have_no_name_are_told_apart_with_a_note():
    found = Read(b"a,a,,a_2,label\n1,2,3,4,x\n5,6,7,9,y\n")

    assert list(found.columns) == ["a", "a_2", "column_3", "a_2_4", "label"]
    assert any("1 columns have the name of another ('a')" in note or "2 columns" in note for note in found.prepared.notes)


def test_a_table_without_a_header_is_one_of_numbered_columns():
    found = Read(b"5.1,3.5,setosa\n4.9,3.0,setosa\n6.2,2.9,virginica\n5.9,3.2,virginica\n")

    assert (list(found.columns), found.prepared.rows, found.prepared.target) == (["column_1", "column_2", "column_3"], 4, "column_3")
    assert any("no header" in note for note in found.prepared.notes)


@pytest.mark.parametrize(
    "data",
    [
        b"sep=;\na;b;label\n1;x,y;p\n2;z;q\n3;z;q\n",
        b'a, b, label\n1, "x,y", p\n2, "z", q\n3, z, q\n',
        b'\n\na,b,label\n\n1,"x,y",p\n  \n2,z,q\n3,z,q\n\n',
        b'a,b,label\n1,"x,y",p,\n2,z,q,\n3,z,q,\n',
        b'a,b,label,\n1,"x,y",p\n2,z,q\n3,z,q\n',
    ],
    ids=["hint", "blanks-before-quotes", "blank-lines", "ends-with-delimiters", "header-ends-with-one"],
)
def test_what_programs_do_to_a_csv_is_understood(data: bytes):
    found = Read(data)

    assert found.table.select("b", "label").to_dict(as_series=False) == {"b": ["x,y", "z", "z"], "label": ["p", "q", "q"]}
    assert found.prepared.refused == {}


def test_names_of_rows_that_no_header_names_are_a_column():
    found = Read(b"x,label\n1,0.5,a\n2,0.25,b\n3,0.5,a\n")

    assert (list(found.columns), found.columns["column_1"].reason, found.table.columns) == (["column_1", "x", "label"], "It numbers the rows.", ["x", "label"])


# Targets


@pytest.mark.parametrize(
    ("header", "told", "target"),
    [("a,Label,b", "", "Label"), ("y,a,b", "", "y"), ("class,a,target", "", "target"), ("a,b,c", "", "c"), ("a,b,c", "b", "b"), ("a,label,c", " A ", "a")],
)
def test_the_target_is_the_one_that_was_named_or_has_the_name_of_one_or_is_the_last(header: str, told: str, target: str):
    data = f"{header}\n" + "".join(f"{n % 2},{n % 2},{n % 2}\n" for n in range(9))

    assert Read(data.encode(), target=told).prepared.target == target


@pytest.mark.parametrize(
    ("values", "asked", "task", "made"),
    [
        (["0", "1"], "", "classification", ["0", "1"]),
        (["0.0", "1.0"], "", "classification", ["0", "1"]),
        (["yes", "no"], "", "classification", ["yes", "no"]),
        (["0.5", "1.5"], "", "regression", [0.5, 1.5]),
        (["0", "1"], "regression", "regression", [0.0, 1.0]),
        (["0.5", "1.5"], "classification", "classification", ["0.5", "1.5"]),
        (["2024-01-01", "2024-01-02"], "", "classification", ["2024-01-01", "2024-01-02"]),
    ],
)
def test_the_task_follows_from_what_was_said_and_else_from_the_target(values: list[str], asked: str, task: str, made: list[Any]):
    lines = ["x,y", *(f"{n / 4},{value}" for n, value in enumerate(values * 4))]

    found = Read("\n".join(lines).encode(), dataset_type=asked)

    assert found.prepared.task == task
    assert found.table["y"].to_list()[:2] == made


def test_rows_without_a_target_and_of_another_width_are_counted_with_the_reason():
    found = Read(b"a,b,label\n1,2,x\n1,2\n1,2,3,4\n1,2,\n\n3,4,y\n5,6,NA\n7,8,x\n")

    assert (found.prepared.rows, found.prepared.valid, found.prepared.refused) == (7, 3, {"ragged": 2, "target_missing": 2})
    assert found.table["a"].to_list() == [1, 3, 7]


def test_quotes_that_are_out_of_place_cost_no_other_row():
    found = Read(b'a,t,label\n1,5" disk,x\n2,"say ""hi"", you",y\n3,"never closed,x\n4,"two\nlines",y\n5,6" disk,x\n6,short\n7,"q"z,y\n')

    assert found.table["t"].to_list() == ['5" disk', 'say "hi", you', "two\nlines", '6" disk']
    assert found.prepared.refused == {"bad_quotes": 2, "ragged": 1}


@pytest.mark.parametrize("piece", [7, 64, 1_000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_it_doesnt_matter_in_which_pieces_a_file_is_read(piece: int, encoding: str, line_end: str, monkeypatch: pytest.MonkeyPatch):
    rows = [f'{n};"{"ü" * (n % 5)} ""{n}""; of\nmore";{n / 4};{"ab"[n % 2]}' if n % 3 else f"{n};plain;;a" if n % 7 else f"{n};short" for n in range(60)]
    data = line_end.join(["n;t;x;label", *rows, '61;"never closed;1;a', "62;last;1;b"]).encode(encoding)
    whole = Read(data)
    monkeypatch.setattr(delimited, "PIECE", piece)

    found = Read(data)

    assert found.prepared == whole.prepared
    assert found.table.equals(whole.table)
    assert whole.prepared.refused == {"ragged": 3, "bad_quotes": 1}
    assert found.table["n"].to_list() == [n for n in range(61) if (n % 3 or n % 7) and n < 60] + [62]


def test_bad_rows_of_json_are_counted_with_their_reasons():
    found = Read(b'{"a": 1, "label": "x"}\n{broken\n[1, 2]\n{"a": 2, "label": "y"}\n{"a": 3}\n')

    assert (found.prepared.rows, found.prepared.refused) == (5, {"json_invalid": 1, "not_an_object": 1, "target_missing": 1})


# What nothing can be made of

MANY = Limits(columns=5, rows=50)
BAD = {
    "empty": (b"", "empty"),
    "blanks": (b" \n\n \n", "empty"),
    "one-column": (b"a\n1\n2\n3\n", "one_column"),
    "one-column-json": (b'[{"a": 1}, {"a": 2}]', "one_column"),
    "header-only": (b"a,b,label\n", "header_only"),
    "one-row": (b"a,b,label\n1,2,x\n", "one_row"),
    "one-class": (b"a,b,label\n1,2,x\n2,3,x\n", "one_class"),
    "no-target": (b"a,b\n1,x\n2,y\n", "target_not_found"),
    "targets-missing": (b"a,label\n1,\n2,NA\n", "no_usable_rows"),
    "all-ragged": (b"a,b,label\n1,2,3,4\n1\n", "no_usable_rows"),
    "nothing-to-tell-by": (b"a,label\n,x\n,y\n,x\n", "no_features"),
    "class-for-each-row": (b"a,label\n" + b"".join(b"%d,n%d\n" % (n % 3, n) for n in range(40)), "too_many_classes"),
    "too-many-columns": (b"a,b,c,d,e,label\n1,2,3,4,5,x\n2,3,4,5,6,y\n", "too_many_columns"),
    "too-many-rows": (csv_of(60), "too_many_rows"),
    "nul": (b"a,label\n1,x\n2,\0y\n" * 20, "nul"),
    "binary": (bytes(range(256)) * 40, "binary"),
    "wrong-encoding": (b"\xff\xfea\0,\0b\0\n\0\x00\xd8\n\0", "encoding_invalid"),
    "half-utf-8": (b"\xef\xbb\xbfa,label\n\xff,x\n", "encoding_invalid"),
    "json-cut": (b'[{"a": 1, "label"', "no_rows"),
    "json-empty": (b"[]", "empty"),
    "parquet-cut": (b"PAR1" + b"\x15\x04" * 30, "damaged"),
    "pdf": (b"%PDF-1.7 and so on", "unsupported_format"),
    "gzip": (b"\x1f\x8b\x08" + b"x" * 50, "unsupported_format"),
    "excel": (zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "unsupported_format"),
    "two-tables": (zipped({"a.csv": csv_of(5), "b.csv": csv_of(5)}), "several_tables"),
    "not-a-zip": (b"PK\x03\x04" + b"x" * 100, "damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_nothing_can_be_learned_from_is_refused_with_code_and_words(kind: str):
    data, code = BAD[kind]

    assert Read(data, limits=MANY, target="label" if kind == "no-target" else "").code == code


@pytest.mark.parametrize(
    ("data", "asked", "told"),
    [
        (b"a,b,label\n1,2,none\n3,4,spam\n5,6,None\n7,8,spam\n9,1,\n", "", ["target_missing (3)", "'None' (1), 'none' (1)"]),
        (b"# of 2024\n# by me\na,b,label\n" + b"1,2,x\n3,4,y\n" * 9, "", ["One row", "ragged (19)"]),
        (b"a,day\n1,2024-01-31\n2,2024-02-01\n3,2024-02-02\n", "regression", ["dates, 2024-01-31"]),
        (b'{"a": {"0": 1, "1": 2}, "label": {"0": "x", "1": "y"}}', "", ["a list of objects"]),
        (b'{"a": [1, 2], "label": ["x", "y"]}', "", ["a list of objects"]),
    ],
    ids=["classes-called-none", "comments", "dates", "columns", "lists"],
)
def test_a_refused_table_says_what_became_of_its_rows(data: bytes, asked: str, told: list[str]):
    found = Read(data, dataset_type=asked)

    assert [words for words in told if words not in found.message] == [], found.message


def test_the_page_about_bad_input_has_every_code():
    page = (Path(__file__).parents[2] / "docs" / "bad-input.md").read_text()

    assert [code for _, code in BAD.values() if f"`{code}`" not in page] == []


@pytest.mark.parametrize(("data", "code"), [(b"a,y\n1,x\n2,z\n3,x\n", "target_not_numeric"), (b"a,y\n1,2\n2,2\n3,2\n", "one_value")], ids=["text", "constant"])
def test_a_regression_wants_numbers_that_differ(data: bytes, code: str):
    assert Read(data, dataset_type="regression").code == code


def test_ten_thousand_columns_are_read_and_one_more_is_refused():
    header = ",".join(f"c{n}" for n in range(9_999))
    wide = (f"{header},label\n" + "".join(",".join(str((n * row) % 7) for n in range(9_999)) + f",{'ab'[row % 2]}\n" for row in range(4))).encode()

    found = Read(wide)

    assert (found.table.shape, len(found.columns)) == ((4, found.table.width), 10_000)
    assert Read(b"one," + wide.replace(b"\n", b"\n1,", 4)).code == "too_many_columns"


# The process


async def told(data: bytes, limits: Limits) -> Prepared:
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as draft, tempfile.TemporaryFile() as snapshot:
        file.write(data)
        file.flush()
        return await confined.read(file, draft, snapshot, dataset_type="", target="", limits=limits, heard=lambda said: None)


async def test_the_reader_is_a_process_with_bounds_and_who_needs_more_is_refused():
    made = await told(csv_of(1_000), Limits())

    assert (made.rows, made.valid) == (1_000, 1_000)
    with pytest.raises(Refusal) as refused:
        await told(csv_of(2_000), Limits(written=1_000))
    assert refused.value.code == "out_of_bounds"
    with pytest.raises(Refusal) as refused:
        await told(csv_of(2_000), Limits(silence=0.01))
    assert refused.value.code == "out_of_bounds"


# The job


async def test_a_data_set_becomes_a_snapshot_and_a_description_of_its_columns(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await dataset(storage, log, origin, csv_of(500) + b"1,2\n")

    await service.prepare(created)

    end = await prepared(log, created)
    assert await names(log, created) == ["started", "produced", "completed"]
    assert (end.rows, end.valid, end.refused, end.parts) == (501, 500, {"ragged": 1}, 1)
    assert (end.contents, end.task, end.target, end.columns, end.features, end.classes) == ("table", "classification", "label", 4, 3, 2)
    assert [(column.index, column.name, column.role) for column in await columns(log, storage, created)] == [
        (0, "n0", "feature"),
        (1, "n1", "feature"),
        (2, "n2", "feature"),
        (3, "label", "target"),
    ]
    assert end.snapshot
    assert end.snapshot.key.startswith(f"{origin.tenant}/{job_id(created)}/")
    table = pl.read_parquet(await storage.get(end.snapshot))
    assert table.equals(Read(csv_of(500)).table)
    once = await facts(log, created)
    await service.prepare(created)
    assert await facts(log, created) == once


async def test_a_data_set_that_cant_be_used_fails_with_code_and_words(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await dataset(storage, log, origin, csv_of(50), target="price")

    await service.prepare(created)

    assert await names(log, created) == ["started", "failed"]
    end = await failed(log, created)
    assert (end.code, "'price'" in end.message, "'n0'" in end.message) == ("target_not_found", True, True)


@pytest.mark.parametrize(
    ("changed", "code"), [({"key": "t/files/none"}, "source_missing"), ({"sha256": hashlib.sha256(b"").hexdigest()}, "source_damaged")], ids=["gone", "another"]
)
async def test_a_file_that_is_gone_or_another_fails_the_job(
    service: Preparations, storage: Storage, log: EventLog, origin: Origin, changed: dict[str, str], code: str
):
    created = await dataset(storage, log, origin, csv_of(50), **changed)

    await service.prepare(created)

    assert (await failed(log, created)).code == code


async def test_a_run_on_a_data_set_takes_its_snapshot_over(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    source = await dataset(storage, log, origin, csv_of(50))
    await service.prepare(source)
    created = await fit(log, origin, source)

    await service.prepare(created)

    end, made = await prepared(log, source), await prepared(log, created)
    assert await names(log, created) == ["started", "completed"]
    assert (made.snapshot, made.task, made.target, made.contents, made.features) == (end.snapshot, end.task, end.target, end.contents, end.features)
    assert (made.job_id, made.parts) == (job_id(created), 0)


async def test_a_run_on_a_data_set_that_failed_fails_with_its_reason(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    source = await dataset(storage, log, origin, b"a,b,label\n")
    await service.prepare(source)
    created = await fit(log, origin, source)

    await service.prepare(created)

    end = await failed(log, created)
    assert (end.code, "no rows" in end.message) == ("source_failed", True)


async def test_two_that_begin_together_make_one_snapshot(service: Preparations, another: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await dataset(storage, log, origin, csv_of(3_000))

    ends = await asyncio.gather(service.prepare(created), another.prepare(created), return_exceptions=True)

    assert all(end is None or isinstance(end, HandedOver) for end in ends)
    told = [fact.envelope.type for fact in await facts(log, created)]
    assert (told.count("preparation.started"), told.count("preparation.produced"), told.count("preparation.completed")) == (1, 1, 1)
    assert len(await storage.keys(f"{origin.tenant}/{job_id(created)}/")) == 2


async def test_a_cancel_ends_the_reader_too(service: Preparations, storage: Storage, log: EventLog, origin: Origin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "HEARTBEAT", 0.05)
    created = await dataset(storage, log, origin, csv_of(200_000, columns=8))

    work = asyncio.create_task(service.prepare(created))
    reader = await eventually(lambda: next((seen.pid for seen in children(os.getpid()) if b"datasets.confined.child" in seen.command), 0))
    await cancel(log, created)
    await within(5, work)

    assert await names(log, created) == ["started", "cancelled"]
    assert not lives(reader)


async def test_runs_started_on_a_data_set_that_is_still_processing_wait_for_it(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    """They need no worker meanwhile, and a cancelled one waits no longer."""
    with process(place, impatient=False) as datasets:
        await revive(datasets)
        slow = await dataset(storage, log, origin, csv_of(200_000))
        runs = [await fit(log, origin, slow) for _ in range(6)]
        await cancel(log, runs[0])
        ends = [await ended(log, created) for created in (slow, *runs)]

    assert ends[0][-1].envelope.type == "preparation.completed"
    snapshots = {end[-1].event.snapshot for end in ends if isinstance(end[-1].event, PreparationCompleted) and end[-1].event.snapshot}
    assert len(snapshots) == 1
    assert await names(log, runs[0]) in (["cancelled"], ["started", "completed"], ["started", "cancelled"])


async def test_killed_in_the_middle_it_makes_the_same_snapshot(place: Servers, nc: Client, storage: Storage, log: EventLog, origin: Origin):
    data = csv_of(100_000, columns=6)
    with process(place) as datasets:
        await revive(datasets)
        undisturbed = await dataset(storage, log, origin, data)
        await ended(log, undisturbed, patience=40)

        killed = [await dataset(storage, log, origin, data)]
        await eventually(lambda: _started(log, killed[0]))
        datasets.kill()
        await revive(datasets)
        await ended(log, killed[0], patience=40)
        killed.append(await dataset(storage, log, origin, data))
        (reader,) = await eventually(lambda: [child.pid for child in children(datasets.pid or 0)])
        datasets.kill()
        await eventually(lambda: not lives(reader), patience=2)
        await revive(datasets)
        for created in killed:
            await ended(log, created, patience=40)

    expected = (await prepared(log, undisturbed)).snapshot
    assert expected
    for created in killed:
        told = [fact.envelope.type for fact in await facts(log, created)]
        assert (told.count("preparation.started"), told.count("preparation.completed"), told[-1]) == (1, 1, "preparation.completed")
        snapshot = (await prepared(log, created)).snapshot
        assert snapshot
        assert (snapshot.sha256, snapshot.size) == (expected.sha256, expected.size)


async def _started(log: EventLog, created: Any) -> bool:
    return "started" in await names(log, created)
