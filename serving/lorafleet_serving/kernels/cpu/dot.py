"""Dot products inside compiled operators, by blocks that fit the registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorafleet_serving.kernels.cpu.element import compiled, inlined, widen
from lorafleet_serving.kernels.cpu.lanes import add_products


@compiled
def widened(x: Any) -> Any:
    """Rows as fp32."""
    wide = np.empty(x.shape, dtype=np.float32)
    for row in range(x.shape[0]):
        for k in range(x.shape[1]):
            wide[row, k] = widen(x[row, k])
    return wide


@compiled
def dot(x: Any, a: Any) -> Any:
    """x . a"""
    total = np.float32(0)
    for k in range(x.shape[0]):
        total += x[k] * widen(a[k])
    return total


@compiled
def dot_1_by_4(x: Any, a0: Any, a1: Any, a2: Any, a3: Any, v: Any) -> None:
    """v[j] = x . aj"""
    s0 = s1 = s2 = s3 = np.float32(0)
    for k in range(x.shape[0]):
        value = x[k]
        s0 += value * widen(a0[k])
        s1 += value * widen(a1[k])
        s2 += value * widen(a2[k])
        s3 += value * widen(a3[k])
    v[0], v[1], v[2], v[3] = s0, s1, s2, s3


@compiled
def dot_4_by_2(x0: Any, x1: Any, x2: Any, x3: Any, a0: Any, a1: Any, v: Any) -> None:
    """v[i, j] = xi . aj"""
    s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = np.float32(0)
    for k in range(x0.shape[0]):
        w0, w1 = widen(a0[k]), widen(a1[k])
        s00 += x0[k] * w0
        s01 += x0[k] * w1
        s10 += x1[k] * w0
        s11 += x1[k] * w1
        s20 += x2[k] * w0
        s21 += x2[k] * w1
        s30 += x3[k] * w0
        s31 += x3[k] * w1
    v[0, 0], v[0, 1], v[1, 0], v[1, 1] = s00, s01, s10, s11
    v[2, 0], v[2, 1], v[3, 0], v[3, 1] = s20, s21, s30, s31


@inlined
def add_four_products(s: Any, x: Any, a: Any) -> Any:
    """s[j] + x . a[j], of vectors of pairs."""
    s0, s1 = add_products(s[0], x, a[0]), add_products(s[1], x, a[1])
    return s0, s1, add_products(s[2], x, a[2]), add_products(s[3], x, a[3])
