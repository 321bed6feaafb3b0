"""What every form of the operators offers: plain torch, compiled for the CPU, compiled for the GPU.

A step is planned once, by the form that computes it; the layers hand the plans on without looking inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lorafleet_serving.kernels.geometry import LayerCache, StepGeometry
from lorafleet_serving.kernels.lora_weights import LoraWeights, PackedLora
from lorafleet_serving.kernels.packed_weight import PackedWeight
from lorafleet_serving.kernels.segments import LoraRun
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import Weight


class Activation(StrEnum):
    """Functions between the two halves of a feed-forward layer."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    """GELU by its tanh approximation."""


class Rotation(NamedTuple):
    """Angles of the rows of one step, the same for all layers. The first `rotary_dim` dimensions of a head rotate."""

    cos: Tensor
    """[num_tokens, rotary_dim]"""
    sin: Tensor
    """[num_tokens, rotary_dim], the first half negated"""


class LinearParts(NamedTuple):
    """A linear layer, by what is read to compute it."""

    weight: PackedWeight
    bias: Tensor | None
    site: int
    """Index of the site that adapters attach to."""
    in_features: int
    out_features: int


class LayerParts(NamedTuple):
    """A layer of Llama's plan: attention, then feed-forward, each behind a norm and beside a residual."""

    attention_norm: Tensor
    """[hidden_size] in fp32"""
    qkv: LinearParts
    head_norm: Tensor | None
    """[num_normed, head_dim] in fp32"""
    output: LinearParts
    mlp_norm: Tensor
    """[hidden_size] in fp32"""
    gate_up: LinearParts
    down: LinearParts
    eps: float
    """Of all norms."""
    activation: Activation


class ChainedLayers(Protocol):
    """All layers of a model in one call."""

    def __call__(
        self, x: Tensor, angles: Rotation, caches: Sequence[LayerCache], attention: Any, lora: Any
    ) -> Tensor | None:
        """Add to [num_tokens, hidden_size] in place, and return the last part, which the next norm is to add.

        The part is overwritten by the next call. Steps that it is not for, it leaves to the layers: None.
        """
        ...


class Kernels(Protocol):
    """One form of every operator. `reference` says in plain torch what each must compute."""

    def plan_attention(self, geometry: StepGeometry) -> Any:
        """Prepare the attention of a step."""
        ...

    def plan_lora(self, runs: Sequence[LoraRun]) -> Any:
        """Prepare the adapters of a step; `runs` is not empty."""
        ...

    @property
    def weight_formats(self) -> Sequence[WeightFormat]:
        """Forms of weights that are multiplied by as they are held."""
        ...

    def pack(self, weight: Weight) -> PackedWeight:
        """The weight of a linear layer, ready to be multiplied by."""
        ...

    def pack_lora(self, sites: Iterable[LoraWeights | None], num_elements: int) -> Sequence[PackedLora | None]:
        """The weights of an adapter by site, ready to be multiplied by. Any thread may ask.

        A site is let go of before the next is asked for. Of A and B, all sites together have `num_elements`.
        """
        ...

    def chain(self, layers: Sequence[LayerParts]) -> ChainedLayers | None:
        """What computes all layers in one call, where there is such a thing."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """weight * x / rms(x) over the last dimension of [num_rows, hidden_size]; weight in fp32."""
        ...

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add delta to x in place, and normalize the sum."""
        ...

    def norm_heads(self, qkv: Tensor, weight: Tensor, eps: float) -> None:
        """Normalize the first heads of each row in place, each by its own root mean square.

        `qkv` is [num_tokens, heads, head_dim]; `weight` is [num_normed, head_dim] in fp32.
        """
        ...

    def activate_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up, of [num_tokens, 2 * inner_size], gate first."""
        ...

    def rotate_and_store(self, qkv: Tensor, angles: Rotation, cache: LayerCache, plan: Any) -> None:
        """Rotate queries and keys in place, and write the step's keys and values into the cache.

        `qkv` is [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: queries, keys, values.
        """
        ...

    def paged_attention(self, qkv: Tensor, cache: LayerCache, plan: Any, scale: float) -> Tensor:
        """Causal attention of every row over its own sequence's context: [num_tokens, num_heads * head_dim].

        The step's own keys and values are in the cache.
        """
        ...

    def likeliest(self, logits: Tensor) -> list[int | None]:
        """Place of a highest number of each row of [num_rows, num_columns]; None for a row that is not finite."""
        ...

    def add_lora(self, x: Tensor, y: Tensor, plan: Any, site: int) -> None:
        """y[rows] += x[rows] A.T B.T for every run of rows with an adapter at a site, then rescaled where it is so."""
        ...
