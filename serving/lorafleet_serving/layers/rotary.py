"""Rotary position embedding with the scalings `default`, `linear` and `llama3`.

The two halves of what rotates, a head or its first part, turn against each other, as in the checkpoints that
transformers writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.kernels.operators import Rotation


class RotaryEmbedding:
    """Table of angles up to the longest sequence."""

    def __init__(
        self, parameters: Mapping[str, Any], head_dim: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        angles = torch.outer(torch.arange(max_len, dtype=torch.float32), _frequencies(parameters, head_dim))
        sin = angles.sin()
        self._cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(device, dtype)  # [max_len, rotary_dim]
        self._sin = torch.cat((-sin, sin), dim=-1).to(device, dtype)  # [max_len, rotary_dim]

    def rotation(self, positions: Tensor) -> Rotation:
        """Angles for [num_tokens] positions."""
        return Rotation(self._cos.index_select(0, positions), self._sin.index_select(0, positions))


def _frequencies(parameters: Mapping[str, Any], head_dim: int) -> Tensor:
    kind = parameters.get("rope_type", "default")
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / (float(parameters["rope_theta"]) ** exponents)
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(parameters["factor"])
    if kind == "llama3":
        return _scale_llama3(frequencies, parameters)
    raise UnsupportedModel(f"rope_type is {kind!r}, only default, linear and llama3 are served")


def _scale_llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Slow rotations are slowed by `factor`, fast ones kept, those between blended."""
    factor, low, high = (float(parameters[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    num_turns = float(parameters["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    kept = ((num_turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / factor)
