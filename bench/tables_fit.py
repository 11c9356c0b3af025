"""How good models of tables are beside scikit-learn's, and what it costs to have LightGBM run by us: `python -m bench.tables_fit`. Needs scikit-learn."""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from bench.kit import Promises
from libs.events import Column, Fit
from services.training.features import Preparation
from services.training.frames import Completed, FitSpec, Frame
from services.training.runner import entry, portable
from services.training.runner import table as tables
from services.training.runner.wishes import Wishes
from services.training.trainers import table

ROWS, UNSEEN = 4_000, 4_000
TARGET = "label"
MODEL_TYPES: dict[str, dict[str, Any]] = {
    "gradient_boosting": {"learning_rate": 0.1, "epochs": 200},
    "mlp": {"learning_rate": 1e-3, "epochs": 40},
    "ft_transformer": {"learning_rate": 1e-3, "epochs": 40},
}
"""As the platform has them, but for fewer epochs."""


class Made(NamedTuple):
    frame: pl.DataFrame
    categories: list[str]


def linear(random: np.random.Generator, rows: int) -> Made:
    x = random.normal(size=(rows, 12))
    score = x @ np.linspace(-1.5, 1.5, 12) + random.normal(size=rows)
    return Made(pl.DataFrame({f"x{n}": x[:, n] for n in range(12)} | {TARGET: np.where(score > 0, "yes", "no")}), [])


def xor(random: np.random.Generator, rows: int) -> Made:
    """Two numbers say it together, and neither alone; the others are noise."""
    x = random.normal(size=(rows, 8))
    flipped = random.random(rows) < 0.05
    return Made(pl.DataFrame({f"x{n}": x[:, n] for n in range(8)} | {TARGET: np.where((x[:, 0] * x[:, 1] > 0) ^ flipped, "same", "other")}), [])


def categorical(random: np.random.Generator, rows: int) -> Made:
    counts = (4, 12, 40, 120)
    codes = [random.integers(0, count, rows) for count in counts]
    effects = [np.random.default_rng(count).normal(size=count) for count in counts]
    score = sum((effect[code] for effect, code in zip(effects, codes, strict=True)), np.zeros(rows)) + random.normal(size=rows) * 0.5
    names = {f"c{n}": [f"{n}-{value}" for value in code] for n, code in enumerate(codes)}
    label = np.array(["low", "middle", "high"])[np.digitize(score, [-1.0, 1.0])]
    return Made(pl.DataFrame(names | {"x": random.normal(size=rows), TARGET: label}), list(names))


def many(random: np.random.Generator, rows: int) -> Made:
    made = categorical(random, rows)
    more = pl.DataFrame({f"m{n}": random.normal(size=rows) for n in range(20)})
    return Made(pl.concat([more, made.frame], how="horizontal"), made.categories)


def spec(folder: Path, made: Made, **fit: Any) -> FitSpec:
    folder.mkdir()
    columns = [
        Column(index=n, name=name, type="category" if name in (*made.categories, TARGET) else "numeric", role="target" if name == TARGET else "feature")
        for n, name in enumerate(made.frame.columns)
    ]
    made.frame.write_parquet(folder / "snapshot", metadata={"trainyard.columns": msgspec.json.encode(columns).decode()})
    wanted = msgspec.convert(fit, Fit)
    return FitSpec(job_id="bench", attempt=1, folder=str(folder), snapshot=str(folder / "snapshot"), fit=wanted)


def answers(spec: FitSpec, unseen: pl.DataFrame) -> float:
    """Its accuracy on rows that it has not seen, by the files that it leaves."""
    entry.settle(spec)
    end = table.train(spec, lambda frame: None, Wishes())
    assert isinstance(end, Completed)
    preparation = msgspec.json.decode(Path(end.artifacts["preprocess.json"]).read_bytes(), type=Preparation)
    output = portable.answered(Path(end.artifacts["model.onnx"]), preparation.encode_rows(list(unseen.iter_rows(named=True))))
    said = [answer["prediction"] for answer in preparation.decode(output)]
    return float(np.mean(np.array(said) == unseen[TARGET].to_numpy()))


def peer(made: Made, unseen: pl.DataFrame) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier  # pyright: ignore[reportMissingImports]  # a peer: `make bench` alone installs it

    def x(frame: pl.DataFrame) -> NDArray[Any]:
        named = [frame[name].cast(pl.Enum(sorted(set(made.frame[name])))).to_physical().to_numpy() for name in made.categories]
        return np.stack([frame[name].to_numpy() for name in made.frame.columns if name not in (*made.categories, TARGET)] + named, axis=1)

    categories = list(range(len(made.frame.columns) - 1 - len(made.categories), len(made.frame.columns) - 1))
    model = HistGradientBoostingClassifier(categorical_features=categories or None, random_state=1)
    model.fit(x(made.frame), made.frame[TARGET].to_numpy())
    return float(np.mean(model.predict(x(unseen)) == unseen[TARGET].to_numpy()))


def quality(promises: Promises, root: Path) -> None:
    for make in (linear, xor, categorical):
        made, unseen = make(np.random.default_rng(1), ROWS), make(np.random.default_rng(2), UNSEEN).frame
        theirs = peer(made, unseen)
        majority = max(made.frame[TARGET].value_counts()["count"].to_list()) / ROWS
        ours = {name: answers(spec(root / f"{make.__name__}-{name}", made, model_type=name, **fit), unseen) for name, fit in MODEL_TYPES.items()}
        told = ", ".join(f"{name} {value:.1%}" for name, value in ours.items())
        print(f"{make.__name__}: {told}; scikit-learn {theirs:.1%}; the largest class {majority:.1%}")
        promises.at_least(f"{make.__name__}: accuracy of the best", 100 * (max(ours.values()) - theirs), -2.0, of="against scikit-learn", unit=" points")
        promises.at_least(f"{make.__name__}: accuracy of the worst", 100 * (min(ours.values()) - majority), 0.0, of="against the largest class", unit=" points")


def speed(promises: Promises, root: Path, *, rounds: int, rows: int, turns: int) -> None:
    """In seconds of one CPU. LightGBM by itself is given the same numbers, the same settings and the same rows held out, whose loss it measures in each round."""
    import lightgbm

    wanted = spec(root / "speed", many(np.random.default_rng(3), rows), model_type="gradient_boosting", learning_rate=0.05, epochs=rounds, patience=0)
    entry.settle(wanted)
    known = tables.read(Path(wanted.snapshot), wanted.fit)
    width, named = known.preparation.width, len(known.preparation.codes)
    told: list[Frame] = []
    settings = table.Run(wanted, known, told.append, Wishes()).model.settings | {"metric": "multi_logloss"}  # pyright: ignore[reportAttributeAccessIssue]
    free = {name: value for name, value in settings.items() if name not in ("deterministic", "force_row_wise")}

    def ours() -> None:
        run = table.Run(wanted, known, told.append, Wishes())
        run.model.learn(run)

    def alone(settings: dict[str, Any]) -> None:
        training = lightgbm.Dataset(
            known.x[known.training], known.truth[known.training], categorical_feature=list(range(width - named, width)), params=settings
        )
        held_out = lightgbm.Dataset(known.x[known.held_out], known.truth[known.held_out], reference=training)
        lightgbm.train(settings, training, num_boost_round=rounds, valid_sets=[held_out])

    sides: dict[str, Callable[[], None]] = {"ours": ours, "alone": lambda: alone(free), "alone, repeatable": lambda: alone(settings)}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            began = time.process_time()
            sides[name]()
            if turn:
                taken[name].append(time.process_time() - began)
    best = {name: statistics.median(values) for name, values in taken.items()}
    print(", ".join(f"{name} {1000 * value / rounds:.2f} ms a round" for name, value in best.items()) + f" ({rows} rows, {width} features, 3 classes)")
    promises.at_least("gradient boosting, rounds a CPU-second", best["alone"] / best["ours"], 0.95, of="LightGBM alone")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables_fit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    promises = Promises()
    with tempfile.TemporaryDirectory() as folder:
        quality(promises, Path(folder))
        speed(promises, Path(folder), rounds=options.rounds, rows=options.rows, turns=options.turns)
    return promises.exit_code()


if __name__ == "__main__":
    raise SystemExit(main())
