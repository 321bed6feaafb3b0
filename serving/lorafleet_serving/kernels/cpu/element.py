"""Elements of tensors inside compiled code: bf16, fp32 or codes of 8 bits in memory, always fp32 in arithmetic.

Compiled operators take addresses instead of arrays, since wrapping a tensor costs more than many an operator does. A
*tag*, a numpy scalar of the element's type, tells the compiler what lies at an address; bf16 goes by uint16, which
numpy has no other name for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from lorafleet_serving.kernels.cpu.compile_cache import cache_folder

Tag = np.uint16 | np.float32

TAGS: dict[torch.dtype, Tag] = {torch.bfloat16: np.uint16(0), torch.float32: np.float32(0)}
"""Tags of the formats that the compiled operators compute in."""

if not config.CACHE_DIR:  # NUMBA_CACHE_DIR, where it is set.
    # Beside the source, numba's own choice, nothing can be written where packages are installed read-only.
    config.CACHE_DIR = str(cache_folder())

LINE_BYTES = 64
"""What a processor fetches at a time."""

_ANY_ORDER = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be taken in any order; what is not finite stays so, since that is how a broken adapter is found."""

compiled: Callable[..., Any] = njit(fastmath=_ANY_ORDER, nogil=True, cache=True)
"""Decorator of a compiled function."""
compiled_parallel: Callable[..., Any] = njit(fastmath=_ANY_ORDER, nogil=True, cache=True, parallel=True)
"""The same, with the rounds of `prange` spread over the cores. A round only calls a compiled function: a store through
an address that stands in the round itself is taken for dead, since nothing reads the array made from the address."""
inlined: Callable[..., Any] = njit(fastmath=_ANY_ORDER, nogil=True, inline="always")
"""A compiled function that becomes part of its callers: what they pass as a constant is one, and loops are unrolled."""


@intrinsic
def _pointer(_: Any, address: Any, tag: Any) -> Any:
    pointer = types.CPointer(tag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, tag), generate


@compiled
def matrix(address: int, num_rows: int, num_columns: int, tag: Tag) -> Any:
    """The rows that lie one behind the other at an address; nothing is copied."""
    return carray(_pointer(address, tag), (num_rows, num_columns))


@intrinsic
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """Have the line that element `index` of a one-dimensional array lies in brought near, and go on meanwhile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(element, [arguments[1]]), cgutils.voidptr_t)
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word]), "llvm.prefetch.p0"
        )
        builder.call(function, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


@compiled
def fetch(array: Any) -> None:
    """Have all of a one-dimensional array brought near."""
    for k in range(0, array.shape[0], LINE_BYTES // array.itemsize):
        prefetch(array, k)


def widen(element: Any) -> Any:
    """An element as fp32."""
    raise NotImplementedError(element)  # Compiled code takes `_widen` in its place.


def narrow(value: Any, tag: Any) -> Any:
    """An fp32 value as an element, rounded to the nearest even one."""
    raise NotImplementedError(value, tag)  # Compiled code takes `_narrow` in its place.


@overload(widen, inline="always", strict=False)
def _widen(element: Any) -> Any:
    if element == types.uint16:
        return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)
    return lambda element: np.float32(element)


@overload(narrow, inline="always", strict=False)
def _narrow(value: Any, tag: Any) -> Any:
    if tag == types.uint16:
        return lambda value, tag: _round_to_bf16(np.float32(value).view(np.uint32))
    return lambda value, tag: np.float32(value)


@compiled
def _round_to_bf16(bits: Any) -> Any:
    # A NaN keeps its upper bits: rounding could carry it over to infinity.
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
    lowest_kept = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + lowest_kept) >> np.uint32(16))
