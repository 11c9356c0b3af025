"""Attention within documents that lie side by side, registered with transformers as "docs"."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "docs"
SHORT = 1024
"""Tokens of a document up to which all its scores at once cost little memory."""


def register() -> None:
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    """The borders say it all; a mask of every token against every other would be quadratic in the row."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Heads are (1, heads, tokens, size); with fewer heads for keys than for queries. Without borders it is one document, perhaps with a cache before it."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("capped scores and sinks are not computed here")
    if cu_seq_lens_q is None:
        out = _causal(query, key, value, scaling, dropout, sliding_window)
    elif query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0:
        return _varlen(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q), None
    else:
        borders = pairwise(cu_seq_lens_q.tolist())
        out = torch.cat([_causal(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling, dropout, sliding_window) for a, b in borders], dim=2)
    return out.transpose(1, 2), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None) -> Tensor:
    asked, known = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if asked == known and (window is None or known <= window):
        if query.device.type == "cpu" and query.dtype is torch.bfloat16 and asked <= SHORT and dropout == 0.0:
            return _plainly(query, key, value, scaling)
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
    places = torch.arange(known, device=query.device)
    distance = places[known - asked :, None] - places[None]
    seen = (distance >= 0) & (distance < (window or known))
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, dropout_p=dropout, enable_gqa=grouped)


def _plainly(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Processors multiply bfloat16 faster than their fused attention goes back through it: half of its time, forth and back."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[3] ** -0.5)
    future = torch.full((tokens, tokens), -torch.inf, dtype=scores.dtype).triu_(1)
    return (scores + future).softmax(-1) @ value


def _varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, borders: Tensor, longest: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    flat_query, flat_key, flat_value = (heads[0].transpose(0, 1) for heads in (query, key, value))
    out = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        borders,
        borders,
        longest or query.shape[2],
        longest or query.shape[2],
        scale=scaling,
        window_size=((window or 0) - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]
