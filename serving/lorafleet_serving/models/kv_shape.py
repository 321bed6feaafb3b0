"""Size of what a model keeps per token of context."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KvShape:
    """Shape of the keys, and of the values, of one token."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def num_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory of one token in all layers, keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize
