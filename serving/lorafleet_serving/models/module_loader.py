"""Modules of a model, taken from its checkpoint one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.kernels.operators import ChainedLayers, Kernels
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.layers.embedding import Embedding
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.layers.lora_site import LoraSite
from lorafleet_serving.layers.norm import LayerNorm, Norm, RmsNorm
from lorafleet_serving.layers.rotary import RotaryEmbedding
from lorafleet_serving.models.checkpoint import Checkpoint
from lorafleet_serving.models.decoder import Decoder, DecoderLayer
from lorafleet_serving.models.kv_shape import KvShape

_EMBEDDING = "model.embed_tokens"
_HEAD = "lm_head"


class ModuleLoader:
    """Builds modules as a config describes them, and numbers the sites in the order of the asking."""

    def __init__(
        self,
        config: PreTrainedConfig,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        weights: WeightFormat = WeightFormat.MODEL,
    ) -> None:
        self.config: Any = config
        self.kernels = kernels
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._weights = weights
        self._linears: list[LoraLinear] = []

    def require(self, served: Mapping[str, Sequence[object]]) -> None:
        """Check options that change the computation against the values that a family computes.

        Raises:
            UnsupportedModel: one has another value.
        """
        for option, values in served.items():
            value = getattr(self.config, option, values[0])
            if value not in values:
                raise UnsupportedModel(f"config option {option} is {value!r}, served is {values[0]!r}")

    def linear(self, prefix: str, outputs: Mapping[str, int], in_features: int, *, biased: bool) -> LoraLinear:
        """One or more linear layers over the same input, merged along their outputs."""
        weight = self._merged({f"{prefix}.{name}.weight": (size, in_features) for name, size in outputs.items()})
        bias = self._merged({f"{prefix}.{name}.bias": (size,) for name, size in outputs.items()}) if biased else None
        return self._linear(weight, bias, prefix, outputs, self._weights)

    def rms_norm(self, name: str, *, offset: float = 0.0) -> RmsNorm:
        """A norm over the hidden size; `offset` is what its weight is stored short of."""
        weight = self.vector(f"{name}.weight", self.config.hidden_size).float() + offset
        return RmsNorm(weight, self.config.rms_norm_eps, self.kernels)

    def layer_norm(self, name: str) -> LayerNorm:
        """A norm over the hidden size with mean and bias."""
        weight, bias = (self.vector(f"{name}.{part}", self.config.hidden_size) for part in ("weight", "bias"))
        return LayerNorm(weight, bias, self.config.layer_norm_eps)

    def vector(self, name: str, size: int) -> Tensor:
        """A tensor of one dimension."""
        return self._checkpoint.take(name, (size,))

    def drop(self, name: str) -> None:
        """Pass over a tensor that the model knows and does not need."""
        self._checkpoint.drop(name)

    def decoder(
        self,
        layers: Sequence[DecoderLayer],
        norm: Norm,
        *,
        window: int | None = None,
        embedding_scale: float = 1.0,
        head_biased: bool = False,
        chained: ChainedLayers | None = None,
    ) -> Decoder:
        """The model around its layers.

        Args:
            layers: in order.
            norm: behind the last layer.
            window: number of tokens that a token attends to, where not to all before it. Sequences end there: up to
                then the attention is the same.
            embedding_scale: factor of the embeddings.
            head_biased: whether the output head has a bias.
            chained: what computes all layers in one call.
        """
        config = self.config
        max_positions: int = min(config.max_position_embeddings, window or config.max_position_embeddings)
        table = self._checkpoint.take(f"{_EMBEDDING}.weight", (config.vocab_size, config.hidden_size))
        self._head(table, biased=head_biased)
        return Decoder(
            kernels=self.kernels,
            kv_shape=KvShape(config.num_hidden_layers, config.num_key_value_heads, self.head_dim),
            max_positions=max_positions,
            vocab_size=config.vocab_size,
            linears=tuple(self._linears),
            embedding=Embedding(table, _EMBEDDING, embedding_scale),
            rotary=RotaryEmbedding(config.rope_parameters, self.head_dim, max_positions, self._dtype, self._device),
            layers=layers,
            norm=norm,
            chained=chained,
        )

    def _head(self, table: Tensor, *, biased: bool) -> None:
        config, weight = self.config, f"{_HEAD}.weight"
        if config.tie_word_embeddings:
            self._checkpoint.drop(weight)
        else:
            table = self._checkpoint.take(weight, (config.vocab_size, config.hidden_size))
        bias = self.vector(f"{_HEAD}.bias", config.vocab_size) if biased else None
        self._linear(table, bias, "", {_HEAD: config.vocab_size}, self._weights.of_head)

    def _linear(
        self, weight: Tensor, bias: Tensor | None, prefix: str, outputs: Mapping[str, int], form: WeightFormat
    ) -> LoraLinear:
        site = LoraSite(len(self._linears), prefix, tuple(outputs), weight.shape[1], tuple(outputs.values()))
        self._linears.append(LoraLinear(weight, bias, site, self.kernels, form))
        return self._linears[-1]

    def _merged(self, shapes: Mapping[str, Sequence[int]]) -> Tensor:
        if len(shapes) == 1:
            return self._checkpoint.take(*next(iter(shapes.items())))
        num_rows = sum(shape[0] for shape in shapes.values())
        merged = torch.empty((num_rows, *next(iter(shapes.values()))[1:]), dtype=self._dtype, device=self._device)
        start = 0
        for name, shape in shapes.items():
            self._checkpoint.copy(name, merged[start : start + shape[0]])
            start += shape[0]
        return merged
