"""Input of one forward pass: a ragged batch of tokens of many sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lorafleet_serving.layers.embedding import EmbeddingSegment


class ModelBatch(NamedTuple):
    """Rows of one step, those of one sequence side by side, sequences ordered by adapter."""

    token_ids: Tensor
    """[num_tokens]"""
    positions: Tensor
    """[num_tokens]"""
    attention: Any
    """What the operators planned for the attention."""
    lora: Any
    """What they planned for the adapters; None if no row has one."""
    embedding: Sequence[EmbeddingSegment]
    """Rows whose adapters change the embedding."""
    output_rows: Tensor
    """[num_outputs] rows whose last hidden state is wanted"""
