"""Runs one step of the model over the chunks that the scheduler chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Rows

import torch
from torch import Tensor

from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.batch_builder import BatchBuilder, PromptRows
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.kv_cache import KvCache
from lorafleet_serving.models.registry import LanguageModel


class ModelRunner:
    """Owns the base model and its KV cache."""

    def __init__(self, model: LanguageModel, kv_cache: KvCache, device: torch.device) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._builder = BatchBuilder(kv_cache.block_size, kv_cache.padding_block, model.kernels, device)

    @torch.inference_mode()
    def run(self, chunks: Rows[Chunk], adapter_of: Callable[[str], AdapterWeights]) -> Tensor | None:
        """Compute chunks that are ordered by adapter, and read what their prompts ask for.

        Returns:
            Logits [num_sampled, vocab_size] of the chunks that sample, in their order; None if none does.
        """
        step = self._builder.build(chunks, adapter_of)
        outputs = self._model.forward(step.batch, self._kv_cache.layers)
        start = step.num_sampled
        for prompt in step.prompts:
            self._read(prompt, outputs[start : start + prompt.num_rows])
            start += prompt.num_rows
        return self._model.head(outputs[: step.num_sampled], step.head_lora) if step.num_sampled else None

    def likeliest(self, logits: Tensor) -> list[int | None]:
        """Of each row of logits the token of the highest; None for a row that is not finite."""
        return self._model.kernels.likeliest(logits)

    def _read(self, prompt: PromptRows, hidden: Tensor) -> None:
        def head(part: Tensor) -> Tensor:
            return self._model.head(part, self._builder.plan_head([(prompt.adapter, part.shape[0])]))

        prompt.reading.take(hidden, head)
