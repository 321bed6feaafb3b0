"""What all families have in common: embedding, layers, norm, output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import ChainedLayers, Kernels, Rotation
from lorafleet_serving.layers.embedding import Embedding
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.layers.norm import Norm
from lorafleet_serving.layers.rotary import RotaryEmbedding
from lorafleet_serving.models.batch import ModelBatch
from lorafleet_serving.models.kv_shape import KvShape


class DecoderLayer(Protocol):
    """Attention and feed-forward beside a residual."""

    def __call__(
        self, x: Tensor, delta: Tensor | None, rotation: Rotation, cache: LayerCache, batch: ModelBatch
    ) -> Tensor:
        """Add to [num_tokens, hidden_size] in place; the last part is returned instead, for the next norm to add."""
        ...


@dataclass
class Decoder:
    """A causal language model with its weights."""

    kernels: Kernels
    kv_shape: KvShape
    max_positions: int
    vocab_size: int
    linears: Sequence[LoraLinear]
    """By the index of their sites; the output head is the last."""
    embedding: Embedding
    rotary: RotaryEmbedding
    layers: Sequence[DecoderLayer]
    norm: Norm
    chained: ChainedLayers | None = None
    """What computes all layers in one call, for the steps that it takes."""

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return self.linears[-1].site.in_features

    def forward(self, batch: ModelBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Hidden states [num_outputs, hidden_size] of the rows asked for, behind the final norm."""
        hidden = self.embedding(batch.token_ids, batch.embedding)  # [num_tokens, hidden_size]
        rotation = self.rotary.rotation(batch.positions)
        delta = self._add_layers(hidden, rotation, caches, batch)
        rows = batch.output_rows
        return self.norm.add(hidden.index_select(0, rows), delta.index_select(0, rows))

    def head(self, hidden: Tensor, lora: Any) -> Tensor:
        """Logits [num_rows, vocab_size] of hidden states; `lora` is what the operators planned for their adapters."""
        return self.linears[-1](hidden, lora)

    def _add_layers(
        self, hidden: Tensor, rotation: Rotation, caches: Sequence[LayerCache], batch: ModelBatch
    ) -> Tensor:
        delta = None
        if self.chained is not None:
            delta = self.chained(hidden, rotation, caches, batch.attention, batch.lora)
        if delta is None:
            for layer, cache in zip(self.layers, caches, strict=True):
                delta = layer(hidden, delta, rotation, cache, batch)
        assert delta is not None, "a model has layers"
        return delta
