"""Settings of the engine: one frozen dataclass, checked when it is made. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lorafleet_serving.exceptions import InvalidSetting

_MIB = 1 << 20
_GIB = 1 << 30


class DType(StrEnum):
    """Number format of weights, activations and KV cache."""

    AUTO = "auto"
    """bf16 where the device multiplies it in hardware, else fp32."""
    FP32 = "float32"
    BF16 = "bfloat16"


@dataclass(frozen=True)
class EngineConfig:
    """How one engine runs one base model."""

    model: Path
    """Folder with config.json, safetensors weights and tokenizer files."""
    device: str = "cpu"
    dtype: DType = DType.AUTO
    max_num_seqs: int = 64
    """Sequences that run at the same time."""
    max_batched_tokens: int = 512
    """Tokens of one step, prefill chunks and decodes together."""
    block_size: int = 16
    """Tokens of one KV block."""
    kv_cache_bytes: int | None = None
    """Memory of the KV cache; None takes 1 GiB on a CPU and most of what is free on a GPU."""
    max_model_len: int | None = None
    """Longest sequence; None takes what both the model and the KV cache allow."""
    adapter_device_bytes: int = 512 * _MIB
    adapter_host_bytes: int = 2 * _GIB
    num_threads: int | None = None
    """CPU threads of the computation; None leaves PyTorch's own choice."""
    prefix_caching: bool = True
    step_limit_s: float = 300.0
    """An engine process whose step, or load of an adapter, takes longer counts as hung and is replaced."""
    max_overtakes: int = 64
    """How many later requests may be admitted before one that waits for room for its adapter."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Path(self.model))
        if self.dtype not in list(DType):
            raise InvalidSetting(f"dtype is {self.dtype!r}, it must be one of {', '.join(DType)}")
        object.__setattr__(self, "dtype", DType(self.dtype))
        for name in ("max_num_seqs", "max_batched_tokens", "block_size", "adapter_device_bytes", "adapter_host_bytes"):
            self._check_positive(name, getattr(self, name))
        for name in ("kv_cache_bytes", "max_model_len", "num_threads"):
            if getattr(self, name) is not None:
                self._check_positive(name, getattr(self, name))
        if not 2.0 <= self.step_limit_s <= 86400.0:
            raise InvalidSetting(f"step_limit_s is {self.step_limit_s}, it must be between 2 and 86400")
        if self.max_overtakes < 0:
            raise InvalidSetting(f"max_overtakes is {self.max_overtakes}, it must be at least 0")
        if self.max_batched_tokens < self.max_num_seqs:
            raise InvalidSetting(
                f"max_batched_tokens is {self.max_batched_tokens}, below max_num_seqs {self.max_num_seqs}: "
                "every running sequence needs a token of each step, raise the one or lower the other"
            )

    @staticmethod
    def _check_positive(name: str, value: int) -> None:
        if value < 1:
            raise InvalidSetting(f"{name} is {value}, it must be at least 1")
