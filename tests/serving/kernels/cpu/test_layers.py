"""All layers in one compiled call against the same layers one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorafleet_serving.kernels.cpu.kernels import CpuKernels
from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import ChainedLayers, LayerParts, Rotation
from lorafleet_serving.kernels.weight_format import WeightFormat
from tests.serving.forward import Forward
from tests.serving.random_model import VOCAB_SIZE, write_adapter, write_model

FITTING = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
"""Every product of such a model is compiled."""
FAMILIES = ["llama", "qwen2", "qwen3", "gemma"]
"""Plain, with biases, with normed heads, with GELU and offset norms."""
ENDS = ([60, 9, 1], [61, 10, 2], [63, 11, 3], [64, 12, 4])
"""Of three sequences: prompts, then one token of each, then one of them with two."""


class _LayerByLayer(CpuKernels):
    def chain(self, layers: Sequence[LayerParts]) -> None:
        return None


class _Counted(CpuKernels):
    """Counts the steps that the chain took and those that it left to the layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.taken = self.left = 0
        self.made: ChainedLayers | None = None

    def chain(self, layers: Sequence[LayerParts]) -> ChainedLayers | None:
        self.made = super().chain(layers)
        return None if self.made is None else self._call

    def _call(
        self, x: Tensor, angles: Rotation, caches: Sequence[LayerCache], attention: object, lora: object
    ) -> Tensor | None:
        assert self.made is not None
        added = self.made(x, angles, caches, attention, lora)
        self.taken += added is not None
        self.left += added is None
        return added


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    write_model(folder, request.param, **FITTING)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    dora = {"use_dora": True, "r": 3, "target_modules": ["q_proj", "down_proj"]}
    return {"lora": write_adapter(base, folder / "lora", 1), "dora": write_adapter(base, folder / "dora", 2, **dora)}


def _logits(forward: Forward, adapters: Sequence[str | None]) -> Tensor:
    tokens = [[(7 * i + k) % VOCAB_SIZE for i in range(70)] for k in range(len(adapters))]
    sequences = [forward.sequence(ids, adapter) for ids, adapter in zip(tokens, adapters, strict=True)]
    return torch.cat([forward.logits(sequences, ends[: len(sequences)]) for ends in ENDS])


@pytest.mark.parametrize("form", [WeightFormat.MODEL, WeightFormat.INT8, WeightFormat.NF4])
@pytest.mark.parametrize("who", [[None], ["lora"], [None, "lora", "dora"]])
def test_the_chain_computes_what_the_layers_do(
    base: Path, adapters: dict[str, Path], form: WeightFormat, who: list[str | None]
) -> None:
    if form is WeightFormat.MODEL and not HAS_PAIR_PRODUCTS:
        pytest.skip("this processor has no pair products")
    dtype = torch.bfloat16 if form is WeightFormat.MODEL else torch.float32
    kernels = _Counted(dtype)
    chained = _logits(Forward(base, adapters, kernels, dtype, form), who)
    one_by_one = _logits(Forward(base, adapters, _LayerByLayer(dtype), dtype, form), who)
    assert torch.equal(chained, one_by_one)
    # The prompts have too many rows; with three sequences the step with a second token of one has as well.
    few = 4 if form is WeightFormat.MODEL else 3
    num_left = 1 + (len(who) + 1 > few)
    assert (kernels.taken, kernels.left) == (len(ENDS) - num_left, num_left)


def test_a_model_with_products_of_torch_has_no_chain(base: Path) -> None:
    kernels = _Counted(torch.float32)
    Forward(base, kernels=kernels)
    assert kernels.made is None


def test_few_rows_of_a_long_context_are_left_where_a_prompt_goes_on(base: Path) -> None:
    """Attention of more than a few new tokens over a long context is not computed row by row."""
    kernels = _Counted(torch.float32)
    forward = Forward(base, kernels=kernels, weights=WeightFormat.INT8)
    sequence = forward.sequence([1] * 320)
    forward.logits([sequence], [300])
    forward.logits([sequence], [303])
    forward.logits([sequence], [320])
    assert (kernels.taken, kernels.left) == (1, 2)
