"""The operators compiled for the CPU, behind the interface that the layers call.

Long runs go to torch, whose matrix products are the faster the more rows they have, and so do prefills where the
processor does not multiply pairs of bf16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from lorafleet_serving.kernels.attention_plan import block_tables, plan_prefill
from lorafleet_serving.kernels.cpu import attention, gate, likeliest, lora, norm, prefill, rotation
from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
from lorafleet_serving.kernels.cpu.layers import CompiledLayers
from lorafleet_serving.kernels.cpu.packed import OneDnnWeight, PackedInt4, PackedInt8, PackedNf4
from lorafleet_serving.kernels.cpu.packed_lora import pack_sites
from lorafleet_serving.kernels.cpu.plans import CompiledPrefill, CpuAttentionPlan, CpuLoraPlan
from lorafleet_serving.kernels.geometry import LayerCache, Span, StepGeometry
from lorafleet_serving.kernels.lora_table import Ints, LoraLayout
from lorafleet_serving.kernels.lora_weights import LoraWeights, PackedLora
from lorafleet_serving.kernels.nf4 import Nf4Weight
from lorafleet_serving.kernels.operators import Activation, ChainedLayers, LayerParts, Rotation
from lorafleet_serving.kernels.packed_weight import DenseWeight, PackedWeight
from lorafleet_serving.kernels.reference import add_segment, prefill_attention
from lorafleet_serving.kernels.segments import LoraRun, segments_at
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import Int4Weight, Int8Weight, Weight

_CPU = torch.device("cpu")
_PAIRS_ROWS, _PAIRS_WORK = 1024, 100_000
"""Rows of one adapter, and rows by ranks of a site, up to either of which products of pairs are faster than torch's,
for which the panels must be written out each time."""


class _ByRows(NamedTuple):
    """Prefills that are computed row by row, like decodes, since that is faster."""

    num_new: int
    """New tokens up to which all are."""
    num_scores: int
    """Scores of a head, new tokens by context, up to which all are."""

    def takes(self, span: Span) -> bool:
        """Whether a sequence is among them."""
        return span.num_new <= self.num_new or span.num_new * span.context_len <= self.num_scores


_BESIDE_PANELS = _ByRows(num_new=4, num_scores=512)
_BESIDE_TORCH = _ByRows(num_new=8, num_scores=2048)


class CpuKernels:
    """The operators for one number format."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._tag = TAGS[dtype]
        self._packs = dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._has_pairs = dtype is torch.bfloat16 and HAS_PAIR_PRODUCTS
        self._layout = LoraLayout.PANELS if self._has_pairs else LoraLayout.BY_RANK
        self._packed = torch.empty(0, dtype=dtype)
        """Where the context of a prefill is brought into panels; grows with the longest."""
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))

    def plan_attention(self, geometry: StepGeometry) -> CpuAttentionPlan:
        """Decodes and short prefills row by row, by their blocks; long prefills one by one."""
        by_rows = _BESIDE_PANELS if self._has_pairs else _BESIDE_TORCH
        short = [span for span in geometry.spans if by_rows.takes(span)]
        long = [span for span in geometry.spans if not by_rows.takes(span)]
        counts = [span.num_new for span in short]
        return CpuAttentionPlan(
            slots=geometry.new_slots(),
            rows=_ranges([(span.start, span.end) for span in short]),
            tables=block_tables(short, geometry).repeat(counts, axis=0) if short else np.empty((0, 0), dtype=np.int64),
            # The row of a token sees the context up to that token.
            context_lens=_ranges([(span.context_len - span.num_new + 1, span.context_len + 1) for span in short]),
            block_size=geometry.block_size,
            compiled_prefills=tuple(
                CompiledPrefill(span.start, span.num_new, geometry.slots(span, 0)) for span in long if self._has_pairs
            ),
            prefills=tuple(plan_prefill(span, geometry, _CPU) for span in long if not self._has_pairs),
        )

    def plan_lora(self, runs: Sequence[LoraRun]) -> CpuLoraPlan:
        """One table for all sites."""
        # Addresses alone do not tell: in another order the weights would be multiplied by as numbers all the same.
        assert all(run.adapter.addresses.layout in (None, self._layout) for run in runs), (
            f"an adapter's weights do not lie as {self._layout}: bring them through `pack_lora` of these kernels"
        )
        short = [run for run in runs if self._is_compiled(run)]
        tables = [run.adapter.addresses.rows for run in short]
        return CpuLoraPlan(
            units=lora.units_of([(run.start, run.end) for run in short]),
            tables=np.stack(tables, axis=1) if tables else np.empty((0, 0, 0), dtype=np.int64),
            long_runs=tuple(run for run in runs if not self._is_compiled(run)),
        )

    @property
    def weight_formats(self) -> Sequence[WeightFormat]:
        """All there are."""
        return tuple(WeightFormat)

    def pack(self, weight: Weight) -> PackedWeight:
        """In the layout of the product that is fastest for the form."""
        if isinstance(weight, Int8Weight):
            return PackedInt8.of(weight, self._pack_dense(weight.dense()))
        if isinstance(weight, Int4Weight):
            return PackedInt4.of(weight)
        if isinstance(weight, Nf4Weight):
            return PackedNf4.of(weight)
        return self._pack_dense(weight.values)

    def pack_lora(self, sites: Iterable[LoraWeights | None], num_elements: int) -> Sequence[PackedLora | None]:
        """In panels, where the processor multiplies pairs of bf16."""
        return pack_sites(sites, num_elements) if self._has_pairs else tuple(sites)

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

    def rotate_and_store(self, qkv: Tensor, angles: Rotation, cache: LayerCache, plan: CpuAttentionPlan) -> None:
        """Head by head."""
        rotation.rotate_and_store(
            *(self._tag, qkv.data_ptr(), angles.cos.data_ptr(), angles.sin.data_ptr(), angles.cos.shape[-1]),
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
        for part in plan.compiled_prefills:
            self._prefill(qkv, cache, part, out, scale)
        for span in plan.prefills:
            attended = prefill_attention(qkv[span.start : span.end, :num_heads], cache, span, scale)
            out[span.start : span.end] = attended.reshape(span.end - span.start, -1)
        return out

    def likeliest(self, logits: Tensor) -> list[int | None]:
        """In one pass."""
        places = np.empty(logits.shape[0], dtype=np.int64)
        likeliest.likeliest(self._tag, logits.data_ptr(), logits.shape[1], places)
        return [None if place == likeliest.NOT_FINITE else place for place in places.tolist()]

    def add_lora(self, x: Tensor, y: Tensor, plan: CpuLoraPlan, site: int) -> None:
        """Short runs in one call."""
        if plan.units.shape[0]:
            features = (x.shape[1], y.shape[1])
            lora.add_lora(self._tag, x.data_ptr(), y.data_ptr(), *features, plan.units, plan.tables[site])
        if plan.long_runs:  # Most steps have none, and this is called for every site of every layer.
            for segment in segments_at(plan.long_runs, site):
                add_segment(x, y, segment)

    def chain(self, layers: Sequence[LayerParts]) -> ChainedLayers | None:
        """For few rows, where all products are compiled."""
        return CompiledLayers.of(self._tag, layers)

    def _prefill(self, qkv: Tensor, cache: LayerCache, part: CompiledPrefill, out: Tensor, scale: float) -> None:
        shape = _shape(qkv, cache)
        _, num_kv_heads, head_dim, _ = shape
        num_elements = prefill.packed_elements(part.slots.shape[0], num_kv_heads, head_dim)
        if self._packed.numel() < num_elements:
            self._packed = qkv.new_empty(num_elements)
        prefill.paged_prefill(
            *(qkv.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr(), out.data_ptr(), self._packed.data_ptr()),
            *(part.slots, part.first_row, part.num_new, shape, qkv.shape[1] * head_dim, scale, numba.get_num_threads()),
        )

    def _is_compiled(self, run: LoraRun) -> bool:
        """Whether the compiled operator is faster for a run than torch's matrix products."""
        num_rows = run.end - run.start
        if num_rows < lora.LONG_RUN or not self._has_pairs:
            return num_rows < lora.LONG_RUN
        return num_rows <= _PAIRS_ROWS or num_rows * run.adapter.addresses.mean_rank <= _PAIRS_WORK

    def _pack_dense(self, weight: Tensor) -> PackedWeight:
        return OneDnnWeight.of(weight) if self._packs else DenseWeight(weight)


def _shape(qkv: Tensor, cache: LayerCache) -> tuple[int, int, int, int]:
    num_kv_heads, num_slots, head_dim = cache.keys.shape
    return qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, head_dim, num_slots


def _ranges(ends: Sequence[tuple[int, int]]) -> Ints:
    """The numbers of each range, one range behind the other."""
    return np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(first, last) for first, last in ends)])
