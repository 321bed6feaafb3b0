"""Turns the chunks of a step into the input of one ragged forward pass.

Sequences are ordered by adapter, so that the rows of one adapter lie side by side; inside that
order nothing matters, since attention addresses its rows by index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Rows
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.prompt_reading import PromptReading
from lorafleet_serving.kernels.geometry import Span, StepGeometry
from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.kernels.segments import find_runs
from lorafleet_serving.layers.embedding import EmbeddingSegment
from lorafleet_serving.models.batch import ModelBatch


class PromptRows(NamedTuple):
    """Outputs of a step that are read for a prompt."""

    reading: PromptReading
    num_rows: int
    adapter: AdapterWeights | None


class StepInput(NamedTuple):
    """One forward pass, and what is done with its outputs: first those that sample, then those of prompts in order."""

    batch: ModelBatch
    num_sampled: int
    head_lora: Any
    """What the operators planned for the adapters of the rows that sample; None if none changes the output head."""
    prompts: Rows[PromptRows]


class BatchBuilder:
    """Knows the geometry of the KV cache, the operators that plan the step, and the device of its tensors."""

    def __init__(self, block_size: int, padding_block: int, kernels: Kernels, device: torch.device) -> None:
        self._block_size = block_size
        self._padding_block = padding_block
        self._kernels = kernels
        self._device = device

    def build(self, chunks: Rows[Chunk], adapter_of: Callable[[str], AdapterWeights]) -> StepInput:
        """Prepare chunks that are ordered by adapter."""
        starts = [0, *accumulate(chunk.num_rows for chunk in chunks)]
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for start, end, chunk in zip(starts, starts[1:], chunks, strict=False):
            first = chunk.sequence.num_computed
            last = first + chunk.num_rows
            token_ids += chunk.sequence.token_ids[first : first + chunk.num_tokens]
            token_ids += chunk.guess
            positions += range(first, last)
            spans.append(Span(start, end, last, chunk.sequence.block_table))
        adapters = [None if chunk.sequence.adapter is None else adapter_of(chunk.sequence.adapter) for chunk in chunks]
        runs = find_runs(list(zip(adapters, (chunk.num_rows for chunk in chunks), strict=True)))
        sampled = [
            row for end, chunk in zip(starts[1:], chunks, strict=True) for row in range(end - chunk.num_sampled, end)
        ]
        prompts, prompt_rows = _prompt_rows(chunks, starts, adapters)
        batch = ModelBatch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            attention=self._kernels.plan_attention(StepGeometry(spans, self._block_size, self._padding_block)),
            lora=self._kernels.plan_lora(runs) if runs else None,
            embedding=[
                EmbeddingSegment(span.start, span.end, adapter.embedding)
                for span, adapter in zip(spans, adapters, strict=True)
                if adapter is not None and adapter.embedding is not None
            ],
            output_rows=self._tensor(sampled + prompt_rows),
        )
        head_rows = [(adapter, chunk.num_sampled) for adapter, chunk in zip(adapters, chunks, strict=True)]
        return StepInput(batch, len(sampled), self.plan_head(head_rows), prompts)

    def plan_head(self, rows: Rows[tuple[AdapterWeights | None, int]]) -> Any:
        """The output head's plan for rows of adapters, those of one side by side; None if no adapter changes it."""
        runs = [run for run in find_runs(rows) if run.adapter.sites[-1] is not None]
        return self._kernels.plan_lora(runs) if runs else None

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)


def _prompt_rows(
    chunks: Rows[Chunk], starts: Rows[int], adapters: Rows[AdapterWeights | None]
) -> tuple[list[PromptRows], list[int]]:
    """What is read for prompts, and from which rows of the step."""
    prompts: list[PromptRows] = []
    rows: list[int] = []
    for start, chunk, adapter in zip(starts, chunks, adapters, strict=False):
        reading, first = chunk.sequence.reading, chunk.sequence.num_computed
        if reading is None or reading.is_complete:
            continue
        if wanted := reading.rows(first, first + chunk.num_tokens):
            prompts.append(PromptRows(reading, len(wanted), adapter))
            rows += range(start + wanted.start - first, start + wanted.stop - first)
    return prompts, rows
