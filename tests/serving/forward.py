"""The pod's own forward pass without scheduler and sampler: logits, to hold against other implementations'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lorafleet_serving.adapters.weights import AdapterWeights, stage_adapter
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.kv_cache import KvCache
from lorafleet_serving.engine.model_runner import ModelRunner
from lorafleet_serving.engine.request import GenerationRequest
from lorafleet_serving.engine.sequence import Sequence
from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.models.registry import load_model

CPU = torch.device("cpu")
BLOCK_SIZE = 4


class Forward:
    """A model with a cache of its own; sequences get their blocks in a scattered order.

    `adapters` maps digests, by which sequences name their adapter, to adapter folders.
    """

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path] | None = None,
        kernels: Kernels | None = None,
        dtype: torch.dtype = torch.float32,
        weights: WeightFormat = WeightFormat.MODEL,
    ) -> None:
        model = load_model(folder, dtype, CPU, kernels, weights)
        config = EngineConfig(folder, block_size=BLOCK_SIZE, kv_cache_bytes=64 << 20)
        cache = KvCache(model.kv_shape, config, dtype, CPU, model.max_positions)
        self._runner = ModelRunner(model, cache, CPU)
        self._blocks = list(range(cache.num_blocks))[::-3]
        self._adapters: dict[str, AdapterWeights] = {
            digest: stage_adapter(digest, path, model, dtype, 1 << 30).finish(model)
            for digest, path in (adapters or {}).items()
        }

    def sequence(self, tokens: list[int], adapter: str | None = None) -> Sequence:
        """A sequence with blocks for all its tokens."""
        sequence = Sequence(GenerationRequest("r", tuple(tokens), adapter=adapter), arrival=0)
        sequence.block_table = [self._blocks.pop() for _ in range(-(-len(tokens) // BLOCK_SIZE))]
        return sequence

    def logits(self, sequences: list[Sequence], ends: list[int]) -> torch.Tensor:
        """Compute each sequence up to an end; its last row's logits, one row per sequence."""
        whole = [sequence.token_ids for sequence in sequences]
        chunks = []
        for sequence, end in zip(sequences, ends, strict=True):
            sequence.token_ids = sequence.token_ids[:end]
            chunks.append(Chunk(sequence, sequence.num_remaining))
        logits = self._runner.run(chunks, self._adapters.__getitem__)
        assert logits is not None
        for sequence, tokens, end in zip(sequences, whole, ends, strict=True):
            sequence.token_ids, sequence.num_computed = tokens, end
        return logits
