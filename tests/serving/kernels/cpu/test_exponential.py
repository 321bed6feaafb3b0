from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorafleet_serving.kernels.cpu.element import compiled
from lorafleet_serving.kernels.cpu.exponential import exponential

Floats = NDArray[np.float32]


@compiled
def _fill(x: Floats, out: Floats) -> None:
    for i in range(x.shape[0]):
        out[i] = exponential(x[i])


def of(x: Floats) -> Floats:
    out = np.empty_like(x)
    _fill(x, out)
    return out


def test_values_are_those_of_numpy_to_a_few_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    np.testing.assert_allclose(of(x), np.exp(x.astype(np.float64)), rtol=6e-7)


def test_ends_do_not_wrap_around() -> None:
    low, high, one, broken = of(np.array([-np.inf, np.inf, 0.0, np.nan], dtype=np.float32))
    assert 0.0 <= low < 1e-37
    assert high > 1e38
    assert one == 1.0
    assert np.isnan(broken)
