"""The optimizer: AdamW or Adafactor on float32 masters, a warm-up and a decay, clipped gradients."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from libs.events import FineTune

from .outcome import Failure

UNPAGED = "paged_adamw_8bit can only be paged on a GPU: here its 8-bit states stay where they are, with the same result."


class Optimizer:
    """Parameters in half precision have a master each, to which their gradients are added as soon as they are there, and are freed."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], tuning: FineTune, total_steps: int) -> None:
        self._tuning = tuning
        self._total = total_steps
        self._warmup = math.ceil(tuning.warmup_ratio * total_steps)
        self._names: list[str] = []
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for name, parameter in parameters:
            self._names.append(name)
            self._pairs.append((parameter, _master(parameter)))
        decayed = [master for _, master in self._pairs if master.ndim > 1]
        others = [master for _, master in self._pairs if master.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": tuning.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._inner = _made(tuning, [group for group in groups if group["params"]])
        self.masters = [master for _, master in self._pairs]
        self._halves = [(parameter, master) for parameter, master in self._pairs if parameter is not master]

    @property
    def notes(self) -> list[str]:
        return [UNPAGED] if self._tuning.optimizer == "paged_adamw_8bit" and not self.masters[0].is_cuda else []

    def rate(self, step: int) -> float:
        """Of the step with this number, from 1. As transformers has it, but the first step of a warm-up isn't lost."""
        done = step - 1
        if done < self._warmup:
            return self._tuning.learning_rate * step / (self._warmup + 1)
        past = (done - self._warmup) / max(1, self._total - self._warmup)
        match self._tuning.lr_scheduler:
            case "cosine":
                return self._tuning.learning_rate * 0.5 * (1 + math.cos(math.pi * past))
            case "linear":
                return self._tuning.learning_rate * (1 - past)
            case "constant":
                return self._tuning.learning_rate

    def forget(self) -> None:
        for parameter, master in self._pairs:
            parameter.grad = None
            master.grad = None

    def norm(self) -> Tensor:
        """Of all gradients together."""
        return torch.nn.utils.get_total_norm([master.grad for master in self.masters if master.grad is not None])

    @torch.no_grad()
    def step(self, number: int, norm: Tensor) -> float:
        """Gives the learning rate. `norm` is what the gradients are clipped by."""
        if self._tuning.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.masters, self._tuning.max_grad_norm, norm)
        rate = self.rate(number)
        for group in self._inner.param_groups:
            group["lr"] = rate
        self._inner.step()
        self._inner.zero_grad(set_to_none=True)
        self._hand_down()
        return rate

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights(), "adam": self._inner.state_dict()}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        self.take(state["weights"])
        self._inner.load_state_dict(state["adam"])

    def weights(self) -> dict[str, Tensor]:
        return {name: master.detach() for name, master in zip(self._names, self.masters, strict=True)}

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        for name, master in zip(self._names, self.masters, strict=True):
            master.copy_(weights[name])
        self._hand_down()

    @torch.no_grad()
    def _hand_down(self) -> None:
        if self._halves:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [parameter for parameter, _ in self._halves], [master for _, master in self._halves]
            )


def _made(tuning: FineTune, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    match tuning.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=tuning.learning_rate, fused=True)
        case "adafactor":  # with the learning rate that was asked for, as everybody who names it so has it
            from transformers.optimization import Adafactor  # it imports peft and bitsandbytes, which a forkserver mustn't

            return Adafactor(groups, lr=tuning.learning_rate, scale_parameter=False, relative_step=False)
        case "adamw_8bit" | "paged_adamw_8bit":
            return _in_8_bits(groups, tuning, paged=tuning.optimizer.startswith("paged") and groups[0]["params"][0].is_cuda)


def _in_8_bits(groups: list[dict[str, Any]], tuning: FineTune, *, paged: bool) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit  # it asks CUDA about devices, which a forkserver mustn't
    except (ImportError, OSError, RuntimeError) as error:
        raise Failure("model", f"The optimizer {tuning.optimizer} needs bitsandbytes, which can't be used here ({error}): take adamw.") from error
    return (PagedAdamW8bit if paged else AdamW8bit)(groups, lr=tuning.learning_rate)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    master = nn.Parameter(parameter.detach().float())

    def hand_up(given: Tensor) -> None:
        assert given.grad is not None
        if master.grad is None:
            master.grad = given.grad.float()
        else:
            master.grad += given.grad
        given.grad = None

    parameter.register_post_accumulate_grad_hook(hand_up)
    return master
