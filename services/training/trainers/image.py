"""Fitting a network to images, to tell their classes apart.

An optimizer step learns from `batch_size` images, as a sum over their weights, so that halving what goes through the network at once changes nothing but what batch
norms see. Images are decoded shortly before they are looked at; those held out, and those learned from, are the same in each attempt.
"""

import importlib.metadata
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.training import images
from services.training.disk import is_disk_full
from services.training.frames import BatchReduced, Completed, Evaluated, FitSpec, Frame, Phase, Ready, Stopped
from services.training.images import Pixels, Preparation
from services.training.runner import checkpoint, course, image_card, machine, measures, pictures, reports, vision
from services.training.runner.course import Course
from services.training.runner.outcome import Failure, Stop, ran_out_of_memory
from services.training.runner.pictures import Drawn, Looking, Pictures, Rows
from services.training.runner.step_log import StepLog
from services.training.runner.vision import Found
from services.training.runner.wishes import Wishes

Tell = Callable[[Frame], None]

KEEP_EVERY = 30.0
"""Seconds between checkpoints, but for those that take long to write."""
AT_ONCE = {"cpu": 8 * 224 * 224, "cuda": 256 * 224 * 224}
"""Pixels that go through the network at most. On a CPU some seconds pass with them, after which somebody may want the run to stop."""
ONNX = "model.onnx"
TRIED = 16
"""Held-out images on which the saved model is compared with the trained one."""


def train(spec: FitSpec, tell: Tell, wishes: Wishes) -> Completed | Stopped:
    """The whole run. Raises a Failure when it can't be done; whoever wants it stopped gets a checkpoint first."""
    if spec.fit.model_type not in vision.MODEL_TYPES and "/" not in spec.fit.model_type:
        those = ", ".join(vision.MODEL_TYPES)
        raise Failure("model_type_unfit", f"{spec.fit.model_type} is not for images, and this data set holds them: take {those}, or a classifier of the hub.")
    epochs = Course(spec.fit, "classification")
    try:
        tell(Phase(name="read"))
        known = wishes.unless_stopped(lambda: pictures.read(Path(spec.snapshot), spec.fit))
        state = checkpoint.read(Path(spec.resume)) if spec.resume else None
        tell(Phase(name="find"))
        found = wishes.unless_stopped(lambda: _found(spec, known, state, tell))
    except Stop:
        return Stopped(step=0)
    run = Run(spec, known, found, epochs, tell, wishes)
    if state:
        run.restore(state)
    try:
        tell(Ready(step=run.step, total_steps=run.total, facts=run.facts()))
        run.learn()
        return run.finish()
    except Stop:
        run.keep()
        return Stopped(step=run.step)


def _found(spec: FitSpec, known: Pictures, state: checkpoint.State | None, tell: Tell) -> Found:
    if state:
        return vision.restored(state["origin"])
    return vision.find(spec, known.classes, lambda done, total: tell(Phase(name="download", done=done, total=total)))


class Run:
    def __init__(self, spec: FitSpec, known: Pictures, found: Found, epochs: Course, tell: Tell, wishes: Wishes) -> None:
        fit = spec.fit
        self.spec, self.fit, self.known, self.found, self.tell, self.wishes = spec, fit, known, found, tell, wishes
        self.began = time.monotonic()
        self.device = torch.device(spec.device)
        self.preparation = Preparation(**found.look._asdict(), target=pictures.TARGET, classes=known.classes)
        self.course = epochs
        self.looking = Looking(known, self.preparation, seed=fit.seed, threads=spec.threads)
        self.network = vision.Classifier(found.network).to(self.device).train()
        if self.device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its signature lacks it
        self.half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dropping = self._dropout()
        self.optimizer = course.optimizer(fit, self.network)
        self.balance = _balance(known) if fit.class_weights == "balanced" else None
        self.weights = None if self.balance is None else torch.from_numpy(self.balance).to(self.device, torch.float32)
        self.mean, self.std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) * 255 for values in (found.look.mean, found.look.std))
        self.truth = torch.from_numpy(known.truth)
        self.fewest = 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules()) else 1
        """Images without which batch norms can't be computed."""
        self.batch = max(self.fewest, fit.batch_size)
        rows = len(known.training)
        if rows < self.fewest:
            raise Failure("data", f"One image is left to learn from, and {fit.model_type} needs {self.fewest}.")
        self.steps_per_epoch = max(1, rows // self.batch if rows % self.batch < self.fewest else math.ceil(rows / self.batch))
        self.total = self.steps_per_epoch * fit.epochs
        self.log = StepLog(tell, spec.device, total=self.total, per_epoch=self.steps_per_epoch)
        self.keeper = checkpoint.Keeper(spec.folder, tell, every=KEEP_EVERY)
        at_once = max(2 * self.fewest, AT_ONCE[self.device.type] // self.preparation.size**2)
        self.micro = self.looked_at = at_once
        self.step = 0
        self.nth = 0
        """Steps of this epoch that are done."""
        self.sums = {"loss": 0.0, "weight": 0.0, "right": 0.0, "rows": 0.0}
        self.best: dict[str, Tensor] = {}
        self.without = ""
        """Why there is no ONNX file."""

    def _dropout(self) -> Callable[[], None]:
        """Before the last layer. It can be taken away again: nobody needs it who doesn't learn."""
        head = vision.head(self.found.network, len(self.known.classes))
        if head is None or not self.fit.dropout:
            return lambda: None

        def drop(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return functional.dropout(inputs[0], self.fit.dropout, module.training), *inputs[1:]

        return head.register_forward_pre_hook(drop).remove

    # ---- learning

    def learn(self) -> None:
        while not self.course.over:
            order = self._order(self.course.epoch)
            while self.nth < self.steps_per_epoch:
                self._learn_what_is_left(order)
            metrics = self._measured()
            self.nth, self.sums = 0, dict.fromkeys(self.sums, 0.0)
            if self.course.note(metrics):
                self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.found.network.state_dict().items()}
            if self.course.to_be_told:
                self.tell(Evaluated(step=self.step, metrics={"epoch": float(self.course.epoch), **metrics}))
            self.look_after()

    def _order(self, epoch: int) -> Rows:
        """Each epoch has its own, which follows from the seed alone."""
        return self.known.training[np.random.default_rng((self.fit.seed, epoch)).permutation(len(self.known.training))]

    def _learn_what_is_left(self, order: Rows) -> None:
        """Of an epoch, or until the memory is too small for what goes through the network at once."""
        steps = [self._rows(order, nth) for nth in range(self.nth, self.steps_per_epoch)]
        pieces = [piece for rows in steps for piece in self._pieces(rows)]
        drawn = self.looking.varied(pieces, epoch=self.course.epoch) if self.fit.augment else self.looking.middles(pieces)
        try:
            for rows in steps:
                if not self._learn_step(rows, drawn):
                    return
                self.look_after()
        finally:
            drawn.close()

    def _rows(self, order: Rows, nth: int) -> Rows:
        last = nth == self.steps_per_epoch - 1
        return order[nth * self.batch : None if last else (nth + 1) * self.batch]

    def _pieces(self, rows: Rows) -> list[Rows]:
        return np.array_split(rows, max(1, min(math.ceil(len(rows) / self.micro), len(rows) // self.fewest)))

    def _learn_step(self, rows: Rows, drawn: Drawn) -> bool:
        """False: there wasn't the memory for it, and it is to be done again with less at once."""
        began = time.perf_counter()
        randomness = checkpoint.randomness(self.device)
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        try:
            summed = self._gradients(rows, drawn)
        except Stop:
            self._put_back(randomness, buffers)
            raise
        if summed is None:
            self._take_less(len(rows))
            self._put_back(randomness, buffers)
            return False
        loss, weight, right = summed
        if not math.isfinite(loss):
            number = self.step + 1
            raise Failure("diverged", f"The loss is not a number any more at step {number}. Lower learning_rate.", number)
        rate = course.rate(self.fit, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        self.nth += 1
        for name, value in {"loss": loss, "weight": weight, "right": right, "rows": len(rows)}.items():
            self.sums[name] += value
        self.log.add(self.step, loss=loss / weight, rate=rate, rows=len(rows), seconds=time.perf_counter() - began)
        return True

    def _gradients(self, rows: Rows, drawn: Drawn) -> tuple[float, float, float] | None:
        """Sums over the images: losses, weights, right answers. None when there wasn't the memory for it."""
        self.optimizer.zero_grad(set_to_none=True)
        weight = float(self.balance[self.known.truth[rows]].sum()) if self.balance is not None else float(len(rows))
        told = torch.zeros(2, device=self.device, dtype=torch.float64)
        done = 0
        try:
            while done < len(rows):
                self.wishes.heed()
                piece, pixels = next(drawn)
                truth = self.truth[piece].to(self.device)
                logits = self._logits(pixels)
                loss = functional.cross_entropy(logits, truth, weight=self.weights, reduction="sum")
                (loss / weight).backward()
                told[0] += loss.detach()
                told[1] += (logits.detach().argmax(dim=1) == truth).sum()
                done += len(piece)
            loss_sum, right = told.tolist()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return None
        return loss_sum, weight, right

    def _logits(self, pixels: Pixels) -> Tensor:
        shown = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # channels_last as it is
        x = (shown.float() - self.mean) / self.std
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            logits = self.network(x if self.device.type == "cuda" else x.contiguous())
        return logits.float()

    def _take_less(self, rows: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        micro = min(self.micro, rows) // 2
        if micro < self.fewest:
            cure = "take a smaller model_type or image_size."
            raise Failure("oom", f"{self.fit.model_type} is too large for the memory of {machine.name(self.device)}: {cure}", self.step)
        self.micro = micro
        self.tell(BatchReduced(step=self.step, micro_tokens=micro))

    @torch.no_grad()
    def _put_back(self, randomness: checkpoint.State, buffers: list[Tensor]) -> None:
        """What a pass that came to nothing has changed."""
        checkpoint.restore_randomness(randomness, self.device)
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(before)

    # ---- judging

    def _measured(self) -> course.Metrics:
        """Learning is measured while it goes on, on images as they were varied."""
        sums = self.sums
        held_out = measures.of_classes(self.known.truth[self.known.held_out], self.answer(self.known.held_out), self.balance)
        learned = {"loss": sums["loss"] / sums["weight"], "accuracy": sums["right"] / sums["rows"]}
        return learned | {f"val_{name}": value for name, value in held_out.items()}

    @torch.no_grad()
    def answer(self, rows: Rows) -> NDArray[np.float32]:
        """Probabilities of the classes."""
        self.network.eval()
        try:
            found: list[NDArray[np.float32]] = []
            done = 0
            while done < len(rows):
                for answered in self._answered(rows[done:]):
                    found.append(answered)
                    done += len(answered)
        finally:
            self.network.train()
        return np.concatenate(found)

    def _answered(self, rows: Rows) -> Iterator[NDArray[np.float32]]:
        drawn = self.looking.middles(np.array_split(rows, math.ceil(len(rows) / self.looked_at)))
        try:
            for _, pixels in drawn:
                self.wishes.heed()
                yield torch.softmax(self._logits(pixels), dim=1).cpu().numpy()
        except RuntimeError as error:
            if not ran_out_of_memory(error) or self.looked_at == 1:
                raise
        else:
            return
        finally:
            drawn.close()
        self.looked_at //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- checkpoints

    def look_after(self) -> None:
        """Between two steps."""
        if self.keeper.is_due:
            self.keep()
        self.wishes.heed()

    def keep(self) -> None:
        self.keeper.keep(self.step, self._state)

    def _state(self) -> checkpoint.State:
        return {
            "origin": self.found.origin(),
            "rows": len(self.known.training),
            "total": self.total,
            "step": self.step,
            "nth": self.nth,
            "network": self.found.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "randomness": checkpoint.randomness(self.device),
            "course": self.course.state(),
            "best": self.best,
            "sums": self.sums,
            **self.log.state(),
            "micro": self.micro,
        }

    def restore(self, state: checkpoint.State) -> None:
        if (state["rows"], state["total"]) != (len(self.known.training), self.total):
            raise Failure("internal", "The checkpoint belongs to another run: it has other images, or another number of steps.")
        self.found.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.course.restore(state["course"])
        self.step = self.keeper.step = state["step"]
        self.nth, self.best, self.sums, self.micro = state["nth"], state["best"], state["sums"], state["micro"]
        self.log.restore(state)
        checkpoint.restore_randomness(state["randomness"], self.device)

    # ---- the end

    def finish(self) -> Completed:
        self.found.network.load_state_dict(self.best)
        self.tell(Phase(name="save"))
        answer = self.answer(self.known.held_out)
        folder = Path(self.spec.folder, "artifacts")
        folder.mkdir(exist_ok=True)
        verified = self.wishes.unless_stopped(lambda: self._save(folder))
        metrics = self.metrics()
        summary = self.summary(metrics, verified, self._report(answer))
        (folder / "preprocess.json").write_bytes(_readable(self.preparation))
        (folder / "training.json").write_bytes(_readable(self._training()))
        shutil.copy(images.__file__, folder / "images.py")
        image_card.write(folder, self.spec, self.preparation, found=self.found, metrics=metrics, summary=summary)
        self.course.write(folder)
        files = {path.name: str(path) for path in sorted(folder.iterdir())}
        return Completed(step=self.step, artifacts=files, metrics=metrics, summary=summary)

    def _save(self, folder: Path) -> dict[str, Any]:
        """As transformers reads it, and as ONNX; compared on a CPU, where the trained model reckons as exactly as the other."""
        self.dropping()
        network = self.network.to("cpu", memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
        self.found.network.save_pretrained(folder, max_shard_size="100GB")
        try:
            return self._exported(network, folder)
        except Exception as error:  # not each of the hub's networks can be written down so
            if "/" not in self.fit.model_type or ran_out_of_memory(error) or is_disk_full(error):
                raise
            Path(folder, ONNX).unlink(missing_ok=True)
            self.without = f"{self.fit.model_type} can't be written as ONNX ({type(error).__name__}), so it can't predict here: load model.safetensors."
            return {}

    def _exported(self, network: nn.Module, folder: Path) -> dict[str, Any]:
        from services.training.runner import portable  # nobody waits for it before the first step

        shown = [self.known.picture(index) for index in self.known.held_out[:TRIED].tolist()]
        x = self.preparation.encode(shown if len(shown) > 1 else shown * 2)
        portable.export(network, torch.from_numpy(x[:2]), folder / ONNX, classes=True)
        with torch.no_grad():
            expected = torch.softmax(network(torch.from_numpy(x)), dim=1).numpy()
        return portable.verified(folder / ONNX, x, expected, threads=self.spec.threads)

    def metrics(self) -> course.Metrics:
        """Of the epoch whose model is saved."""
        return {f"train_{name}" if not name.startswith("val_") else name: value for name, value in self.course.metrics.items()}

    def facts(self) -> dict[str, Any]:
        """For the frame that says that steps begin."""
        return {
            "model_type": self.fit.model_type,
            "task": "classification",
            "rows": len(self.known.files),
            "training_rows": len(self.known.training),
            "held_out_rows": len(self.known.held_out),
            "classes": len(self.known.classes),
            "steps_per_epoch": self.steps_per_epoch,
            "base_model": self.found.base,
            "notes": self.notes,
        }

    def summary(self, metrics: course.Metrics, verified: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
        size = self.preparation.size
        return {
            "rows": len(self.known.files),
            "epochs": self.course.epoch,
            "ended_early": self.course.ended_early,
            "architecture": self.architecture(),
            "metrics": metrics,
            "training_seconds": round(self.log.seconds, 3),
            "duration_seconds": round(time.monotonic() - self.began, 3),
            "peak_memory": machine.peak_memory(self.device),
            "hardware": machine.hardware(self.spec.device),
            "versions": versions(),
            "verified": verified,
            "schema": [{"name": "image", "type": "image", "width": size, "height": size}],
            "report": report,
        }

    def architecture(self) -> dict[str, Any]:
        size = self.preparation.size
        return {
            "input_shape": [size, size, 3],
            "output_classes": len(self.known.classes),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }

    def _report(self, answer: NDArray[np.float32]) -> dict[str, Any]:
        cut = reports.Cut()
        of_classes = reports.of_classes(self.known.truth[self.known.held_out], answer, self.known.classes, cut)
        report = {"task": "classification", "target": pictures.TARGET, "best_epoch": self.course.best, "base_model": self.found.base, **of_classes}
        return report | {"notes": [*self.notes, *cut.notes]}

    @property
    def notes(self) -> list[str]:
        found = [*self.found.notes, *([self.without] if self.without else [])]
        if self.batch != self.fit.batch_size:
            found.append(f"{self.fit.model_type} learns from {self.batch} images at once at least.")
        if self.course.epoch > course.TOLD:
            found.append(f"Of the epochs after the first {course.TOLD} only some were told while it ran: every second, then every fourth, and so on.")
        return found

    def _training(self) -> dict[str, Any]:
        """What it takes to do it again."""
        return {
            "model_type": self.fit.model_type,
            "base_model": self.found.base,
            "revision": self.found.revision,
            "architecture": self.architecture(),
            "training": self.fit,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime", "numpy", "pillow")}


def _balance(known: Pictures) -> NDArray[np.float64]:
    """So that each class counts alike among the images that are learned from."""
    counts = np.bincount(known.truth[known.training], minlength=len(known.classes))
    return len(known.training) / (len(known.classes) * np.maximum(counts, 1))


def _readable(thing: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(thing), indent=1)
