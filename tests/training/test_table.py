"""Fitting a model to a table: what it learns from, what is told of it, how it goes on after a kill, and that the files it leaves answer as it did."""

import json
import math
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from libs.events import Fit
from services.training import telling
from services.training.features import Feature, Preparation, Target, Unfit, learned
from services.training.frames import BatchReduced, Checkpoint, Completed, Evaluated, Failed, Phase, Ready, Step, Stopped
from services.training.runner import checkpoint, course, measures, networks, portable, reports, step_log
from services.training.runner import table as tables
from services.training.runner.course import Course
from services.training.runner.outcome import Failure
from services.training.trainers import table
from tests.kit import fits
from tests.kit.datasets import Read
from tests.kit.finetunes import Told

BOOSTED = {"model_type": "gradient_boosting", "learning_rate": 0.1, "epochs": 30}
MLP = {"model_type": "mlp", "learning_rate": 0.003, "epochs": 4}
TRANSFORMER = {"model_type": "ft_transformer", "learning_rate": 0.003, "epochs": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """One undisturbed run of each kind, for the tests that look at what came of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    wanted = {
        "mlp": (fits.mixed(missing=0.1), MLP),
        "transformer": (fits.mixed(missing=0.1), TRANSFORMER),
        "boosting": (fits.mixed(missing=0.1), BOOSTED),
        "two classes": (fits.mixed(classes=2), BOOSTED),
        "values": (fits.values(), BOOSTED),
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(networks, "ASKING", 5)  # as in a wide table
        return {name: fits.train(fits.spec(folder / name.replace(" ", "-"), frame, **fit)) for name, (frame, fit) in wanted.items()}


def completed(told: Told) -> Completed:
    assert isinstance(told.end, Completed)
    return told.end


def losses(told: Told) -> dict[int, str]:
    return {frame.step: frame.loss.hex() for frame in told.of(Step)}


def content(told: Told, name: str) -> bytes:
    return Path(completed(told).artifacts[name]).read_bytes()


# From rows to numbers and back


def test_a_row_as_json_has_it_becomes_the_same_numbers_as_its_row_of_the_table(tmp_path):
    frame = fits.mixed(40, missing=0.2)
    spec = fits.spec(tmp_path, frame, model_type="gradient_boosting")
    known = tables.read(Path(spec.snapshot), spec.fit)

    rows = [row | {"day": row["day"] and row["day"].isoformat()} for row in frame.iter_rows(named=True)]

    assert np.array_equal(known.preparation.encode_rows(rows), known.x, equal_nan=True)
    kept = msgspec.json.decode(msgspec.json.encode(known.preparation), type=Preparation)
    assert np.array_equal(kept.encode_rows(rows), known.x, equal_nan=True)


def test_what_is_known_of_a_feature_is_told_by_the_rows_that_are_learned_from(tmp_path):
    frame = fits.values(200)
    spec = fits.spec(tmp_path, frame)
    known = tables.read(Path(spec.snapshot), spec.fit)

    training = frame["a"].to_numpy()[known.training]

    assert known.preparation.features[0].means == [pytest.approx(training.mean())]
    assert known.target.mean == pytest.approx(frame["label"].to_numpy()[known.training].mean())


@pytest.mark.parametrize(("said", "code"), [("red", 1), ("blue", 2), ("green", 0), (None, 0), ("", 0)])
def test_a_category_that_is_missing_or_was_seen_once_or_never_has_the_code_0(said, code):
    made = learned([("c", "category")], {"c": ["red", "red", "red", "blue", "blue", "green", None]}, target=_target(), missing="median")

    assert made.encode_rows([{"c": said}]).tolist() == [[code]]


def test_numbers_as_categories_are_told_by_their_value_and_not_by_how_they_are_written():
    made = learned([("c", "category")], {"c": [1, 1, 2, 2]}, target=_target(), missing="median")

    assert made.encode_rows([{"c": 2}, {"c": 2.0}, {"c": "2"}]).tolist() == [[2], [2], [2]]


def test_for_a_network_a_missing_number_is_the_median_and_says_that_it_is_missing():
    made = learned([("n", "numeric")], {"n": np.array([1.0, 2.0, 9.0, np.nan])}, target=_target(), missing="median")
    trees = learned([("n", "numeric")], {"n": np.array([1.0, 2.0, 9.0, np.nan])}, target=_target(), missing="nan")

    missing, median = made.encode_rows([{}, {"n": 2}])

    assert missing[0] == median[0]
    assert (missing[1], median[1]) == (1, 0)
    assert np.isnan(trees.encode_rows([{}])).tolist() == [[True]]


def test_a_date_is_its_days_month_day_weekday_and_hour_in_utc():
    feature = Feature(name="d", type="date")

    found = feature.numbers(["2026-11-21T19:30:00+01:00", date(1970, 1, 1), datetime(2024, 2, 29, 12, tzinfo=UTC), None])

    assert found[0].tolist() == [20778 + 18.5 / 24, 11, 21, 5, 18.5]
    assert found[1].tolist() == [0, 1, 1, 3, 0]
    assert found[2, 1:].tolist() == [2, 29, 3, 12]
    assert np.isnan(found[3]).all()


@pytest.mark.parametrize(("kind", "value"), [("numeric", "many"), ("integer", []), ("boolean", "perhaps"), ("date", "tomorrow"), ("date", 5)])
def test_a_value_that_its_column_can_not_hold_is_named_with_the_column(kind, value):
    with pytest.raises(Unfit, match=r"^x: ") as refused:
        Feature(name="x", type=kind).numbers([value])

    assert refused.value.feature == "x"


def test_numbers_without_bounds_do_no_harm():
    made = learned([("n", "numeric")], {"n": np.array([1e308, -1e308, 1e308, np.inf])}, target=_target(), missing="median")

    assert np.isfinite(made.encode_rows([{"n": 1e308}, {"n": "inf"}, {"n": -1e308}])).all()


def _target() -> Target:
    return Target(name="t", task="classification", classes=["a", "b"])


# Rows held out


def test_each_class_is_held_out_by_its_share_and_the_seed_alone_decides_which_rows():
    truth = np.repeat([0, 1, 2], [100, 50, 3])

    training, held_out = tables.divided(truth, share=0.2, seed=7, classes=3)

    assert np.bincount(truth[held_out]).tolist() == [20, 10, 1]
    assert sorted([*training, *held_out]) == list(range(153))
    assert tables.divided(truth, share=0.2, seed=7, classes=3)[1].tolist() == held_out.tolist()
    assert tables.divided(truth, share=0.2, seed=8, classes=3)[1].tolist() != held_out.tolist()


@pytest.mark.parametrize(("truth", "classes"), [([0, 1], 2), ([0, 0, 1, 1], 2), ([0, 1, 2, 3], 4), ([0.5, 1, 2, 3], 0)])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_however_few_rows_there_are_some_are_held_out_and_some_are_learned_from(truth, classes, share):
    training, held_out = tables.divided(np.array(truth), share=share, seed=1, classes=classes)

    assert len(held_out) >= 1
    assert len(training) >= 1


# What can't be done


@pytest.mark.parametrize(
    ("frame", "fit", "code"),
    [
        (fits.mixed(40), {"model_type": "vit"}, "model_type_unfit"),
        (fits.mixed(40), {"monitor": "val_mae"}, "monitor_unfit"),
        (fits.values(40), {"monitor": "val_f1"}, "monitor_unfit"),
        (fits.mixed(3), {}, "data"),
        (fits.mixed(40).with_columns(label=pl.lit("one")), {}, "data"),
        (fits.values(40).with_columns(label=pl.lit(1.0)), {}, "data"),
        (fits.values(40).select("label"), {}, "data"),
        (fits.values(40).rename({"label": "other"}), {}, "data"),
    ],
    ids=["a model for images", "monitor of values", "monitor of classes", "too few rows", "one class", "one value", "no features", "no target"],
)
def test_what_can_not_be_fitted_is_refused_with_a_code_and_words(tmp_path, frame, fit, code):
    with pytest.raises(Failure) as refused:
        fits.train(fits.spec(tmp_path, frame, **fit))

    assert refused.value.code == code
    assert len(refused.value.message) > 20


def test_a_loss_that_is_no_number_any_more_ends_the_run_with_the_step(tmp_path, monkeypatch):
    forward, calls = networks.Mlp.forward, iter(range(1000))
    monkeypatch.setattr(networks.Mlp, "forward", lambda network, x: forward(network, x) * (1.0 if next(calls) < 3 else math.nan))

    with pytest.raises(Failure, match="at step 4") as refused:
        fits.train(fits.spec(tmp_path, fits.values(), **MLP))

    assert (refused.value.code, refused.value.step) == ("diverged", 4)


@pytest.mark.parametrize(("begins", "code"), [(b"PK\x03\x04", "model_type_unfit"), (b"{}", "data")], ids=["images", "neither"])
def test_what_is_no_table_is_refused_by_its_first_bytes(tmp_path, begins, code):
    from services.training.runner import entry
    from services.training.runner.wishes import Wishes

    spec = fits.spec(tmp_path, fits.values(40))
    Path(spec.snapshot).write_bytes(begins)

    end = entry._end(spec, lambda frame: None, Wishes())

    assert isinstance(end, Failed)
    assert end.code == code


def test_columns_that_the_data_set_ignores_are_not_looked_at(tmp_path):
    frame = fits.values(60).with_columns(leak=pl.col("label"))
    known = [msgspec.structs.replace(column, role="ignored") if column.name == "leak" else column for column in fits.columns(frame)]

    spec = fits.spec(tmp_path, frame, known=known)

    assert [feature.name for feature in tables.read(Path(spec.snapshot), spec.fit).preparation.features] == ["a", "b"]


def test_the_file_itself_says_what_is_asked_of_numbers(tmp_path):
    frame = fits.values(60).with_columns(label=pl.Series([1, 2, 3] * 20))
    path = tmp_path / "snapshot"
    about = msgspec.json.encode([msgspec.structs.replace(one, type="integer") if one.role == "target" else one for one in fits.columns(frame)]).decode()

    frame.write_parquet(path, metadata={"trainyard.columns": about})
    assert tables.read(path, Fit(model_type="mlp")).target.task == "regression"
    frame.write_parquet(path, metadata={"trainyard.columns": about, "trainyard.task": "classification"})
    assert tables.read(path, Fit(model_type="mlp")).target.classes == ["1", "2", "3"]


@pytest.mark.parametrize(("dataset_type", "task"), [("classification", "classification"), ("regression", "regression")])
def test_what_the_datasets_service_makes_of_a_file_can_be_fitted_and_asked_as_the_file_has_it(tmp_path, dataset_type, task):
    lines = ["size,colour,old,day,note,label"]
    lines += [f"{n % 7 or ''},{('red', 'blue')[n % 2]},{('yes', 'no')[n % 3 == 0]},2024-0{1 + n % 9}-11,only here {n},{n % 7 // 2}" for n in range(200)]
    snapshot = Read("\n".join(lines).encode() + b"\n", dataset_type=dataset_type, target="label").bytes

    spec = fits.spec(tmp_path, fits.values(8), **BOOSTED)
    Path(spec.snapshot).write_bytes(snapshot)
    files = completed(fits.train(spec)).artifacts

    preparation = msgspec.json.decode(Path(files["preprocess.json"]).read_bytes(), type=Preparation)
    x = preparation.encode_rows([{"size": "6", "colour": "red", "old": "yes", "day": "2024-03-11"}, {"size": 1}])
    answers = preparation.decode(portable.answered(Path(files["model.onnx"]), x))
    assert preparation.target.task == task
    assert {feature.name: feature.type for feature in preparation.features} == {"size": "integer", "colour": "category", "old": "boolean", "day": "date"}
    assert [round(float(answer["prediction"])) for answer in answers] == [3, 0]


# What is told


def test_each_epoch_is_told_with_the_metrics_of_its_task(runs):
    told, values = runs["mlp"].of(Evaluated), runs["values"].of(Evaluated)

    assert [frame.metrics["epoch"] for frame in told] == [1, 2, 3, 4]
    assert list(told[0].metrics) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_precision", "val_recall", "val_f1_score"]
    assert list(values[0].metrics) == ["epoch", "loss", "val_loss", "val_mae", "val_rmse", "val_r2"]
    assert runs["mlp"].of(Ready)[0].total_steps == runs["mlp"].of(Step)[-1].step == 4 * 6


def test_the_end_tells_the_metrics_of_the_epoch_that_is_kept_and_what_the_model_is(runs):
    for name in ("mlp", "transformer", "boosting"):
        end, told = completed(runs[name]), runs[name].of(Evaluated)
        report, best = end.summary["report"], min(told, key=lambda frame: frame.metrics["val_loss"])

        assert report["best_epoch"] == best.metrics["epoch"]
        assert end.metrics["val_loss"] == best.metrics["val_loss"]
        assert end.metrics["train_accuracy"] == best.metrics["accuracy"]
        assert report["classes"] == ["high", "low", "middle"]
        assert np.sum(report["confusion_matrix"]) == 48
        assert np.trace(report["confusion_matrix"]) / 48 == pytest.approx(end.metrics["val_accuracy"])
        assert end.summary["architecture"] == {"input_shape": [9 if name == "boosting" else 13], "output_classes": 3, "parameters": _parameters(end)}
        assert (end.summary["rows"], end.summary["epochs"]) == (240, len(told))
        assert [feature["name"] for feature in end.summary["schema"]] == ["size", "count", "colour", "old", "day"]
        assert end.summary["verified"]["largest_difference"] < 1e-4


def _parameters(end: Completed) -> int:
    if "model.txt" in end.artifacts:
        trees = lightgbm.Booster(model_file=end.artifacts["model.txt"]).dump_model()["tree_info"]
        return sum(2 * (tree["num_leaves"] - 1) + tree["num_leaves"] for tree in trees)
    from safetensors.torch import load_file

    return sum(tensor.numel() for tensor in load_file(end.artifacts["model.safetensors"]).values())


@pytest.mark.parametrize("name", ["mlp", "transformer", "boosting"])
def test_what_says_the_label_is_important(runs, name):
    told = completed(runs[name]).summary["report"]["feature_importance"]

    assert {told[0]["feature"], told[1]["feature"]} >= {"size"}
    assert told[0]["importance"] > told[-1]["importance"]


def test_what_is_told_of_many_features_and_classes_fits_into_a_fact_and_says_what_was_cut(tmp_path):
    random = np.random.default_rng(1)
    names = {f"{'a rather long name of a feature ' * 3}{n}": random.normal(size=400) for n in range(300)}
    frame = pl.DataFrame(names | {"label": [f"class {n % 100} {'x' * 80}" for n in range(400)]})

    end = completed(fits.train(fits.spec(tmp_path, frame, model_type="gradient_boosting", epochs=1)))

    kept = telling.summary(end.summary)
    assert {"report", "schema", "architecture", "verified"} <= set(kept)
    assert len(msgspec.json.encode(kept)) < telling.MOST
    assert any("features" in note for note in kept["report"]["notes"])
    assert kept["report"]["confusion_matrix"] is None


def test_a_thousand_epochs_are_told_as_some_hundreds_and_the_first_ones_all():
    told = [epoch for epoch in range(1, 10_001) if course.told(epoch)]

    assert told[:200] == list(range(1, 201))
    assert 400 < len(told) < 800
    assert max(later - epoch for epoch, later in pairwise(told)) <= 64


def test_the_history_that_a_run_leaves_has_every_epoch_also_those_that_were_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "TOLD", 4)

    run = fits.train(fits.spec(tmp_path, fits.values(), model_type="gradient_boosting", epochs=11, patience=0))

    history, told = msgspec.json.decode(content(run, course.HISTORY)), run.of(Evaluated)
    assert [frame.metrics["epoch"] for frame in told] == [1, 2, 3, 4, 6, 8, 11]
    assert {len(values) for values in history.values()} == {11}
    assert [history["val_loss"][round(frame.metrics["epoch"]) - 1] for frame in told] == [frame.metrics["val_loss"] for frame in told]


def test_many_small_steps_are_told_together_and_every_row_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(step_log, "MOST_LINES", 10)
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}))

    told = fits.train(fits.spec(tmp_path, fits.values(), batch_size=4, epochs=2, patience=0))

    assert [frame.step for frame in told.of(Step)] == [10, 20, 30, 40, 48, 50, 60, 70, 80, 90, 96]
    assert sum(frame.tokens for frame in told.of(Step)) == 2 * 192


def test_where_a_network_takes_its_time_importance_is_measured_on_fewer_rows_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "SHUFFLING", 1e-9)
    monkeypatch.setattr(table, "FEWEST_TRIED", 20)
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}, summary={"of": run.model.important(run), "notes": run.notes}))

    notes = completed(fits.train(fits.spec(tmp_path, fits.values(), epochs=1))).summary["notes"]

    assert notes == ["The importance of the features is measured on 20 rows.", "There was no time to measure the importance of every feature."]


# When it ends


def _course(values: list[float], *, monitor: Any = "val_loss", **fit: Any) -> Course:
    made = Course(Fit(model_type="mlp", monitor=monitor, **fit), "classification")
    for value in values:
        if made.over:
            break
        made.note({str(course.NAMES.get(monitor, monitor)): value})
    return made


def test_a_run_ends_after_so_many_epochs_without_a_better_one_and_goes_back_to_the_best():
    made = _course([3, 2, 2.5, 2, 9, 1], patience=3, epochs=50)

    assert (made.epoch, made.best, made.metrics, made.ended_early) == (5, 2, {"val_loss": 2}, True)


def test_of_accuracy_more_is_better_and_without_patience_no_run_ends_early():
    assert _course([0.1, 0.5, 0.4, 0.3], monitor="val_f1", patience=2, epochs=50).best == 2
    assert _course([1, 2, 3, 4, 5], patience=0, epochs=5).ended_early is False


def test_the_weights_that_are_saved_are_those_of_the_best_epoch(runs):
    end = completed(runs["boosting"])
    best = end.summary["report"]["best_epoch"]

    assert lightgbm.Booster(model_file=end.artifacts["model.txt"]).num_trees() == 3 * best < 3 * 30


# Kept, killed, cancelled


@pytest.mark.parametrize(
    ("name", "fit", "file"),
    [("mlp", MLP, "model.safetensors"), ("transformer", TRANSFORMER, "model.safetensors"), ("boosting", BOOSTED, "model.txt")],
    ids=["mlp", "transformer", "boosting"],
)
def test_a_run_goes_on_from_any_checkpoint_as_if_nothing_had_happened(runs, tmp_path, monkeypatch, name, fit, file):
    undisturbed, kept = runs[name], tmp_path / "kept.pt"
    monkeypatch.setattr(table, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "KEEPING", 1e9)

    def take(frame: Any, wishes: Any) -> None:
        if isinstance(frame, Checkpoint) and frame.step == 10:  # in the middle of an epoch
            shutil.copy(frame.path, kept)
            wishes.stop.set()

    def its_own(network: Any, example: Any, path: Path, **options: Any) -> None:  # the resumed run is held against it; to make another takes seconds
        shutil.copy(completed(undisturbed).artifacts[portable.MODEL], path)

    monkeypatch.setattr(portable, "export", its_own)
    fits.train(fits.spec(tmp_path / "first", fits.mixed(missing=0.1), **fit), on=take)
    resumed = fits.train(fits.spec(tmp_path / "second", fits.mixed(missing=0.1), attempt=2, resume=str(kept), **fit))

    assert losses(resumed) == {step: loss for step, loss in losses(undisturbed).items() if step > 10}
    assert [frame.metrics for frame in resumed.of(Evaluated)] == [frame.metrics for frame in undisturbed.of(Evaluated) if frame.step > 10]
    assert content(resumed, file) == content(undisturbed, file)
    assert content(resumed, course.HISTORY) == content(undisturbed, course.HISTORY)
    assert completed(resumed).metrics == completed(undisturbed).metrics


@pytest.mark.parametrize("fit", [MLP, BOOSTED], ids=["mlp", "boosting"])
def test_a_cancelled_run_stops_within_a_step_and_leaves_a_checkpoint(tmp_path, fit):
    def stop(frame: Any, wishes: Any) -> None:
        if isinstance(frame, Step) and frame.step == 3:
            wishes.stop.set()

    told = fits.train(fits.spec(tmp_path, fits.mixed(), **fit), on=stop)

    assert told.end == Stopped(step=3)
    assert [frame.step for frame in told.of(Checkpoint)] == [3]


@pytest.mark.parametrize(("fit", "file"), [(MLP, "model.safetensors"), (BOOSTED, "model.txt")], ids=["mlp", "boosting"])
def test_a_run_that_was_stopped_while_it_saved_its_model_only_saves_it(runs, tmp_path, fit, file):
    undisturbed = runs["mlp" if fit is MLP else "boosting"]

    def stop(frame: Any, wishes: Any) -> None:
        if isinstance(frame, Phase) and frame.name == "save":
            wishes.stop.set()

    stopped = fits.train(fits.spec(tmp_path / "first", fits.mixed(missing=0.1), **fit), on=stop)
    resumed = fits.train(fits.spec(tmp_path / "second", fits.mixed(missing=0.1), attempt=2, resume=stopped.of(Checkpoint)[-1].path, **fit))

    assert stopped.end == Stopped(step=undisturbed.of(Step)[-1].step)
    assert not resumed.of(Step)
    assert content(resumed, file) == content(undisturbed, file)


@pytest.mark.parametrize(("fit", "network"), [(MLP, networks.Mlp), (TRANSFORMER, networks.FtTransformer)], ids=["mlp", "transformer"])
def test_when_memory_is_short_less_goes_through_at_once_and_the_losses_are_the_same(tmp_path, monkeypatch, fit, network):
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}))
    roomy = fits.train(fits.spec(tmp_path / "roomy", fits.mixed(), dropout=0, **fit))
    forward = network.forward

    def cramped(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 9 and network.training:
            raise torch.OutOfMemoryError
        return forward(network, x)

    monkeypatch.setattr(network, "forward", cramped)
    told = fits.train(fits.spec(tmp_path / "cramped", fits.mixed(), dropout=0, **fit))

    assert [frame.micro_tokens for frame in told.of(BatchReduced)] == [16, 8]
    assert [frame.loss for frame in told.of(Step)] == pytest.approx([frame.loss for frame in roomy.of(Step)], rel=1e-4)


def test_no_more_rows_go_through_a_wide_network_together_than_there_is_room_for(tmp_path, monkeypatch):
    """Also where nobody would be told that memory ran out."""
    forward, sizes = networks.FtTransformer.forward, set[int]()

    def watched(network: networks.FtTransformer, x: torch.Tensor) -> torch.Tensor:
        sizes.add(int(x.shape[0]))
        return forward(network, x)

    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}))
    monkeypatch.setattr(networks.FtTransformer, "forward", watched)
    roomy = fits.train(fits.spec(tmp_path / "roomy", fits.mixed(), dropout=0, model_type="ft_transformer", epochs=1))
    assert max(sizes) == 48  # all that are held out
    sizes.clear()
    monkeypatch.setattr(networks, "ROOM", 7 * 4 * 64 * networks.HELD["ft_transformer"] * 10)
    told = fits.train(fits.spec(tmp_path / "narrow", fits.mixed(), dropout=0, model_type="ft_transformer", epochs=1))

    assert max(sizes) == 7
    assert not told.of(BatchReduced)
    assert [frame.loss for frame in told.of(Step)] == pytest.approx([frame.loss for frame in roomy.of(Step)], rel=1e-4)


def test_however_short_memory_is_no_row_goes_through_a_network_with_batch_norms_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}))
    forward, sizes = networks.ResNet.forward, list[int]()

    def cramped(network: networks.ResNet, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 3 and network.training:
            raise torch.OutOfMemoryError
        sizes.append(len(x) if network.training else 2)
        return forward(network, x)

    monkeypatch.setattr(networks.ResNet, "forward", cramped)
    fits.train(fits.spec(tmp_path, fits.mixed(30), model_type="resnet18", batch_size=5, epochs=1))

    assert set(sizes) == {2, 3}


def test_what_does_not_fit_however_little_it_is_says_so(tmp_path, monkeypatch):
    def none_left(network: networks.Mlp, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(networks.Mlp, "forward", none_left)

    with pytest.raises(Failure, match="too large") as refused:
        fits.train(fits.spec(tmp_path, fits.mixed(), **MLP))

    assert refused.value.code == "oom"


# Networks


@pytest.mark.parametrize(("numbers", "codes"), [(3, []), (0, [4, 2]), (2, [3])], ids=["numbers", "categories", "both"])
def test_a_transformer_gives_each_feature_a_vector_of_its_own_and_lets_them_be_seen_together(numbers, codes):
    torch.manual_seed(1)
    network = networks.network("ft_transformer", numbers=numbers, codes=codes, outputs=2, dropout=0.1).eval()
    x = torch.ones(1, numbers + len(codes))
    changed = x.repeat(x.shape[1], 1) - torch.eye(x.shape[1])  # one feature after the other
    both = x.clone()
    both[:, :2] = 0

    with torch.no_grad():
        alone = network(changed) - network(x)
        together = network(both) - network(x)

    assert alone.abs().amin() > 1e-6
    assert len({tuple(row) for row in alone.tolist()}) == x.shape[1]
    assert (together - alone[0] - alone[1]).abs().max() > 1e-6  # more than the sum of what each says


def test_what_is_too_wide_for_a_transformer_is_refused_with_what_could_be_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "MOST_TOKENS", 12)

    with pytest.raises(Failure, match=r"come to 13 numbers.* 12 at most.* Take gradient_boosting or mlp") as refused:
        fits.train(fits.spec(tmp_path, fits.mixed(missing=0.1), **TRANSFORMER))

    assert refused.value.code == "model_type_unfit"


@pytest.mark.parametrize(("model_type", "convolutions"), [("resnet18", 17), ("resnet34", 33), ("resnet50", 49), ("resnet101", 100)])
def test_residual_networks_are_as_deep_as_their_names_say(model_type, convolutions):
    network = networks.network(model_type, numbers=3, codes=[4], outputs=2, dropout=0.1)

    in_shortcuts = sum(isinstance(module, torch.nn.Conv1d) for name, module in network.named_modules() if "shortcut" in name)
    found = sum(isinstance(module, torch.nn.Conv1d) for module in network.modules())
    assert found - in_shortcuts == convolutions  # and the last layer is the one more


def test_a_residual_network_learns_from_two_rows_at_least_and_from_the_last_row_too(tmp_path, monkeypatch):
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}))
    frame = fits.values(11)

    told = fits.train(fits.spec(tmp_path, frame, model_type="resnet18", batch_size=4, epochs=1))

    assert [frame.tokens for frame in told.of(Step)] == [4, 5]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("scheduler", ["constant", "cosine", "linear", "step"])
def test_whatever_the_optimizer_and_the_scheduler_the_loss_falls(tmp_path, monkeypatch, optimizer, scheduler):
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}))

    told = fits.train(fits.spec(tmp_path, fits.values(), optimizer=optimizer, scheduler=scheduler, learning_rate=0.002, epochs=6, patience=0))

    assert told.of(Evaluated)[-1].metrics["val_r2"] > 0.6
    rates = [frame.lr for frame in told.of(Step)]
    assert rates[0] == 0.002
    assert (rates[-1] == 0.002) == (scheduler == "constant")


@pytest.mark.parametrize("model_type", ["mlp", "gradient_boosting"])
def test_balanced_weights_find_the_rare_class(tmp_path, monkeypatch, model_type):
    random = np.random.default_rng(3)
    rare = random.random(1500) < 0.08
    frame = pl.DataFrame({"a": random.normal(size=1500) + 1.5 * rare, "label": np.where(rare, "yes", "no")})
    recalls = {}
    monkeypatch.setattr(table.Run, "finish", lambda run: Completed(step=run.step, artifacts={}, metrics=run.metrics()))

    for weights in ("none", "balanced"):
        fit = {"model_type": model_type, "epochs": 8, "learning_rate": 0.05, "class_weights": weights}
        recalls[weights] = completed(fits.train(fits.spec(tmp_path / weights, frame, **fit))).metrics["val_recall"]

    assert recalls["balanced"] > recalls["none"] + 0.1


# The files


@pytest.mark.parametrize("name", ["mlp", "transformer", "boosting", "two classes", "values"])
def test_the_onnx_answers_any_number_of_rows_also_where_all_is_missing_or_unheard_of(runs, name):
    files = completed(runs[name]).artifacts
    preparation = msgspec.json.decode(Path(files["preprocess.json"]).read_bytes(), type=Preparation)
    model = Path(files["model.onnx"])
    rows = [{}, {"colour": "violet", "size": -1e9}, {"size": 2.0, "colour": "grey", "count": 3, "old": True, "day": "2024-03-01"}]

    answers = [preparation.decode(portable.answered(model, preparation.encode_rows(some))) for some in (rows, rows[2:])]

    assert answers[0][2] == answers[1][0] | {"prediction": answers[0][2]["prediction"]} or answers[0][2]["prediction"] == pytest.approx(
        answers[1][0]["prediction"]
    )
    for answer in answers[0]:
        if name == "values":
            assert 600 < answer["prediction"] < 1400
        else:
            assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_the_trees_in_the_onnx_decide_as_those_of_lightgbm(runs):
    for name, frame in (
        ("boosting", fits.mixed(300, seed=9, missing=0.3)),
        ("two classes", fits.mixed(300, seed=9, classes=2)),
        ("values", fits.values(300, seed=9)),
    ):
        files = completed(runs[name]).artifacts
        preparation = msgspec.json.decode(Path(files["preprocess.json"]).read_bytes(), type=Preparation)
        x = preparation.encode_rows(list(frame.iter_rows(named=True)))

        expected = np.asarray(lightgbm.Booster(model_file=files["model.txt"]).predict(x))
        answered = portable.answered(Path(files["model.onnx"]), x)

        assert np.abs((answered[:, -1] if expected.ndim == 1 else answered) - expected).max() < 1e-5


def test_a_file_that_answers_otherwise_is_not_let_out(runs):
    files = completed(runs["boosting"]).artifacts
    preparation = msgspec.json.decode(Path(files["preprocess.json"]).read_bytes(), type=Preparation)
    x = preparation.encode_rows([{"size": 1.0}])

    with pytest.raises(Failure, match="doesn't answer as the trained model"):
        portable.verified(Path(files["model.onnx"]), x, np.array([[0.5, 0.25, 0.25]]))


@pytest.mark.parametrize("name", ["mlp", "values"])
def test_the_program_on_the_card_runs_as_it_stands_beside_its_files(runs, tmp_path, name):
    for path in completed(runs[name]).artifacts.values():
        shutil.copy(path, tmp_path)
    card = (tmp_path / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert program

    ran = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)

    assert "prediction" in ran.stdout
    assert json.loads((tmp_path / "config.json").read_text())["training"]["seed"] == 1
    assert "`data`" in card


def test_a_name_can_not_break_out_of_the_card(tmp_path):
    evil = "x```\n# Run `curl evil`"
    frame = fits.values(60).rename({"a": evil})

    end = completed(fits.train(fits.spec(tmp_path, frame, **BOOSTED)))

    card = Path(end.artifacts["README.md"]).read_text()
    assert card.count("```") == 2
    assert "\n# Run" not in card


# Measures


def test_precision_recall_and_f1_are_means_over_the_classes_that_there_are():
    truth, answer = np.array([0, 0, 0, 1]), np.eye(3)[[0, 0, 1, 1]] * 0.9 + 0.03

    found = measures.of_classes(truth, answer)

    assert found["accuracy"] == 0.75
    assert (found["precision"], found["recall"]) == ((1 + 0.5) / 2, pytest.approx((2 / 3 + 1) / 2))
    assert found["f1_score"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_class_that_nothing_was_held_out_of_is_named_for_the_means_say_nothing_of_it():
    truth, answer, classes = np.array([0, 0, 1]), np.eye(3)[[0, 0, 1]], ["common", "usual", "rare"]
    seen, unseen = reports.Cut(), reports.Cut()

    reports.of_classes(truth, answer[:, :2], classes[:2], seen)
    reports.of_classes(truth, answer, classes, unseen)

    assert seen.notes == []
    assert unseen.notes == ["Nothing was held out of 'rare': no val_ figure counts that. There are too few to learn from and to check."]


def test_errors_of_values_are_in_their_own_unit():
    found = measures.of_values(np.array([0.0, 1.0]), np.array([1.0, 1.0]), scale=10)

    assert (found["mae"], found["rmse"], found["loss"]) == (5, pytest.approx(10 * 0.5**0.5), 0.5)
    assert found["r2"] == -1
