from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.device import resolve_device, resolve_dtype
from lorafleet_serving.exceptions import InvalidSetting
from lorafleet_serving.kernels.weight_format import WeightFormat


@pytest.mark.parametrize(
    "name", ["max_num_seqs", "max_batched_tokens", "block_size", "kv_cache_bytes", "max_model_len", "num_threads"]
)
def test_setting_that_is_not_positive_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        EngineConfig(Path("model"), **{name: 0})  # type: ignore[arg-type]


def test_token_budget_below_the_number_of_sequences_names_both() -> None:
    with pytest.raises(InvalidSetting, match=r"max_batched_tokens is 8.*max_num_seqs 16"):
        EngineConfig(Path("model"), max_num_seqs=16, max_batched_tokens=8)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="warp"):
        resolve_device("warp")
    with pytest.raises(InvalidSetting, match="meta"):
        resolve_device("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_missing_gpu_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="CUDA"):
        resolve_device("cuda")


def test_dtype_is_as_set_or_chosen_for_the_device() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype(DType.FP32, cpu) is torch.float32
    assert resolve_dtype(DType.BF16, cpu) is torch.bfloat16
    assert resolve_dtype(DType.AUTO, cpu) in (torch.float32, torch.bfloat16)


def test_weights_are_the_models_unless_set() -> None:
    assert EngineConfig(Path("model")).weights is WeightFormat.MODEL
    assert EngineConfig(Path("model"), weights="nf4").weights is WeightFormat.NF4  # type: ignore[arg-type]
