"""The Phi family, Phi-1 to Phi-2: attention and feed-forward side by side, heads that rotate in part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import Rotation
from lorafleet_serving.layers.attention import Attention
from lorafleet_serving.layers.mlp import GeluMlp
from lorafleet_serving.layers.norm import LayerNorm
from lorafleet_serving.models.batch import ModelBatch
from lorafleet_serving.models.decoder import Decoder
from lorafleet_serving.models.module_loader import ModuleLoader


@dataclass
class PhiLayer:
    """Attention and feed-forward over the same norm, beside one residual."""

    norm: LayerNorm
    attention: Attention
    mlp: GeluMlp

    def __call__(
        self, x: Tensor, delta: Tensor | None, rotation: Rotation, cache: LayerCache, batch: ModelBatch
    ) -> Tensor:
        """The sum of both, [num_tokens, hidden_size], for the next norm to add to x."""
        normed = self.norm(x) if delta is None else self.norm.add(x, delta)
        attended = self.attention(normed, rotation, cache, batch.attention, batch.lora)
        return attended.add_(self.mlp(normed, batch.lora))


def load_phi(loader: ModuleLoader) -> Decoder:
    """A model of the Phi family.

    Raises:
        UnsupportedModel: the config has an option that is not served, or a tensor is missing or misshapen.
    """
    loader.require({"hidden_act": ("gelu_new", "gelu_pytorch_tanh"), "qk_layernorm": (False, None)})
    layers = [_layer(loader, f"model.layers.{index}") for index in range(loader.config.num_hidden_layers)]
    return loader.decoder(layers, loader.layer_norm("model.final_layernorm"), head_biased=True)


def _layer(loader: ModuleLoader, prefix: str) -> PhiLayer:
    config = loader.config
    hidden, inner, query = config.hidden_size, config.intermediate_size, config.num_attention_heads * loader.head_dim
    key = config.num_key_value_heads * loader.head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return PhiLayer(
        norm=loader.layer_norm(f"{prefix}.input_layernorm"),
        attention=Attention(
            qkv=loader.linear(attention, {"q_proj": query, "k_proj": key, "v_proj": key}, hidden, biased=True),
            output=loader.linear(attention, {"dense": hidden}, query, biased=True),
            head_dim=loader.head_dim,
            kernels=loader.kernels,
        ),
        mlp=GeluMlp(
            up=loader.linear(mlp, {"fc1": inner}, hidden, biased=True),
            down=loader.linear(mlp, {"fc2": hidden}, inner, biased=True),
        ),
    )
