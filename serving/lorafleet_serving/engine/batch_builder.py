"""Turns the chunks of a step into the input of one ragged forward pass.

Sequences are ordered by adapter, so that the rows of one adapter lie side by side; inside that
order nothing matters, since attention addresses its rows by index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Rows
from itertools import accumulate

import torch

from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.scheduler import Chunk
from lorafleet_serving.kernels.geometry import Span, StepGeometry
from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.kernels.segments import find_runs
from lorafleet_serving.layers.embedding import EmbeddingSegment
from lorafleet_serving.models.batch import ModelBatch


class BatchBuilder:
    """Knows the geometry of the KV cache, the operators that plan the step, and the device of its tensors."""

    def __init__(self, block_size: int, padding_block: int, kernels: Kernels, device: torch.device) -> None:
        self._block_size = block_size
        self._padding_block = padding_block
        self._kernels = kernels
        self._device = device

    def build(self, chunks: Rows[Chunk], adapter_of: Callable[[str], AdapterWeights]) -> ModelBatch:
        """Prepare chunks that are ordered by adapter."""
        starts = [0, *accumulate(chunk.num_tokens for chunk in chunks)]
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for start, (sequence, num_tokens) in zip(starts, chunks, strict=False):
            first, last = sequence.num_computed, sequence.num_computed + num_tokens
            token_ids += sequence.token_ids[first:last]
            positions += range(first, last)
            spans.append(Span(start, start + num_tokens, last, sequence.block_table))
        adapters = [None if chunk.sequence.adapter is None else adapter_of(chunk.sequence.adapter) for chunk in chunks]
        runs = find_runs(list(zip(adapters, (chunk.num_tokens for chunk in chunks), strict=True)))
        head_runs = find_runs(list(zip(adapters, (int(chunk.samples) for chunk in chunks), strict=True)))
        head_runs = [run for run in head_runs if run.adapter.sites[-1] is not None]
        return ModelBatch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            attention=self._kernels.plan_attention(StepGeometry(spans, self._block_size, self._padding_block)),
            lora=self._kernels.plan_lora(runs) if runs else None,
            embedding=[
                EmbeddingSegment(span.start, span.end, adapter.embedding)
                for span, adapter in zip(spans, adapters, strict=True)
                if adapter is not None and adapter.embedding is not None
            ],
            head_lora=self._kernels.plan_lora(head_runs) if head_runs else None,
            logits_rows=self._tensor([end - 1 for end, chunk in zip(starts[1:], chunks, strict=True) if chunk.samples]),
        )

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)
