"""The Llama family, Llama 1 to 3 and SmolLM2, and the plan that most other families share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import Activation, LayerParts, Rotation
from lorafleet_serving.layers.attention import Attention
from lorafleet_serving.layers.mlp import GatedMlp
from lorafleet_serving.layers.norm import HeadNorm, RmsNorm
from lorafleet_serving.models.batch import ModelBatch
from lorafleet_serving.models.decoder import Decoder
from lorafleet_serving.models.module_loader import ModuleLoader


@dataclass(frozen=True)
class LlamaTraits:
    """Where families of this plan differ."""

    qkv_biased: bool = False
    output_biased: bool = False
    mlp_biased: bool = False
    activation: Activation = Activation.SILU
    heads_normed: bool = False
    """Whether queries and keys are normalized head by head."""
    norm_offset: float = 0.0
    """What the weights of norms are stored short of."""
    embedding_scale: float = 1.0
    window: int | None = None
    """Tokens that a token attends to, where not to all before it."""


@dataclass
class LlamaLayer:
    """Attention, then feed-forward, each behind a norm and beside a residual."""

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

    @property
    def parts(self) -> LayerParts:
        """What is read to compute it."""
        attention, mlp = self.attention, self.mlp
        return LayerParts(
            attention_norm=self.attention_norm.weight,
            qkv=attention.qkv.parts,
            head_norm=None if attention.head_norm is None else attention.head_norm.weight,
            output=attention.output.parts,
            mlp_norm=self.mlp_norm.weight,
            gate_up=mlp.gate_up.parts,
            down=mlp.down.parts,
            eps=self.attention_norm.eps,
            activation=mlp.activation,
        )


def load_llama(loader: ModuleLoader) -> Decoder:
    """A model of the Llama family."""
    loader.require(
        {
            "hidden_act": ("silu",),
            "pretraining_tp": (1, None),
            "is_decoder": (True, False, None),
            "sliding_window": (None,),
        }
    )
    config = loader.config
    biased = config.attention_bias
    return build(loader, LlamaTraits(qkv_biased=biased, output_biased=biased, mlp_biased=config.mlp_bias))


def build(loader: ModuleLoader, traits: LlamaTraits) -> Decoder:
    """A model of Llama's plan.

    Raises:
        UnsupportedModel: a tensor is missing or misshapen.
    """
    layers = [_layer(loader, traits, index) for index in range(loader.config.num_hidden_layers)]
    norm = loader.rms_norm("model.norm", offset=traits.norm_offset)
    chained = loader.kernels.chain([layer.parts for layer in layers])
    return loader.decoder(layers, norm, window=traits.window, embedding_scale=traits.embedding_scale, chained=chained)


def _layer(loader: ModuleLoader, traits: LlamaTraits, index: int) -> LlamaLayer:
    prefix, offset = f"model.layers.{index}", traits.norm_offset
    return LlamaLayer(
        attention_norm=loader.rms_norm(f"{prefix}.input_layernorm", offset=offset),
        attention=_attention(loader, traits, f"{prefix}.self_attn"),
        mlp_norm=loader.rms_norm(f"{prefix}.post_attention_layernorm", offset=offset),
        mlp=_mlp(loader, traits, f"{prefix}.mlp"),
    )


def _attention(loader: ModuleLoader, traits: LlamaTraits, prefix: str) -> Attention:
    config, head_dim = loader.config, loader.head_dim
    hidden, num_heads, num_kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    # Old checkpoints carry the rotation table, which is computed here.
    loader.drop(f"{prefix}.rotary_emb.inv_freq")
    qkv = {"q_proj": num_heads * head_dim, "k_proj": num_kv_heads * head_dim, "v_proj": num_kv_heads * head_dim}
    head_norm = None
    if traits.heads_normed:
        query, key = (loader.vector(f"{prefix}.{name}_norm.weight", head_dim) for name in ("q", "k"))
        head_norm = HeadNorm(query, key, num_heads, num_kv_heads, config.rms_norm_eps)
    return Attention(
        qkv=loader.linear(prefix, qkv, hidden, biased=traits.qkv_biased),
        output=loader.linear(prefix, {"o_proj": hidden}, num_heads * head_dim, biased=traits.output_biased),
        head_dim=head_dim,
        kernels=loader.kernels,
        head_norm=head_norm,
    )


def _mlp(loader: ModuleLoader, traits: LlamaTraits, prefix: str) -> GatedMlp:
    hidden, inner, biased = loader.config.hidden_size, loader.config.intermediate_size, traits.mlp_biased
    return GatedMlp(
        gate_up=loader.linear(prefix, {"gate_proj": inner, "up_proj": inner}, hidden, biased=biased),
        down=loader.linear(prefix, {"down_proj": hidden}, inner, biased=biased),
        activation=traits.activation,
        kernels=loader.kernels,
    )
