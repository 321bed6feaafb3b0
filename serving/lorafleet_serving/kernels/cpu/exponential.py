"""e to the x in steps that the compiler can do for sixteen values at once; a call into the C library it could not."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorafleet_serving.kernels.cpu.element import compiled

_LOWEST = np.float32(-87.33)
_HIGHEST = np.float32(88.37)
_LOG2_E = np.float32(1.44269504)
_LN2_UPPER = np.float32(0.693359375)
_LN2_LOWER = np.float32(-2.12194440e-4)
_C5, _C4, _C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C2, _C1, _C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
"""Coefficients of the minimax polynomial of e to the r on half a binary order, as in Cephes' `expf` (S. Moshier)."""
_ONE = np.float32(1)
_HALF = np.float32(0.5)


@compiled
def exponential(x: Any) -> Any:
    """exp of an fp32, to a few units in the last place; below -87 the smallest normal number, for NaN NaN."""
    x = min(max(x, _LOWEST), _HIGHEST)
    order = np.floor(x * _LOG2_E + _HALF)
    r = x - order * _LN2_UPPER - order * _LN2_LOWER
    power = (((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0) * r * r + r + _ONE
    return power * np.int32((np.int32(order) + np.int32(127)) << np.int32(23)).view(np.float32)
