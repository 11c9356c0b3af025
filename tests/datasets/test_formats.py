"""What becomes of the bytes of an uploaded file: each row is used, or refused by its number and with its reason."""

import json
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.events.storable import why_not_storable
from libs.sniff import sniff
from services.datasets.formats import Row, rows

JSON, JSONL, CSV, TEXT = "application/json", "application/jsonl", "text/csv", "text/plain"
ALPACA = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(data: bytes | str, mime_type: str = JSONL, eval_share: float = 0.0) -> list[Row]:
    return list(rows([data.encode() if isinstance(data, str) else data], mime_type=mime_type, eval_share=eval_share))


def one(row: Any) -> Row:
    (found,) = read(json.dumps(row))
    return found


def reasons(found: Iterable[Row]) -> list[tuple[int, str]]:
    return [(row.number, row.reason) for row in found]


# ---- kinds of rows


@pytest.mark.parametrize(
    ("row", "kind", "data"),
    [
        (ALPACA, "alpaca", ALPACA),
        ({"instruction": "a", "output": "b"}, "alpaca", {"instruction": "a", "input": "", "output": "b"}),
        ({"instruction": "a", "input": None, "output": "b", "system": ""}, "alpaca", {"instruction": "a", "input": "", "output": "b"}),
        (
            {"instruction": "a", "output": "b", "system": "s", "history": [["q", "a"]]},
            "alpaca",
            {"instruction": "a", "input": "", "output": "b", "system": "s", "history": [["q", "a"]]},
        ),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", {"instruction": "a", "input": "", "output": "b"}),
        ({"question": "a", "answer": "b", "system": "s"}, "question_answer", {"instruction": "a", "input": "", "output": "b", "system": "s"}),
        ({"text": "a"}, "text", {"text": "a"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ({"messages": TURNS}, "messages", {"messages": TURNS}),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "sharegpt", {"messages": TURNS}),
        ({"conversations": TURNS}, "sharegpt", {"messages": TURNS}),
        ({"conversations": TURNS, "system": "Be kind."}, "sharegpt", {"messages": [{"role": "system", "content": "Be kind."}, *TURNS]}),
    ],
)
def test_a_row_is_told_by_its_keys_and_brought_into_one_form(row, kind, data):
    found = one(row)

    assert (found.reason, found.format, found.data) == ("", kind, data)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({**ALPACA, "text": "all of it"}, "alpaca"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "prompt_completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}, "preference"),
        ({"messages": TURNS, "prompt": "a", "text": "b"}, "messages"),
        ({"messages": None, "instruction": None, "text": "a"}, "text"),
    ],
)
def test_the_most_specific_format_whose_fields_are_given_is_taken(row, kind):
    assert one(row).format == kind


def test_turns_of_tools_are_kept_with_their_calls():
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "weather"}}]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "assistant", "content": "Rain."},
    ]

    found = one({"messages": turns})

    assert found.data["messages"] == [turns[0], {**turns[1], "content": ""}, *turns[2:]]


def test_other_fields_are_kept_as_meta():
    assert one({**ALPACA, "source": "book", "page": 7}).data == {**ALPACA, "meta": {"source": "book", "page": 7}}


def test_a_row_that_we_wrote_is_read_as_it_was():
    written = one({**ALPACA, "source": "book"})

    assert one(written.data) == written


def test_fields_too_large_for_meta_refuse_the_row_rather_than_being_dropped():
    found = one({**ALPACA, "notes": "x" * 5000})

    assert found.reason == "row_too_large"
    assert "meta" in found.message


# ---- refusals


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        ([1], "not_an_object", "a list"),
        ("text", "not_an_object", "text"),
        (None, "not_an_object", "null"),
        ({}, "unknown_format", "no keys"),
        ({"a": 1, "b\0\ud800": 2}, "unknown_format", "'a'"),
        ({"instruction": "a"}, "field_missing", "'output'"),
        ({"output": "a"}, "field_missing", "'instruction'"),
        ({"prompt": "a"}, "field_missing", "'completion'"),
        ({"chosen": "a", "rejected": "b"}, "field_missing", "'prompt'"),
        ({"messages": [{"content": "a"}]}, "field_missing", "'messages[0].role'"),
        ({"messages": [{"role": "user"}]}, "field_missing", "'messages[0].content'"),
        ({"messages": TURNS[:1]}, "field_missing", "assistant"),
        ({"instruction": " ", "output": "a"}, "field_empty", "'instruction'"),
        ({"instruction": "a", "output": None}, "field_empty", "'output'"),
        ({"text": "\n"}, "field_empty", "'text'"),
        ({"messages": []}, "field_empty", "'messages'"),
        ({"messages": [{"role": "user", "content": ""}]}, "field_empty", "'messages[0].content'"),
        ({"instruction": "a", "output": 4}, "field_wrong_type", "'output' is a number"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "field_wrong_type", "'input' is a list"),
        ({"instruction": "a", "output": "b", "history": "c"}, "field_wrong_type", "'history'"),
        ({"messages": "Hi"}, "field_wrong_type", "'messages' is text"),
        ({"messages": ["Hi"]}, "field_wrong_type", "'messages[0]' is text"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "field_wrong_type", "'wizard'"),
        ({"conversations": [{"from": 1, "value": "a"}]}, "field_wrong_type", "'conversations[0].from' is a number"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "field_wrong_type", "'messages[0].content' is a list"),
        ({"instruction": "a", "output": " \n"}, "output_too_short", "'output'"),
        ({"question": "a", "answer": ""}, "output_too_short", "'answer'"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": " "}]}, "output_too_short", "'messages[1].content'"),
        ({"text": "a\0b"}, "not_storable", "'text'"),
        ({"text": "a\ud800b"}, "not_storable", "'text'"),
        ({"text": "a", "id": 2**63}, "not_storable", "'meta.id'"),
        ({"text": "a", "score": float("nan")}, "not_storable", "'meta.score'"),
        ({"text": "a", "score": float("-inf")}, "not_storable", "'meta.score'"),
    ],
)
def test_a_row_that_can_not_be_used_says_why_and_names_the_field(row, reason, named):
    found = one(row)

    assert (found.reason, found.format, found.number) == (reason, "", 1)
    assert named in found.message
    assert found.data == {"raw": json.dumps(row)}
    assert why_not_storable(msgspec.to_builtins(found)) == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops}", "json_invalid"),
        (b'{"text": "a"} {"text": "b"}', "json_invalid"),
        (b'{"text": "\x00"}', "json_invalid"),
        (b'{"text": "\xff"}', "encoding_invalid"),
        (b'{"text": "a", "n": 1e999}', "not_storable"),
        (b'{"text": "a", "n": -' + b"9" * 10_000 + b"}", "not_storable"),
        (b'{"text": "a", "n": ' + b"[" * 65 + b"]" * 65 + b"}", "not_storable"),
        (b"[" * 100_000, "not_storable"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_storable"),
        (b'{"text": "' + b"a" * 256 * 1024 + b'"}', "row_too_large"),
    ],
)
def test_a_bad_line_refuses_only_itself(line, reason):
    found = read(b'{"text": "before"}\n' + line + b'\n{"text": "after"}')

    assert reasons(found) == [(1, ""), (2, reason), (3, "")]
    assert len(found[1].data["raw"]) <= 2000
    assert why_not_storable(found[1].data) == ""


def test_the_same_content_again_is_refused_and_names_the_first():
    found = read(
        "\n".join(json.dumps(row) for row in [ALPACA, {"text": "a"}, {**ALPACA, "id": 7}, {"prompt": "b", "completion": "c"}, {"question": "b", "answer": "c"}])
    )

    assert reasons(found) == [(1, ""), (2, ""), (3, "duplicate"), (4, ""), (5, "duplicate")]
    assert "row 1" in found[2].message
    assert "row 4" in found[4].message


def test_a_refused_row_does_not_make_its_repetition_a_duplicate():
    assert reasons(read('{"a": 1}\n{"a": 1}')) == [(1, "unknown_format"), (2, "unknown_format")]


def test_a_type_that_holds_no_rows_is_refused_by_name():
    (found,) = read(b"%PDF-1.7", "application/pdf")

    assert found.reason == "unknown_format"
    assert "application/pdf" in found.message


# ---- JSON lines


def test_blank_lines_are_no_rows_but_keep_counting():
    assert reasons(read('\ufeff\n{"text": "a"}\r\n  \r\n{"text": "b"}\r{"text": "c"}\n\n')) == [(2, ""), (4, ""), (5, "")]


def test_a_row_may_have_256_KiB_and_not_a_byte_more():
    row = b'{"text": "' + b"a" * (256 * 1024 - 12) + b'"}'

    assert reasons(read(row + b"\r\n")) == [(1, "")]
    assert reasons(read(row + b" \r\n")) == [(1, "row_too_large")]


@pytest.mark.parametrize("mime_type", [JSONL, CSV, TEXT])
def test_a_line_without_an_end_is_refused_without_being_held(mime_type):
    chunk = b"a" * 65_536
    tracemalloc.start()

    found = list(rows((chunk for _ in range(500)), mime_type=mime_type, eval_share=0))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(found) == [(1, "row_too_large")]
    assert peak < 3_000_000


# ---- JSON


@pytest.mark.parametrize("document", [[ALPACA, {"text": "a"}], {"data": [ALPACA, {"text": "a"}]}, {"train": [ALPACA, {"text": "a"}]}])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_rows_may_be_wrapped(document, indent):
    found = read("\ufeff " + json.dumps(document, indent=indent) + "\n", JSON)

    assert [(row.number, row.format) for row in found] == [(1, "alpaca"), (2, "text")]


@pytest.mark.parametrize("row", [ALPACA, {"messages": TURNS}, {"conversations": TURNS}, {"history": [["a", "b"]], **ALPACA}])
def test_one_object_is_one_row(row):
    assert reasons(read(json.dumps(row), JSON)) == [(1, "")]


@pytest.mark.parametrize("empty", ["[]", '{"data": []}', " [ ]\n"])
def test_an_empty_list_has_no_rows(empty):
    assert read(empty, JSON) == []


@pytest.mark.parametrize(
    ("data", "where"), [("oops", "character 1"), ("", "empty"), ('{"text":\n oops}', "line 2, column 2"), ("[oops", "character 2"), ("[", "character 2")]
)
def test_what_is_not_json_is_one_refused_row_with_the_place(data, where):
    (found,) = read(data, JSON)

    assert (found.number, found.reason) == (1, "json_invalid")
    assert where in found.message


def test_a_bad_element_refuses_only_itself():
    found = read(b'[{"text": "a"}, 7, {"text": NaN}, {"text": "\\ud800"}, {"text": "\xff"}, {"text": "' + b"a" * 262_144 + b'"}, {"text": "b"}]', JSON)

    assert reasons(found) == [
        (1, ""),
        (2, "not_an_object"),
        (3, "field_wrong_type"),
        (4, "not_storable"),
        (5, "encoding_invalid"),
        (6, "row_too_large"),
        (7, ""),
    ]


@pytest.mark.parametrize(
    "tail",
    [
        ', {"text": }, {"text": "b"}]',
        ' {"text": "b"}]',
        ', {"text": "b',
        ",]",
        "",
        "] trailing",
        '],"version":1}',
        "," + "[" * 100_000 + "]" * 100_000 + "]",
        "]" + " " * 5000 + "x",
    ],
)
def test_rows_before_a_fault_are_used_and_the_rest_is_one_refused_row(tail):
    found = read('[{"text": "a"}' + tail, JSON)

    assert [bool(row.reason) for row in found] == [False, True]
    assert found[1].number == 2
    assert "not read beyond" in found[1].message


def test_a_json_file_beyond_the_limit_is_told_to_become_json_lines(monkeypatch):
    monkeypatch.setattr("services.datasets.formats.json_document.MAX_FILE", 100)

    (found,) = read(json.dumps([ALPACA] * 10), JSON)

    assert found.reason == "row_too_large"
    assert "JSON lines" in found.message


def test_endless_nesting_is_refused_and_never_an_error():
    assert reasons(read(b"[" * 100_000, JSON)) == [(1, "not_storable")]
    assert reasons(read(b'{"a":' * 20_000, JSON)) == [(1, "not_storable")]


# ---- CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_table_is_read_by_its_header_whatever_divides_it(delimiter, ending):
    table = ending.join(delimiter.join(cells) for cells in [("instruction", "input", "output", "id"), ("Add.", "1 + 1", "2", "x"), ("", "", "", "")])

    found = read("\ufeff" + table, CSV)

    assert found[0].data == {**ALPACA, "meta": {"id": "x"}}
    assert reasons(found) == [(1, ""), (2, "field_empty")]


def test_quotes_may_hold_delimiters_quotes_and_line_ends():
    (found,) = read('prompt,completion\n"a, ""b""\nc",d\n\n', CSV)

    assert found.data == {"instruction": 'a, "b"\nc', "input": "", "output": "d"}


def test_columns_of_turns_hold_json():
    found = read(f'messages,history,text\n"{json.dumps(TURNS).replace(chr(34), chr(34) * 2)}",,x\noops,,x\n,,x\n', CSV)

    assert [(row.format, row.reason) for row in found] == [("messages", ""), ("", "json_invalid"), ("text", "")]
    assert "'messages'" in found[1].message


def test_records_are_counted_without_the_header_and_blank_lines():
    found = read(b'\nquestion,answer\na,b\n\na,b,c\n"two\nlines",b\na\n\xff,b\n"a,b\n', CSV)

    assert reasons(found) == [(1, ""), (2, "csv_ragged"), (3, ""), (4, "field_missing"), (5, "encoding_invalid"), (6, "csv_ragged")]
    assert found[1].data == {"raw": "a,b,c\n"}
    assert "never closed" in found[5].message


def test_unnamed_and_repeated_columns_lose_no_cell():
    (found,) = read(",text,text\n1,a,b\n", CSV)

    assert found.data == {"text": "a", "meta": {"column_1": "1", "text_3": "b"}}


@pytest.mark.parametrize("header", [b"\xff,text", b"a," * 200_000, b'"text'])
def test_without_a_header_there_is_one_refused_row(header):
    (found,) = read(header + b"\na,b\n", CSV)

    assert found.number == 1
    assert "header" in found.message


def test_a_cell_may_be_as_large_as_a_row():
    assert reasons(read("text\n" + "a" * 200_000 + "\n", CSV)) == [(1, "")]


def test_a_quote_left_open_ends_at_the_largest_row():
    found = read('text\n"' + "lorem\n" * 50_000 + "last\n", CSV)

    assert found[0].reason == "row_too_large"
    assert found[-2].data == {"text": "lorem"} or found[-2].reason == "duplicate"
    assert found[-1].data == {"text": "last"}


# ---- text


def test_paragraphs_are_rows_numbered_by_their_first_lines():
    found = read("\ufeff\nOne,\r\ntwo.\r\n \r\n\nThree.", TEXT)

    assert [(row.number, row.format, row.data) for row in found] == [(2, "text", {"text": "One,\ntwo."}), (6, "text", {"text": "Three."})]


def test_text_that_begins_with_a_row_is_json_lines():
    assert reasons(read('\n{"text": "a"}\noops\n', TEXT)) == [(2, ""), (3, "json_invalid")]


def test_a_paragraph_is_refused_alone():
    found = read(b"a\n\n" + b"b\n" * 200_000 + b"\n\xff\n\nc\0\n\nd", TEXT)

    assert [row.reason for row in found] == ["", "row_too_large", "encoding_invalid", "not_storable", ""]


# ---- tokens and splits


def test_tokens_are_the_words_and_marks_of_all_texts():
    assert one(ALPACA).tokens == 6
    assert one({"messages": TURNS}).tokens == 2
    assert one({"instruction": "a", "output": "b", "system": "c", "history": [["d!", "e"]], "note": "not f"}).tokens == 6


def test_the_split_follows_the_content_and_neither_order_nor_file():
    lines = [json.dumps({"text": f"row {n}"}) for n in range(2000)]

    forth = {row.data["text"]: row.split for row in read("\n".join(lines), eval_share=0.1)}
    back = {row.data["text"]: row.split for row in read("text\n" + "\n".join(f"row {n}" for n in reversed(range(2000))), CSV, eval_share=0.1)}

    assert forth == back
    assert 150 < sum(split == "eval" for split in forth.values()) < 250


@pytest.mark.parametrize(("share", "splits"), [(0.0, {"train"}), (1.0, {"eval"})])
def test_no_share_and_the_whole_share_leave_nothing_over(share, splits):
    assert {row.split for row in read("\n".join(json.dumps({"text": str(n)}) for n in range(100)), eval_share=share)} == splits


# ---- any bytes at all

FRAGMENTS = [
    b'{"text": "a"}',
    b'{"instruction": "a", "output": "b"}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\xc3\xa9"}]}',
    b"\n", b"\r", b"\r\n", b",", b";", b"\t", b'"', b'""', b"[", b"]", b"{", b"}", b":", b" ", b"\xef\xbb\xbf", b"\xc3", b"\xa9", b"\0", b"\\", b"\\ud800",
    b"NaN", b"1e999", b"9" * 30, b"null", b"text", b"prompt,completion\n", b"messages,text\n", b'{"data": [', b"]}", b"a" * 300_000, b"[" * 2_000, b'{"a":' * 2_000,
]  # fmt: skip
files = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(b"".join))
mime_types = st.sampled_from([JSON, JSONL, CSV, TEXT])


@settings(deadline=None, max_examples=400)
@given(data=files, mime_type=mime_types)
def test_no_bytes_are_an_error_and_each_row_can_be_stored(data, mime_type):
    found = read(data, mime_type, eval_share=0.5)

    assert all(a.number < b.number for a, b in pairwise(found))
    for row in found:
        assert why_not_storable(row.data) == why_not_storable(row.message) == ""
        assert bool(row.reason) == bool(row.message) == (row.format == "")
        assert row.split in {"train", "eval"}
        assert not row.reason or len(row.data["raw"]) <= 2000


@settings(deadline=None, max_examples=400)
@given(data=files, mime_type=mime_types, draw=st.data())
def test_chunks_may_fall_anywhere(data, mime_type, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=20)))
    chunks = [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]

    assert list(rows(chunks, mime_type=mime_type, eval_share=0.5)) == read(data, mime_type, eval_share=0.5)


# ---- sniffing


@pytest.mark.parametrize(
    ("head", "mime_type"),
    [
        (b'[{"a": 1}]', JSON),
        (b'\xef\xbb\xbf\n[\n  {"a": 1},\n  {"a": 2}\n]\n', JSON),
        (b'{"data": [\n{"a": 1},\n{"a": 2}\n]}', JSON),
        (b'{"a": 1}\n', JSON),
        (b'{"a": oops}', JSON),
        (b"{'a': 1}", JSON),
        (b"[1, 2]", JSON),
        (b'[{"a": "' + b"x" * 70_000, JSON),
        (b'{"a": 1}\n{"a": 2}\n', JSONL),
        (b'{"a": 1}\r\n\r\n{"a": 2', JSONL),
        (b'{"a": oops}\n{"a": 2}\n', JSONL),
        (b'{"a": 1}\nnot json\n', JSONL),
        (b"instruction,output\na,b\n", CSV),
        (b'prompt;completion\n"a;\nb";c\nd;e\n', CSV),
        (b"\xef\xbb\xbfquestion\tanswer\r\na\tb\r\n", CSV),
        (b"text,label\n" + b"some words,1\n" * 6000, CSV),
        (b"prompt,completion\n", CSV),
        (b"text\none\ntwo\n", TEXT),
        (b"Dear all, hello.\nThis is text; no table.\n", TEXT),
        (b"[1] Smith, J.\n[2] Doe, K.\n", TEXT),
        (b"[Chapter one]\nIt was dark.\n", TEXT),
        (b"", TEXT),
        ("é".encode()[:1], TEXT),
        (b"x" + "é".encode() * 40_000, TEXT),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"PK\x03\x04\x14", "application/zip"),
        (b"\x7fELF\x02", "application/x-executable"),
        (b"MZ\x90\x00", "application/x-executable"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x1f\x8b\x08", "application/gzip"),
        (b"text\0", "application/octet-stream"),
        (b"caf\xe9 latin", "application/octet-stream"),
        ("text".encode("utf-16"), "application/octet-stream"),
    ],
)
def test_a_file_is_told_by_its_head(head, mime_type):
    assert sniff(head) == mime_type


@settings(deadline=None, max_examples=400)
@given(head=files)
def test_any_head_has_a_type(head):
    assert "/" in sniff(head)
