"""What a fine-tuning method is: it turns a base model's folder into a model with parameters to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from lorafleet_pipeline.spec import MethodSection

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainableModel:
    """A frozen base with a trainable adapter on it."""

    model: PeftModel
    trained_on: str
    """Form of the base: `nf4`, `bf16` or `fp32`."""


class FineTuningMethod(Protocol):
    """Builds the model that the trainer trains."""

    def build(self, folder: Path, base_model: str, section: MethodSection, device: torch.device) -> TrainableModel:
        """Load the base and put a fresh adapter on it. Draws from torch's random stream.

        Args:
            folder: where the base model stands.
            base_model: how the spec names it; this name goes into the adapter's config.
            section: the spec's method.
            device: where to train.

        Raises:
            TrainingError: the base lacks a target module.
            InvalidSpec: the section asks for a form of the base that this method does not train on.
        """
        ...


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 wherever the device multiplies it natively; elsewhere fp32, which emulated bf16 is far slower than."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
