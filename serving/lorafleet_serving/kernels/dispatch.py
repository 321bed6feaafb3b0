"""Choice of the form in which each operator runs, by device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_serving.kernels import reference
from lorafleet_serving.kernels.attention_plan import AttentionPlan, LayerCache
from lorafleet_serving.kernels.segments import LoraSegment


@dataclass(frozen=True)
class Kernels:
    """One form of every operator. `reference` says what each must do."""

    kv_store: Callable[[LayerCache, Tensor, Tensor, Tensor], None]
    paged_attention: Callable[[Tensor, LayerCache, AttentionPlan, float], Tensor]
    sgmv_shrink: Callable[[Tensor, Sequence[LoraSegment]], Tensor]
    sgmv_expand: Callable[[Tensor, Tensor, Sequence[LoraSegment]], None]


REFERENCE = Kernels(
    kv_store=reference.kv_store,
    paged_attention=reference.paged_attention,
    sgmv_shrink=reference.sgmv_shrink,
    sgmv_expand=reference.sgmv_expand,
)

_BY_DEVICE: dict[str, Kernels] = {}
"""Faster forms, by device type; every other device runs the reference."""


def kernels_for(device: torch.device) -> Kernels:
    """The operators that run on a device."""
    return _BY_DEVICE.get(device.type, REFERENCE)
