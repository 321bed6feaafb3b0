"""All layers of a model of Llama's plan in one compiled call, for steps of few rows.

Such a step takes little more than reading the weights. To start its hundreds of operators one by one from Python, and
to share each among the cores, takes as long as half of that again: here one call starts them all, and only products and
attention are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from torch import Tensor

from lorafleet_serving.kernels.cpu import attention, gate, int8, lora, nf4, norm, panels, rotation
from lorafleet_serving.kernels.cpu.element import Tag, compiled
from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
from lorafleet_serving.kernels.cpu.packed import CompiledProduct, product_of_few_rows
from lorafleet_serving.kernels.cpu.plans import CpuAttentionPlan, CpuLoraPlan
from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.lora_table import Ints
from lorafleet_serving.kernels.operators import Activation, LayerParts, LinearParts, Rotation

_ATTENTION_NORM, _HEAD_NORM, _MLP_NORM, _KEYS, _VALUES, _LINEARS = range(6)
"""Columns of a layer: addresses, 0 where there is no such thing; then its four linear layers."""
_KIND, _BIAS, _SITE, _IN_FEATURES, _OUT_FEATURES, _WEIGHT = range(6)
"""Columns of a linear layer; the addresses of its weight last."""
_LINEAR_WIDTH = _WEIGHT + 3
_QKV, _OUTPUT, _GATE_UP, _DOWN, _LAYER_WIDTH = (_LINEARS + number * _LINEAR_WIDTH for number in range(5))
_NORMED, _PROJECTED, _ATTENDED, _ADDED, _GATED, _ACTIVE, _NUM_BUFFERS = range(7)
"""Buffers of one step: behind a norm, queries with keys and values, attended, what is added to the residual, gate and
up, and behind the activation."""
_KINDS = {panels.linear: 0, int8.linear: 1, nf4.linear: 2}
_PANELS, _INT8, _ = _KINDS.values()
_NO_UNITS = np.empty((0, 3), dtype=np.int64)
_NO_TABLES = np.empty((0, 0, 0), dtype=np.int64)


class CompiledLayers:
    """The layers of one model, with buffers for as many rows as it takes."""

    def __init__(self, tag: Tag, layers: Sequence[LayerParts], products: Sequence[Sequence[CompiledProduct]]) -> None:
        first = layers[0]
        self._tag = tag
        self._parts = layers  # What the addresses in the table are of.
        self._table = np.array([_row(*layer) for layer in zip(layers, products, strict=True)], dtype=np.int64)
        self._most_rows = min(product.most_rows for row in products for product in row)
        self._num_parts = products[0][0].num_parts
        self._head_dim = first.head_dim
        self._num_heads = first.output.in_features // first.head_dim
        self._num_normed = 0 if first.head_norm is None else first.head_norm.shape[0]
        self._eps = first.eps
        self._is_gelu = first.activation is Activation.GELU_TANH
        self._caches: Sequence[LayerCache] = ()
        self._buffers: list[Tensor] = []

    @classmethod
    def of(cls, tag: Tag, layers: Sequence[LayerParts]) -> CompiledLayers | None:
        """None where the product of a layer is not compiled."""
        products = []
        for layer in layers:
            found = [product_of_few_rows(linear.weight) for linear in _linears(layer)]
            products.append([product for product in found if product is not None])
        is_whole = all(len(row) == len(_linears(layer)) for row, layer in zip(products, layers, strict=True))
        return cls(tag, layers, products) if is_whole else None

    def __call__(
        self,
        x: Tensor,
        angles: Rotation,
        caches: Sequence[LayerCache],
        attention: CpuAttentionPlan,
        lora: CpuLoraPlan | None,
    ) -> Tensor | None:
        """For few rows, whose attention and adapters are computed row by row."""
        num_rows = x.shape[0]
        if num_rows > self._most_rows or attention.prefills or (lora is not None and lora.long_runs):
            return None
        if caches is not self._caches:
            self._bind(x, caches)
        num_kv_heads, num_slots, _ = caches[0].keys.shape
        run_layers(
            *(self._tag, self._table, x.data_ptr(), num_rows, self._addresses, self._eps, self._is_gelu),
            *(angles.cos.data_ptr(), angles.sin.data_ptr(), angles.cos.shape[-1], self._num_normed),
            *(attention.slots, attention.rows, attention.tables, attention.context_lens, attention.block_size),
            (self._num_heads, num_kv_heads, self._head_dim, num_slots),
            *((_NO_UNITS, _NO_TABLES) if lora is None else (lora.units, lora.tables)),
            self._num_parts,
        )
        return self._buffers[_ADDED][:num_rows]

    def _bind(self, x: Tensor, caches: Sequence[LayerCache]) -> None:
        """Note where the caches lie, and make the buffers."""
        for row, cache in zip(self._table, caches, strict=True):
            row[_KEYS], row[_VALUES] = cache.keys.data_ptr(), cache.values.data_ptr()
        first = self._parts[0]
        widths = [0] * _NUM_BUFFERS
        widths[_NORMED] = widths[_ADDED] = x.shape[1]
        widths[_PROJECTED], widths[_ATTENDED] = first.qkv.out_features, first.output.in_features
        widths[_GATED], widths[_ACTIVE] = first.gate_up.out_features, first.down.in_features
        self._buffers = [x.new_empty(self._most_rows, width) for width in widths]
        self._addresses = tuple(buffer.data_ptr() for buffer in self._buffers)
        self._caches = caches


def _linears(layer: LayerParts) -> tuple[LinearParts, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _row(layer: LayerParts, products: Sequence[CompiledProduct]) -> list[int]:
    head_norm = 0 if layer.head_norm is None else layer.head_norm.data_ptr()
    row = [layer.attention_norm.data_ptr(), head_norm, layer.mlp_norm.data_ptr(), 0, 0]
    for linear, product in zip(_linears(layer), products, strict=True):
        bias = 0 if linear.bias is None else linear.bias.data_ptr()
        row += [_KINDS[product.function], bias, linear.site, linear.in_features, linear.out_features]
        row += [*product.addresses, 0, 0][:3]
    return row


@compiled
def run_layers(
    tag: Tag,
    layers: Ints,
    x: int,
    num_rows: int,
    buffers: tuple[int, int, int, int, int, int],
    eps: float,
    is_gelu: bool,
    cos: int,
    sin: int,
    rotary_dim: int,
    num_normed: int,
    slots: Ints,
    rows: Ints,
    tables: Ints,
    context_lens: Ints,
    block_size: int,
    shape: tuple[int, int, int, int],
    units: Ints,
    lora_tables: Ints,
    num_parts: int,
) -> None:
    """Compute all layers; what the last adds to the residual stays in its buffer.

    Args:
        tag: format of all activations.
        layers: [num_layers, _LAYER_WIDTH]
        x: address of the residual, [num_rows, hidden_size].
        num_rows: rows of the step.
        buffers: their addresses.
        eps: of all norms.
        is_gelu: as for `gate.activate_mul`.
        cos: as for `rotation.rotate_and_store`, like sin, rotary_dim, slots and shape.
        num_normed: heads that are normalized.
        rows: as for `attention.paged_decode`, like tables, context_lens and block_size.
        units: as for `lora.add_lora`.
        lora_tables: its tables by site.
        num_parts: parts that the outputs of a product are computed in at the same time.
    """
    hidden_size = layers[0, _QKV + _IN_FEATURES]
    num_heads, num_kv_heads, head_dim, _ = shape
    num_parted = num_heads + 2 * num_kv_heads
    scale = head_dim**-0.5
    normed, projected, attended, added = buffers[_NORMED], buffers[_PROJECTED], buffers[_ATTENDED], buffers[_ADDED]
    gated, active = buffers[_GATED], buffers[_ACTIVE]
    for number in range(layers.shape[0]):
        layer = layers[number]
        keys, values = layer[_KEYS], layer[_VALUES]
        for row in range(num_rows):
            if number:
                norm.add_row(tag, x, added, row, hidden_size)
            norm.normalize_row(tag, x, layer[_ATTENTION_NORM], normed, row, hidden_size, np.float32(eps))
        _linear(tag, normed, projected, num_rows, layer[_QKV:], units, lora_tables, num_parts)
        for row in range(num_rows):
            if num_normed:
                norm.normalize_heads(
                    tag, projected, layer[_HEAD_NORM], row * num_parted, head_dim, num_normed, np.float32(eps)
                )
            rotation.rotate_and_store_row(tag, projected, cos, sin, rotary_dim, keys, values, row, slots[row], shape)
        attention.paged_decode(
            tag, projected, keys, values, attended, rows, tables, context_lens, shape, num_parted * head_dim,
            block_size, scale,
        )  # fmt: skip
        _linear(tag, attended, added, num_rows, layer[_OUTPUT:], units, lora_tables, num_parts)
        for row in range(num_rows):
            norm.add_row(tag, x, added, row, hidden_size)
            norm.normalize_row(tag, x, layer[_MLP_NORM], normed, row, hidden_size, np.float32(eps))
        _linear(tag, normed, gated, num_rows, layer[_GATE_UP:], units, lora_tables, num_parts)
        for row in range(num_rows):
            gate.activate_mul_row(tag, is_gelu, gated, active, row, layer[_DOWN + _IN_FEATURES])
        _linear(tag, active, added, num_rows, layer[_DOWN:], units, lora_tables, num_parts)


@compiled
def _linear(
    tag: Tag, x: int, y: int, num_rows: int, linear: Any, units: Ints, lora_tables: Ints, num_parts: int
) -> None:
    """One linear layer with its adapters."""
    shape = (num_rows, linear[_IN_FEATURES], linear[_OUT_FEATURES])
    if linear[_KIND] == _PANELS:
        _multiply_panels(tag, x, linear[_WEIGHT], linear[_BIAS], y, shape, num_parts)
    elif linear[_KIND] == _INT8:
        scales, input_scales = linear[_WEIGHT + 1], linear[_WEIGHT + 2]
        int8.linear(tag, x, linear[_WEIGHT], scales, input_scales, linear[_BIAS], y, shape, num_parts)
    else:
        nf4.linear(tag, x, linear[_WEIGHT], linear[_WEIGHT + 1], linear[_BIAS], y, shape, num_parts)
    if units.shape[0]:
        lora.add_lora(tag, x, y, shape[1], shape[2], units, lora_tables[linear[_SITE]])


def _multiply_panels(tag: Tag, x: int, weight: int, bias: int, y: int, shape: tuple[int, int, int], n: int) -> None:
    raise NotImplementedError(tag)  # Compiled code takes what `_multiply_panels_of` chooses in its place.


@overload(_multiply_panels, strict=False)
def _multiply_panels_of(tag: Any, x: Any, weight: Any, bias: Any, y: Any, shape: Any, n: Any) -> Any:
    """Where the processor does not have the instruction, no weight lies in panels."""
    if tag == types.uint16 and HAS_PAIR_PRODUCTS:
        return lambda tag, x, weight, bias, y, shape, n: panels.linear(tag, x, weight, bias, y, shape, n)
    return lambda tag, x, weight, bias, y, shape, n: None
