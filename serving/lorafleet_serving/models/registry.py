"""Which family serves which architecture, and what every family gives to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from lorafleet_serving.exceptions import InvalidSetting, UnsupportedModel
from lorafleet_serving.kernels.dispatch import kernels_for
from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.layers.adapter_base import AdapterBase
from lorafleet_serving.models.batch import ModelBatch
from lorafleet_serving.models.checkpoint import Checkpoint
from lorafleet_serving.models.gemma import load_gemma
from lorafleet_serving.models.kv_shape import KvShape
from lorafleet_serving.models.llama import load_llama
from lorafleet_serving.models.mistral import load_mistral
from lorafleet_serving.models.module_loader import ModuleLoader
from lorafleet_serving.models.phi import load_phi
from lorafleet_serving.models.qwen import load_qwen2, load_qwen3


class LanguageModel(AdapterBase, Protocol):
    """A causal language model with its weights."""

    @property
    def kernels(self) -> Kernels:
        """The operators that it computes with, and that plan its steps."""
        ...

    @property
    def kv_shape(self) -> KvShape:
        """What the model keeps per token."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest sequence that the model was made for."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        ...

    def forward(self, batch: ModelBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Hidden states [num_outputs, hidden_size] of the rows asked for, behind the final norm."""
        ...

    def head(self, hidden: Tensor, lora: Any) -> Tensor:
        """Logits [num_rows, vocab_size] of hidden states; `lora` is what the operators planned for their adapters."""
        ...


Family = Callable[[ModuleLoader], LanguageModel]

FAMILIES: dict[str, Family] = {
    "GemmaForCausalLM": load_gemma,
    "LlamaForCausalLM": load_llama,
    "MistralForCausalLM": load_mistral,
    "PhiForCausalLM": load_phi,
    "Qwen2ForCausalLM": load_qwen2,
    "Qwen3ForCausalLM": load_qwen3,
}
"""Loaders by the architecture that a config names."""


def load_model(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    kernels: Kernels | None = None,
    weights: WeightFormat = WeightFormat.MODEL,
) -> LanguageModel:
    """Load a base model; without `kernels` it takes the fastest that there are.

    Raises:
        InvalidSetting: the operators do not multiply by weights of this form.
        UnsupportedModel: the folder holds no model, or one that is not served.
    """
    config = _read_config(folder)
    architectures = list(config.architectures or [])
    family = next((FAMILIES[name] for name in architectures if name in FAMILIES), None)
    if family is None:
        raise UnsupportedModel(
            f"base model {folder} has architecture {architectures}, served are {sorted(FAMILIES)}: choose such a model"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(f"base model {folder} has quantized weights (quantization_config): dequantize it first")
    kernels = kernels or kernels_for(device, dtype)
    if weights not in kernels.weight_formats:
        raise InvalidSetting(
            f"weights is {weights}, which only a CPU with numba serves, and not {device} here: "
            f"set weights to {WeightFormat.MODEL}, or device to cpu with numba installed"
        )
    with Checkpoint(folder, dtype, device) as checkpoint:
        model = family(ModuleLoader(config, checkpoint, dtype, device, kernels, weights))
        checkpoint.check_all_taken()
    return model


def _read_config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(
            f"base model {folder} has no config.json: give the folder of a model in Hugging Face form"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise UnsupportedModel(f"config of base model {folder} cannot be read: {error}") from error
