"""What people do to a data set over HTTP: examples are looked through, mended, judged and taken away as files that come back the same."""

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.embedded import Process, Servers
from libs.events.log import EventLog
from tests.kit.eventually import eventually
from tests.kit.gateway import footprint

SUMS = [{"instruction": f"What is {n} + {n}?", "input": "", "output": f"{2 * n}, since it is so."} for n in range(40)]
BROKEN = "{broken"
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": '=1+1\n"quoted", and; more\tthings'},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "3"},
        ],
        "meta": {"tools": [{"name": "add"}], "n": 1},
    },
    {"messages": [{"role": "user", "content": "a", "from": "kept", "name": "x"}, {"role": "assistant", "content": "b"}]},
]
ODD = [
    {"instruction": "=cmd|' /C calc'!A0", "input": "+1 and more", "output": "-2", "system": "@home", "history": [["=a", "b"], ["c", "d"]]},
    {"instruction": "\tindented", "input": "'=already quoted", "output": "two\r\nlines, \"said\"; é 𝄞"},
    {"instruction": "  =spaced", "input": "", "output": "\uff1dwide", "meta": {"n": 1, "nested": {"a": [None, True, 1.5]}, "text": "=x"}},
    {"instruction": "-42", "input": "", "output": "+3.5"},
]  # fmt: skip
PREFERENCE = [{"prompt": "p", "chosen": "@c", "rejected": "r"}, {"prompt": "q", "chosen": "c", "rejected": "=r"}]
PROSE = [{"text": "=One.\nTwo."}, {"text": 'Three, "four".', "meta": {"source": "a"}}]


@pytest.fixture(scope="module", autouse=True)
def datasets(servers: Servers) -> Iterator[Process]:
    process = servers.service("datasets")
    process.start()
    yield process
    process.stop()


class Project:
    def __init__(self, api: httpx.AsyncClient, id: str) -> None:
        self.id = id
        self.path = f"/projects/{id}/dataset"
        self._api = api

    async def add(self, content: bytes, *, name: str = "rows.jsonl") -> str:
        """Until its rows can be read. The file's id."""
        answer = await self._api.post(f"/projects/{self.id}/files/upload", files=[("files", (name, content))], data={"kind": "dataset_upload"})
        (file,) = answer.json()["files"]

        async def read() -> bool:
            return (await self._api.get(f"/jobs/{file['job_id']}")).json()["status"] == "success"

        await eventually(read, patience=20)
        return file["id"]

    async def examples(self, **query: Any) -> list[dict[str, Any]]:
        return (await self.page(**query))["items"]

    async def page(self, **query: Any) -> dict[str, Any]:
        answer = await self._api.get(f"{self.path}/examples", params={"limit": 1000, **query})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stats(self) -> dict[str, Any]:
        return (await self._api.get(f"{self.path}/stats")).json()

    async def patch(self, id: str, etag: str = "", **change: Any) -> httpx.Response:
        return await self._api.patch(f"{self.path}/examples/{id}", json=change, headers={"If-Match": etag} if etag else {})

    async def download(self, **query: Any) -> httpx.Response:
        return await self._api.get(f"{self.path}/download", params=query)


@pytest.fixture
async def empty(api: httpx.AsyncClient) -> Project:
    return await project(api)


@pytest.fixture
async def sums(api: httpx.AsyncClient) -> Project:
    made = await project(api)
    await made.add(lines(SUMS) + BROKEN.encode())
    return made


async def project(api: httpx.AsyncClient) -> Project:
    return Project(api, (await api.post("/projects", json={"name": "data"})).json()["id"])


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# ---- edited, judged, moved


async def test_an_edited_row_is_shown_in_its_canonical_form_and_can_be_learned_from(sums: Project):
    (broken,) = await sums.examples(is_valid="false")

    answer = await sums.patch(broken["id"], data={"question": "Why?", "answer": "Because.", "by": "Ann"})

    edited = answer.json()
    assert answer.status_code == 200
    assert edited["data"] == {"instruction": "Why?", "input": "", "output": "Because.", "meta": {"by": "Ann"}}
    assert (edited["is_valid"], edited["reason"], edited["message"], edited["format"], edited["token_count"]) == (True, None, None, "question_answer", 4)
    assert await sums.examples(format="question_answer") == [edited]
    stats = await sums.stats()
    assert (stats["total"], stats["valid"], stats["invalid"], stats["validation_errors"], stats["refused"]) == (41, 41, 0, {}, [])
    assert min(split["min_tokens"] for split in stats["by_split"].values()) == 4


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"data": {"instruction": "a", "output": " "}}, "OUTPUT_TOO_SHORT", "data: 'output' has no character to learn from."),
        ({"data": {"instruction": "a"}}, "FIELD_MISSING", "data: 'output' is missing"),
        ({"data": {"messages": [{"role": "user", "content": "a"}]}}, "FIELD_MISSING", "no turn of the assistant"),
        ({"data": {"raw": "{"}}, "UNKNOWN_FORMAT", "data: The row has the keys 'raw'; understood are"),
        ({"data": {"text": "a\0b"}}, "NOT_STORABLE", "data: 'text' contains the character NUL"),
        ({"data": {"text": "é" * 24_580}}, "EXAMPLE_TOO_LARGE", "are more than the 49152 that an edited example can have"),
        ({"data": {"text": "a", "other": "b" * 5_000}}, "ROW_TOO_LARGE", "'meta', which keeps the fields that are not part of the format"),
        ({"data": []}, "VALIDATION_ERROR", "Expected `object`, got `array`"),
        ({"split": "preview"}, "VALIDATION_ERROR", "split"),
        ({"is_valid": None}, "VALIDATION_ERROR", "is_valid"),
        ({"reason": "dull"}, "VALIDATION_ERROR", "reason: goes with is_valid=false"),
        ({"is_valid": True, "reason": "good"}, "VALIDATION_ERROR", "reason: goes with is_valid=false"),
        ({"is_valid": False, "reason": "a" * 501}, "VALIDATION_ERROR", "reason"),
        ({"isvalid": False}, "VALIDATION_ERROR", "did you mean is_valid?"),
    ],
)
async def test_what_could_not_be_uploaded_can_not_be_written(
    api: httpx.AsyncClient, servers: Servers, log: EventLog, shared: Project, change: dict[str, Any], code: str, said: str
):
    (example, *_) = await shared.examples(limit=1)
    before = await footprint(log, servers)

    answer = await shared.patch(example["id"], **change)

    assert (answer.status_code, answer.json()["error_code"]) == (422, code)
    assert said in answer.json()["detail"]
    assert await footprint(log, servers) == before


@pytest.fixture(scope="module")
async def shared(api: httpx.AsyncClient) -> Project:
    """For tests that change nothing."""
    made = await project(api)
    await made.add(lines(SUMS) + BROKEN.encode())
    return made


async def test_a_person_refuses_and_accepts_again(sums: Project):
    example = (await sums.examples(is_valid="true"))[7]

    refused = (await sums.patch(example["id"], is_valid=False, reason="It is dull.")).json()
    counted = await sums.stats()
    listed = await sums.examples(reason="refused_by_person")
    accepted = (await sums.patch(example["id"], is_valid=True)).json()

    assert refused == {**example, "is_valid": False, "reason": "refused_by_person", "message": "It is dull."}
    assert listed == [refused]
    assert (counted["valid"], counted["invalid"]) == (39, 2)
    assert counted["validation_errors"] == {"json_invalid": 1, "refused_by_person": 1}
    assert [row["message"] for row in counted["refused"] if row["reason"] == "refused_by_person"] == ["It is dull."]
    assert accepted == example
    assert (await sums.stats())["validation_errors"] == {"json_invalid": 1}


async def test_a_row_refused_for_its_form_needs_an_edit(sums: Project):
    (broken,) = await sums.examples(is_valid="false")

    answer = await sums.patch(broken["id"], is_valid=True)

    assert (answer.status_code, answer.json()["error_code"]) == (409, "EXAMPLE_UNREADABLE")
    assert "becomes valid when its data is edited" in answer.json()["detail"]


async def test_an_example_is_moved_to_the_other_split(sums: Project):
    train = (await sums.page(split="train", is_valid="true"))["total"]
    example = (await sums.examples(split="train", is_valid="true"))[0]

    moved = (await sums.patch(example["id"], split="eval")).json()

    assert moved == {**example, "split": "eval"}
    assert moved in await sums.examples(split="eval")
    assert (await sums.page(split="train", is_valid="true"))["total"] == train - 1
    assert (await sums.page())["stats"]["train"] == train - 1


async def test_of_two_editors_the_one_who_saw_less_is_told(api: httpx.AsyncClient, sums: Project):
    example = (await sums.examples())[0]
    path = f"{sums.path}/examples/{example['id']}"
    seen = await api.get(path)

    first = await sums.patch(example["id"], seen.headers["etag"], split="eval")
    second = await sums.patch(example["id"], seen.headers["etag"], is_valid=False)
    stale = await api.delete(path, headers={"If-Match": seen.headers["etag"]})
    third = await sums.patch(example["id"], first.headers["etag"], is_valid=False)

    assert (seen.json(), seen.headers["etag"]) == (example, '"0"')
    assert [answer.status_code for answer in (first, second, stale, third)] == [200, 412, 412, 200]
    assert (await api.get(path)).headers["etag"] == third.headers["etag"]
    assert (await api.get(path)).json() == {**third.json(), "split": "eval", "is_valid": False}


async def test_side_by_side_nobody_contends_and_what_is_counted_stays_true(api: httpx.AsyncClient, sums: Project):
    listed = await sums.examples(is_valid="true")

    def done(n: int, id: str) -> Any:
        if n % 4 == 0:
            return api.delete(f"{sums.path}/examples/{id}")
        return sums.patch(id, **[{}, {"is_valid": False}, {"data": {"text": "a"}}, {"split": "eval"}][n % 4])

    answers = await asyncio.gather(*(done(n, example["id"]) for n, example in enumerate(listed)))

    assert {answer.status_code for answer in answers} == {200, 204}
    page, stats = await sums.page(), await sums.stats()
    assert len(page["items"]) == page["total"] == stats["total"] == 31
    valid = [example for example in page["items"] if example["is_valid"]]
    assert stats["valid"] == len(valid) == 20
    for split, told in stats["by_split"].items():
        tokens = [example["token_count"] for example in valid if example["split"] == split]
        assert told == {"count": len(tokens), "avg_tokens": round(sum(tokens) / len(tokens)), "min_tokens": min(tokens), "max_tokens": max(tokens)}
    assert stats["validation_errors"] == {"refused_by_person": 10, "json_invalid": 1}
    seen = (await api.get(f"/projects/{sums.id}")).json()
    assert seen["stats"]["example_count"] == 20


async def test_a_file_whose_only_rows_were_mended_by_hand_can_be_trained_on(api: httpx.AsyncClient, empty: Project):
    await empty.add(lines([{"a": 1}, {"b": 2}]))
    resolved = await api.post(f"/projects/{empty.id}/model/resolve", json={"model_id": "trainyard/tiny-llama"})
    before = await api.post(f"/projects/{empty.id}/train/start", json={"method": "lora"})

    for example in await empty.examples():
        await empty.patch(example["id"], data={"text": "mended"})
    after = await api.post(f"/projects/{empty.id}/train/start", json={"method": "lora"})

    assert (resolved.status_code, before.status_code, before.json()["error_code"]) == (200, 400, "NO_TRAINING_DATA")
    assert after.status_code == 202
    await api.post(f"/jobs/{after.json()['job_id']}/cancel")


async def test_what_is_deleted_can_not_be_edited(api: httpx.AsyncClient, sums: Project):
    example = (await sums.examples())[0]
    await api.delete(f"{sums.path}/examples/{example['id']}")

    answers = [await sums.patch(example["id"], split="eval"), await api.get(f"{sums.path}/examples/{example['id']}")]

    assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(404, "Example not found")] * 2


# ---- looked through


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"q": "7?"}, [7, 17, 27, 37]),
        ({"q": "SINCE it"}, range(40)),
        ({"q": "instruction"}, []),  # that is the name of a field
        ({"q": "%_"}, []),
        ({"q": '"\\'}, []),
        ({"q": "broken"}, [40]),
        ({"format": "alpaca", "is_valid": "true"}, range(40)),
        ({"format": "messages"}, []),
        ({"reason": "json_invalid"}, [40]),
        ({"reason": "duplicate"}, []),
        ({"file_id": "019a0000-0000-7000-8000-000000000003"}, []),
        ({"q": "7?", "limit": 2, "offset": 1}, [17, 27]),
        ({"limit": 5, "offset": 36}, range(36, 41)),
        ({"limit": 5, "offset": 21}, range(21, 26)),
        ({"limit": 5, "offset": 41}, []),
        ({"limit": 5, "offset": 10_000_000}, []),
    ],
)
async def test_examples_are_found_by_what_they_are_and_say(shared: Project, query: dict[str, Any], numbers: Any):
    page = await shared.page(**query)

    assert [example["row"] - 1 for example in page["items"]] == list(numbers)
    counted = {name: value for name, value in query.items() if name not in ("limit", "offset")}
    assert page["total"] == (await shared.page(**counted))["total"] == len(await shared.examples(**counted))


async def test_signs_are_found_as_they_are_written(empty: Project):
    await empty.add(lines([{"text": 'a "b" \\ 100% _x_ é\nnew'}, {"text": "plain b 1000 axa e new"}]))

    for said in ('"B"', "\\ 1", "0%", "_x", "é\nn"):
        assert [example["row"] for example in await empty.examples(q=said)] == [1], said


async def test_of_several_files_one_is_looked_through(empty: Project):
    first, second = await empty.add(lines(SUMS[:3])), await empty.add(lines(SUMS[3:5]), name="more.jsonl")

    assert [example["row"] for example in await empty.examples(file_id=second)] == [1, 2]
    assert (await empty.page(file_id=first))["total"] == 3


@pytest.mark.parametrize("query", ["q=a", f"q={'a' * 201}", "q=a%00b", "reason=%00", "format=yaml", "split=test", "is_valid=perhaps", "file_id=1"])
async def test_what_can_not_be_looked_for_is_refused(api: httpx.AsyncClient, shared: Project, query: str):
    assert (await api.get(f"{shared.path}/examples?{query}")).status_code in (400, 422)


# ---- taken away, and back again


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        *(("jsonl", rows) for rows in (ODD, CHAT, PREFERENCE, PROSE, [*ODD, *CHAT, *PREFERENCE, *PROSE])),
        *((form, rows) for form in ("csv", "parquet") for rows in (ODD, CHAT, PREFERENCE, PROSE)),
        ("alpaca", ODD),
        ("messages", CHAT),
        ("sharegpt", CHAT),
    ],
)
async def test_what_is_downloaded_comes_back_as_the_same_examples(api: httpx.AsyncClient, empty: Project, form: str, rows: list[Any]):
    await empty.add(lines(rows))
    before = [example["data"] for example in await empty.examples()]
    again = await project(api)

    answer = await empty.download(format=form)
    await again.add(answer.content, name="back")

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-total-count"] == str(len(rows))
    assert answer.headers["content-disposition"] == f'attachment; filename="dataset{f".{form}" if form in ("jsonl", "csv", "parquet") else f"-{form}.jsonl"}"'
    back = await again.examples()
    assert [example["message"] for example in back] == [None] * len(rows)
    assert [example["data"] for example in back] == before == [{"input": "", **row} if "instruction" in row else row for row in rows]


async def test_no_cell_of_a_csv_is_a_formula(empty: Project):
    await empty.add(lines(ODD))

    table = list(csv.DictReader(io.StringIO((await empty.download(format="csv")).content.decode(), newline="")))

    for cell in (cell for record in table for cell in record.values()):
        assert not cell.lstrip().startswith(("=", "+", "@", "\t", "\r", "\uff1d")) or cell == "+3.5"
    assert [record["_quoted"] for record in table] == ["instruction input system", "instruction", "instruction output", ""]
    assert [record["output"] for record in table] == ["-2", ODD[1]["output"], "'\uff1dwide", "+3.5"]


@pytest.mark.parametrize(("form", "turns"), [("messages", "messages"), ("sharegpt", "conversations")])
async def test_instructions_become_conversations_and_the_answer_says_so(empty: Project, form: str, turns: str):
    await empty.add(lines([{"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["d", "e"]]}]))

    answer = await empty.download(format=form)

    said = [tuple(turn.values()) for turn in answer.json()[turns]]
    user, assistant = ("user", "assistant") if form == "messages" else ("human", "gpt")
    assert said == [("system", "s"), (user, "d"), (assistant, "e"), (user, "a\n\nb"), (assistant, "c")]
    assert "that 1 of the form alpaca were no conversations" in answer.headers["x-left-out"]


@pytest.mark.parametrize(
    ("form", "rows", "said"),
    [
        ("alpaca", [*ODD[:1], *CHAT], "alpaca can't tell 2 of the form messages of the 3 examples in one file; jsonl tells them all"),
        ("sharegpt", [*CHAT, *PROSE, *PREFERENCE[:1]], "1 of the form preference and 2 of the form text of the 5 examples"),
        ("csv", [*PROSE, *PREFERENCE[:1]], "csv can't tell 1 of the form preference"),
        ("parquet", [*CHAT, *PROSE], "parquet can't tell"),
    ],
)
async def test_what_a_form_can_not_tell_is_refused_with_words(empty: Project, form: str, rows: list[Any], said: str):
    await empty.add(lines(rows))

    answer = await empty.download(format=form)

    assert answer.status_code == 422
    assert said in answer.json()["detail"]


async def test_a_download_has_what_a_training_would_learn_from(sums: Project):
    (eval_, *_), train = await sums.examples(split="train", is_valid="true"), len(await sums.examples(split="train", is_valid="true"))
    await sums.patch(eval_["id"], data={"instruction": "edited", "output": "by hand"}, split="eval")

    whole, part = await sums.download(), await sums.download(split="train")

    rows = [json.loads(line) for line in whole.text.splitlines()]
    assert len(rows) == 40
    assert {"instruction": "edited", "input": "", "output": "by hand"} in rows
    assert whole.headers["x-left-out"] == "1 refused; which split each is in (ask with split=)"
    assert (len(part.text.splitlines()), part.headers["content-disposition"]) == (train - 1, 'attachment; filename="dataset-train.jsonl"')


async def test_an_empty_data_set_is_no_file(empty: Project):
    answer = await empty.download()

    assert (answer.status_code, answer.json()["error_code"]) == (404, "NO_EXAMPLES")


async def test_a_long_data_set_comes_whole_and_in_its_order(empty: Project):
    rows = [{"text": f"{n} " + "x" * (50_000 if n % 100 == 0 else 10)} for n in range(1_300)]
    await empty.add(lines(rows))

    assert [json.loads(line) for line in (await empty.download()).text.splitlines()] == rows
