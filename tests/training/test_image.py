"""What a network learns from images, how it goes on, and what comes out: the rules that an image model's numbers rest on."""

import io
import json
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, LlamaConfig, ResNetConfig, ResNetForImageClassification, ViTConfig

from services.training import images
from services.training.frames import BatchReduced, Checkpoint, Completed, Evaluated, Failed, Phase, Ready, Step, Stopped
from services.training.images import Preparation, Unfit
from services.training.runner import checkpoint, entry, pictures, portable, vision
from services.training.runner.outcome import Failure
from services.training.runner.wishes import Wishes
from services.training.trainers import image
from tests.kit import looks
from tests.kit.datasets import Read, huge_png, picture, zipped
from tests.kit.finetunes import Told

SQUARES = looks.archive(looks.squares())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A whole run, of which many rules are read."""
    told = looks.train(looks.spec(tmp_path_factory.mktemp("learned"), SQUARES, epochs=4))
    assert isinstance(told.end, Completed)
    return told


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is of no interest, and takes seconds."""
    monkeypatch.setattr(image.Run, "_save", lambda self, folder: {"rows": 0, "largest_difference": 0.0})


def completed(told: Told) -> Completed:
    assert isinstance(told.end, Completed)
    return told.end


def artifacts(told: Told) -> dict[str, Path]:
    return {name: Path(path) for name, path in completed(told).artifacts.items()}


def preparation(told: Told) -> Preparation:
    return msgspec.json.decode(artifacts(told)["preprocess.json"].read_bytes(), type=Preparation)


def refusal(folder: Path, data: bytes = SQUARES, **fit: Any) -> Failure:
    with pytest.raises(Failure) as refused:
        looks.train(looks.spec(folder, data, **fit))
    return refused.value


# ---- what is learned, and told


def test_red_and_blue_squares_are_told_apart_after_some_epochs(learned):
    said = completed(learned).metrics

    assert said["val_accuracy"] > 0.9
    assert set(said) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_precision", "val_recall", "val_f1_score"}


def test_each_epoch_is_told_once_with_its_measures(learned):
    told = [frame.metrics for frame in learned.of(Evaluated)]

    assert [metrics["epoch"] for metrics in told] == [1, 2, 3, 4]
    assert set(told[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_precision", "val_recall", "val_f1_score"}
    assert told[-1]["loss"] < told[0]["loss"]


def test_steps_are_told_with_the_images_that_they_learned_from(learned):
    (ready,) = learned.of(Ready)
    steps = learned.of(Step)

    assert [step.step for step in steps] == list(range(1, ready.total_steps + 1))
    assert sum(step.tokens for step in steps) == 4 * ready.facts["training_rows"]


def test_the_summary_tells_the_architecture_the_confusion_and_each_class(learned):
    summary = completed(learned).summary
    report = summary["report"]

    assert (summary["rows"], summary["epochs"]) == (32, 4)
    assert summary["architecture"]["input_shape"] == [32, 32, 3]
    assert summary["architecture"]["output_classes"] == 2
    assert summary["architecture"]["parameters"] == sum(tensor.numel() for tensor in _weights(learned).values())
    assert (report["task"], report["classes"]) == ("classification", ["blue", "red"])
    assert np.sum(report["confusion_matrix"]) == learned.of(Ready)[0].facts["held_out_rows"]
    assert [one["class"] for one in report["per_class"]] == ["blue", "red"]
    assert summary["schema"] == [{"name": "image", "type": "image", "width": 32, "height": 32}]


def _weights(told: Told) -> dict[str, torch.Tensor]:
    learnt = load_file(artifacts(told)["model.safetensors"])
    return {name: tensor for name, tensor in learnt.items() if "running" not in name and "num_batches" not in name}


@pytest.mark.parametrize("model_type", ["vit", "convnext", "resnet50"])
def test_other_architectures_learn_too(tmp_path, unsaved, model_type):
    told = looks.train(looks.spec(tmp_path, SQUARES, model_type=model_type, epochs=8))

    assert completed(told).metrics["val_accuracy"] > 0.9


def test_what_the_datasets_service_makes_of_a_zip_is_learned_from(tmp_path):
    photos = {f"{label}/{name.rpartition('/')[2]}": data for name, (label, data) in looks.squares(3).items()}
    prepared = Read(zipped(photos | {"blue/camera.jpg": picture("JPEG", size=(900, 600))}))
    spec = looks.spec(tmp_path, prepared.bytes)

    known = pictures.read(Path(spec.snapshot), spec.fit)

    assert [known.classes[number] for number in known.truth] == [line["label"] for line in prepared.manifest]
    assert [known.picture(n).size for n in range(7)] == [(line["width"], line["height"]) for line in prepared.manifest]


def test_of_each_class_the_same_share_is_held_out_and_always_the_same_images(tmp_path):
    data = looks.squares(10, red=looks.RED, blue=looks.BLUE) | {
        f"images/9{n}.png": ("green", looks.square((40, 200, 40), np.random.default_rng(n))) for n in range(5)
    }
    spec = looks.spec(tmp_path, looks.archive(data), validation_split=0.4)

    one, other = (pictures.read(Path(spec.snapshot), spec.fit) for _ in range(2))

    assert np.bincount(one.truth[one.held_out]).tolist() == [4, 2, 4]
    assert one.held_out.tolist() == other.held_out.tolist()
    assert not set(one.held_out) & set(one.training)


def test_balanced_classes_count_alike_though_one_is_rare(tmp_path, unsaved):
    random = np.random.default_rng(0)
    data = looks.squares(12, red=looks.RED) | {f"images/9{n}.png": ("blue", looks.square(looks.BLUE, random)) for n in range(3)}
    spec = looks.spec(tmp_path, looks.archive(data), class_weights="balanced")
    known = pictures.read(Path(spec.snapshot), spec.fit)

    weights = image._balance(known)
    told = looks.train(spec)

    counts = np.bincount(known.truth[known.training])
    assert (weights * counts).tolist() == pytest.approx([sum(counts) / 2] * 2)
    assert isinstance(told.end, Completed)


def test_a_run_ends_early_and_keeps_the_best_epoch(tmp_path, unsaved):
    told = looks.train(looks.spec(tmp_path, SQUARES, epochs=60, patience=2, learning_rate=0.02))
    losses = [frame.metrics["val_loss"] for frame in told.of(Evaluated)]
    summary = completed(told).summary

    assert summary["ended_early"]
    assert len(losses) == summary["epochs"] == summary["report"]["best_epoch"] + 2
    assert completed(told).metrics["val_loss"] == min(losses)


# ---- how it goes on


@pytest.mark.parametrize("model_type", ["resnet18", "vit"])
def test_a_run_that_is_resumed_ends_as_one_that_was_never_interrupted(tmp_path, unsaved, monkeypatch, model_type):
    monkeypatch.setattr(image, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "KEEPING", 1e9)
    wanted = {"model_type": model_type, "epochs": 3, "batch_size": 8, "dropout": 0.2}
    states: list[dict[str, torch.Tensor]] = []
    finish = image.Run.finish

    def remembered(run: image.Run) -> Completed:
        states.append({name: tensor.clone() for name, tensor in run.best.items()})
        return finish(run)

    monkeypatch.setattr(image.Run, "finish", remembered)
    whole = looks.train(looks.spec(tmp_path / "whole", SQUARES, **wanted))
    at = whole.of(Checkpoint)[5]

    again = looks.train(looks.spec(tmp_path / "again", SQUARES, attempt=2, resume=at.path, **wanted))

    assert [step.loss for step in again.of(Step)] == [step.loss for step in whole.of(Step) if step.step > at.step]
    assert again.of(Evaluated)[-1].metrics == whole.of(Evaluated)[-1].metrics
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_checkpoint_of_other_images_is_refused(tmp_path):
    def stop(frame: Any, wishes: Wishes) -> None:
        if isinstance(frame, Step):
            wishes.stop.set()

    first = looks.train(looks.spec(tmp_path / "first", SQUARES), on=stop)

    with pytest.raises(Failure, match="another run"):
        looks.train(looks.spec(tmp_path / "other", looks.archive(looks.squares(9)), resume=first.of(Checkpoint)[0].path))


def test_who_is_asked_to_stop_stops_within_a_step_and_keeps_it(tmp_path):
    def stop(frame: Any, wishes: Wishes) -> None:
        if isinstance(frame, Step) and frame.step == 3:
            wishes.stop.set()

    told = looks.train(looks.spec(tmp_path, SQUARES, epochs=50), on=stop)

    assert isinstance(told.end, Stopped)
    assert (told.end.step, [frame.step for frame in told.of(Checkpoint)]) == (3, [3])


def test_too_little_memory_halves_what_goes_through_at_once_and_changes_no_gradient(tmp_path, unsaved, monkeypatch):
    wanted = {"model_type": "vit", "dropout": 0.0, "epochs": 2, "batch_size": 16}
    usual = looks.train(looks.spec(tmp_path / "usual", SQUARES, **wanted))
    forward = vision.Classifier.forward

    def small(self: vision.Classifier, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4 and self.training:
            raise torch.OutOfMemoryError("as if")
        return forward(self, x)

    monkeypatch.setattr(vision.Classifier, "forward", small)
    tight = looks.train(looks.spec(tmp_path / "tight", SQUARES, **wanted))

    assert [frame.micro_tokens for frame in tight.of(BatchReduced)] == [8, 4]
    assert [step.loss for step in tight.of(Step)] == pytest.approx([step.loss for step in usual.of(Step)], rel=1e-4)
    assert [step.step for step in tight.of(Step)] == [step.step for step in usual.of(Step)]


def test_batch_norms_are_never_left_with_a_single_image(tmp_path, unsaved, monkeypatch):
    forward = vision.Classifier.forward
    seen: list[int] = []

    def small(self: vision.Classifier, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("as if")
        return forward(self, x)

    monkeypatch.setattr(vision.Classifier, "forward", small)
    looks.train(looks.spec(tmp_path, looks.archive(looks.squares(13)), batch_size=5, epochs=1))

    assert {number for number in seen if number <= 3} == {2, 3}


def test_a_network_that_is_too_large_for_one_image_says_what_helps(tmp_path, monkeypatch):
    def never(self: vision.Classifier, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("as if")

    monkeypatch.setattr(vision.Classifier, "forward", never)

    failure = refusal(tmp_path)

    assert failure.code == "oom"
    assert "image_size" in failure.message


def test_a_loss_that_is_no_number_any_more_ends_the_run_with_the_step(tmp_path):
    failure = refusal(tmp_path, optimizer="sgd", learning_rate=0.99, momentum=0.99, model_type="vit", epochs=200, patience=0, class_weights="balanced")

    assert failure.code == "diverged"
    assert failure.step > 0


# ---- how images are looked at


def test_images_are_varied_by_seed_epoch_and_place_alone(tmp_path):
    spec = looks.spec(tmp_path, SQUARES)
    known = pictures.read(Path(spec.snapshot), spec.fit)
    wanted = Preparation(size=32, crop=0.875, resample="bilinear", mean=[0.5] * 3, std=[0.5] * 3, target="label", classes=known.classes)

    def seen(*, epoch: int, seed: int = 1, pieces: int, threads: int) -> np.ndarray:
        looking = pictures.Looking(known, wanted, seed=seed, threads=threads)
        return np.concatenate([pixels for _, pixels in looking.varied(np.array_split(np.arange(12), pieces), epoch=epoch)])

    first = seen(epoch=0, pieces=1, threads=1)
    assert np.array_equal(first, seen(epoch=0, pieces=5, threads=3))
    assert not np.array_equal(first, seen(epoch=1, pieces=1, threads=1))
    assert not np.array_equal(first, seen(epoch=0, seed=2, pieces=1, threads=1))


def test_without_augmentation_each_epoch_sees_the_same(tmp_path, unsaved, monkeypatch):
    monkeypatch.setattr(pictures, "varied", lambda *args: pytest.fail("it was varied"))

    assert isinstance(looks.train(looks.spec(tmp_path, SQUARES, augment=False, epochs=1)).end, Completed)


def test_only_a_few_pieces_are_decoded_ahead(tmp_path):
    spec = looks.spec(tmp_path, SQUARES)
    known = pictures.read(Path(spec.snapshot), spec.fit)
    wanted = Preparation(size=32, crop=1, resample="bilinear", mean=[0.5] * 3, std=[0.5] * 3, target="label", classes=known.classes)
    drawn = pictures.Looking(known, wanted, seed=1, threads=2).middles(taken := Counted(np.array_split(np.arange(30), 15)))

    next(drawn)
    drawn.close()

    assert taken.count == pictures.AHEAD + 1


class Counted:
    def __init__(self, pieces: list[np.ndarray]) -> None:
        self.pieces, self.count = pieces, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self.pieces:
            self.count += 1
            yield piece


def test_the_middle_of_an_image_is_scaled_as_its_preparation_says():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = (255, 0, 51)
    wanted = Preparation(size=8, crop=1.0, resample="bilinear", mean=[0.5, 0.0, 0.2], std=[0.5, 1.0, 0.1], target="label", classes=["a", "b"])

    x = wanted.encode([Image.fromarray(pixels)])

    assert (x.shape, x.dtype) == ((1, 3, 8, 8), np.float32)
    assert x[0, :, 4, 4].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)


def test_pixels_as_json_has_them_are_an_image():
    whole = images.drawn([[[255, 0, 0], [0, 0, 255]]])

    assert (whole.size, whole.getpixel((0, 0)), whole.getpixel((1, 0))) == ((2, 1), (255, 0, 0), (0, 0, 255))
    assert images.drawn([[[1.0, 0, 0], [0, 0, 0.5]]]).getpixel((1, 0)) == (0, 0, 128)
    assert images.drawn([[0, 255]]).getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("values", [[], [[[1, 2]]], [[[1, 2, 300]]], [[["a", 0, 0]]], [[[1, 2, 3]], [[1, 2]]], "abc", [[[float("nan"), 0, 0]]]])
def test_what_are_no_pixels_is_refused_in_words(values):
    with pytest.raises(Unfit, match="ixels"):
        images.drawn(values)


def test_what_is_no_image_is_refused_in_words():
    whole = looks.square(looks.RED, np.random.default_rng(0))

    with pytest.raises(Unfit, match="no image of a kind"):
        images.picture(b"GIF? no")
    with pytest.raises(Unfit, match="damaged"):
        images.picture(whole[: len(whole) // 2])
    assert images.picture(whole).size == (looks.SIDE, looks.SIDE)


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("CMYK", (0, 255, 255, 0), (254, 0, 0)),
        ("I;16", 65_535, (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
    ],
    ids=["transparent", "opaque", "grey", "cmyk", "16-bits", "black-and-white"],
)
def test_an_image_of_any_kind_is_seen_in_red_green_and_blue(mode, colour, seen):
    out = io.BytesIO()
    Image.new(mode, (9, 7), colour).save(out, "TIFF")

    shown = images.picture(out.getvalue())

    assert (shown.mode, shown.size) == ("RGB", (9, 7))
    assert shown.getpixel((4, 4)) == pytest.approx(seen, abs=3)


def test_a_photo_is_turned_upright_and_made_no_larger_than_those_that_were_learned_from():
    out = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held upright
    Image.new("RGB", (3000, 1000), "green").save(out, "JPEG", exif=turned)

    assert images.picture(out.getvalue()).size == (171, images.LONGEST_SIDE)


def test_an_image_that_is_larger_than_its_file_tells_is_not_decoded():
    with pytest.raises(Unfit, match="pixels"):
        images.picture(huge_png(8000, 8000))


# ---- what can't be learned from


def test_a_damaged_image_ends_the_run_by_its_name(tmp_path):
    data = looks.squares()
    data["images/000003.png"] = ("red", b"\x89PNG\r\n\x1a\n no more")

    failure = refusal(tmp_path, looks.archive(data))

    assert failure.code == "data"
    assert "images/000003.png" in failure.message


def test_images_with_one_label_are_nothing_to_tell_apart(tmp_path):
    failure = refusal(tmp_path, looks.archive(looks.squares(6, red=looks.RED)))

    assert (failure.code, "tell apart" in failure.message) == ("data", True)


def _without_manifest() -> bytes:
    return looks.archive({}, lines='{"file": "images/gone.png", "label": "a"}\n')


def _packed(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.jsonl", "0" * 100_000)
    return path.read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        lambda folder: b"PK\x03\x04",
        lambda folder: SQUARES[:2000],
        lambda folder: _without_manifest(),
        lambda folder: _packed(folder / "packed.zip"),
        lambda folder: looks.archive(looks.squares(2), lines="no json\n"),
        lambda folder: looks.archive(looks.squares(2), lines='{"file": "images/000000.png", "label": "a"}\n' * 4),
    ],
    ids=["beginning", "cut", "other-files", "packed", "no-json", "twice"],
)
def test_an_archive_that_is_not_as_it_was_prepared_is_refused(tmp_path, data: Callable[[Path], bytes]):
    failure = refusal(tmp_path / "run", data(tmp_path))

    assert failure.code == "data"
    assert "Upload the data set again" in failure.message


@pytest.mark.parametrize("model_type", ["mlp", "gradient_boosting", "something"])
def test_a_model_for_tables_does_not_fit_images(tmp_path, model_type):
    spec = looks.spec(tmp_path, SQUARES, model_type=model_type)

    end = entry._end(spec, lambda frame: None, Wishes())

    assert isinstance(end, Failed)
    assert end.code == "model_type_unfit"


def test_early_stopping_by_a_measure_of_values_is_refused_before_anything_is_read(tmp_path):
    assert refusal(tmp_path, monitor="val_mae").code == "monitor_unfit"


# ---- what is left behind


def test_the_onnx_file_answers_as_the_trained_network_for_any_number_of_images(learned):
    session = onnxruntime.InferenceSession(artifacts(learned)["model.onnx"], providers=["CPUExecutionProvider"])
    prepared = preparation(learned)
    model = AutoModelForImageClassification.from_pretrained(artifacts(learned)["config.json"].parent, local_files_only=True).eval()

    for count in (1, 5):
        x = prepared.encode([images.picture(data) for _, data in list(looks.squares(4, seed=5).values())[:count]])
        answered = np.asarray(session.run(["y"], {"x": x})[0])
        with torch.no_grad():
            expected = torch.softmax(model(pixel_values=torch.from_numpy(x)).logits, dim=1).numpy()
        assert answered == pytest.approx(expected, abs=1e-5)

    assert completed(learned).summary["verified"]["largest_difference"] < 1e-3
    assert model.config.id2label == {0: "blue", 1: "red"}


def test_new_images_are_recognised_with_what_is_left_behind(learned):
    session = onnxruntime.InferenceSession(artifacts(learned)["model.onnx"], providers=["CPUExecutionProvider"])
    fresh = list(looks.squares(10, seed=9).values())

    x = preparation(learned).encode([images.picture(data) for _, data in fresh])
    said = preparation(learned).decode(np.asarray(session.run(["y"], {"x": x})[0]))

    right = [one["prediction"] == label for one, (label, _) in zip(said, fresh, strict=True)]
    assert sum(right) >= 18
    assert sum(said[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert said[0]["confidence"] == max(said[0]["probabilities"].values())


def test_the_programs_of_the_model_card_run_as_they_stand(learned, monkeypatch, capsys):
    card = artifacts(learned)["README.md"]
    programs = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    monkeypatch.chdir(card.parent)
    monkeypatch.syspath_prepend(card.parent)
    monkeypatch.delitem(sys.modules, "images", raising=False)

    for program in programs:
        exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})  # that it runs is the promise

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(programs) == 2
    assert all("'prediction': 'red'" in line for line in lines)


def test_a_network_of_the_hub_that_can_not_be_written_as_onnx_is_kept_with_a_note(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(portable, "export", lambda *args, **more: Path(args[2]).write_bytes(b"half") and 1 / 0)

    told = looks.train(looks.spec(tmp_path, SQUARES, model_type="someone/small", smoke=False, pretrained=True, epochs=1))

    assert "model.safetensors" in artifacts(told)
    assert "model.onnx" not in artifacts(told)
    assert any("can't be written as ONNX" in note for note in completed(told).summary["report"]["notes"])
    assert "onnxruntime" not in artifacts(told)["README.md"].read_text()


def test_the_preparation_needs_no_torch(learned):
    source = artifacts(learned)["images.py"].read_text()

    assert set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)) == {"collections", "io", "typing", "msgspec", "numpy", "PIL"}


# ---- whose weights it begins with

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by name as a hub has them."""
    place = tmp_path_factory.mktemp("hub")
    torch.manual_seed(7)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic")
    config.num_labels = 5
    small = ResNetForImageClassification(config)
    small.save_pretrained(place / "someone/small")
    (place / "someone/small/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "resample": 3})
    )
    shutil.copytree(place / "someone/small", place / "microsoft/resnet-18")
    LlamaConfig(num_hidden_layers=1).save_pretrained(place / "someone/words")
    shutil.copytree(place / "someone/small", place / "someone/pickled")
    (place / "someone/pickled/model.safetensors").rename(place / "someone/pickled/pytorch_model.bin")
    shutil.copytree(place / "someone/small", place / "someone/coded")
    told = json.loads((place / "someone/coded/config.json").read_text())
    (place / "someone/coded/config.json").write_text(json.dumps(told | {"auto_map": {"AutoConfig": "evil.Config"}}))
    shutil.copytree(place / "someone/small", place / "someone/endless")
    (place / "someone/endless/config.json").write_text(json.dumps(told | {"depths": [10**9, 1, 1, 1]}))
    shutil.copytree(place / "someone/small", place / "someone/huge")
    (place / "someone/huge/config.json").write_text(json.dumps(told | {"hidden_sizes": [8, 16, 32, 2000]}))
    shutil.copytree(place / "someone/small", place / "someone/huger")
    (place / "someone/huger/config.json").write_text(json.dumps(told | {"hidden_sizes": [8, 16, 32, 10**6]}))
    shutil.copytree(place / "someone/small", place / "someone/lacking")
    (place / "someone/lacking/config.json").write_text(json.dumps(told | {"depths": [1, 1, 1, 3]}))
    ViTConfig(hidden_size=768, num_hidden_layers=12, image_size=48, patch_size=16).save_pretrained(place / "someone/vit")
    return place


@pytest.fixture
def hub(stored: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = re.fullmatch(r"/(api/models/)?([\w-]+/[\w-]+)/(revision|tree|resolve)/[^/?]+/?([^?]*)(\?.*)?", self.path)
            place = stored / found[2] if found else stored / "nowhere"
            if found is None or not place.is_dir():
                self.answer(b"", status=404, headers={"X-Error-Code": "RepoNotFound"})
            elif found[3] == "revision":
                self.answer(json.dumps({"id": found[2], "sha": SHA, "siblings": [{"rfilename": path.name} for path in place.iterdir()]}).encode())
            elif found[3] == "tree":
                self.answer(
                    json.dumps([{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name} for path in place.iterdir()]).encode()
                )
            else:
                file = place / found[4]
                self.answer(file.read_bytes(), headers={"ETag": f'"{found[2]}/{file.name}"', "X-Repo-Commit": SHA})

        do_HEAD = do_GET

        def answer(self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()
        thread.join()


def found(folder: Path, **fit: Any) -> vision.Found:
    return vision.find(looks.spec(folder, SQUARES, **{"smoke": False, "pretrained": True, **fit}), ["blue", "red"])


def test_a_classifier_of_the_hub_begins_with_its_weights_and_looks_as_it_did(tmp_path, hub, stored):
    model = found(tmp_path, model_type="someone/small")

    theirs = load_file(stored / "someone/small/model.safetensors")
    ours = model.network.state_dict()
    body = [name for name in theirs if not name.startswith("classifier")]
    assert all(torch.equal(theirs[name], ours[name]) for name in body)
    assert ours["classifier.1.weight"].shape == (2, 64)
    assert model.look == vision.Look(32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 0.95, "bicubic")
    assert (model.base, model.revision, model.notes) == ("someone/small", SHA, [])


def test_the_platforms_own_begin_with_the_hubs_weights_and_need_it_once(tmp_path, hub):
    first = found(tmp_path, model_type="resnet18", cache=tmp_path / "cache")
    asked = len(hub)
    second = found(tmp_path, model_type="resnet18", cache=tmp_path / "cache")

    assert (first.base, second.base) == ("microsoft/resnet-18", "microsoft/resnet-18")
    assert len(hub) == asked > 0


def test_a_resumed_run_does_not_ask_the_hub_again(tmp_path, hub, unsaved):
    def stop(frame: Any, wishes: Wishes) -> None:
        if isinstance(frame, Step) and frame.step == 2:
            wishes.stop.set()

    wanted = {"model_type": "someone/small", "smoke": False, "pretrained": True, "epochs": 1}
    whole = looks.train(looks.spec(tmp_path / "whole", SQUARES, **wanted))
    first = looks.train(looks.spec(tmp_path / "first", SQUARES, **wanted), on=stop)
    asked = len(hub)

    again = looks.train(looks.spec(tmp_path / "again", SQUARES, attempt=2, resume=first.of(Checkpoint)[0].path, **wanted))

    assert len(hub) == asked
    assert [step.loss for step in (*first.of(Step), *again.of(Step))] == [step.loss for step in whole.of(Step)]
    assert completed(again).summary["report"]["base_model"] == "someone/small"


def test_without_the_hub_a_run_of_the_platforms_own_starts_from_scratch_and_says_so(tmp_path, unsaved, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(vision, "_config", vision._tiny)

    told = looks.train(looks.spec(tmp_path, SQUARES, smoke=False, pretrained=True, epochs=1))

    (note,) = completed(told).summary["report"]["notes"]
    assert note.startswith("weights not reachable: trained from scratch")
    assert "http://127.0.0.1:9" in note


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("someone/words", "model", "no image classifier"),
        ("someone/pickled", "model", "format safetensors"),
        ("someone/coded", "model", "brings its own code along"),
        ("someone/endless", "model", "1,000,000,003 layers"),
        ("someone/huge", "model", "asks for"),
        ("someone/huger", "model", "are the most"),
        ("someone/lacking", "model", "lacks weights"),
        ("someone/else", "model_not_found", "hub has no model"),
        ("/etc/passwd", "model", "is a folder"),
        ("../../etc/x", "model", "neither a folder nor the name"),
    ],
)
def test_a_model_that_can_not_be_taken_is_refused_in_clear_words(tmp_path, hub, name, code, why):
    with pytest.raises(Failure, match=why) as refused:
        found(tmp_path, model_type=name)

    assert refused.value.code == code


def test_a_hub_that_is_away_is_no_classifier_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # else its library tries again for half a minute

    with pytest.raises(Failure) as refused:
        found(tmp_path, model_type="someone/small")

    assert refused.value.code == "hub_unreachable"


def test_a_smoke_run_takes_the_real_architecture_made_tiny(tmp_path, hub):
    model = found(tmp_path, model_type="someone/vit", smoke=True)

    assert model.network.config.model_type == "vit"
    assert model.network.num_parameters() < 200_000
    assert model.look.size == 48  # the only size that it can look at
    assert "smoke" in model.notes[0]


@pytest.mark.parametrize(("model_type", "parameters"), [("resnet18", 11_177_538), ("resnet50", 23_512_130), ("vit", 85_800_194), ("convnext", 27_821_666)])
def test_the_platforms_own_have_the_sizes_that_they_are_known_for(tmp_path, model_type, parameters):
    spec = looks.spec(tmp_path, SQUARES, model_type=model_type, image_size=224)

    assert vision._parameters(vision._named(vision._config(spec.fit), ["blue", "red"])) == parameters


def test_phases_say_what_goes_on_before_and_after_the_steps(learned):
    assert [frame.name for frame in learned.of(Phase)] == ["read", "find", "save"]
