"""Memory of the paged KV cache."""

from __future__ import annotations

import torch

from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.host_memory import available_memory
from lorafleet_serving.exceptions import InvalidSetting
from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.models.kv_shape import KvShape

_CPU_SEQUENCES = 8
"""Sequences of full length that the cache of a CPU has room for."""
_CPU_LEAST = 1 << 30
"""What it takes even if these are shorter."""
_CPU_SPARE = 2
"""Times all sequences that may run, beyond which nothing is taken: the rest keeps prompts that were read before."""
_CPU_SHARE = 0.25
"""Share of the available memory at most; the rest is for adapters, and for what else runs there."""
_GPU_SHARE = 0.8
"""Share of the free GPU memory; the rest is for activations and adapters."""


class KvCache:
    """Blocks of all layers, and one more block that is never written and stands for padding."""

    def __init__(
        self, shape: KvShape, config: EngineConfig, dtype: torch.dtype, device: torch.device, max_positions: int
    ) -> None:
        self._max_positions = max_positions
        self.block_size = config.block_size
        block_bytes = shape.num_bytes_per_token(dtype) * config.block_size
        longest = min(config.max_model_len or max_positions, max_positions)
        longest_bytes = -(-longest // config.block_size) * block_bytes
        num_bytes = config.kv_cache_bytes or _default_bytes(device, longest_bytes, config)
        self.num_blocks = num_bytes // block_bytes - 1
        if self.num_blocks < 1:
            raise InvalidSetting(
                f"kv_cache_bytes is {num_bytes}, the smallest cache is a block of {block_bytes} and one for padding: "
                f"raise it to {2 * block_bytes} or more"
            )
        num_slots = (self.num_blocks + 1) * config.block_size
        size = (2, shape.num_kv_heads, num_slots, shape.head_dim)
        try:
            # Zeros, not empty: padding is read, and what is not finite would spread through a weight of zero.
            self.layers = tuple(
                LayerCache(*torch.zeros(size, dtype=dtype, device=device)) for _ in range(shape.num_layers)
            )
        except RuntimeError as error:  # Torch has no narrower class for memory that a CPU lacks.
            raise InvalidSetting(f"kv_cache_bytes is {num_bytes}, which {device} does not give: lower it") from error

    @property
    def padding_block(self) -> int:
        """The block that is never written."""
        return self.num_blocks

    def longest_sequence(self, wanted: int | None) -> int:
        """Most tokens that one sequence may have: what is wanted, or else what cache and model allow.

        Raises:
            InvalidSetting: more is wanted than the cache or the model can take.
        """
        num_slots = self.num_blocks * self.block_size
        if wanted is None:
            return min(self._max_positions, num_slots)
        if wanted > self._max_positions:
            raise InvalidSetting(
                f"max_model_len is {wanted}, the base model takes {self._max_positions} tokens: lower it"
            )
        if wanted > num_slots:
            raise InvalidSetting(
                f"max_model_len is {wanted}, the KV cache holds {num_slots} tokens: lower it or raise kv_cache_bytes"
            )
        return wanted


def _default_bytes(device: torch.device, longest_bytes: int, config: EngineConfig) -> int:
    if device.type != "cuda":
        return cpu_cache_bytes(longest_bytes, config.max_num_seqs, available_memory())
    free, _ = torch.cuda.mem_get_info(device)
    return max(int((free - config.adapter_device_bytes) * _GPU_SHARE), 1)


def cpu_cache_bytes(longest_bytes: int, max_num_seqs: int, available: int) -> int:
    """Memory that the cache of a CPU takes unless told.

    Args:
        longest_bytes: memory of one sequence of full length.
        max_num_seqs: sequences that run at the same time.
        available: memory that can be had.
    """
    wanted = min(max(_CPU_SEQUENCES * longest_bytes, _CPU_LEAST), _CPU_SPARE * max_num_seqs * longest_bytes)
    return min(wanted, int(available * _CPU_SHARE))
