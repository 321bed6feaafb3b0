"""The operators compiled for the CPU, behind the interface that the layers call.

Long runs and prefills go to torch, whose matrix products are the faster the more rows they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.attention_plan import PrefillSpan, block_tables, plan_prefills
from lorafleet_serving.kernels.cpu import attention, gate, lora, norm
from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.geometry import LayerCache, StepGeometry
from lorafleet_serving.kernels.lora_table import Ints
from lorafleet_serving.kernels.operators import Activation, Rotation
from lorafleet_serving.kernels.reference import add_segment, prefill_attention
from lorafleet_serving.kernels.segments import LoraRun, segments_at

_CPU = torch.device("cpu")
_PACKED_FOR_ROWS = 32
"""Rows that the packed layout is chosen for; it serves one row, and a thousand, as well."""
_LONG_RUN = 64
"""Rows of one adapter from which on torch's matrix products are faster."""


class CpuAttentionPlan(NamedTuple):
    """The attention of one step."""

    slots: Ints
    """[num_tokens] slot that each row's key and value go to"""
    rows: Ints
    """[num_decodes] rows of the sequences with one new token"""
    tables: Ints
    """[num_decodes, num_blocks] their blocks"""
    context_lens: Ints
    """[num_decodes]"""
    block_size: int
    prefills: tuple[PrefillSpan, ...]


class CpuLoraPlan(NamedTuple):
    """The adapters of one step."""

    units: Ints
    """[num_units, 3] what `lora.units_of` gave for the short runs"""
    tables: Ints
    """[num_sites, num_short_runs, ROW_WIDTH]"""
    long_runs: tuple[LoraRun, ...]


class CpuKernels:
    """The operators for one number format."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._tag = TAGS[dtype]
        self._packs = dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))

    def plan_attention(self, geometry: StepGeometry) -> CpuAttentionPlan:
        """Block tables of the decodes; prefills as torch wants them."""
        decodes = [span for span in geometry.spans if span.num_new == 1]
        return CpuAttentionPlan(
            slots=geometry.new_slots(),
            rows=np.array([span.start for span in decodes], dtype=np.int64),
            tables=block_tables(decodes, geometry) if decodes else np.empty((0, 0), dtype=np.int64),
            context_lens=np.array([span.context_len for span in decodes], dtype=np.int64),
            block_size=geometry.block_size,
            prefills=plan_prefills(geometry, _CPU),
        )

    def plan_lora(self, runs: Sequence[LoraRun]) -> CpuLoraPlan:
        """One table for all sites."""
        short = [run for run in runs if run.end - run.start < _LONG_RUN]
        tables = [run.adapter.addresses for run in short]
        return CpuLoraPlan(
            units=lora.units_of([(run.start, run.end) for run in short]),
            tables=np.stack(tables, axis=1) if tables else np.empty((0, 0, 0), dtype=np.int64),
            long_runs=tuple(run for run in runs if run.end - run.start >= _LONG_RUN),
        )

    def pack(self, weight: Tensor) -> Tensor:
        """In oneDNN's own layout, which saves it the rearranging at each call."""
        if not self._packs:
            return weight
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        return packed

    def linear(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        """One matrix product."""
        if not packed.is_mkldnn:
            return F.linear(x, packed, bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """In one pass over the row."""
        out = torch.empty_like(x)
        norm.rms_norm(self._tag, x.data_ptr(), weight.data_ptr(), out.data_ptr(), *x.shape, eps)
        return out

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The sum stays in x."""
        out = torch.empty_like(x)
        addresses = (x.data_ptr(), delta.data_ptr(), weight.data_ptr(), out.data_ptr())
        norm.add_rms_norm(self._tag, *addresses, *x.shape, eps)
        return out

    def norm_heads(self, qkv: Tensor, weight: Tensor, eps: float) -> None:
        """In place."""
        norm.norm_heads(self._tag, qkv.data_ptr(), weight.data_ptr(), *qkv.shape, weight.shape[0], eps)

    def activate_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Gate first."""
        num_rows, inner_size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(num_rows, inner_size)
        is_gelu = activation is Activation.GELU_TANH
        gate.activate_mul(self._tag, is_gelu, gate_up.data_ptr(), out.data_ptr(), num_rows, inner_size)
        return out

    def rotate_and_store(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, plan: CpuAttentionPlan) -> None:
        """Head by head."""
        attention.rotate_and_store(
            *(self._tag, qkv.data_ptr(), rotation.cos.data_ptr(), rotation.sin.data_ptr(), rotation.cos.shape[-1]),
            *(cache.keys.data_ptr(), cache.values.data_ptr(), plan.slots, _shape(qkv, cache)),
        )

    def paged_attention(self, qkv: Tensor, cache: LayerCache, plan: CpuAttentionPlan, scale: float) -> Tensor:
        """Decodes straight from the blocks, prefills one by one."""
        shape = _shape(qkv, cache)
        num_heads, _, head_dim, _ = shape
        out = qkv.new_empty(qkv.shape[0], num_heads * head_dim)
        if plan.rows.shape[0]:
            attention.paged_decode(
                *(self._tag, qkv.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr(), out.data_ptr()),
                *(plan.rows, plan.tables, plan.context_lens, shape, qkv.shape[1] * head_dim, plan.block_size, scale),
            )
        for span in plan.prefills:
            attended = prefill_attention(qkv[span.start : span.end, :num_heads], cache, span, scale)
            out[span.start : span.end] = attended.reshape(span.end - span.start, -1)
        return out

    def add_lora(self, x: Tensor, y: Tensor, plan: CpuLoraPlan, site: int) -> None:
        """Short runs in one call."""
        if plan.units.shape[0]:
            features = (x.shape[1], y.shape[1])
            lora.add_lora(self._tag, x.data_ptr(), y.data_ptr(), *features, plan.units, plan.tables[site])
        for segment in segments_at(plan.long_runs, site):
            add_segment(x, y, segment)


def _shape(qkv: Tensor, cache: LayerCache) -> tuple[int, int, int, int]:
    num_kv_heads, num_slots, head_dim = cache.keys.shape
    return qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, head_dim, num_slots
