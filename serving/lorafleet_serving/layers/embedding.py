"""Token embedding, and the output head that may share its weights."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.operators import Kernels


class Embedding:
    """Rows of a table, by token id."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # [vocab_size, hidden_size]

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Map [num_tokens] to [num_tokens, hidden_size]."""
        return F.embedding(token_ids, self.weight)


class OutputHead:
    """Logits of the vocabulary. Tied models hand in the embedding's weight."""

    def __init__(self, weight: Tensor, kernels: Kernels) -> None:
        self._packed = kernels.pack(weight)  # [vocab_size, hidden_size]
        self._kernels = kernels

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map [num_rows, hidden_size] to logits [num_rows, vocab_size]."""
        return self._kernels.linear(hidden, self._packed, None)
