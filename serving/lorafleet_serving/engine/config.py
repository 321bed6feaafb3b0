"""Settings of the engine: one frozen dataclass, checked when it is made. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lorafleet_serving.exceptions import InvalidSetting
from lorafleet_serving.kernels.weight_format import WeightFormat

_MIB = 1 << 20
_GIB = 1 << 30
_MANY = 1_000_000_000


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
    weights: WeightFormat = WeightFormat.MODEL
    """Form of the base model's weights. A CPU serves all of them, a GPU the model's own."""
    max_num_seqs: int = 64
    """Sequences that run at the same time."""
    max_batched_tokens: int = 512
    """Tokens of one step, prefill chunks and decodes together."""
    max_step_stretch: float = 2.0
    """How many times as long a step may last for the prompts in it as one that only decodes."""
    block_size: int = 16
    """Tokens of one KV block."""
    kv_cache_bytes: int | None = None
    """Memory of the KV cache; None takes at most a quarter of what is free on a CPU, and most of it on a GPU."""
    max_model_len: int | None = None
    """Longest sequence; None takes what both the model and the KV cache allow."""
    adapter_device_bytes: int = 512 * _MIB
    adapter_host_bytes: int = 2 * _GIB
    num_threads: int | None = None
    """CPU threads of the computation; None leaves PyTorch's own choice."""
    prefix_caching: bool = True
    speculative_tokens: int = 0
    """Tokens guessed ahead from what a sequence has read or said, and computed at once; 0 guesses none."""
    step_limit_s: float = 300.0
    """An engine process whose step, or load of an adapter, takes longer counts as hung and is replaced."""
    adapter_turn_steps: int = 4
    """Steps that an adapter stays on the device before one that waits for its turn may have its place."""
    fairness_slack: int = 2048
    """Tokens by which tenants, and a tenant's adapters, may be ahead of one that waits before they are preempted."""
    priority_head_start: int = 16384
    """Tokens by which a level of priority may be ahead of the next lower one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Path(self.model))
        if self.dtype not in list(DType):
            raise InvalidSetting(f"dtype is {self.dtype!r}, it must be one of {', '.join(DType)}")
        object.__setattr__(self, "dtype", DType(self.dtype))
        if self.weights not in list(WeightFormat):
            raise InvalidSetting(f"weights is {self.weights!r}, it must be one of {', '.join(WeightFormat)}")
        object.__setattr__(self, "weights", WeightFormat(self.weights))
        for name in (
            "max_num_seqs", "max_batched_tokens", "block_size", "adapter_device_bytes",
            "adapter_host_bytes", "fairness_slack",
        ):  # fmt: skip
            self._check_positive(name, getattr(self, name))
        for name in ("kv_cache_bytes", "max_model_len", "num_threads"):
            if getattr(self, name) is not None:
                self._check_positive(name, getattr(self, name))
        self._check_range("step_limit_s", 2, 86400)
        self._check_range("max_step_stretch", 1.1, 1000)
        self._check_range("adapter_turn_steps", 1, _MANY)
        self._check_range("speculative_tokens", 0, 7)
        self._check_range("priority_head_start", 0, _MANY)
        if self.max_batched_tokens < self.max_num_seqs:
            raise InvalidSetting(
                f"max_batched_tokens is {self.max_batched_tokens}, below max_num_seqs {self.max_num_seqs}: "
                "every running sequence needs a token of each step, raise the one or lower the other"
            )

    def _check_range(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise InvalidSetting(f"{name} is {value}, it must be between {least} and {most}")

    @staticmethod
    def _check_positive(name: str, value: int) -> None:
        if value < 1:
            raise InvalidSetting(f"{name} is {value}, it must be at least 1")
