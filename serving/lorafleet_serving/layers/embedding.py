"""Token embedding, to which adapters may attach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class EmbeddingLora(NamedTuple):
    """An adapter's weights at the embedding, which has one row of A for each token id."""

    a: Tensor
    """[vocab_size, rank]"""
    b: Tensor
    """[rank, hidden_size], already scaled"""

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self.a.nbytes + self.b.nbytes

    def to(self, device: torch.device) -> EmbeddingLora:
        """The same on a device."""
        return EmbeddingLora(self.a.to(device), self.b.to(device))


class EmbeddingSegment(NamedTuple):
    """Rows `start` to `end` of a step, and what their adapter adds to their embeddings."""

    start: int
    end: int
    lora: EmbeddingLora


class Embedding:
    """Rows of a table, by token id, times a scale that is rounded as the table is."""

    def __init__(self, weight: Tensor, module: str, scale: float = 1.0) -> None:
        self.weight = weight  # [vocab_size, hidden_size]
        self.module = module
        """Name of the module in the checkpoint."""
        self._scale = None if scale == 1.0 else torch.tensor(scale).to(weight)

    def __call__(self, token_ids: Tensor, segments: Sequence[EmbeddingSegment] = ()) -> Tensor:
        """Map [num_tokens] to [num_tokens, hidden_size]."""
        rows = F.embedding(token_ids, self.weight)
        for start, end, lora in segments:
            rows[start:end].addmm_(F.embedding(token_ids[start:end], lora.a), lora.b)
        return rows if self._scale is None else rows.mul_(self._scale)
