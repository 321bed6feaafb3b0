"""Input of one forward pass: a ragged batch of tokens of many sequences."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lorafleet_serving.kernels.attention_plan import AttentionPlan
from lorafleet_serving.kernels.segments import LoraBatch


class ModelBatch(NamedTuple):
    """Rows of one step, those of one sequence side by side, sequences ordered by adapter."""

    token_ids: Tensor
    """[num_tokens]"""
    positions: Tensor
    """[num_tokens]"""
    attention: AttentionPlan
    lora: LoraBatch | None
    logits_rows: Tensor
    """[num_sampled] rows whose next token is wanted"""
