"""ZIPs of images are read: what becomes of good ones, what is said of bad ones, and what of both the log hears."""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from libs.events import Origin
from libs.events.log import EventLog
from libs.storage import Storage
from services.datasets.confined.frames import Limits
from services.datasets.handlers import Preparations
from services.datasets.images import collection
from services.datasets.images.picture import LONGEST_SIDE, MOST_PIXELS
from tests.kit.datasets import Read, classes, columns, dataset, failed, fit, huge_png, of_entries, picture, prepared, zipped
from tests.kit.preparing import names

RED, GREEN = (255, 0, 0), (0, 255, 0)


def labels(data: bytes, **order: Any) -> dict[str, str]:
    return {line["source"]: line["label"] for line in Read(data, **order).manifest}


def with_one(data: bytes, name: str = "x.png") -> Read:
    """One image to look at, in front of others."""
    return Read(zipped({f"a/{name}": data} | classes("b", "c")))


# Labels


@pytest.mark.parametrize("around", ["", "pets/", "a/b/", "pets/train/"])
def test_the_folder_of_an_image_is_its_class_whatever_is_around_it(around: str):
    found = labels(zipped({f"{around}{name}": data for name, data in classes("cat", "dog").items()}))

    assert found == {f"{around}cat/0.png": "cat", f"{around}cat/1.png": "cat", f"{around}dog/0.png": "dog", f"{around}dog/1.png": "dog"}


def test_folders_for_training_and_validation_are_put_together_with_a_note():
    found = Read(zipped({f"data/{split}/{name}": data for split in ("train", "val") for name, data in classes("cat", "dog").items()}))

    assert (found.prepared.valid, found.prepared.classes) == (8, 2)
    assert any("train, val" in note for note in found.prepared.notes)


@pytest.mark.parametrize(
    "manifest",
    [
        ("labels.csv", b"file,label\nimg/a.png,cat\nimg/b.png,dog\nc.png,dog\n"),
        ("labels.csv", b"label;filename\ncat;a.png\ndog;b.png\ndog;c.png\n"),
        ("manifest.jsonl", b'{"file": "img/a.png", "label": "cat"}\n{"file": "img/b.png", "label": "dog"}\n{"file": "img/c.png", "label": "dog"}\n'),
        ("meta.json", b'[{"image": "img/a.png", "class": "cat"}, {"image": "img/b.png", "class": "dog"}, {"image": "img/c.png", "class": "dog"}]'),
    ],
    ids=["csv", "other-order", "json-lines", "json"],
)
@pytest.mark.parametrize("around", ["", "wrapped/"])
def test_a_manifest_says_what_each_image_shows(manifest: tuple[str, bytes], around: str):
    name, lines = manifest

    found = labels(zipped({f"{around}{name}": lines} | {f"{around}img/{n}.png": picture() for n in "abc"}))

    assert found == {f"{around}img/a.png": "cat", f"{around}img/b.png": "dog", f"{around}img/c.png": "dog"}


def test_a_manifest_may_name_images_without_their_extension():
    manifest = b"id,label\n000,cat\n001,dog\n2,dog\n"

    found = labels(zipped({"labels.csv": manifest, "train/000.png": picture(), "train/001.png": picture(), "2.png": picture(), "2.xml": b"<boxes/>"}))

    assert found == {"train/000.png": "cat", "train/001.png": "dog", "2.png": "dog"}


def test_lines_without_an_image_and_images_without_a_line_are_counted():
    manifest = b"file,label\na.png,cat\nb.png,dog\ngone.png,dog\na.png,dog\nd.png,\n"

    found = Read(zipped({"m.csv": manifest} | {f"{n}.png": picture() for n in "abcd"}))

    assert (found.prepared.rows, found.prepared.valid, found.prepared.refused) == (6, 2, {"file_missing": 1, "named_twice": 1, "no_label": 2})


def test_images_are_described_by_two_columns_with_the_balance_of_classes():
    found = Read(zipped(classes("cat", each=3) | classes("dog", each=1)))

    image, label = found.columns.values()
    assert (image.name, image.type, image.role, image.distinct) == ("image", "image", "feature", 4)
    assert (label.name, label.type, label.role, label.categories) == ("label", "category", "target", [("cat", 3), ("dog", 1)])
    assert any("'dog' for one" in note for note in found.prepared.notes)


# Images


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (picture("PNG", color=RED), "png"),
        (picture("JPEG", color=RED, quality=100), "jpg"),
        (picture("JPEG", mode="CMYK", color=(0, 255, 255, 0), quality=100), "jpg"),
        (picture("GIF", color=RED), "png"),
        (picture("BMP", color=RED), "png"),
        (picture("WEBP", color=RED, lossless=True), "png"),
        (picture("TIFF", color=RED), "png"),
        (picture("TIFF", mode="CMYK", color=(0, 255, 255, 0)), "png"),
        (picture("PNG", mode="RGBA", color=(*RED, 255)), "png"),
        (picture("GIF", color=RED, save_all=True, append_images=[Image.new("RGB", (8, 6), GREEN)]), "png"),
    ],
    ids=["png", "jpeg", "jpeg-cmyk", "gif", "bmp", "webp", "tiff", "tiff-cmyk", "rgba", "animated"],
)
def test_images_of_any_kind_become_rgb(data: bytes, extension: str):
    found = with_one(data)

    image = found.image()
    assert (image.mode, image.size, found.manifest[0]["width"], found.manifest[0]["file"]) == ("RGB", (8, 6), 8, f"images/000000.{extension}")
    red, green, blue = image.getpixel((4, 3))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 225
    assert max(green, blue) < 50


def test_what_is_transparent_becomes_white_and_what_is_grey_stays_so():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    clear = io.BytesIO()
    palette.save(clear, "PNG", transparency=0)

    assert with_one(clear.getvalue()).image().getpixel((1, 1)) == (255, 255, 255)
    assert with_one(picture(mode="LA", color=(90, 255))).image().getpixel((1, 1)) == (90, 90, 90)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (32_896, 128), (65_535, 255)])
def test_sixteen_bits_become_eight(value: int, grey: int):
    deep = Image.new("I;16", (4, 4), value)
    out = io.BytesIO()
    deep.save(out, "PNG")

    assert with_one(out.getvalue()).image().getpixel((1, 1)) == (grey, grey, grey)


def test_an_image_stands_upright_as_its_camera_said_and_its_camera_is_forgotten():
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)

    made = with_one(out.getvalue()).image()

    assert (made.size, made.getpixel((10, 5)), made.getpixel((10, 35))) == ((20, 40), GREEN, RED)
    assert not made.getexif()


def test_no_side_is_longer_than_a_model_looks_at():
    assert with_one(picture(size=(2_000, 500))).image().size == (LONGEST_SIDE, LONGEST_SIDE // 4)
    assert with_one(picture("JPEG", size=(900, 1_800)), "x.jpg").image().size == (LONGEST_SIDE // 2, LONGEST_SIDE)
    assert with_one(picture(size=(10_000, 1))).image().size == (LONGEST_SIDE, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image at all", "not_an_image"),
        (b"", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (picture("JPEG", size=(300, 300))[:700], "damaged"),
        (picture("PNG", size=(300, 300))[:200], "damaged"),
        (huge_png(100_000, 100_000), "too_many_pixels"),
        (huge_png(MOST_PIXELS // 1_000 + 1, 1_000), "too_many_pixels"),
        (huge_png(2_000, 2_000), "damaged"),
    ],
    ids=["text", "nothing", "svg", "cut-jpeg", "cut-png", "huge", "too-large", "empty-png"],
)
def test_an_image_that_cant_be_used_is_counted_with_the_reason(data: bytes, reason: str):
    found = with_one(data)

    assert (found.prepared.rows, found.prepared.valid, found.prepared.refused) == (5, 4, {reason: 1})


def test_a_file_that_is_too_large_is_counted_and_not_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collection, "MOST_BYTES", 5_000)

    assert with_one(picture("BMP", size=(50, 50))).prepared.refused == {"too_large": 1}


# Archives


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("../../evil.png", None, "unsafe_path"),
        ("/etc/evil.png", None, "unsafe_path"),
        ("a\\..\\evil.png", None, "unsafe_path"),
        ("c:/evil.png", None, "unsafe_path"),
        ("a/link.png", lambda info: setattr(info, "external_attr", 0o120777 << 16), "symlink"),
        ("a/inner.zip", None, "nested_archive"),
        ("a/none.png", None, "not_an_image"),
    ],
    ids=["traversal", "absolute", "backslash", "drive", "symlink", "nested", "no-image"],
)
def test_files_that_dont_belong_into_an_archive_are_counted_with_the_reason(name: str, change: Callable[[zipfile.ZipInfo], None] | None, reason: str):
    def one(info: zipfile.ZipInfo) -> None:
        if change and info.filename == name:
            change(info)

    found = Read(zipped({name: b"/etc/passwd"} | classes("a", "b"), change=one))

    assert (found.prepared.rows, found.prepared.valid, found.prepared.refused) == (5, 4, {reason: 1})


def test_what_systems_leave_in_archives_is_no_file_of_the_data_set():
    found = Read(zipped(classes("a", "b") | {"__MACOSX/a/._0.png": b"x", ".DS_Store": b"x", "a/Thumbs.db": b"x", "a/": b""}))

    assert (found.prepared.rows, found.prepared.refused) == (4, {})


def overlapping() -> bytes:
    """Two names for one file's bytes."""
    data = bytearray(zipped(classes("a", "b")))
    central = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[central[1] + 42 : central[1] + 46] = data[central[0] + 42 : central[0] + 46]
    return bytes(data)


def encrypted(data: bytes, *, files: int) -> bytes:
    """As far as the headers of the first files say."""
    changed = bytearray(data)
    for at in [at for at in range(len(changed)) if changed[at : at + 4] == b"PK\x01\x02"][:files]:
        changed[at + 8] |= 1
    return bytes(changed)


def lying(data: bytes) -> bytes:
    """Its first file says that it is one byte long."""
    changed = bytearray(data)
    at = changed.index(b"PK\x01\x02")
    struct.pack_into("<I", changed, at + 24, 1)
    return bytes(changed)


ARCHIVES = {
    "bomb": (zipped(classes("a", "b") | {"a/zeros.png": bytes(100 * 1024 * 1024)}), "bomb"),
    "overlapping": (overlapping(), "bomb"),
    "encrypted": (encrypted(zipped(classes("a", "b")), files=4), "encrypted"),
    "cut": (zipped(classes("a", "b"))[:-30], "damaged"),
    "empty": (zipped({}), "empty"),
    "nested-only": (zipped({"inner.zip": zipped(classes("a", "b"))}), "empty"),
    "one-class": (zipped(classes("a")), "one_class"),
    "no-folders": (zipped({"1.png": picture(), "2.png": picture()}), "no_usable_images"),
    "no-images": (zipped({"a/1.png": b"x", "b/2.png": b"y"}), "no_usable_images"),
    "texts": (zipped({"a/1.md": b"x", "b/2.md": b"y"}), "no_usable_images"),
    "entries": (of_entries(100_001), "too_many_entries"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_nothing_can_be_learned_from_is_refused_with_code_and_words(kind: str):
    data, code = ARCHIVES[kind]

    assert Read(data).code == code


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (classes("a") | {"b.png": picture()}, ["'a'", "no_label (1)"]),
        ({"labels.csv": b"1,cat\n2,dog\n", "1.png": picture(), "2.png": picture()}, ["no_label (2)", "'labels.csv' is not a manifest"]),
        ({"labels.csv": b"file,label\n/x/3.png,cat\n/x/4.png,dog\n", "1.png": picture()}, ["file_missing (2)", "'labels.csv'", "'/x/3.png'"]),
    ],
    ids=["one-class", "no-manifest", "other-files"],
)
def test_a_refused_archive_says_what_became_of_its_files(files: dict[str, bytes], told: list[str]):
    found = Read(zipped(files))

    assert [words for words in told if words not in found.message] == []


def test_a_table_among_images_that_is_no_manifest_is_named_in_a_note():
    found = Read(zipped(classes("a", "b") | {"prices.csv": b"image_of,price\na,3\n"}))

    assert any("'prices.csv' is not a manifest" in note for note in found.prepared.notes)


def test_a_regression_on_images_is_refused_and_so_are_more_files_than_the_setting_allows():
    assert Read(zipped(classes("a", "b")), dataset_type="regression").code == "images_need_classes"
    assert Read(zipped(classes("a", "b")), limits=Limits(images=3)).code == "too_many_entries"


def test_an_encrypted_file_among_others_is_counted():
    assert Read(encrypted(zipped(classes("a", "b", each=3)), files=1)).prepared.refused == {"encrypted": 1}


def test_a_file_that_is_longer_than_its_archive_says_is_counted_as_damaged():
    found = Read(lying(zipped(classes("a", "b"))))

    assert found.prepared.refused == {"damaged": 1}


def test_the_same_images_give_the_same_bytes():
    packed = zipped(classes("a", "b"))

    assert Read(packed).bytes == Read(packed).bytes


# The job


async def test_a_zip_of_images_becomes_a_snapshot_that_runs_take_over(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    packed = zipped(classes("cat", "dog") | {"cat/none.png": b"x"})
    created = await dataset(storage, log, origin, packed, filename="data.zip", mime_type="application/zip")
    run = await fit(log, origin, created)

    await service.prepare(created)
    await service.prepare(run)

    end, taken = await prepared(log, created), await prepared(log, run)
    assert await names(log, created) == ["started", "produced", "completed"]
    assert (end.rows, end.valid, end.refused, end.contents, end.task, end.classes) == (5, 4, {"not_an_image": 1}, "image", "classification", 2)
    assert [column.name for column in await columns(log, storage, created)] == ["image", "label"]
    assert end.snapshot == taken.snapshot
    assert end.snapshot
    assert await storage.get(end.snapshot) == Read(packed).bytes


async def test_an_archive_that_cant_be_used_fails_the_job(service: Preparations, storage: Storage, log: EventLog, origin: Origin):
    created = await dataset(storage, log, origin, ARCHIVES["overlapping"][0], filename="data.zip", mime_type="application/zip")

    await service.prepare(created)

    end = await failed(log, created)
    assert (end.code, "overlap" in end.message) == ("bomb", True)
