"""Where the rows of a step lie in the paged KV cache, as the engine knows it: numbers, no tensors.

A slot is the place of one token in the KV cache. The last block of the cache is never written: its slots stand for
padding, so that what is gathered is always finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


class LayerCache(NamedTuple):
    """KV cache of one layer."""

    keys: Tensor
    """[num_kv_heads, num_slots, head_dim]"""
    values: Tensor
    """[num_kv_heads, num_slots, head_dim]"""


class Span(NamedTuple):
    """The rows of one sequence in a step."""

    start: int
    end: int
    """Rows of the step."""
    context_len: int
    """Tokens of the sequence after the step."""
    block_table: Sequence[int]
    """Blocks of the sequence, in order; at least those of the context."""

    @property
    def num_new(self) -> int:
        """Tokens that the step computes."""
        return self.end - self.start


@dataclass(frozen=True)
class StepGeometry:
    """Spans of a step in row order, and the cache's measures."""

    spans: Sequence[Span]
    block_size: int
    padding_block: int

    def slots(self, span: Span, first: int) -> Ints:
        """Slots of a sequence's tokens from `first` to the end of its context."""
        positions = np.arange(first, span.context_len)
        start_block = first // self.block_size
        blocks = np.asarray(span.block_table[start_block : -(-span.context_len // self.block_size)], dtype=np.int64)
        return blocks[positions // self.block_size - start_block] * self.block_size + positions % self.block_size

    def new_slots(self) -> Ints:
        """[num_tokens] slot that each row's key and value go to."""
        return np.concatenate([self.slots(span, span.context_len - span.num_new) for span in self.spans])
