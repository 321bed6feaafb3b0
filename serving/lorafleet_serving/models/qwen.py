"""The Qwen families 2, 2.5 and 3: Llama with biases at queries, keys and values, or with normalized heads."""

from __future__ import annotations

from lorafleet_serving.models.decoder import Decoder
from lorafleet_serving.models.llama import LlamaTraits, build
from lorafleet_serving.models.module_loader import ModuleLoader

_SERVED = {"hidden_act": ("silu",)}


def load_qwen2(loader: ModuleLoader) -> Decoder:
    """A model of Qwen 2 or 2.5."""
    loader.require(_SERVED)
    return build(loader, LlamaTraits(qkv_biased=True, window=_window(loader)))


def load_qwen3(loader: ModuleLoader) -> Decoder:
    """A dense model of Qwen 3."""
    loader.require(_SERVED)
    biased = loader.config.attention_bias
    traits = LlamaTraits(qkv_biased=biased, output_biased=biased, heads_normed=True, window=_window(loader))
    return build(loader, traits)


def _window(loader: ModuleLoader) -> int | None:
    window: int | None = loader.config.sliding_window
    return window if "sliding_attention" in loader.config.layer_types else None
