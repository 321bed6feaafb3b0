"""Vectors of sixteen sums in fp32, for compiled operators whose loops no compiler makes vectors of by itself.

Any processor adds products to them. One that multiplies pairs of bf16 (AVX512-BF16) takes two vectors of 32 elements,
multiplies them, and adds the products of neighbours to the sums: nothing is widened first, and one instruction does the
work of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

NUM_SUMS = 16
NUM_ELEMENTS = 2 * NUM_SUMS

HAS_PAIR_PRODUCTS: bool = "+avx512bf16" in cpu_target.target_context.codegen().magic_tuple()[2]
"""Whether the processor that is compiled for has the instruction."""


class _BFloat(ir.Type):
    """bf16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class _SumsType(types.Type):
    """16 sums in fp32."""


class _PairsType(types.Type):
    """32 elements of bf16, that is 16 pairs of neighbours."""


_SUMS_IR = ir.VectorType(ir.FloatType(), NUM_SUMS)
_PAIRS_IR = ir.VectorType(_BFloat(), NUM_ELEMENTS)
_HALF_IR = ir.VectorType(_BFloat(), NUM_SUMS)
_HALF_BITS_IR = ir.VectorType(ir.IntType(16), NUM_SUMS)
_BITS_IR = ir.VectorType(ir.IntType(32), NUM_SUMS)
_CODES_IR = ir.VectorType(ir.IntType(8), NUM_SUMS)
_LOW, _HIGH = range(NUM_SUMS), range(NUM_SUMS, NUM_ELEMENTS)

_sums, _pairs = _SumsType("Sums"), _PairsType("Pairs")


@register_model(_SumsType)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _SUMS_IR)


@register_model(_PairsType)
class _PairsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _PAIRS_IR)


def _emitted(emit: Callable[[Any, Sequence[Any]], Any]) -> Callable[[Any, Any, Any, Any], Any]:
    return lambda context, builder, signature, arguments: emit(builder, arguments)


@intrinsic
def no_sums(_: Any) -> Any:
    """Sixteen zeros."""
    return _sums(), _emitted(lambda builder, arguments: ir.Constant(_SUMS_IR, [0.0] * NUM_SUMS))


@intrinsic
def load_codes(_: Any, row: Any, first: Any) -> Any:
    """Elements `first` to `first + 15` of a one-dimensional array of int8."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes = builder.load(_place(context, builder, signature, arguments, _CODES_IR), align=1)
        return builder.sitofp(builder.sext(codes, _BITS_IR), _SUMS_IR)

    return _sums(row, first), generate


@intrinsic
def load_sums(_: Any, row: Any, first: Any) -> Any:
    """Elements `first` to `first + 15` of a one-dimensional array of fp32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, arguments, _SUMS_IR), align=4)

    return _sums(row, first), generate


@intrinsic
def store_sums(_: Any, row: Any, first: Any, sums: Any) -> Any:
    """Write elements `first` to `first + 15` of a one-dimensional array of fp32."""
    return types.void(row, first, sums), _storing(_SUMS_IR, align=4)


@intrinsic
def repeated(_: Any, value: Any) -> Any:
    """One value in fp32 sixteen times."""
    return _sums(types.float32), _emitted(lambda builder, arguments: _repeated(builder, arguments[0], _SUMS_IR))


@intrinsic
def add_product(_: Any, sums: Any, left: Any, right: Any) -> Any:
    """sums[i] + left[i] right[i]"""

    def emit(builder: Any, arguments: Sequence[Any]) -> Any:
        sums, left, right = arguments
        return builder.fadd(sums, builder.fmul(left, right, flags=("contract",)), flags=("contract",))

    return _sums(sums, left, right), _emitted(emit)


@intrinsic
def load_pairs(_: Any, row: Any, first: Any) -> Any:
    """Elements `first` to `first + 31` of a one-dimensional array of bf16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, arguments, _PAIRS_IR), align=2)

    return _pairs(row, first), generate


@intrinsic
def store_pairs(_: Any, row: Any, first: Any, pairs: Any) -> Any:
    """Write elements `first` to `first + 31` of a one-dimensional array of bf16."""
    return types.void(row, first, pairs), _storing(_PAIRS_IR, align=2)


@intrinsic
def repeated_pair(_: Any, word: Any) -> Any:
    """One pair, the bits of both in a uint32, sixteen times."""

    def emit(builder: Any, arguments: Sequence[Any]) -> Any:
        return builder.bitcast(_repeated(builder, arguments[0], _BITS_IR), _PAIRS_IR)

    return _pairs(types.uint32), _emitted(emit)


@intrinsic
def add_products(_: Any, sums: Any, left: Any, right: Any) -> Any:
    """sums[i] + left[2 i] right[2 i] + left[2 i + 1] right[2 i + 1]"""

    def emit(builder: Any, arguments: Sequence[Any]) -> Any:
        kind = ir.FunctionType(_SUMS_IR, [_SUMS_IR, _PAIRS_IR, _PAIRS_IR])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return _sums(sums, left, right), _emitted(emit)


@intrinsic
def add_sums(_: Any, left: Any, right: Any) -> Any:
    """left[i] + right[i]"""
    return _sums(left, right), _emitted(lambda builder, arguments: builder.fadd(*arguments))


@intrinsic
def totals(_: Any, vectors: Any) -> Any:
    """The sum of each vector of a tuple, which has 16 or a number that divides it: then all of them over and over."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = NUM_SUMS
        # Two become one of half sums, and so on: a vector's own halves are added in the same order whatever stands
        # beside it.
        parts = cgutils.unpack_tuple(builder, arguments[0]) * (NUM_SUMS // len(vectors))
        while size > 1:
            first = [start + place for start in range(0, NUM_ELEMENTS, size) for place in range(size // 2)]
            second = [place + size // 2 for place in first]
            parts = [
                builder.fadd(_shuffled(builder, left, right, first), _shuffled(builder, left, right, second))
                for left, right in zip(parts[::2], parts[1::2], strict=True)
            ]
            size //= 2
        return parts[0]

    return _sums(vectors), generate


@intrinsic
def paired_low(_: Any, left: Any, right: Any) -> Any:
    """left[0], right[0], left[1], right[1] and so on to element 15 of both."""
    return _pairs(left, right), _emitted(lambda builder, arguments: _interleaved(builder, arguments, _LOW))


@intrinsic
def paired_high(_: Any, left: Any, right: Any) -> Any:
    """left[16], right[16], left[17], right[17] and so on to element 31 of both."""
    return _pairs(left, right), _emitted(lambda builder, arguments: _interleaved(builder, arguments, _HIGH))


@intrinsic
def widened_low(_: Any, pairs: Any) -> Any:
    """Elements 0 to 15."""
    return _sums(pairs), _emitted(lambda builder, arguments: _widened(builder, arguments[0], _LOW))


@intrinsic
def widened_high(_: Any, pairs: Any) -> Any:
    """Elements 16 to 31."""
    return _sums(pairs), _emitted(lambda builder, arguments: _widened(builder, arguments[0], _HIGH))


@intrinsic
def narrowed(_: Any, low: Any, high: Any) -> Any:
    """Elements 0 to 15 and 16 to 31, rounded to the nearest even one."""

    def emit(builder: Any, arguments: Sequence[Any]) -> Any:
        low, high = (builder.fptrunc(half, _HALF_IR) for half in arguments)
        return _shuffled(builder, low, high, [*_LOW, *_HIGH])

    return _pairs(low, high), _emitted(emit)


def _storing(kind: Any, align: int) -> Callable[[Any, Any, Any, Any], Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, signature, arguments, kind), align=align)
        return context.get_dummy_value()

    return generate


def _place(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), kind.as_pointer())


def _repeated(builder: Any, value: Any, kind: Any) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return _shuffled(builder, single, single, [0] * NUM_SUMS)


def _interleaved(builder: Any, arguments: Sequence[Any], places: range) -> Any:
    left, right = arguments
    return _shuffled(builder, left, right, [at for place in places for at in (place, place + NUM_ELEMENTS)])


def _widened(builder: Any, pairs: Any, places: range) -> Any:
    half = builder.bitcast(_shuffled(builder, pairs, pairs, places), _HALF_BITS_IR)
    bits = builder.shl(builder.zext(half, _BITS_IR), ir.Constant(_BITS_IR, [16] * NUM_SUMS))
    return builder.bitcast(bits, _SUMS_IR)


def _shuffled(builder: Any, left: Any, right: Any, places: Sequence[int]) -> Any:
    word = ir.IntType(32)
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(word, len(places)), [*map(word, places)]))
