"""Fitting a model to a table: gradient boosting, or a network, to tell classes apart or to predict values.

A network's optimizer step learns from `batch_size` rows, as a sum over their weights, so that halving what goes through it at once changes nothing but what batch
norms see. A step of gradient boosting is a round: one tree, or one for each class. What ends the run, and which epoch's model is kept, is the same for both.
"""

import importlib.metadata
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from services.training import features
from services.training.frames import BatchReduced, Completed, Evaluated, FitSpec, Frame, Phase, Ready, Stopped
from services.training.runner import card, checkpoint, course, machine, measures, networks, reports, table
from services.training.runner.course import Course
from services.training.runner.outcome import Failure, Stop, ran_out_of_memory
from services.training.runner.step_log import StepLog
from services.training.runner.table import Table
from services.training.runner.wishes import Wishes

Tell = Callable[[Frame], None]
_ROUNDS = re.compile(r"^\[num_iterations: \d+\]$", re.MULTILINE)

BOOSTING = "gradient_boosting"
MODEL_TYPES = (BOOSTING, *networks.MODEL_TYPES)
KEEP_EVERY = 10.0
"""Seconds between checkpoints, but for those that take long to write."""
LOOKED_AT = 4096
"""Rows that go through a network at once when nothing is learned."""
TRIED = 1_000
"""Rows on which the saved model is compared with the trained one, and on which features are shuffled, at most."""
FEWEST_TRIED = 100
"""For features, where a network takes its time."""
SAMPLED = 2_048
"""Rows that gradient boosting learned from, on which it is measured after each round: to measure all of them would take a good part of the round's own time."""
SHUFFLING = 10.0
"""Seconds for that."""


def train(spec: FitSpec, tell: Tell, wishes: Wishes) -> Completed | Stopped:
    """The whole run. Raises a Failure when it can't be done; whoever wants it stopped gets a checkpoint first."""
    if spec.fit.model_type not in MODEL_TYPES:
        raise Failure("model_type_unfit", f"{spec.fit.model_type} is not for tables, and this data set is one: take {', '.join(MODEL_TYPES)}.")
    try:
        tell(Phase(name="read"))
        known = wishes.unless_stopped(lambda: table.read(Path(spec.snapshot), spec.fit))
    except Stop:
        return Stopped(step=0)
    run = Run(spec, known, tell, wishes)
    try:
        tell(Ready(step=run.step, total_steps=run.total, facts=run.facts()))
        if not run.course.over:
            run.model.learn(run)
        return run.finish()
    except Stop:
        run.keep()
        return Stopped(step=run.step)


class Model(Protocol):
    """What is learned, and how."""

    notes: list[str]
    tried: int

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def parameters(self) -> int: ...

    @property
    def importance(self) -> str:
        """How the features' importance is told."""
        ...

    def learn(self, run: "Run") -> None:
        """Until the course is over. Raises Stop at a point from which its state goes on."""
        ...

    def remember(self) -> None:
        """The model as it is now is the best so far."""
        ...

    def settle(self, best: int) -> None:
        """On the model of that epoch."""
        ...

    def answer(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Probabilities of the classes, or standardised values in one column."""
        ...

    def important(self, run: "Run") -> dict[str, float]: ...

    def save(self, folder: Path) -> str:
        """With its ONNX; the name of the file that holds the original."""
        ...

    def state(self) -> checkpoint.State: ...

    def restore(self, state: checkpoint.State) -> None: ...


class Run:
    """What is told, kept and judged on the way, whatever it is that learns."""

    def __init__(self, spec: FitSpec, known: Table, tell: Tell, wishes: Wishes) -> None:
        self.spec, self.table, self.tell, self.wishes = spec, known, tell, wishes
        self.began = time.monotonic()
        self.course = Course(spec.fit, known.target.task)
        self.weights = _class_weights(known) if spec.fit.class_weights == "balanced" and known.classes else None
        self.step = 0
        self.model: Model = Boosting(self) if spec.fit.model_type == BOOSTING else Network(self)
        self.total = self.model.steps_per_epoch * spec.fit.epochs
        self.log = StepLog(tell, spec.device, total=self.total, per_epoch=self.model.steps_per_epoch)
        self.keeper = checkpoint.Keeper(spec.folder, tell, every=KEEP_EVERY)
        if spec.resume:
            self._restore(checkpoint.read(Path(spec.resume)))

    # ---- what whoever learns says

    def stepped(self, loss: float, *, rate: float, rows: int, seconds: float) -> None:
        if not math.isfinite(loss):
            number = self.step + 1
            cure = "Lower learning_rate, or look for odd values among the numbers."
            raise Failure("diverged", f"The loss is not a number any more at step {number}. {cure}", number)
        self.step += 1
        self.log.add(self.step, loss=loss, rate=rate, rows=rows, seconds=seconds)

    def evaluated(self, metrics: course.Metrics) -> None:
        """At the end of an epoch, when all of it is in the model's state."""
        if self.course.note(metrics):
            self.model.remember()
        if self.course.to_be_told:
            self.tell(Evaluated(step=self.step, metrics={"epoch": float(self.course.epoch), **metrics}))

    def look_after(self) -> None:
        """Between two steps."""
        if self.keeper.is_due:
            self.keep()
        self.wishes.heed()

    def judged(self, answer: NDArray[Any], rows: NDArray[np.int64]) -> course.Metrics:
        truth = self.table.truth[rows]
        if self.table.classes:
            return measures.of_classes(truth, answer, self.weights)
        return measures.of_values(truth, answer[:, 0], scale=self.table.target.scale)

    def held_out(self, answer: NDArray[Any]) -> course.Metrics:
        return {f"val_{name}": value for name, value in self.judged(answer, self.table.held_out).items()}

    # ---- checkpoints

    def keep(self) -> None:
        self.keeper.keep(self.step, self._state)

    def _state(self) -> checkpoint.State:
        return {
            "step": self.step,
            "rows": len(self.table.training),
            "total": self.total,
            **self.log.state(),
            "course": self.course.state(),
            "model": self.model.state(),
        }

    def _restore(self, state: checkpoint.State) -> None:
        if (state["rows"], state["total"]) != (len(self.table.training), self.total):
            raise Failure("internal", "The checkpoint belongs to another run: it has other rows, or another number of steps.")
        self.step = self.keeper.step = state["step"]
        self.log.restore(state)
        self.course.restore(state["course"])
        self.model.restore(state["model"])

    # ---- the end

    def finish(self) -> Completed:
        from services.training.runner import portable  # nobody waits for it before the first step

        self.model.settle(self.course.best)
        self.tell(Phase(name="save"))
        self.wishes.heed()
        folder = Path(self.spec.folder, "artifacts")
        folder.mkdir(exist_ok=True)
        original = self.wishes.unless_stopped(lambda: self.model.save(folder))
        tried = self.table.x[self.table.held_out[: self.model.tried]]
        verified = portable.verified(folder / portable.MODEL, tried, self.model.answer(tried), threads=self.spec.threads)
        metrics, preparation = self.metrics(), self.table.preparation
        summary = self.summary(metrics, verified)
        (folder / "preprocess.json").write_bytes(msgspec.json.format(msgspec.json.encode(preparation), indent=1))
        (folder / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.config()), indent=1))
        shutil.copy(features.__file__, folder / "features.py")
        card.write(folder, self.spec, preparation, metrics=metrics, summary=summary, original=original)
        self.course.write(folder)
        files = {path.name: str(path) for path in sorted(folder.iterdir())}
        return Completed(step=self.step, artifacts=files, metrics=metrics, summary=summary)

    def metrics(self) -> course.Metrics:
        """Of the epoch whose model is saved."""
        best = self.course.metrics
        return {f"train_{name}" if not name.startswith("val_") else name: value for name, value in best.items()}

    def facts(self) -> dict[str, Any]:
        """For the frame that says that steps begin."""
        return {
            "model_type": self.spec.fit.model_type,
            "task": self.table.target.task,
            "rows": len(self.table.truth),
            "training_rows": len(self.table.training),
            "held_out_rows": len(self.table.held_out),
            "features": len(self.table.preparation.features),
            "steps_per_epoch": self.model.steps_per_epoch,
        }

    def config(self) -> dict[str, Any]:
        """What it takes to build it again."""
        return {
            "model_type": self.spec.fit.model_type,
            "task": self.table.target.task,
            "target": self.table.target.name,
            "architecture": self.architecture(),
            "training": self.spec.fit,
            "versions": versions(),
        }

    def architecture(self) -> dict[str, Any]:
        return {"input_shape": [self.table.preparation.width], "output_classes": max(1, self.table.classes), "parameters": self.model.parameters}

    def summary(self, metrics: course.Metrics, verified: dict[str, Any]) -> dict[str, Any]:
        return {
            "rows": len(self.table.truth),
            "epochs": self.course.epoch,
            "ended_early": self.course.ended_early,
            "architecture": self.architecture(),
            "metrics": metrics,
            "training_seconds": round(self.log.seconds, 3),
            "duration_seconds": round(time.monotonic() - self.began, 3),
            "peak_memory": machine.peak_memory(self.spec.device),
            "hardware": machine.hardware(self.spec.device),
            "versions": versions(),
            "verified": verified,
            **self._reported(),
        }

    def _reported(self) -> dict[str, Any]:
        known, cut = self.table, reports.Cut()
        rows = known.held_out
        schema = reports.schema(known.preparation, cut)
        of_classes = reports.of_classes(known.truth[rows], self.model.answer(known.x[rows]), known.target.classes, cut) if known.classes else {}
        important = reports.importance(self.model.important(self), self.model.importance, cut)
        report = {"task": known.target.task, "target": known.target.name, "best_epoch": self.course.best, **of_classes, **important}
        return {"schema": schema, "report": report | {"notes": [*self.notes, *cut.notes]}}

    @property
    def notes(self) -> list[str]:
        found = [*self.table.notes, *self.model.notes]
        if self.course.epoch > course.TOLD:
            found.append(f"Of the epochs after the first {course.TOLD} only some were told while it ran: every second, then every fourth, and so on.")
        return found


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "lightgbm", "onnx", "onnxruntime", "numpy", "polars")}


def _class_weights(known: Table) -> NDArray[np.float64]:
    """So that each class counts alike among the rows that are learned from."""
    counts = np.bincount(known.truth[known.training], minlength=known.classes)
    return len(known.training) / (known.classes * np.maximum(counts, 1))


class Network:
    importance = "permutation"

    def __init__(self, run: Run) -> None:
        fit, known = run.spec.fit, run.table
        self.fit, self.known, self.wishes, self.tell = fit, known, run.wishes, run.tell
        self.device = torch.device(run.spec.device)
        torch.manual_seed(fit.seed)
        torch.backends.cudnn.allow_tf32 = False  # tables are small, and the ONNX has to answer as the network does
        codes = known.preparation.codes
        outputs = max(1, known.classes)
        self.network = networks.network(fit.model_type, numbers=known.preparation.width - len(codes), codes=codes, outputs=outputs, dropout=fit.dropout).to(
            self.device
        )
        self.optimizer = course.optimizer(fit, self.network)
        self.x, self.truth = torch.from_numpy(known.x).to(self.device), torch.from_numpy(known.truth).to(self.device)
        self.training = torch.from_numpy(known.training).to(self.device)
        self.weights = None if run.weights is None else torch.from_numpy(run.weights).to(self.device, torch.float32)
        self.fewest = 2 if fit.model_type in networks.DEPTHS else 1
        """Rows without which batch norms can't be computed."""
        self.batch = max(self.fewest, fit.batch_size)
        rows = len(known.training)
        self.steps_per_epoch = max(1, rows // self.batch if rows % self.batch < self.fewest else math.ceil(rows / self.batch))
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.notes = [] if self.batch == fit.batch_size else [f"{fit.model_type} learns from {self.batch} rows at once at least."]
        room = networks.rows_together(fit.model_type, known.preparation.width)
        self.micro = self.batch + self.fewest if self.fewest > 1 else min(self.batch + 1, room)  # another part of a batch has another norm
        self.looked_at, self.tried = min(LOOKED_AT, room), min(TRIED, room)
        self.nth = 0
        """Steps of this epoch that are done."""
        self.sums = {"loss": 0.0, "weight": 0.0, "right": 0.0, "rows": 0.0}
        self.best: dict[str, Tensor] = {}

    def learn(self, run: Run) -> None:
        while not run.course.over:
            order = self._order(run.course.epoch)
            while self.nth < self.steps_per_epoch:
                self._learn_step(run, order)
                run.look_after()
            metrics = self._measured(run)
            self.nth, self.sums = 0, dict.fromkeys(self.sums, 0.0)
            run.evaluated(metrics)
            run.look_after()

    def _order(self, epoch: int) -> Tensor:
        """Each epoch has its own, which follows from the seed alone."""
        generator = torch.Generator().manual_seed(self.fit.seed * 100_003 + epoch)
        return self.training[torch.randperm(len(self.training), generator=generator).to(self.device)]

    def _learn_step(self, run: Run, order: Tensor) -> None:
        began = time.perf_counter()
        last = self.nth == self.steps_per_epoch - 1
        rows = order[self.nth * self.batch : None if last else (self.nth + 1) * self.batch]
        randomness = checkpoint.randomness(self.device)
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        try:
            while (summed := self._gradients(rows)) is None:
                self._take_less(run, len(rows))
                self._put_back(randomness, buffers)
        except Stop:
            self._put_back(randomness, buffers)
            raise
        loss, weight, right = summed
        rate = course.rate(self.fit, run.step, run.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        run.stepped(loss / weight, rate=rate, rows=len(rows), seconds=time.perf_counter() - began)
        self.optimizer.step()
        self.nth += 1
        for name, value in {"loss": loss, "weight": weight, "right": right, "rows": len(rows)}.items():
            self.sums[name] += value

    def _gradients(self, rows: Tensor) -> tuple[float, float, float] | None:
        """Sums over the rows: losses, weights, right answers. None when there wasn't the memory for it."""
        self.optimizer.zero_grad(set_to_none=True)
        truth = self.truth[rows]
        weight = float(self.weights[truth].sum()) if self.weights is not None else float(len(rows))
        told = torch.zeros(2, device=self.device, dtype=torch.float64)
        try:
            for part in torch.tensor_split(rows, max(1, min(math.ceil(len(rows) / self.micro), len(rows) // self.fewest))):
                self.wishes.heed()
                answer = self.network(self.x[part])
                loss = self._summed(answer, self.truth[part])
                (loss / weight).backward()
                told[0] += loss.detach()
                if self.known.classes:
                    told[1] += (answer.detach().argmax(dim=1) == self.truth[part]).sum()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return None
        loss_sum, right = told.tolist()
        return loss_sum, weight, right

    def _summed(self, answer: Tensor, truth: Tensor) -> Tensor:
        if self.known.classes:
            return functional.cross_entropy(answer, truth, weight=self.weights, reduction="sum")
        return functional.mse_loss(answer[:, 0], truth, reduction="sum")

    def _take_less(self, run: Run, rows: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        micro = min(self.micro, rows) // 2
        if micro < self.fewest:
            raise Failure("oom", f"{self.fit.model_type} is too large for the memory of {machine.name(self.device)}: take a smaller model_type.", run.step)
        self.micro = micro
        self.tell(BatchReduced(step=run.step, micro_tokens=micro))

    @torch.no_grad()
    def _put_back(self, randomness: checkpoint.State, buffers: list[Tensor]) -> None:
        """What a pass that came to nothing has changed."""
        checkpoint.restore_randomness(randomness, self.device)
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _measured(self, run: Run) -> course.Metrics:
        sums = self.sums
        learned = {"loss": sums["loss"] / sums["weight"]} | ({"accuracy": sums["right"] / sums["rows"]} if self.known.classes else {})
        return learned | run.held_out(self.answer(self.known.x[self.known.held_out]))

    @torch.no_grad()
    def answer(self, x: NDArray[np.float32]) -> NDArray[Any]:
        self.network.eval()
        try:
            while (found := self._answered(torch.from_numpy(x))) is None:
                self.looked_at //= 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        finally:
            self.network.train()
        return found.numpy()

    def _answered(self, x: Tensor) -> Tensor | None:
        found: list[Tensor] = []
        try:
            for part in x.split(self.looked_at):
                self.wishes.heed()
                answer = self.network(part.to(self.device))
                found.append((torch.softmax(answer, dim=1) if self.known.classes else answer).cpu())
        except RuntimeError as error:
            if not ran_out_of_memory(error) or self.looked_at == 1:
                raise
            return None
        return torch.cat(found)

    def remember(self) -> None:
        self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.network.state_dict().items()}

    def settle(self, best: int) -> None:
        self.network.load_state_dict(self.best)

    def important(self, run: Run) -> dict[str, float]:
        """How much worse it does on held-out rows when a feature's values are dealt to the wrong rows."""
        every, score = self.known.preparation.features, "accuracy" if self.known.classes else "r2"
        began, rows = time.monotonic(), self._held_out(TRIED)
        self.answer(self.known.x[rows])
        share = SHUFFLING / ((time.monotonic() - began) * len(every))
        if share < 1:
            rows = self._held_out(max(FEWEST_TRIED, int(share * len(rows))))
            self.notes.append(f"The importance of the features is measured on {len(rows)} rows.")
        x, columns = self.known.x[rows], np.array(self.known.preparation.columns)
        as_it_is = run.judged(self.answer(x), rows)[score]
        order = np.random.default_rng(self.fit.seed).permutation(len(rows))
        found: dict[str, float] = {}
        until = time.monotonic() + SHUFFLING
        for feature in every:
            if time.monotonic() > until:
                self.notes.append("There was no time to measure the importance of every feature.")
                break
            dealt = x.copy()
            dealt[:, columns == feature.name] = x[order][:, columns == feature.name]
            found[feature.name] = as_it_is - run.judged(self.answer(dealt), rows)[score]
        return found

    def _held_out(self, most: int) -> NDArray[np.int64]:
        """Any of them: in many a file the classes lie one after the other."""
        known = self.known.held_out
        return known if len(known) <= most else np.sort(np.random.default_rng(self.fit.seed).choice(known, most, replace=False))

    def save(self, folder: Path) -> str:
        from safetensors.torch import save_file

        from services.training.runner import portable

        network = self.network.cpu().eval()
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
        example = torch.from_numpy(self.known.x[:2])
        portable.export(network, example, folder / portable.MODEL, classes=bool(self.known.classes))
        network.to(self.device)
        return "model.safetensors"

    def state(self) -> checkpoint.State:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "randomness": checkpoint.randomness(self.device),
            "best": self.best,
            "nth": self.nth,
            "sums": self.sums,
            "micro": self.micro,
        }

    def restore(self, state: checkpoint.State) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.nth, self.sums, self.micro = state["best"], state["nth"], state["sums"], state["micro"]
        checkpoint.restore_randomness(state["randomness"], self.device)


class Boosting:
    """LightGBM. It goes on from a checkpoint by the sum of its trees so far, in which it would have continued: the trees that follow are the same."""

    importance = "gain"
    steps_per_epoch = 1
    tried = TRIED

    def __init__(self, run: Run) -> None:
        try:
            import lightgbm
        except (ImportError, OSError) as error:
            raise Failure("model", f"{BOOSTING} needs LightGBM, which can't be used here ({error}). Its operator can mend that; or take mlp.") from error

        fit, known = run.spec.fit, run.table
        self.lightgbm = lightgbm
        self.fit, self.known = fit, known
        self.notes: list[str] = []
        self.sample = known.training
        if len(known.training) > SAMPLED:
            self.sample = np.sort(np.random.default_rng(fit.seed).choice(known.training, SAMPLED, replace=False))
            self.notes.append(f"How well it does on rows that it learned from is measured on {SAMPLED:,} of them.")
        self.rounds = 0
        """Of the model that is kept."""
        self.booster: Any = None
        objective = {0: "regression", 2: "binary"}.get(known.classes, "multiclass")
        self.settings = {
            "objective": objective,
            **({"num_class": known.classes} if known.classes > 2 else {}),
            "metric": "None",  # measured here, as of a network
            "learning_rate": fit.learning_rate,
            "num_leaves": fit.num_leaves,
            "max_depth": fit.max_depth or -1,
            "lambda_l2": fit.weight_decay,
            "min_data_in_leaf": max(1, min(20, len(known.training) // 20)),
            "seed": fit.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": run.spec.threads,
            "verbosity": -1,
        }

    def learn(self, run: Run) -> None:
        known, lightgbm = self.known, self.lightgbm
        width, named = known.preparation.width, len(known.preparation.codes)

        def part(rows: NDArray[np.int64], **more: Any) -> Any:
            weights = None if run.weights is None else run.weights[known.truth[rows]]
            return lightgbm.Dataset(known.x[rows], known.truth[rows], weight=weights, free_raw_data=False, **more)

        training = part(known.training, categorical_feature=list(range(width - named, width)), params={"verbosity": -1})
        held_out = part(known.held_out, reference=training)
        looked_at = training if self.sample is known.training else part(self.sample, reference=training)
        heard: course.Metrics = {}
        began = time.perf_counter()

        def hear(answer: NDArray[Any], of: Any) -> list[Any]:
            answer = self._columns(answer)
            if of is held_out:
                heard.update(run.held_out(answer))
            elif known.classes:
                heard.update(measures.of_learned(known.truth[self.sample], answer, run.weights))
            else:
                heard["loss"] = run.judged(answer, self.sample)["loss"]
            return []

        def after_round(env: Any) -> None:
            nonlocal began
            self.booster = env.model
            run.stepped(heard["loss"], rate=self.fit.learning_rate, rows=len(known.training), seconds=time.perf_counter() - began)
            run.evaluated(dict(heard))
            run.look_after()
            began = time.perf_counter()
            if run.course.over:
                raise lightgbm.callback.EarlyStopException(run.course.best - 1, [])

        try:
            lightgbm.train(
                self.settings,
                training,
                num_boost_round=self.fit.epochs - run.course.epoch,
                valid_sets=[looked_at, held_out],
                feval=hear,
                init_model=self.booster,
                callbacks=[after_round],
            )
        except lightgbm.basic.LightGBMError as error:
            if "bad_alloc" in str(error):
                raise MemoryError from error
            raise

    def _columns(self, answer: NDArray[Any]) -> NDArray[Any]:
        if self.known.classes == 2:
            return np.stack([1 - answer, answer], axis=1)
        return answer if answer.ndim == 2 else answer.reshape(-1, 1)

    def remember(self) -> None:
        """The number of its trees is all there is to it."""

    def settle(self, best: int) -> None:
        self.rounds = best

    @property
    def parameters(self) -> int:
        """A feature and a threshold for each split, a value for each leaf."""
        trees = self.booster.dump_model(num_iteration=self.rounds)["tree_info"]
        return sum(3 * tree["num_leaves"] - 2 for tree in trees)

    def answer(self, x: NDArray[np.float32]) -> NDArray[Any]:
        return self._columns(self.booster.predict(x, num_iteration=self.rounds))

    def important(self, run: Run) -> dict[str, float]:
        """What splitting by it gained, as a share of all."""
        gains = self.booster.feature_importance("gain", iteration=self.rounds)
        found = dict.fromkeys((feature.name for feature in self.known.preparation.features), 0.0)
        for name, gain in zip(self.known.preparation.columns, gains / max(float(gains.sum()), measures.FLOOR), strict=True):
            found[name] += float(gain)
        return found

    def save(self, folder: Path) -> str:
        import onnx

        from services.training.runner import portable, trees

        text = self.booster.model_to_string(num_iteration=self.rounds)
        (folder / "model.txt").write_text(_ROUNDS.sub(f"[num_iterations: {self.rounds}]", text))  # else it tells how many there were to be
        onnx.save(trees.convert(self.booster, rounds=self.rounds, classes=self.known.classes), folder / portable.MODEL)
        return "model.txt"

    def state(self) -> checkpoint.State:
        return {"trees": self.booster.model_to_string(num_iteration=-1)}

    def restore(self, state: checkpoint.State) -> None:
        self.booster = self.lightgbm.Booster(model_str=state["trees"])
