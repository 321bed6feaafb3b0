"""The Mistral family, Zephyr among it: Llama with a window, at which sequences end."""

from __future__ import annotations

from lorafleet_serving.models.decoder import Decoder
from lorafleet_serving.models.llama import LlamaTraits, build
from lorafleet_serving.models.module_loader import ModuleLoader


def load_mistral(loader: ModuleLoader) -> Decoder:
    """A model of the Mistral family."""
    loader.require({"hidden_act": ("silu",), "layer_types": (None,)})
    return build(loader, LlamaTraits(window=loader.config.sliding_window))
