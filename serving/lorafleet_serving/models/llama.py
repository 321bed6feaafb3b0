"""The Llama family: Llama 1 to 3 and SmolLM2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import Kernels, Rotation
from lorafleet_serving.layers.attention import Attention
from lorafleet_serving.layers.embedding import Embedding, OutputHead
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.layers.lora_site import LoraSite
from lorafleet_serving.layers.mlp import GatedMlp
from lorafleet_serving.layers.norm import RmsNorm
from lorafleet_serving.layers.rotary import RotaryEmbedding
from lorafleet_serving.models.batch import ModelBatch
from lorafleet_serving.models.checkpoint import Checkpoint
from lorafleet_serving.models.kv_shape import KvShape

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_SERVED_OPTIONS: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1, None),
    "is_decoder": (True, False, None),
    "sliding_window": (None,),
}
"""Options that change the computation, with the values that this file computes."""


@dataclass
class DecoderLayer:
    """Attention and feed-forward, each behind a norm and beside a residual."""

    attention_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: GatedMlp

    def __call__(
        self, x: Tensor, delta: Tensor | None, rotation: Rotation, cache: LayerCache, batch: ModelBatch
    ) -> Tensor:
        """Add to [num_tokens, hidden_size] in place; the last part is returned instead, for the next norm to add."""
        normed = self.attention_norm(x) if delta is None else self.attention_norm.add(x, delta)
        attended = self.attention(normed, rotation, cache, batch.attention, batch.lora)
        return self.mlp(self.mlp_norm.add(x, attended), batch.lora)


@dataclass
class Llama:
    """A causal language model of the Llama family with its weights."""

    kernels: Kernels
    kv_shape: KvShape
    max_positions: int
    vocab_size: int
    sites: Sequence[LoraSite]
    embedding: Embedding
    rotary: RotaryEmbedding
    layers: Sequence[DecoderLayer]
    norm: RmsNorm
    head: OutputHead

    @classmethod
    def load(
        cls,
        config: PreTrainedConfig,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> Llama:
        """Build the model that a config describes from a checkpoint.

        Raises:
            UnsupportedModel: the config has an option that is not served, or a tensor is missing or misshapen.
        """
        for option, served in _SERVED_OPTIONS.items():
            value = getattr(config, option, served[0])
            if value not in served:
                raise UnsupportedModel(f"config option {option} is {value!r}, served is {served[0]!r}")
        loader = _LayerLoader(config, checkpoint, kernels)
        embedding = Embedding(checkpoint.take(_EMBEDDING, (config.vocab_size, config.hidden_size)))
        layers = [loader.layer(index) for index in range(config.num_hidden_layers)]
        return cls(
            kernels=kernels,
            kv_shape=KvShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim),
            max_positions=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            sites=tuple(loader.sites),
            embedding=embedding,
            rotary=RotaryEmbedding(
                config.rope_parameters, config.head_dim, config.max_position_embeddings, dtype, device
            ),
            layers=layers,
            norm=loader.norm("model.norm"),
            head=OutputHead(_head_weight(config, checkpoint, embedding), kernels),
        )

    def forward(self, batch: ModelBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Logits [num_sampled, vocab_size] of the rows asked for."""
        hidden = self.embedding(batch.token_ids)  # [num_tokens, hidden_size]
        rotation = self.rotary.rotation(batch.positions)
        delta = None
        for layer, cache in zip(self.layers, caches, strict=True):
            delta = layer(hidden, delta, rotation, cache, batch)
        assert delta is not None, "a model has layers"
        rows = batch.logits_rows
        return self.head(self.norm.add(hidden.index_select(0, rows), delta.index_select(0, rows)))


class _LayerLoader:
    """Builds decoder layers in order and numbers their sites."""

    def __init__(self, config: PreTrainedConfig, checkpoint: Checkpoint, kernels: Kernels) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._kernels = kernels
        self.sites: list[LoraSite] = []

    def layer(self, index: int) -> DecoderLayer:
        config, prefix = self._config, f"model.layers.{index}"
        hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        inner = config.intermediate_size
        # Old checkpoints carry the rotation table, which is computed here.
        self._checkpoint.drop(f"{prefix}.self_attn.rotary_emb.inv_freq")
        qkv = {"q_proj": query, "k_proj": key, "v_proj": key}
        biased = config.attention_bias
        attention = Attention(
            qkv=self._linear(f"{prefix}.self_attn", qkv, hidden, biased),
            output=self._linear(f"{prefix}.self_attn", {"o_proj": hidden}, query, biased),
            head_dim=config.head_dim,
            kernels=self._kernels,
        )
        mlp = GatedMlp(
            gate_up=self._linear(f"{prefix}.mlp", {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias),
            down=self._linear(f"{prefix}.mlp", {"down_proj": hidden}, inner, config.mlp_bias),
            kernels=self._kernels,
        )
        return DecoderLayer(
            attention_norm=self.norm(f"{prefix}.input_layernorm"),
            attention=attention,
            mlp_norm=self.norm(f"{prefix}.post_attention_layernorm"),
            mlp=mlp,
        )

    def norm(self, name: str) -> RmsNorm:
        weight = self._checkpoint.take(f"{name}.weight", (self._config.hidden_size,))
        return RmsNorm(weight, self._config.rms_norm_eps, self._kernels)

    def _linear(self, prefix: str, outputs: dict[str, int], in_features: int, biased: bool) -> LoraLinear:
        site = LoraSite(len(self.sites), prefix, tuple(outputs), in_features, tuple(outputs.values()))
        self.sites.append(site)
        weights = [
            self._checkpoint.take(f"{prefix}.{name}.weight", (size, in_features)) for name, size in outputs.items()
        ]
        biases = [self._checkpoint.take(f"{prefix}.{name}.bias", (size,)) for name, size in outputs.items() if biased]
        return LoraLinear(torch.cat(weights), torch.cat(biases) if biased else None, site, self._kernels)


def _head_weight(config: PreTrainedConfig, checkpoint: Checkpoint, embedding: Embedding) -> Tensor:
    if config.tie_word_embeddings:
        checkpoint.drop(_HEAD)
        return embedding.weight
    return checkpoint.take(_HEAD, (config.vocab_size, config.hidden_size))
