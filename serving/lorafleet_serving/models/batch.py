"""Input of one forward pass: a ragged batch of tokens of many sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


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
    logits_rows: Tensor
    """[num_sampled] rows whose next token is wanted"""
