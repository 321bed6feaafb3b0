"""The first Gemma family: Llama with GELU, scaled embeddings, and norms whose weights are stored short of one."""

from __future__ import annotations

from lorafleet_serving.kernels.operators import Activation
from lorafleet_serving.models.decoder import Decoder
from lorafleet_serving.models.llama import LlamaTraits, build
from lorafleet_serving.models.module_loader import ModuleLoader


def load_gemma(loader: ModuleLoader) -> Decoder:
    """A model of the Gemma family."""
    loader.require({"hidden_act": ("gelu_pytorch_tanh",), "use_bidirectional_attention": (None, False)})
    biased = loader.config.attention_bias
    traits = LlamaTraits(
        qkv_biased=biased,
        output_biased=biased,
        activation=Activation.GELU_TANH,
        norm_offset=1.0,
        embedding_scale=loader.config.hidden_size**0.5,
    )
    return build(loader, traits)
