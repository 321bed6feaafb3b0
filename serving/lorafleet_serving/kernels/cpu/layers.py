"""All layers of a model of Llama's plan in one compiled call, for steps of few rows.

Such a step takes little more than reading the weights. To start its hundreds of operators one by one from Python, and
to share each among the cores, takes as long as half of that again: here one call starts them all, and only products and
attention are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
_LINEAR_WIDTH = _WEIGHT + 2
_QKV, _OUTPUT, _GATE_UP, _DOWN, _LAYER_WIDTH = (_LINEARS + number * _LINEAR_WIDTH for number in range(5))
_NORMED, _PROJECTED, _ATTENDED, _ADDED, _GATED, _ACTIVE, _NUM_BUFFERS = range(7)
"""Buffers of one step: behind a norm, queries with keys and values, attended, what is added to the residual, gate and
up, and behind the activation."""
_KINDS = {panels.linear: 0, int8.linear: 1, nf4.linear: 2}
_PANELS, _INT8, _ = _KINDS.values()
_NO_UNITS = np.empty((0, 3), dtype=np.int64)
_NO_TABLES = np.empty((0, 0, 0), dtype=np.int64)


class _Model(NamedTuple):
    """What does not change from step to step."""

    layers: Ints
    """[num_layers, _LAYER_WIDTH]"""
    buffers: tuple[int, ...]
    """Their addresses."""
    shape: tuple[int, int, int, int]
    """num_heads, num_kv_heads, head_dim, num_slots"""
    num_normed: int
    """Heads that are normalized."""
    eps: float
    is_gelu: bool
    num_parts: int
    """Parts that the outputs of a product are computed in at the same time."""


class _Step(NamedTuple):
    """What does: as `rotation.rotate_and_store`, `attention.paged_decode` and `lora.add_lora` take it."""

    num_rows: int
    cos: int
    sin: int
    rotary_dim: int
    slots: Ints
    rows: Ints
    tables: Ints
    context_lens: Ints
    block_size: int
    units: Ints
    lora_tables: Ints


class CompiledLayers:
    """The layers of one model, with buffers for as many rows as it takes."""

    def __init__(self, tag: Tag, layers: Sequence[LayerParts], products: Sequence[Sequence[CompiledProduct]]) -> None:
        self._tag = tag
        self._parts = layers  # What the addresses in the table are of.
        self._table = np.array([_row(*layer) for layer in zip(layers, products, strict=True)], dtype=np.int64)
        self._most_rows = min(product.most_rows for row in products for product in row)
        self._num_parts = products[0][0].num_parts
        self._caches: Sequence[LayerCache] = ()
        self._buffers: list[Tensor] = []
        self._model: _Model | None = None

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
        if num_rows > self._most_rows or not attention.is_by_rows or (lora is not None and lora.long_runs):
            return None
        if self._model is None or caches is not self._caches:
            self._caches = caches
            self._model = self._bound(x)
        step = _Step(
            num_rows=num_rows,
            cos=angles.cos.data_ptr(),
            sin=angles.sin.data_ptr(),
            rotary_dim=angles.cos.shape[-1],
            slots=attention.slots,
            rows=attention.rows,
            tables=attention.tables,
            context_lens=attention.context_lens,
            block_size=attention.block_size,
            units=_NO_UNITS if lora is None else lora.units,
            lora_tables=_NO_TABLES if lora is None else lora.tables,
        )
        run_layers(self._tag, x.data_ptr(), self._model, step)
        return self._buffers[_ADDED][:num_rows]

    def _bound(self, x: Tensor) -> _Model:
        """The model with its caches, and with new buffers for rows like x."""
        for row, cache in zip(self._table, self._caches, strict=True):
            row[_KEYS], row[_VALUES] = cache.keys.data_ptr(), cache.values.data_ptr()
        first = self._parts[0]
        widths = [0] * _NUM_BUFFERS
        widths[_NORMED] = widths[_ADDED] = x.shape[1]
        widths[_PROJECTED], widths[_ATTENDED] = first.qkv.out_features, first.output.in_features
        widths[_GATED], widths[_ACTIVE] = first.gate_up.out_features, first.down.in_features
        self._buffers = [x.new_empty(self._most_rows, width) for width in widths]
        num_kv_heads, num_slots, head_dim = self._caches[0].keys.shape
        return _Model(
            layers=self._table,
            buffers=tuple(buffer.data_ptr() for buffer in self._buffers),
            shape=(first.output.in_features // head_dim, num_kv_heads, head_dim, num_slots),
            num_normed=0 if first.head_norm is None else first.head_norm.shape[0],
            eps=first.eps,
            is_gelu=first.activation is Activation.GELU_TANH,
            num_parts=self._num_parts,
        )


def _linears(layer: LayerParts) -> tuple[LinearParts, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _row(layer: LayerParts, products: Sequence[CompiledProduct]) -> list[int]:
    head_norm = 0 if layer.head_norm is None else layer.head_norm.data_ptr()
    row = [layer.attention_norm.data_ptr(), head_norm, layer.mlp_norm.data_ptr(), 0, 0]
    for linear, product in zip(_linears(layer), products, strict=True):
        bias = 0 if linear.bias is None else linear.bias.data_ptr()
        row += [_KINDS[product.function], bias, linear.site, linear.in_features, linear.out_features]
        row += [*product.addresses, 0][:2]
    return row


@compiled
def run_layers(tag: Tag, x: int, model: _Model, step: _Step) -> None:
    """Compute all layers; what the last adds to the residual stays in its buffer.

    Args:
        tag: format of all activations.
        x: address of the residual, [num_rows, hidden_size].
        model: what does not change from step to step.
        step: what does.
    """
    for number in range(model.layers.shape[0]):
        _attend(tag, x, number > 0, model.layers[number], model, step)
        _feed_forward(tag, x, model.layers[number], model, step)


@compiled
def _attend(tag: Tag, x: int, is_added: bool, layer: Any, model: _Model, step: _Step) -> None:
    """Attention behind its norm; `is_added` says whether a layer before has left something to add."""
    projected, attended = model.buffers[_PROJECTED], model.buffers[_ATTENDED]
    num_heads, num_kv_heads, head_dim, _ = model.shape
    num_parted = num_heads + 2 * num_kv_heads
    _normalize(tag, x, is_added, layer[_ATTENTION_NORM], layer[_QKV + _IN_FEATURES], model, step)
    _linear(tag, model.buffers[_NORMED], projected, layer[_QKV:], model, step)
    for row in range(step.num_rows):
        if model.num_normed:
            first, eps = row * num_parted, np.float32(model.eps)
            norm.normalize_heads(tag, projected, layer[_HEAD_NORM], first, head_dim, model.num_normed, eps)
        rotation.rotate_and_store_row(
            tag, projected, step.cos, step.sin, step.rotary_dim, layer[_KEYS], layer[_VALUES], row, step.slots[row],
            model.shape,
        )  # fmt: skip
    attention.paged_decode(
        tag, projected, layer[_KEYS], layer[_VALUES], attended, step.rows, step.tables, step.context_lens, model.shape,
        num_parted * head_dim, step.block_size, head_dim**-0.5,
    )  # fmt: skip
    _linear(tag, attended, model.buffers[_ADDED], layer[_OUTPUT:], model, step)


@compiled
def _feed_forward(tag: Tag, x: int, layer: Any, model: _Model, step: _Step) -> None:
    """The feed-forward part behind its norm."""
    gated, active = model.buffers[_GATED], model.buffers[_ACTIVE]
    _normalize(tag, x, True, layer[_MLP_NORM], layer[_GATE_UP + _IN_FEATURES], model, step)
    _linear(tag, model.buffers[_NORMED], gated, layer[_GATE_UP:], model, step)
    for row in range(step.num_rows):
        gate.activate_mul_row(tag, model.is_gelu, gated, active, row, layer[_DOWN + _IN_FEATURES])
    _linear(tag, active, model.buffers[_ADDED], layer[_DOWN:], model, step)


@compiled
def _normalize(tag: Tag, x: int, is_added: bool, weight: int, num_columns: int, model: _Model, step: _Step) -> None:
    """Add what is to be added to the residual, and normalize it."""
    for row in range(step.num_rows):
        if is_added:
            norm.add_row(tag, x, model.buffers[_ADDED], row, num_columns)
        norm.normalize_row(tag, x, weight, model.buffers[_NORMED], row, num_columns, np.float32(model.eps))


@compiled
def _linear(tag: Tag, x: int, y: int, linear: Any, model: _Model, step: _Step) -> None:
    """One linear layer with its adapters."""
    shape = (step.num_rows, linear[_IN_FEATURES], linear[_OUT_FEATURES])
    weight, bias, num_parts = linear[_WEIGHT], linear[_BIAS], model.num_parts
    if linear[_KIND] == _PANELS:
        _multiply_panels(tag, x, weight, bias, y, shape, num_parts)
    elif linear[_KIND] == _INT8:
        int8.linear(tag, x, weight, linear[_WEIGHT + 1], bias, y, shape, num_parts)
    else:
        nf4.linear(tag, x, weight, linear[_WEIGHT + 1], bias, y, shape, num_parts)
    if step.units.shape[0]:
        lora.add_lora(tag, x, y, shape[1], shape[2], step.units, step.lora_tables[linear[_SITE]])


def _multiply_panels(tag: Tag, x: int, weight: int, bias: int, y: int, shape: tuple[int, int, int], n: int) -> None:
    raise NotImplementedError(tag)  # Compiled code takes what `_multiply_panels_of` chooses in its place.


@overload(_multiply_panels, strict=False)
def _multiply_panels_of(tag: Any, x: Any, weight: Any, bias: Any, y: Any, shape: Any, n: Any) -> Any:
    """Where the processor does not have the instruction, no weight lies in panels."""
    if tag == types.uint16 and HAS_PAIR_PRODUCTS:
        return lambda tag, x, weight, bias, y, shape, n: panels.linear(tag, x, weight, bias, y, shape, n)
    return lambda tag, x, weight, bias, y, shape, n: None
