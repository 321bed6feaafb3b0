"""QLoRA: LoRA on a base in 4-bit NF4.

On a CPU, bitsandbytes repacks NF4 weights at the first forward in eval mode, and multiplies by packed weights
without autograd from then on, in train mode too. Packing is switched off on every layer here, so that a look at
the validation loss leaves the gradients as they are.

Weights are dequantized at every product, not kept in bf16 as well: that would save 5 to 15 % of a step on a CPU with
AVX512-BF16 (SmolLM2-135M, 8 rows of 90 tokens), and take four times the memory.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from lorafleet_pipeline.exceptions import InvalidSpec
from lorafleet_pipeline.spec import MethodSection, Quantization
from lorafleet_pipeline.training.methods.lora import attach_lora
from lorafleet_pipeline.training.methods.method import TrainableModel, fast_dtype


class QLora:
    """The base in NF4 with doubly quantized scales; the adapter's weights in fp32."""

    def build(self, folder: Path, base_model: str, section: MethodSection, device: torch.device) -> TrainableModel:
        if section.base_form is not Quantization.NF4:
            raise InvalidSpec(
                f"method.quantization is {section.base_form} with method.type qlora: write `type: lora`, "
                "or leave quantization out"
            )
        # It says at import that an optional kernel, which it would fetch from the hub, is not there.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = fast_dtype(device)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        base = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": str(device)},
            local_files_only=True,
        )
        prevent_packing(base)
        return TrainableModel(model=attach_lora(base, base_model, section), trained_on=Quantization.NF4.value)


def prevent_packing(model: torch.nn.Module) -> int:
    """Keep bitsandbytes from repacking weights at forwards in eval mode; returns the number of layers."""
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        assert hasattr(layer, "support_avx512bf16_for_cpu"), "bitsandbytes packs by another switch in this version"
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
