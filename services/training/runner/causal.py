"""A language model as the loop needs it: a batch in, the sum of its losses out. What a model can do is tried on the model itself."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from . import attention
from .examples import Example
from .losses import summed_cross_entropy
from .packing import Batch, batch

FIRST, SECOND = 7, 9
"""Lengths of the two documents with which a model is tried."""


class Causal:
    """`packs`: documents in one row don't see each other. `headless`: its logits are nothing but hidden states times the head's weight."""

    def __init__(self, model: PreTrainedModel) -> None:
        attention.register()
        self.model = model
        self.device = model.device
        self.packs, self.headless = self._tried()

    def summed_loss(self, batch: Batch) -> Tensor:
        if self.headless:
            return summed_cross_entropy(self._hidden(batch)[batch.before], self._head().weight, batch.labels)
        logits = self.model(**self._inputs(batch)).logits[0][batch.before]
        return cross_entropy(logits.float(), batch.labels, reduction="sum")

    def logits(self, batch: Batch) -> Tensor:
        return self.model(**self._inputs(batch)).logits[0]

    def _hidden(self, batch: Batch) -> Tensor:
        return self.model.get_decoder()(**self._inputs(batch)).last_hidden_state[0]

    def _head(self) -> nn.Linear:
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    def _embeddings(self) -> nn.Embedding:
        embeddings = self.model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        return embeddings

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if self.packs:
            inputs |= {"position_ids": batch.positions, "cu_seq_lens_q": batch.borders, "max_length_q": batch.longest}
        return inputs

    @torch.no_grad()
    def _tried(self) -> tuple[bool, bool]:
        """Two short documents, one by one in the model's own way, then side by side."""
        training = self.model.training
        self.model.eval()
        vocabulary = len(self._embeddings().weight)
        first, second = _document(FIRST, vocabulary), _document(SECOND, vocabulary)
        self.packs = False
        alone = torch.cat([self.logits(batch([document], self.device)) for document in (first, second)])
        both = batch([first, second], self.device)
        own = self.model.config._attn_implementation or "eager"
        for implementation in (attention.NAME, own):
            if self._packs_with(implementation, both, alone):
                self.packs = True
                break
        else:
            self.model.set_attn_implementation(own)
        shown = both if self.packs else batch([first], self.device)
        headless = self._is_headless(shown)
        self.model.train(training)
        return self.packs, headless

    def _packs_with(self, implementation: str, both: Batch, alone: Tensor) -> bool:
        if implementation == attention.NAME and "chunked_attention" in (getattr(self.model.config.get_text_config(), "layer_types", None) or ()):
            return False  # the chunks are told by the mask, which "docs" does without
        try:
            self.model.set_attn_implementation(implementation)
            self.packs = True
            return _alike(self.logits(both), alone)
        except (TypeError, ValueError, AttributeError, RuntimeError):  # also NotImplementedError, and sizes that a kernel doesn't know
            return False
        finally:
            self.packs = False

    def _is_headless(self, shown: Batch) -> bool:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None or not head.weight.is_floating_point():
            return False
        if getattr(self.model.config.get_text_config(), "final_logit_softcapping", None):
            return False  # shows in large logits only
        try:
            return _alike((self._hidden(shown) @ head.weight.t()).float(), self.logits(shown))
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False


def _document(length: int, vocabulary: int) -> Example:
    ids = torch.arange(length, dtype=torch.int32) * 7919 % vocabulary
    return Example(ids, torch.arange(1, length, dtype=torch.int32))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Rounding differs, what a document sees may not: a leak shows in the first digit."""
    tolerance = 1e-4 if one.dtype == torch.float32 and other.dtype == torch.float32 else 0.03
    return bool((one - other).norm() <= tolerance * other.norm())
