"""Forms in which the base model's weights are held. No torch here: settings name them."""

from __future__ import annotations

from enum import StrEnum


class WeightFormat(StrEnum):
    """Form of the weights of linear layers. Embedding, norms, biases and adapters stay in the model's number format."""

    MODEL = "model"
    """As the number format says."""
    INT8 = "int8"
    """8 bits with a scale for each output, the output head too: few rows are computed from these, many from a second
    copy in the model's format, so that the weights take one and a half times the memory of bf16."""
    INT4 = "int4"
    """4 bits in groups of 32 with a scale and an offset each, 5 bits a weight in all. The output head, and layers
    whose shape the kernel cannot take (outputs by 16, inputs by 32), are in 8 bits."""
    NF4 = "nf4"
    """4-bit NormalFloat in blocks of 64 with doubly quantized scales: what QLoRA trains on, value for value. As there
    the output head stays in the model's format. Layers with inputs not a multiple of 64 are computed on these values
    too, but held in the model's format."""

    @property
    def of_head(self) -> WeightFormat:
        """Form of the output head, whose errors go straight into the logits."""
        return {WeightFormat.INT4: WeightFormat.INT8, WeightFormat.NF4: WeightFormat.MODEL}.get(self, self)
