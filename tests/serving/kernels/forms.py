"""Every form of the operators that runs here, for tests that all must pass."""

from __future__ import annotations

import torch

from lorafleet_serving.kernels.cpu.kernels import CpuKernels
from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
FORMS = ("reference", "cpu")


def make_kernels(form: str, dtype: torch.dtype = torch.float32) -> Kernels:
    return CpuKernels(dtype) if form == "cpu" else ReferenceKernels(dtype, CPU)
