"""Fine-tuning of a language model: lora, qlora or full.

One optimizer step learns from batch size x accumulation rows. They are packed side by side into micro-batches without padding; the loss is the sum over the
supervised tokens, divided by their number in the whole step, so the gradient doesn't depend on how the rows were packed.
"""

import math
import random
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from libs.events import FineTune
from services.training.frames import (
    BatchReduced,
    Completed,
    Evaluated,
    Frame,
    Phase,
    Ready,
    RunSpec,
    Sampled,
    Step,
    Stopped,
)
from services.training.runner import bases, checkpoint, machine, rows
from services.training.runner.causal import Causal
from services.training.runner.examples import Example, Examples, Reading, examples
from services.training.runner.optimizing import Optimizer
from services.training.runner.outcome import Failure, Stop, ran_out_of_memory
from services.training.runner.packing import Batch, batch, packed
from services.training.runner.sampling import samples
from services.training.runner.wishes import Wishes

Tell = Callable[[Frame], None]

AT_LEAST_EVERY = 600.0
"""Seconds between checkpoints when nobody says how often."""
RECENT = 0.1
"""Share of the steps whose mean is the loss that the run ends with."""

MOST_TOLD = 200
"""Evaluations that the summary repeats; each was told when it was made."""
TRIED = 64
"""Tokens on which the saved model is compared with the trained one."""
SAYING = 20.0
"""Seconds for what the model says to a few prompts at the end of a run."""
SAYING_FIRST = 0.75
"""And before its first step, which somebody waits for."""


def train(spec: RunSpec, tell: Tell, wishes: Wishes) -> Completed | Stopped:
    """The whole run. Raises a Failure when it can't be done; whoever wants it stopped gets a checkpoint first."""
    try:
        run = prepare(spec, tell, wishes)
    except Stop:
        return Stopped(step=0)
    try:
        run.start()
        while run.step < run.total and not run.ended_early:
            run.learn()
            run.look_after()
        return run.finish()
    except Stop:
        run.keep()
        return Stopped(step=run.step)


def prepare(spec: RunSpec, tell: Tell, wishes: Wishes) -> "Run":
    """The cheap first, so that what can't be trained is refused before a GPU is touched."""
    base = find(spec, tell, wishes)
    longest = bases.longest(base, spec.tuning.max_seq_length)
    learned = read(spec, base, tell, wishes)
    tell(Phase(name="fetch"))
    wishes.unless_stopped(lambda: bases.fetch_weights(base, spec, lambda done, total: tell(Phase(name="fetch", done=done, total=total))))
    tell(Phase(name="load"))
    model = wishes.unless_stopped(lambda: bases.load(base, spec))
    return Run(spec, base, model, learned, longest=longest, tell=tell, wishes=wishes)


def find(spec: RunSpec, tell: Tell, wishes: Wishes) -> bases.Base:
    tell(Phase(name="find"))
    return wishes.unless_stopped(lambda: bases.find(spec))


def read(spec: RunSpec, base: bases.Base, tell: Tell, wishes: Wishes, *, seen: Callable[[Reading], None] = lambda _: None) -> Examples:
    """A Failure where there is nothing to learn from."""
    tell(Phase(name="tokenize"))
    learned = examples(
        rows.read(Path(spec.snapshot)),
        base.tokenizer,
        longest=bases.longest(base, spec.tuning.max_seq_length),
        everything=spec.tuning.train_on == "everything",
        heed=wishes.heed,
        progress=lambda done, total: tell(Phase(name="tokenize", done=done, total=total)),
        seen=seen,
    )
    bases.check_vocabulary(base, learned)
    return learned


class Steps(NamedTuple):
    """How many there are, for so many rows."""

    rows_each: int
    in_epoch: int
    total: int


def steps(tuning: FineTune, rows: int) -> Steps:
    each = tuning.per_device_batch_size * tuning.gradient_accumulation_steps
    in_epoch = math.ceil(rows / each)
    return Steps(each, in_epoch, tuning.max_steps or max(1, math.ceil(tuning.num_epochs * in_epoch)))


class Run:
    """What changes from step to step, and all of it is in a checkpoint."""

    def __init__(self, spec: RunSpec, base: bases.Base, model: Any, learned: Examples, *, longest: int, tell: Tell, wishes: Wishes) -> None:
        tuning = spec.tuning
        self.spec, self.base, self.examples, self.longest, self.tell, self.wishes = spec, base, learned, longest, tell, wishes
        self.began = time.monotonic()
        self.device = torch.device(spec.device)
        random.seed(tuning.seed)
        torch.manual_seed(tuning.seed)
        self.causal = Causal(model)
        self.adapted: Any = None
        self.unfuse: Callable[[], None] = lambda: None
        if tuning.method == "full":
            model.requires_grad_(True)
        else:
            self._adapt(model)
        if tuning.gradient_checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        self.rows_per_step, self.steps_per_epoch, self.total = steps(tuning, len(learned.train))
        trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trainable:
            raise Failure("model", f"{base.name} has no layer that an adapter belongs to; take the method full.")
        self.optimizer = Optimizer(trainable, tuning, self.total)
        self.trainable = sum(parameter.numel() for _, parameter in trainable)

        self.step = 0
        self.micro_tokens = max(tuning.per_device_batch_size * longest, *(len(example.ids) for example in (*learned.train, *learned.held_out)))
        self.recent: deque[float] = deque(maxlen=max(1, min(100, round(RECENT * self.total))))
        self.first_loss = math.nan
        self.tokens = 0
        self.seconds = 0.0
        self.evaluations: dict[int, dict[str, float]] = {}
        self.best: dict[str, Any] = {}
        self.worse = 0
        self.said_before: list[dict[str, Any]] = []
        self.keeper = checkpoint.Keeper(spec.folder, tell, every=AT_LEAST_EVERY)
        self.order: tuple[int, list[int]] = (-1, [])
        self.at_work: Batch | None = None
        if spec.resume:
            self._restore(checkpoint.read(Path(spec.resume)))

    def _adapt(self, model: Any) -> None:
        from services.training.runner import adapters  # it imports peft, which a forkserver mustn't

        model.requires_grad_(False)
        self.adapted = adapters.attach(model, self.spec.tuning, name=self.base.name)
        self.unfuse = adapters.fuse(model)

    # ---- the story

    def start(self) -> None:
        if not self.evaluations and not self.step:
            self.tell(Phase(name="measure"))
            self.evaluate()
            if self.adapted is None:  # later its weights are others; those below an adapter never change
                self.said_before = self.said(SAYING_FIRST)
                self._tell_said(self.said_before)
        self.evaluate_when_due()  # who was stopped in the middle of it left a checkpoint without it
        self.tell(Ready(step=self.step, total_steps=self.total, facts=self.facts()))

    def learn(self) -> None:
        """One optimizer step. The gradient is the same when memory only suffices for smaller micro-batches."""
        began = time.perf_counter()
        chosen = [self.examples.train[index] for index in self.rows_of(self.step)]
        supervised = sum(len(example.learned) for example in chosen)
        randomness = checkpoint.randomness(self.device)
        try:
            while (loss := self._gradients(chosen, supervised)) is None:
                self._take_less()
                checkpoint.restore_randomness(randomness, self.device)
        except Stop:
            checkpoint.restore_randomness(randomness, self.device)
            raise
        norm = self.optimizer.norm()
        total, length = torch.stack([loss, norm]).tolist()
        self._check(total, length)
        rate = self.optimizer.step(self.step + 1, norm)
        self.step += 1
        tokens = sum(len(example.ids) for example in chosen)
        seconds = time.perf_counter() - began
        self.recent.append(total)
        if self.step == 1:
            self.first_loss = total
        self.tokens += tokens
        self.seconds += seconds
        self.tell(
            Step(
                step=self.step,
                loss=total,
                lr=rate,
                epoch=self.step / self.steps_per_epoch,
                tokens=tokens,
                grad_norm=length,
                seconds=seconds,
                memory=machine.peak_memory(self.device),
            )
        )

    def look_after(self) -> None:
        """What is due between two steps. An evaluation is in the checkpoint that follows it."""
        tuning = self.spec.tuning
        self.evaluate_when_due()
        overdue = self.step % self.steps_per_epoch == 0 or self.keeper.is_due
        if self.step % tuning.save_steps == 0 if tuning.save_steps else overdue:
            self.keep()
        self.wishes.heed()

    def finish(self) -> Completed:
        from services.training.runner import artifacts

        self._settle_on_best()
        said = self.compared()
        self.tell(Phase(name="save"))
        folder = Path(self.spec.folder, "artifacts")
        folder.mkdir(exist_ok=True)
        artifacts.save_tokenizer(self.base.tokenizer, folder)
        if self.adapted is None:
            verified = artifacts.save_model(self.causal.model, folder)
        else:
            shutil.copy(self.base.folder / "config.json", folder / "base_config.json")  # what an export holds the adapter against
            verified = artifacts.save_adapter(self.adapted, folder, base=self.base.folder, logits=self._logits, unfuse=self.unfuse)
        files = {path.name: str(path) for path in sorted(folder.iterdir())}
        metrics = self.metrics()
        return Completed(step=self.step, artifacts=files, metrics=metrics, summary=self.summary(metrics, said, verified))

    # ---- learning

    def rows_of(self, step: int) -> list[int]:
        """Each epoch has its own order, which follows from the seed alone: the step's number is all that the sampler has to remember."""
        epoch, nth = divmod(step, self.steps_per_epoch)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.spec.tuning.seed * 100_003 + epoch)
            self.order = (epoch, torch.randperm(len(self.examples.train), generator=generator).tolist())
        return self.order[1][nth * self.rows_per_step : (nth + 1) * self.rows_per_step]

    def _gradients(self, chosen: list[Example], supervised: int) -> torch.Tensor | None:
        """None when there wasn't the memory for it. What the error holds on to is free once this has returned."""
        self.optimizer.forget()
        loss = torch.zeros((), device=self.device)
        try:
            for documents in self._micro_batches(chosen):
                self.wishes.heed()
                self.at_work = batch(documents, self.device)
                part = self.causal.summed_loss(self.at_work) / supervised
                part.backward()
                loss += part.detach()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return None
        return loss

    def _micro_batches(self, documents: list[Example]) -> list[list[Example]]:
        if not self.causal.packs:
            return [[document] for document in documents]
        return [[documents[index] for index in indexes] for indexes in packed([len(document.ids) for document in documents], self.micro_tokens)]

    def _take_less(self) -> None:
        assert self.at_work
        failed, documents, longest = self.at_work.tokens, self.at_work.documents, self.at_work.longest
        self.at_work = None
        self.optimizer.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if documents == 1:
            raise Failure(
                "oom",
                f"One row of {failed} tokens is already too much for the memory of {machine.name(self.device)}. Take a smaller max_seq_length or model, "
                "gradient_checkpointing, or the method qlora.",
                self.step,
            )
        self.micro_tokens = max(longest, min(self.micro_tokens, failed) // 2)
        self.tell(BatchReduced(step=self.step, micro_tokens=self.micro_tokens))

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "loss" if not math.isfinite(loss) else "gradient"
        number = self.step + 1
        cure = "Lower learning_rate" + ("" if self.spec.tuning.max_grad_norm else ", clip gradients (max_grad_norm 1)")
        raise Failure("diverged", f"The {what} is not a number any more at step {number}. {cure}, or raise warmup_ratio; then look for odd rows.", number)

    # ---- looking at how it goes

    def evaluate_when_due(self) -> None:
        every = self.spec.tuning.eval_steps or self.steps_per_epoch
        if self.step and (self.step == self.total or self.step % every == 0):
            self.evaluate()

    def evaluate(self) -> None:
        if not self.examples.held_out or self.step in self.evaluations:
            return
        while (loss := self._held_out_loss()) is None:
            self._take_less()
        metrics = {"eval_loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
        self.evaluations[self.step] = metrics
        self.tell(Evaluated(step=self.step, metrics=metrics))
        if self.step == 0:
            return
        ranked = loss if math.isfinite(loss) else math.inf  # nothing compares with a NaN: it would stay the best for ever
        if not self.best or ranked < self.best["loss"]:
            self.best = {"step": self.step, "loss": ranked, "weights": self._copied()}
            self.worse = 0
        else:
            self.worse += 1

    @property
    def ended_early(self) -> bool:
        patience = self.spec.tuning.early_stopping_patience
        return bool(patience) and self.worse >= patience

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        """None when there wasn't the memory for it."""
        model = self.causal.model
        model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        try:
            for documents in self._micro_batches(self.examples.held_out):
                self.wishes.heed()
                self.at_work = batch(documents, self.device)
                loss += self.causal.summed_loss(self.at_work)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return None
        finally:
            model.train()
        return loss.item() / sum(len(example.learned) for example in self.examples.held_out)

    def compared(self) -> list[dict[str, Any]]:
        """What it says now, beside what it said before: below an adapter that is switched off lies the model as it came."""
        if self.adapted is not None:
            from services.training.runner import adapters

            with adapters.off(self.adapted):
                self.said_before = self.said(SAYING)
        before = {one["prompt"]: one["completion"] for one in self.said_before}
        said = [one | {"before": before.get(one["prompt"], "")} for one in self.said(SAYING)]
        self._tell_said(said)
        return said

    def said(self, seconds: float) -> list[dict[str, Any]]:
        return samples(self.causal.model, self.base.tokenizer, self.examples.prompts, longest=self.longest, seconds=seconds, heed=self.wishes.heed)

    def _tell_said(self, said: list[dict[str, Any]]) -> None:
        if said:
            self.tell(Sampled(step=self.step, samples=said))

    def _copied(self) -> dict[str, torch.Tensor]:
        return {name: weight.to("cpu", copy=True) for name, weight in self.optimizer.weights().items()}

    def _settle_on_best(self) -> None:
        if self.best and self.best["step"] != self.step:
            self.optimizer.take(self.best["weights"])

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        """On the beginning of the first row."""
        self.causal.model.eval()
        ids = self.examples.train[0].ids[:TRIED]
        return self.causal.logits(batch([Example(ids, torch.arange(1, 2))], self.device)).float().cpu()

    # ---- checkpoints

    def keep(self) -> None:
        self.keeper.keep(self.step, self._state)

    def _state(self) -> checkpoint.State:
        return {
            "step": self.step,
            "rows": len(self.examples.train),
            "total": self.total,
            "optimizer": self.optimizer.state(),
            "randomness": checkpoint.randomness(self.device),
            "micro_tokens": self.micro_tokens,
            "recent": list(self.recent),
            "first_loss": self.first_loss,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "best": self.best,
            "worse": self.worse,
            "said_before": self.said_before,
        }

    def _restore(self, state: checkpoint.State) -> None:
        if (state["rows"], state["total"]) != (len(self.examples.train), self.total):
            raise Failure("internal", "The checkpoint belongs to another run: it has other rows, or another number of steps.")
        self.step = self.keeper.step = state["step"]
        self.micro_tokens = state["micro_tokens"]
        self.recent.extend(state["recent"])
        self.first_loss, self.tokens, self.seconds = state["first_loss"], state["tokens"], state["seconds"]
        self.evaluations, self.best, self.worse, self.said_before = state["evaluations"], state["best"], state["worse"], state["said_before"]
        self.optimizer.restore(state["optimizer"])
        checkpoint.restore_randomness(state["randomness"], self.device)

    # ---- what reports tell

    def facts(self) -> dict[str, Any]:
        """For the frame that says that steps begin."""
        lengths = [len(example.ids) for example in self.examples.train]
        some = [lengths[index] for index in self.rows_of(self.step % self.steps_per_epoch)] or lengths
        bins = packed(some, self.micro_tokens) if self.causal.packs else [[index] for index in range(len(some))]
        return {
            "model": self.base.name,
            "revision": self.base.revision,
            **({"built_on": [one.job_id for one in self.spec.tuning.ancestors], "root": self.spec.tuning.root} if self.spec.tuning.ancestors else {}),
            "smoke": self.base.smoke,
            "method": self.spec.tuning.method,
            "parameters": machine.parameters(self.causal.model),
            "trainable_parameters": self.trainable,
            **self.examples.counts,
            "rows_per_step": self.rows_per_step,
            "steps_per_epoch": self.steps_per_epoch,
            "micro_tokens": self.micro_tokens,
            "micro_batches": len(bins),
            "padding_avoided": round(1 - sum(some) / (len(some) * max(some)), 3),
            "attention": self.causal.model.config._attn_implementation,
            "packing": self.causal.packs,
            "dtype": str(self.causal.model.dtype).removeprefix("torch."),
            "optimizer": self.spec.tuning.optimizer,
            "warnings": [*self.base.warnings, *self.examples.warnings, *self.optimizer.notes],
        }

    def metrics(self) -> dict[str, float]:
        """Of the model that is saved, which is the best one where there were evaluations."""
        found = {"train_loss": sum(self.recent) / max(1, len(self.recent)), "initial_train_loss": self.first_loss}
        if self.evaluations:
            kept = self.evaluations[self.best["step"] if self.best else 0]
            found |= {**kept, "initial_eval_loss": self.evaluations[min(self.evaluations)]["eval_loss"]}
            found |= {"initial_perplexity": self.evaluations[min(self.evaluations)]["perplexity"]}
        return found | {"tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1)}

    def summary(self, metrics: dict[str, float], said: list[dict[str, Any]], verified: dict[str, Any]) -> dict[str, Any]:
        return {
            **self.facts(),
            "metrics": metrics,
            "steps": self.step,
            "total_steps": self.total,
            "epochs": round(self.step / self.steps_per_epoch, 3),
            "ended_early": self.ended_early,
            "best_step": self.best["step"] if self.best else self.step,
            "evaluations": [{"step": step, **found} for step, found in list(self.evaluations.items())[-MOST_TOLD:]],
            "tokens": self.tokens,
            "training_seconds": round(self.seconds, 3),
            "duration_seconds": round(time.monotonic() - self.began, 3),
            "peak_memory": machine.peak_memory(self.device),
            "hardware": machine.hardware(self.device),
            "versions": machine.versions(),
            "samples": [{"prompt": one["prompt"], "before": one["before"], "after": one["completion"], "expected": one["expected"]} for one in said],
            "verified": verified,
        }
