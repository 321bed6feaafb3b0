"""Choice of the form in which the operators run, by device and number format."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.kernels.reference import ReferenceKernels

_COMPILED_FORMATS = (torch.bfloat16, torch.float32)


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest operators that run on a device in a format."""
    if device.type == "cpu" and dtype in _COMPILED_FORMATS and find_spec("numba") is not None:
        from lorafleet_serving.kernels.cpu.kernels import CpuKernels

        return CpuKernels(dtype)
    return ReferenceKernels(dtype, device)
