"""Device and number format that the engine's settings stand for on this machine."""

from __future__ import annotations

import torch

from lorafleet_serving.engine.config import DType
from lorafleet_serving.exceptions import InvalidSetting


def resolve_device(name: str) -> torch.device:
    """The torch device of a setting.

    Raises:
        InvalidSetting: torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSetting(f"device is {name!r}, it must be cpu or cuda[:index]") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidSetting(f"device is {name!r}, but this machine has no usable CUDA device: set it to cpu")
    if device.type not in ("cpu", "cuda"):
        raise InvalidSetting(f"device is {name!r}, it must be cpu or cuda[:index]")
    return device


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """The torch dtype of a setting on a device."""
    if dtype is DType.AUTO:
        return torch.bfloat16 if device.type == "cuda" or _has_bf16_dot_product() else torch.float32
    return torch.float32 if dtype is DType.FP32 else torch.bfloat16


def _has_bf16_dot_product() -> bool:
    # Without one of these instruction sets oneDNN emulates bf16, and fp32 is the faster format.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
