"""Every operator in plain torch: what runs where nothing faster does, and the oracle of every faster form.

No operator knows of requests or adapters' names: rows, slots and segments come prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.attention_plan import AttentionPlan, DecodeGroup, PrefillSpan, plan_attention
from lorafleet_serving.kernels.geometry import LayerCache, StepGeometry
from lorafleet_serving.kernels.lora_weights import LoraWeights
from lorafleet_serving.kernels.operators import Activation, LayerParts, Rotation
from lorafleet_serving.kernels.packed_weight import DenseWeight
from lorafleet_serving.kernels.segments import LoraRun, LoraSegment, segments_at
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import Weight


class ReferenceKernels:
    """The operators in plain torch."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device

    def plan_attention(self, geometry: StepGeometry) -> AttentionPlan:
        """Groups of decodes, and prefills."""
        return plan_attention(geometry, self._dtype, self._device)

    def plan_lora(self, runs: Sequence[LoraRun]) -> Sequence[LoraRun]:
        """Nothing to prepare."""
        return runs

    @property
    def weight_formats(self) -> Sequence[WeightFormat]:
        """Torch has products for others, but not on every device."""
        return (WeightFormat.MODEL,)

    def pack(self, weight: Weight) -> DenseWeight:
        """Written out, whatever the form."""
        return DenseWeight(weight.dense())

    def pack_lora(self, sites: Iterable[LoraWeights | None], num_elements: int) -> Sequence[LoraWeights | None]:
        """As they are."""
        return tuple(sites)

    def chain(self, layers: Sequence[LayerParts]) -> None:
        """Layer by layer."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Statistics and product in fp32, one rounding."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The sum stays in x."""
        return self.rms_norm(x.add_(delta), weight, eps)

    def norm_heads(self, qkv: Tensor, weight: Tensor, eps: float) -> None:
        """Like rows."""
        heads = qkv[:, : weight.shape[0]]
        heads.copy_(self.rms_norm(heads, weight, eps))

    def activate_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Gate first."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate) if activation is Activation.SILU else F.gelu(gate, approximate="tanh")) * up

    def rotate_and_store(self, qkv: Tensor, angles: Rotation, cache: LayerCache, plan: AttentionPlan) -> None:
        """The two halves of what rotates turn against each other."""
        num_kv_heads = cache.keys.shape[0]
        turning = qkv[:, :-num_kv_heads, : angles.cos.shape[-1]]
        first, second = turning.chunk(2, dim=-1)
        cos, sin = angles.cos.unsqueeze(1), angles.sin.unsqueeze(1)
        turning.copy_(turning * cos + torch.cat((second, first), dim=-1) * sin)
        cache.keys.index_copy_(1, plan.slot_mapping, qkv[:, -2 * num_kv_heads : -num_kv_heads].transpose(0, 1))
        cache.values.index_copy_(1, plan.slot_mapping, qkv[:, -num_kv_heads:].transpose(0, 1))

    def paged_attention(self, qkv: Tensor, cache: LayerCache, plan: AttentionPlan, scale: float) -> Tensor:
        """Decodes by group, prefills one by one."""
        query = qkv[:, : -2 * cache.keys.shape[0]]
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in plan.decodes:
            output.index_copy_(0, group.rows, _decode(query.index_select(0, group.rows), cache, group, scale))
        for span in plan.prefills:
            output[span.start : span.end] = prefill_attention(query[span.start : span.end], cache, span, scale)
        return output.view(output.shape[0], -1)

    def likeliest(self, logits: Tensor) -> list[int | None]:
        """The two ends tell for the whole row: NaN is taken for both."""
        highest, places = logits.max(dim=-1)
        finite = torch.isfinite(highest - logits.amin(dim=-1))
        pairs = zip(places.tolist(), finite.tolist(), strict=True)
        return [place if is_finite else None for place, is_finite in pairs]

    def add_lora(self, x: Tensor, y: Tensor, plan: Sequence[LoraRun], site: int) -> None:
        """Run by run, module by module."""
        for segment in segments_at(plan, site):
            add_segment(x, y, segment)


def add_segment(x: Tensor, y: Tensor, segment: LoraSegment) -> None:
    """Add one adapter's part: y[rows, slice] += (x[rows] A.T)[ranks] B.T per merged module, rescaled where it is so."""
    start, end, weights = segment
    v = F.linear(x[start:end], weights.a)
    for part in weights.slices:
        rows = v[:, part.rank_start : part.rank_end]
        outputs = y[start:end, part.out_start : part.out_end].addmm_(rows, part.b.t())
        if part.rescale is not None:
            outputs.copy_(outputs * part.rescale.gain + part.rescale.offset)


def prefill_attention(query: Tensor, cache: LayerCache, span: PrefillSpan, scale: float) -> Tensor:
    """Attention of one sequence's new tokens, [num_new, num_heads, head_dim], over its context."""
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        cache.keys.index_select(1, span.slots).unsqueeze(0),
        cache.values.index_select(1, span.slots).unsqueeze(0),
        attn_mask=span.mask,
        is_causal=span.mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != cache.keys.shape[0],
    )
    return attended.squeeze(0).transpose(0, 1)


def _decode(query: Tensor, cache: LayerCache, group: DecodeGroup, scale: float) -> Tensor:
    num_seqs, num_heads, head_dim = query.shape
    num_kv_heads = cache.keys.shape[0]
    # The heads that share a key head take the place of query positions, so that no key is copied.
    keys = cache.keys.index_select(1, group.slots).view(num_kv_heads * num_seqs, -1, head_dim)
    values = cache.values.index_select(1, group.slots).view(num_kv_heads * num_seqs, -1, head_dim)
    grouped = (query * scale).view(num_seqs, num_kv_heads, -1, head_dim).transpose(0, 1)
    scores = torch.bmm(grouped.reshape(num_kv_heads * num_seqs, -1, head_dim), keys.transpose(1, 2))
    scores = scores.view(num_kv_heads, num_seqs, -1, keys.shape[1]) + group.bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attended = torch.bmm(weights.view(num_kv_heads * num_seqs, -1, keys.shape[1]), values)
    return attended.view(num_kv_heads, num_seqs, -1, head_dim).transpose(0, 1).reshape(num_seqs, num_heads, head_dim)
