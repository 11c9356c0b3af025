"""Predictions of the training service: what a model is given, which models are loaded and kept, and who answers when somebody is killed."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import numpy as np
import psutil
import pytest
from nats.aio.client import Client
from onnx import AttributeProto, TensorProto, helper

from infra.embedded import Process, Servers
from libs.events import Claim
from libs.prediction import INLINE, SUBJECT, Answer
from libs.storage import Missing, Storage
from services.gateway.api.deep_learning.predict import Patience, asked
from services.gateway.questions import Questions
from services.training import features
from services.training.eyes import Eyes, Shown
from services.training.features import Preparation, Target
from services.training.frames import Completed
from services.training.reading import Reader, Wrong
from services.training.runner.looking import seen
from services.training.sessions import OWN, Loaded, Sessions, TooLarge, Unusable, opened
from services.training.together import Together, answers
from services.training.transfer import Spoiled
from tests.kit import fits, looks
from tests.kit import predictors as kit
from tests.kit.eventually import eventually
from tests.kit.finetunes import Told
from tests.kit.servers import revive
from tests.kit.training import descendants, kill, service

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nats-py leaves them behind where a reconnect fails halfway

CLAIM = Claim(key="t/x", sha256="0" * 64, size=1)
COLUMNS: list[tuple[str, features.Kind]] = [("size", "numeric"), ("count", "integer"), ("old", "boolean"), ("colour", "category"), ("day", "date")]
ROWS: list[dict[str, Any]] = [
    {"size": 1.5, "count": 3, "old": True, "colour": "red", "day": "2024-01-31"},
    {"size": -2.5, "count": 40, "old": False, "colour": "blue", "day": "2024-02-29T13:30:00"},
    {"size": None, "count": None, "old": None, "colour": None, "day": None},
    {"size": 1e300, "count": 10**30, "old": "yes", "colour": "green", "day": "2025-12-24T01:00:00+02:00"},
    {"size": 0, "count": 1.0, "old": "0", "colour": "red", "day": "2024-01-31"},
    {"size": 0.25, "count": 2, "old": 1, "colour": "blue", "day": "2024-06-01"},
]


def known(missing: Any = "median") -> Preparation:
    table = {name: [row[name] for row in ROWS if name != "size" or row[name] != 1e300] for name, _ in COLUMNS}
    return features.learned(COLUMNS, table, target=Target(name="y", task="classification", classes=["a", "b"]), missing=missing)


def raw(*rows: Any) -> list[msgspec.Raw]:
    return [msgspec.Raw(json.dumps(row).encode()) for row in rows]


# ---- what a model is given


def scaled(reader: Reader, *rows: Any) -> Any:
    return reader.scaled([reader.read(raw(*rows))])


@pytest.mark.parametrize("missing", ["median", "nan"])
def test_a_row_becomes_the_numbers_that_it_was_in_training_whether_by_name_or_by_place(missing: str):
    preparation = known(missing)

    by_name = scaled(Reader(preparation), *ROWS)
    by_place = scaled(Reader(preparation), *([row[name] for name, _ in COLUMNS] for row in ROWS))

    expected = preparation.encode_rows(ROWS)
    np.testing.assert_array_equal(by_name, expected)
    np.testing.assert_array_equal(by_place, expected)
    assert by_name.dtype == np.float32
    for n in range(len(ROWS)):
        np.testing.assert_array_equal(scaled(Reader(preparation), ROWS[n])[0], expected[n])


def test_columns_of_one_kind_alone_are_read_too():
    target = Target(name="y", task="regression")
    columns: list[tuple[features.Kind, list[Any]]]
    columns = [("category", ["x", "x", "z"]), ("numeric", [1.0, 2.0, None]), ("date", ["2024-01-01", None, date(2024, 5, 5).isoformat()])]
    for kind, values in columns:
        preparation = features.learned([("f", kind)], {"f": values}, target=target, missing="nan")
        np.testing.assert_array_equal(scaled(Reader(preparation), *([value] for value in values)), preparation.encode({"f": values}, 3))


def test_a_category_that_was_never_seen_counts_as_unknown_and_is_told_once():
    reader = Reader(known())
    rows = reader.read(raw({**ROWS[0], "colour": "mauve"}, {**ROWS[0], "colour": "mauve"}, {**ROWS[0], "colour": None}))

    assert reader.scaled([rows])[:, -1].tolist() == [0.0, 0.0, 0.0]
    assert list(rows.notes) == ["colour: 'mauve' is none of the values that the model has learned from; it counts as unknown"]


def test_blanks_around_a_category_mean_as_little_as_they_did_in_the_table():
    preparation = known()
    reader = Reader(preparation)
    blank, bare = {**ROWS[0], "colour": " red\n"}, {**ROWS[0], "colour": "red"}
    rows = reader.read(raw(blank, bare))

    np.testing.assert_array_equal(reader.scaled([rows])[0], reader.scaled([rows])[1])
    np.testing.assert_array_equal(preparation.encode_rows([blank])[0], preparation.encode_rows([bare])[0])
    assert not rows.notes


@pytest.mark.parametrize(
    ("given", "at", "words"),
    [
        ('{"size": 1, "count": 1, "old": true, "colour": "red"}', ".day", "day is missing"),
        ('{"size": 1, "count": 1, "old": true, "colour": "red", "dya": null}', ".day", "no feature 'dya'"),
        ('{"size": 1, "count": 1, "old": true, "colour": "red", "day": null, "id": 7}', ".id", "no feature 'id'"),
        ("[1, 2]", "", "2 values came where 5 are expected: size, count, old, colour, day"),
        ("[]", "", "0 values came where 5 are expected"),
        ('["1.5", 1, true, "red", null]', "[0]", "size: '1.5' is not a number"),
        ('["", 1, true, "red", null]', "[0]", "send null where it isn't known"),
        ("[true, 1, true, null, null]", "[0]", "size: 'True' is not a number"),
        ('[1, 1, "maybe", "red", null]', "[2]", "not true or false"),
        ('[1, 1, true, "red", "yesterday"]', "[4]", "not a date"),
        ('[1, 1, true, "red", 5]', "[4]", "not a date"),
        ('{"size": 1, "count": "x", "old": true, "colour": "red", "day": null}', ".count", "count: 'x' is not a number"),
        ("[1, 1e999, true, null, null]", "[1]", "without end"),
        ("[1, 1" + "0" * 400 + ", true, null, null]", "[1]", "is not a number that fits"),
        ("[1, [2], true, null, null]", "[1]", "a number, a text, true, false or null"),
        ('{"size": {}, "count": 1, "old": true, "colour": "red", "day": null}', ".size", "a number, a text"),
        ("7", "", "a list of values in the features' order, or an object"),
        ('"1,2,3"', "", "a list of values"),
        ("null", "", "a list of values"),
        ("[1, NaN, true, null, null]", "", "not valid JSON"),
        ('["\\ud800", 1, 1, null, null]', "", "not valid JSON"),
        ("[" * 5000, "", "not valid JSON"),
    ],
    ids=map(str, range(22)),
)
def test_an_input_that_does_not_fit_is_told_with_its_place(given: str, at: str, words: str):
    with pytest.raises(Wrong) as refused:
        Reader(known()).read([*raw(ROWS[0]), msgspec.Raw(given.encode())])

    assert (refused.value.row, refused.value.at) == (1, at)
    assert words in str(refused.value)


# ---- which models are loaded


def test_a_model_never_reads_another_file():
    tensor = TensorProto(name="w0", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="pyproject.toml")
    inner = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])], "inner", [], [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)], [tensor]
    )
    multiplied = helper.make_node("MatMul", ["x", "w0"], ["y"])
    constant = helper.make_node("Constant", [], ["w0"], value=tensor)
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    assert branch.attribute[0].type == AttributeProto.GRAPH

    for nodes, weights in (([multiplied], [tensor]), ([constant, multiplied], []), ([branch], [])):
        with pytest.raises(Unusable, match="lies in another file"):
            opened(kit.model(nodes, weights).SerializeToString(), msgspec.json.encode(kit.preparation()), size=1)


def test_a_model_has_no_operators_but_those_of_the_standard():
    odd = kit.model(
        [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0)], [], domains=["com.microsoft"]
    )

    with pytest.raises(Unusable, match=r"'EPContext' of 'com\.microsoft'"):
        opened(odd.SerializeToString(), msgspec.json.encode(kit.preparation()), size=1)


@pytest.mark.parametrize(
    ("onnx", "prepared", "words"),
    [
        (b"no model at all", kit.preparation(), "no ONNX file"),
        (kit.linear(width=5), kit.preparation(), "doesn't take"),
        (kit.linear(outputs=2), kit.preparation(), "3 outputs"),
        (kit.linear(), {"features": "none"}, "preprocess.json"),
        (kit.mean_colour(), kit.preparation(), "doesn't take"),
    ],
    ids=["damaged", "another width", "other classes", "preparation", "of images"],
)
def test_a_model_that_does_not_fit_its_preparation_is_not_used(onnx: bytes, prepared: Any, words: str):
    with pytest.raises(Unusable, match=words):
        opened(onnx, msgspec.json.encode(prepared), size=1)


class Watched:
    """The object store, and which objects were read from it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.read: list[str] = []

    def chunks(self, key: str, **options: Any) -> Any:
        self.read.append(key)
        return self._storage.chunks(key, **options)


@pytest.fixture
def store(storage: Storage) -> Any:
    return Watched(storage)


def holds(onnx: bytes, count: int) -> int:
    """Bytes for so many of a kind, and not for one more."""
    about = len(msgspec.json.encode(kit.preparation()))
    return count * (len(onnx) + len(onnx) // 4 + about + OWN) + OWN // 2


def guess(loaded: Loaded) -> str | None:
    assert loaded.reader
    return loaded.answer(scaled(loaded.reader, [0, 9, 0, 0]), probabilities=False)[0].said


async def test_a_cold_model_is_loaded_once_however_many_ask_for_it_and_one_of_them_may_give_up(store: Any, storage: Storage, tenant: str):
    files = await kit.stored(storage, tenant)
    sessions = Sessions(store, budget=10_000_000)

    asking = [asyncio.create_task(sessions.get(*files)) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    loaded = await asyncio.gather(*asking[1:])

    assert asking[0].cancelled()
    assert len(set(map(id, loaded))) == 1
    assert guess(loaded[0]) == "dog"
    assert sessions.ready(*files) is loaded[0]
    assert sorted(store.read) == sorted(claim.key for claim in files)


async def test_the_models_that_nobody_asked_for_longest_make_room(store: Any, storage: Storage, tenant: str):
    onnx = kit.linear()
    first, second, third = [await kit.stored(storage, tenant, onnx=onnx) for _ in range(3)]
    sessions = Sessions(store, budget=holds(onnx, 2))

    await sessions.get(*first)
    await sessions.get(*second)
    await sessions.get(*first)
    await sessions.get(*third)

    assert [sessions.ready(*files) is not None for files in (first, second, third)] == [True, False, True]
    assert guess(await sessions.get(*second)) == "dog"
    assert sessions.ready(*first) is None


async def test_models_that_are_loaded_together_never_take_more_than_there_is(store: Any, storage: Storage, tenant: str):
    onnx = kit.linear()
    several = [await kit.stored(storage, tenant, onnx=onnx) for _ in range(4)]
    sessions = Sessions(store, budget=holds(onnx, 1))

    loaded = await asyncio.gather(*(sessions.get(*files) for files in several))

    assert [guess(one) for one in loaded] == ["dog"] * 4
    assert sum(sessions.ready(*files) is not None for files in several) == 1


async def test_a_model_for_which_there_is_no_room_at_all_is_not_even_fetched(store: Any, storage: Storage, tenant: str):
    onnx = kit.linear()
    files = await kit.stored(storage, tenant, onnx=onnx)

    with pytest.raises(TooLarge, match="MB of memory"):
        await Sessions(store, budget=holds(onnx, 1) - OWN).get(*files)
    assert store.read == []


async def test_another_object_than_the_one_that_was_claimed_is_not_used_and_the_right_one_is_when_it_is_back(store: Any, storage: Storage, tenant: str):
    model, preparation = await kit.stored(storage, tenant)
    other = await storage.put(f"{tenant}/other", kit.linear(seed=7))
    swapped = Claim(key=other.key, sha256=model.sha256, size=model.size)
    sessions = Sessions(store, budget=10_000_000)

    for spoiled in (swapped, msgspec.structs.replace(other, size=10)):
        with pytest.raises(Spoiled):
            await sessions.get(spoiled, preparation)
    with pytest.raises(Missing):
        await sessions.get(msgspec.structs.replace(model, key=f"{model.key}0"), preparation)

    assert guess(await sessions.get(model, preparation)) == "dog"


# ---- the service


@pytest.fixture
async def bird(storage: Storage, tenant: str) -> tuple[Claim, Claim]:
    return await kit.stored(storage, tenant)


async def test_a_class_is_told_with_how_sure_the_model_is_and_all_of_them_on_request(training: Process, nc: Client, tenant: str, bird: tuple[Claim, Claim]):
    answer = await kit.ask(nc, kit.question(tenant, bird, [0, 9, 0, 0], {"a": 1, "b": 1, "c": 1, "d": None}, probabilities=True))
    plain = await kit.ask(nc, kit.question(tenant, bird, [0, 9, 0, 0]))

    sure, torn = answer.predictions
    assert sure.said == "dog"
    assert sure.confidence == pytest.approx(np.exp(9) / (np.exp(9) + 2), abs=1e-6)
    assert torn.probabilities == pytest.approx(dict.fromkeys(kit.CLASSES, 1 / 3), abs=1e-6)
    assert msgspec.to_builtins(plain.predictions) == [{"class": "dog", "confidence": sure.confidence}]


async def test_a_regression_tells_the_value_in_its_own_unit(training: Process, nc: Client, storage: Storage, tenant: str):
    files = await kit.stored(storage, tenant, onnx=kit.linear(outputs=1), prepared=kit.preparation(classes=[]))

    answer = await kit.ask(nc, kit.question(tenant, files, [2.5, 0, 0, 0]))

    assert msgspec.to_builtins(answer.predictions) == [{"class": None, "confidence": None, "value": 125.0}]


async def test_a_wrong_input_is_told_by_its_number_and_place_whichever_way_it_takes(training: Process, nc: Client, tenant: str, bird: tuple[Claim, Claim]):
    for others in (1, 20):
        answer = await kit.ask(nc, kit.question(tenant, bird, *[[0, 0, 0, 0]] * others, [0, "x", 0, 0]))
        assert answer.refusal
        assert (answer.refusal.code, answer.refusal.row, answer.refusal.at) == ("input", others, "[1]")


async def test_what_is_too_large_for_the_bus_goes_through_the_object_store(training: Process, nc: Client, storage: Storage, tenant: str):
    classes = [f"class-{n:03}" for n in range(200)]
    files = await kit.stored(storage, tenant, onnx=kit.linear(outputs=200, seed=1), prepared=kit.preparation(classes=classes))
    rows = [[n, 0.5, -n, 1] for n in range(300)]
    asking = kit.question(tenant, files, probabilities=True)
    inputs = await storage.put(asking.folder, json.dumps(rows).encode())

    answer = await kit.ask(nc, msgspec.structs.replace(asking, elsewhere=inputs))

    assert answer.elsewhere
    assert answer.elsewhere.key.startswith(asking.folder)
    assert answer.elsewhere.size > INLINE
    said = msgspec.json.decode(await storage.get(answer.elsewhere), type=Answer)
    assert len(said.predictions) == 300
    one = await kit.ask(nc, kit.question(tenant, files, rows[7], probabilities=True))
    assert one.predictions[0].said == said.predictions[7].said


async def test_another_workspaces_objects_are_not_to_be_had(training: Process, nc: Client, storage: Storage, tenant: str, bird: tuple[Claim, Claim]):
    mine = kit.question(tenant, bird, [0, 9, 0, 0])
    inputs = await storage.put(mine.folder, b"[[0, 9, 0, 0]]")
    await kit.ask(nc, mine)
    for stranger in (
        msgspec.structs.replace(mine, tenant=f"{tenant}x"),
        msgspec.structs.replace(mine, tenant=tenant[:-1]),
        msgspec.structs.replace(mine, tenant=""),
        msgspec.structs.replace(mine, folder="stranger/folder"),
        kit.question("stranger", bird, elsewhere=inputs),
        msgspec.structs.replace(mine, files=[msgspec.structs.replace(inputs, key=f"stranger/{inputs.key}")]),
    ):
        answer = await kit.ask(nc, stranger)
        assert answer.refusal
        assert (answer.refusal.code, answer.predictions) == ("service", [])


async def test_a_model_that_is_not_what_was_stored_is_refused_and_the_service_goes_on(training: Process, nc: Client, tenant: str, bird: tuple[Claim, Claim]):
    model, preparation = bird
    gone = msgspec.structs.replace(model, key=f"{model.key}0")

    for files in ((gone, preparation), (msgspec.structs.replace(model, sha256="0" * 64), preparation), (preparation, preparation)):
        answer = await kit.ask(nc, kit.question(tenant, files, [0, 9, 0, 0]))
        assert answer.refusal
        assert answer.refusal.code == "model"

    assert (await kit.ask(nc, kit.question(tenant, bird, [0, 9, 0, 0]))).predictions[0].said == "dog"


async def test_one_who_gives_up_costs_nobody_else_anything(training: Process, nc: Client, storage: Storage, tenant: str):
    files = await kit.stored(storage, tenant)

    with pytest.raises((TimeoutError, nats.errors.TimeoutError)):
        await kit.ask(nc, kit.question(tenant, files, [0, 9, 0, 0], seconds=0.001), patience=0.001)
    answer = await kit.ask(nc, kit.question(tenant, files, [0, 9, 0, 0]))
    late = await kit.ask(nc, kit.question(tenant, await kit.stored(storage, tenant), [0, 9, 0, 0], seconds=0.0001))

    assert answer.predictions[0].said == "dog"
    assert late.refusal
    assert late.refusal.code == "late"


async def test_more_than_can_be_answered_in_time_are_told_to_come_back(training: Process, nc: Client, storage: Storage, tenant: str):
    """Many rows each, so that none is answered as it comes."""
    files = await kit.stored(storage, tenant, onnx=kit.linear(hidden=2000, seed=1))
    asking = kit.question(tenant, files, *[[1, 2, 3, 4]] * 400)

    said = await kit.ask_often(nc, asking, times=300)

    codes = {answer.refusal.code if answer.refusal else "" for answer in said}
    assert codes == {"", "busy"}
    assert sum(not answer.refusal for answer in said) >= 128
    assert (await kit.ask(nc, asking)).refusal is None


@pytest.fixture
def pair(place: Servers) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        yield [stack.enter_context(service(place, label=f"predict-{n}", workers="1")) for n in range(2)]


async def test_when_one_of_two_is_killed_in_the_middle_everybody_is_answered(
    pair: list[Process], place: Servers, nc: Client, tenant: str, bird: tuple[Claim, Claim]
):
    for process in pair:
        await revive(process)
    questions, asking = Questions(nc), kit.question(tenant, bird, [0, 9, 0, 0])
    answers: list[Answer] = []

    async def client() -> None:
        while len(answers) < 600:
            answers.append(await asked(questions, asking, patience=Patience(again=0.5, seconds=10.0)))
            if len(answers) == 200:
                pair[0].kill()

    await asyncio.gather(*(client() for _ in range(16)))

    assert {answer.predictions[0].said for answer in answers} == {"dog"}


async def test_who_has_the_question_already_says_nothing_when_it_is_asked_again(training: Process, nc: Client, storage: Storage, tenant: str):
    """Of those who come one after another, the first is at it while the model is loaded."""
    question = kit.question(tenant, await kit.stored(storage, tenant, onnx=kit.linear(hidden=200_000, seed=1)), [1, 2, 3, 4])
    first = asyncio.create_task(kit.ask(nc, question))
    await asyncio.sleep(0)

    with pytest.raises((TimeoutError, nats.errors.TimeoutError)):
        await kit.ask(nc, msgspec.structs.replace(question, again=True), patience=0.5)
    answer = await first
    later = await kit.ask(nc, msgspec.structs.replace(question, again=True))

    assert answer.predictions == later.predictions != []


async def test_everybody_of_many_at_once_gets_his_own_answer(training: Process, nc: Client, storage: Storage, tenant: str, bird: tuple[Claim, Claim]):
    """Of two models, with and without probabilities, some of them wrong: they are computed together."""
    other = await kit.stored(storage, tenant, prepared=kit.preparation(classes=["ant", "bee", "fly"]))
    named = {bird: kit.CLASSES, other: ["ant", "bee", "fly"]}
    for files in named:
        await kit.ask(nc, kit.question(tenant, files, [0, 0, 0, 0]))
    asked = [
        (files, first, probabilities, "x" if wrong else 1 + n)
        for n in range(6)
        for files in named
        for first in range(3)
        for probabilities in (False, True)
        for wrong in (False, n == 3)
    ]

    said = await asyncio.gather(
        *(
            kit.ask(nc, kit.question(tenant, files, [value if place == first else 0 for place in range(4)], [0, 0, 20, 0], probabilities=probabilities))
            for files, first, probabilities, value in asked
        )
    )

    for (files, first, probabilities, value), answer in zip(asked, said, strict=True):
        if value == "x":
            assert answer.refusal
            assert (answer.refusal.code, answer.refusal.row, answer.refusal.at) == ("input", 0, f"[{first}]")
            continue
        sure, last = answer.predictions
        assert (sure.said, last.said) == (named[files][first], named[files][2])
        assert sure.confidence == pytest.approx(np.exp(value) / (np.exp(value) + 2), abs=1e-5)
        assert (sure.probabilities is not msgspec.UNSET) is probabilities


def test_rows_say_the_same_together_as_alone_and_a_wrong_one_costs_the_others_nothing():
    preparation = known()
    loaded = opened(kit.linear(width=preparation.width, outputs=2, seed=1), msgspec.json.encode(preparation), size=1)
    mauve = {**ROWS[0], "colour": "mauve"}
    asked = [raw(ROWS[0]), raw(ROWS[1], ROWS[2]), raw(ROWS[0], [1]), [], raw(mauve), raw(*(list(row.values()) for row in ROWS))]

    said = [msgspec.json.decode(answer, type=Answer) for answer in answers(loaded, asked, probabilities=True)]

    assert [len(answer.predictions) for answer in said] == [1, 2, 0, 0, 1, 6]
    assert [answer.refusal is not None for answer in said] == [False, False, True, False, False, False]
    assert said[4].notes
    assert not any(answer.notes for answer in said[:4])
    for inputs, answer in zip(asked, said, strict=True):
        (alone,) = answers(loaded, [inputs], probabilities=True)
        for one, other in zip(answer.predictions, msgspec.json.decode(alone, type=Answer).predictions, strict=True):
            assert one.said == other.said
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


class Letterbox:
    """A message to which the answer stays here."""

    def __init__(self) -> None:
        self.said = b""
        self.full = asyncio.Event()

    async def respond(self, data: bytes) -> None:
        self.said = data
        self.full.set()


async def test_who_waits_when_the_service_ends_is_told_to_ask_another():
    loaded = opened(kit.linear(), msgspec.json.encode(kit.preparation()), size=1)
    together, boxes = Together(), [Letterbox() for _ in range(500)]
    for box in boxes:
        together.add(box, loaded, kit.question("t", (CLAIM, CLAIM), [0, 9, 0, 0]))  # pyright: ignore[reportArgumentType]
    answering = asyncio.create_task(together.run())
    await boxes[0].full.wait()
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)

    await together.close()

    said = [msgspec.json.decode(box.said, type=Answer) for box in boxes]
    codes = [answer.refusal.code if answer.refusal else "" for answer in said]
    assert codes == sorted(codes)
    assert set(codes) == {"", "busy"}
    assert together.count == 0


# ---- images


@pytest.fixture
async def painter(storage: Storage, tenant: str) -> tuple[Claim, Claim]:
    return await kit.stored(storage, tenant, onnx=kit.mean_colour(), prepared=kit.of_images())


async def test_an_image_is_taken_as_base64_as_pixels_and_as_a_file(training: Process, nc: Client, storage: Storage, tenant: str, painter: tuple[Claim, Claim]):
    blue = kit.png((0, 0, 255))
    text = base64.b64encode(blue).decode()
    pixels = [[[0, 255, 0]] * 8] * 8
    asking = kit.question(tenant, painter, text, f"data:image/png;base64,{text}", pixels)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)] * 4
    files = [await storage.put(asking.folder, kit.png(colour)) for colour in colours]

    answer = await kit.ask(nc, asking)
    of_files = await kit.ask(nc, msgspec.structs.replace(asking, inputs=[], files=files))

    assert [found.said for found in answer.predictions] == ["blue", "blue", "green"]
    assert answer.predictions[0].confidence
    assert answer.predictions[0].confidence > 0.99
    assert [found.said for found in of_files.predictions] == ["red", "green", "blue"] * 4


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        ("bm8gaW1hZ2U=", "no image"),
        ("%%%", "base64"),
        (base64.b64encode(kit.png()[:60]).decode(), "image"),
        ({"image": "x"}, "an image is its file in base64"),
        ([[1, 2], [3]], "pixels"),
        (base64.b64encode(kit.png(size=(8000, 7000))).decode(), "pixels"),
    ],
    ids=["text", "no base64", "cut short", "an object", "ragged", "huge"],
)
async def test_what_is_no_image_is_told_by_its_number(training: Process, nc: Client, tenant: str, painter: tuple[Claim, Claim], hostile: Any, words: str):
    good = base64.b64encode(kit.png()).decode()

    answer = await kit.ask(nc, kit.question(tenant, painter, *[good] * 9, hostile, good))

    assert answer.refusal
    assert (answer.refusal.code, answer.refusal.row) == ("input", 9)
    assert words in answer.refusal.message


async def test_images_are_decoded_again_after_their_decoder_was_killed(training: Process, nc: Client, tenant: str, painter: tuple[Claim, Claim]):
    asking = kit.question(tenant, painter, base64.b64encode(kit.png()).decode())
    await kit.ask(nc, asking)
    decoder = next(child for child in descendants(training) if child.ppid() != training.pid)
    kill(decoder)
    await eventually(lambda: not decoder.is_running() or decoder.status() == "zombie")

    answer = await kit.ask(nc, asking)

    assert answer.predictions[0].said == "red"


@pytest.fixture
async def eyes() -> AsyncIterator[Eyes]:
    eyes = Eyes()
    yield eyes
    await eyes.close()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("victim", ["decoder", "forkserver"])
async def test_an_image_has_no_part_in_it_when_its_decoder_is_killed_while_it_looks(eyes: Eyes, victim: str, count: int):
    """Nor when that has to be forked by another."""
    images = [kit.png((0, 0, 255))] * count
    expected = await eyes.look(kit.of_images(), images, are_json=False)
    forkserver = psutil.Process(eyes.children.server_pid)
    (decoder,) = forkserver.children()
    decoder.suspend()
    looking = asyncio.create_task(eyes.look(kit.of_images(), images, are_json=False))
    await asyncio.sleep(0)

    kill(forkserver if victim == "forkserver" else decoder)

    np.testing.assert_array_equal(await looking, expected)


async def test_an_image_is_nothing_for_a_table_and_a_row_nothing_for_images(
    training: Process, nc: Client, storage: Storage, tenant: str, bird: tuple[Claim, Claim], painter: tuple[Claim, Claim]
):
    of_table = kit.question(tenant, bird)
    file = await storage.put(of_table.folder, kit.png())

    for asking in (msgspec.structs.replace(of_table, files=[file]), kit.question(tenant, bird, "aGk="), kit.question(tenant, painter, [0.5, 0.3, 0.2, 0.1])):
        answer = await kit.ask(nc, asking)
        assert answer.refusal
        assert answer.refusal.code == "input"


async def test_a_question_that_makes_no_sense_is_answered_too(training: Process, nc: Client):
    for strange in (b"", b"{}", b"[]", b"\xff"):
        said = msgspec.json.decode((await nc.request(f"ask.{SUBJECT}", strange, timeout=10)).data, type=Answer)
        assert said.refusal
        assert said.refusal.code == "service"


def test_many_rows_of_a_slow_model_go_through_it_in_parts_with_the_same_answers(monkeypatch: pytest.MonkeyPatch):
    loaded = opened(kit.linear(), msgspec.json.encode(kit.preparation()), size=1)
    x = np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    together = loaded.answer(x, probabilities=True)
    run, sizes = Loaded._run, list[int]()

    def watched(loaded: Loaded, x: Any) -> Any:
        sizes.append(len(x))
        return run(loaded, x)

    monkeypatch.setattr(Loaded, "_run", watched)
    loaded.seconds = 0.06
    in_parts = loaded.answer(x, probabilities=True)

    assert sizes == [4, 4, 2]
    assert in_parts == together


# ---- what runs of ours leave


@pytest.mark.parametrize("fit", [{"model_type": "gradient_boosting", "epochs": 5}, {"model_type": "mlp", "epochs": 2}], ids=lambda fit: fit["model_type"])
def test_a_table_model_predicts_what_it_said_to_its_trainer(tmp_path: Path, fit: dict[str, Any]):
    frame = fits.mixed(missing=0.1)
    left = artifacts(fits.train(fits.spec(tmp_path, frame, **fit)))
    rows = [json.loads(line) for line in frame.drop(fits.TARGET).head(30).write_ndjson().splitlines()]

    loaded = opened(left["model.onnx"], left["preprocess.json"], size=1)
    assert loaded.reader
    read = loaded.reader.read(raw(*rows, list(rows[0].values())))
    x = loaded.reader.scaled([read])
    found = loaded.answer(x, probabilities=True)

    preparation = msgspec.json.decode(left["preprocess.json"], type=Preparation)
    np.testing.assert_array_equal(x[:30], preparation.encode_rows(rows))
    assert not read.notes
    assert found[0] == found[30]
    assert {one.said for one in found} == {"low", "middle", "high"}
    assert all(one.probabilities and one.confidence == max(share or 0.0 for share in one.probabilities.values()) for one in found)


def test_an_image_model_predicts_what_it_has_learned(tmp_path: Path):
    left = artifacts(looks.train(looks.spec(tmp_path, looks.archive(looks.squares()), epochs=4)))
    loaded = opened(left["model.onnx"], left["preprocess.json"], size=1)
    assert loaded.look
    squares = [data for _, data in looks.squares(each=2, seed=7).values()]

    shown = seen(Shown(preparation=loaded.look, items=squares, are_json=False))
    pixels = np.frombuffer(shown.pixels, dtype=np.uint8).reshape(len(squares), loaded.look.size, loaded.look.size, 3)
    found = loaded.answer(loaded.look.scaled(pixels), probabilities=False)

    assert [one.said for one in found] == [label for label, _ in looks.squares(each=2, seed=7).values()]


def artifacts(told: Told) -> dict[str, bytes]:
    assert isinstance(told.end, Completed)
    return {name: Path(path).read_bytes() for name, path in told.end.artifacts.items()}
