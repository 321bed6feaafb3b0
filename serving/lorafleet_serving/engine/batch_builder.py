"""Turns the chunks of a step into the tensors of one ragged forward pass.

Sequences are ordered by adapter, so that the rows of one adapter lie side by side; inside that
order nothing matters, since attention addresses its rows by index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence as Rows

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorafleet_serving.engine.scheduler import Chunk
from lorafleet_serving.kernels.attention_plan import AttentionPlan, DecodeGroup, PrefillSpan
from lorafleet_serving.kernels.segments import AdapterSites, build_lora_batch
from lorafleet_serving.models.batch import ModelBatch

_Ints = NDArray[np.int64]


class BatchBuilder:
    """Knows the geometry of the KV cache, and which device the tensors go to."""

    def __init__(self, block_size: int, padding_block: int, dtype: torch.dtype, device: torch.device) -> None:
        self._block_size = block_size
        self._padding_block = padding_block
        self._dtype = dtype
        self._device = device

    def build(self, chunks: Rows[Chunk], adapter_of: Callable[[str], AdapterSites]) -> ModelBatch:
        """Prepare chunks that are ordered by adapter."""
        starts = np.cumsum([0, *(chunk.num_tokens for chunk in chunks)])
        token_ids: list[int] = []
        positions: list[_Ints] = []
        slots: list[_Ints] = []
        for sequence, num_tokens in chunks:
            first, last = sequence.num_computed, sequence.num_computed + num_tokens
            token_ids += sequence.token_ids[first:last]
            positions.append(np.arange(first, last))
            slots.append(self._slots(sequence.block_table, first, last))
        logits_rows = [
            start + chunk.num_tokens - 1 for start, chunk in zip(starts, chunks, strict=False) if chunk.samples
        ]
        adapters = [
            (None if chunk.sequence.adapter is None else adapter_of(chunk.sequence.adapter), chunk.num_tokens)
            for chunk in chunks
        ]
        return ModelBatch(
            token_ids=self._tensor(np.asarray(token_ids)),
            positions=self._tensor(np.concatenate(positions)),
            attention=self._attention(chunks, starts, np.concatenate(slots)),
            lora=build_lora_batch(adapters),
            logits_rows=self._tensor(np.asarray(logits_rows, dtype=np.int64)),
        )

    def _attention(self, chunks: Rows[Chunk], starts: _Ints, slot_mapping: _Ints) -> AttentionPlan:
        by_length: dict[int, list[int]] = defaultdict(list)
        prefills: list[PrefillSpan] = []
        for index, (sequence, num_tokens) in enumerate(chunks):
            if num_tokens == 1:
                # Lengths within a factor of two share a group, so at most half of it is padding.
                by_length[(sequence.num_computed // self._block_size).bit_length()].append(index)
            else:
                prefills.append(self._prefill(chunks[index], int(starts[index])))
        decodes = tuple(self._decode_group([chunks[i] for i in group], starts[group]) for group in by_length.values())
        return AttentionPlan(self._tensor(slot_mapping), decodes, tuple(prefills))

    def _decode_group(self, chunks: Rows[Chunk], rows: _Ints) -> DecodeGroup:
        context_lens = np.asarray([chunk.sequence.num_computed + 1 for chunk in chunks])
        num_blocks = -(-int(context_lens.max()) // self._block_size)
        tables = np.full((len(chunks), num_blocks), self._padding_block, dtype=np.int64)
        for row, chunk in zip(tables, chunks, strict=True):
            held = chunk.sequence.block_table[:num_blocks]
            row[: len(held)] = held
        offsets = np.arange(num_blocks * self._block_size)
        slots = tables[:, offsets // self._block_size] * self._block_size + offsets % self._block_size
        beyond = offsets[None, :] >= context_lens[:, None]  # [num_seqs, num_slots]
        # What lies behind the context in its last block may be left over from another sequence.
        slots[beyond] = self._padding_block * self._block_size
        bias = torch.zeros(beyond.shape, dtype=self._dtype)
        bias.masked_fill_(torch.from_numpy(beyond), float("-inf"))
        return DecodeGroup(
            self._tensor(np.asarray(rows, dtype=np.int64)),
            self._tensor(slots.reshape(-1)),
            self._move(bias.unsqueeze(1)),
        )

    def _prefill(self, chunk: Chunk, start: int) -> PrefillSpan:
        sequence, num_tokens = chunk
        context_len = sequence.num_computed + num_tokens
        mask = None
        if sequence.num_computed > 0:
            mask = torch.ones(num_tokens, context_len, dtype=torch.bool).tril(sequence.num_computed)
        return PrefillSpan(
            start=start,
            end=start + num_tokens,
            slots=self._tensor(self._slots(sequence.block_table, 0, context_len)),
            mask=None if mask is None else self._move(mask),
        )

    def _slots(self, block_table: list[int], first: int, last: int) -> _Ints:
        positions = np.arange(first, last)
        start_block = first // self._block_size
        blocks = np.asarray(block_table[start_block : (last - 1) // self._block_size + 1], dtype=np.int64)
        return blocks[positions // self._block_size - start_block] * self._block_size + positions % self._block_size

    def _tensor(self, values: _Ints) -> Tensor:
        return self._move(torch.from_numpy(values))

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)
