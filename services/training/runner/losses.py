"""Cross entropy of the learned tokens only, never holding all of their logits."""

from typing import Any

import torch
from torch import Tensor

ROWS = 512
"""Tokens whose logits exist at the same time."""


def summed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The sum over S tokens, in float32. hidden (S, H), weight (V, H), labels (S)."""
    if not torch.is_grad_enabled():
        return _forward(hidden, weight, labels, None, None)
    loss = _SummedCrossEntropy.apply(hidden, weight, labels)
    assert isinstance(loss, Tensor)
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradients are made along with the logits, since those are gone afterwards."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = _forward(hidden, weight, labels, of_hidden, of_weight)
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        scale = grads[0]
        return of_hidden * scale.to(of_hidden.dtype), None if of_weight is None else of_weight.mul_(scale).to(ctx.dtype), None


def _forward(hidden: Tensor, weight: Tensor, labels: Tensor, of_hidden: Tensor | None, of_weight: Tensor | None) -> Tensor:
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), ROWS):
        some, label = hidden[start : start + ROWS], labels[start : start + ROWS, None]
        logits = (some @ weight.t()).float()
        normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
        loss += (normaliser - logits.gather(1, label)).sum()
        if of_hidden is None:
            continue
        slope = logits.sub_(normaliser).exp_()  # softmax, and one less where the label is
        slope.scatter_add_(1, label, torch.full_like(label, -1, dtype=slope.dtype))
        slope = slope.to(hidden.dtype)
        torch.mm(slope, weight, out=of_hidden[start : start + ROWS])
        if of_weight is not None:
            if slope.dtype == torch.float32:
                of_weight.addmm_(slope.t(), some)
            else:
                of_weight += slope.t() @ some
    return loss
