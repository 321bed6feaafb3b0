"""Models with quantized weights against models whose checkpoint holds the values that those stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorafleet_serving.exceptions import InvalidSetting
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import quantize
from lorafleet_serving.models.registry import load_model
from tests.serving.forward import Forward
from tests.serving.kernels.forms import make_kernels
from tests.serving.kernels.test_nf4 import of_bitsandbytes
from tests.serving.random_model import VOCAB_SIZE, write_adapter, write_model

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
STEPS = ([60, 9, 1], [61, 10, 2], [62, 11, 5])
"""Ends of three sequences: many rows, then as few as the products for few rows take, then more again."""
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    # The first has layers that every kernel takes, the second some that none does.
    "fitting": ("llama", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 128}),
    "awkward": ("qwen2", {"tie_word_embeddings": True}),
    "phi": ("phi", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}),
}
FARTHEST = {WeightFormat.INT8: 0.1, WeightFormat.INT4: 0.9, WeightFormat.NF4: 0.9}
"""Logits may be off by so much, of their own size; random models are the worst case."""
MERGED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
KINDS: dict[str, dict[str, object]] = {"lora": {}, "dora": {"use_dora": True, "r": 3}}


def _write_dense(base: Path, folder: Path, form: WeightFormat) -> None:
    """The same model with the values that its quantized weights stand for, module by module."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    tensors = load_file(base / WEIGHTS)
    groups: dict[tuple[str, str], list[str]] = {}
    for name in tensors:
        parent, _, module = name.removesuffix(".weight").rpartition(".")
        if parent.endswith(("self_attn", "mlp")) and name.endswith(".weight"):
            groups.setdefault((parent, MERGED.get(module, module)), []).append(name)
    for names in groups.values():
        # Whether a kernel takes a layer depends on the shape of what is merged.
        merged = torch.cat([tensors[name] for name in names])
        sizes = [tensors[name].shape[0] for name in names]
        for name, part in zip(names, torch.split_with_sizes(quantize(merged, form, sizes).dense(), sizes), strict=True):
            fits = tensors[name].shape[1] % 64 == 0
            tensors[name] = of_bitsandbytes(tensors[name]) if form is WeightFormat.NF4 and fits else part.contiguous()
    # The embedding keeps its values where the head that is tied to it does not.
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    tensors["lm_head.weight"] = quantize(head, form.of_head, (VOCAB_SIZE,)).dense().clone()
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _logits(forward: Forward, adapters: tuple[str | None, ...] = (None, None, None)) -> Tensor:
    tokens = [[(7 * i + k) % VOCAB_SIZE for i in range(70)] for k in range(3)]
    sequences = [forward.sequence(ids, adapter) for ids, adapter in zip(tokens, adapters, strict=True)]
    return torch.cat([forward.logits(sequences, ends) for ends in STEPS])


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    family, options = MODELS[request.param]
    write_model(folder, family, **options)
    return folder


@pytest.mark.parametrize("form", FARTHEST)
def test_logits_are_near_those_of_the_model_as_it_is(base: Path, form: WeightFormat) -> None:
    plain, quantized = _logits(Forward(base)), _logits(Forward(base, weights=form))
    assert 0 < (quantized - plain).norm() / plain.norm() < FARTHEST[form]


@pytest.mark.parametrize("form", FARTHEST)
def test_adapters_lie_on_exactly_the_weights_that_are_served(base: Path, form: WeightFormat, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    _write_dense(base, dense, form)
    adapters = {kind: write_adapter(dense, tmp_path / kind, 3, **options) for kind, options in KINDS.items()}
    mixed = ("lora", None, "dora")
    found, wanted = _logits(Forward(base, adapters, weights=form), mixed), _logits(Forward(dense, adapters), mixed)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("form", FARTHEST)
def test_bf16_serves_every_form(base: Path, form: WeightFormat) -> None:
    plain = _logits(Forward(base, dtype=torch.bfloat16)).float()
    quantized = _logits(Forward(base, dtype=torch.bfloat16, weights=form)).float()
    assert (quantized - plain).norm() / plain.norm() < FARTHEST[form] + 0.05


@pytest.mark.parametrize("form", FARTHEST)
def test_operators_without_a_form_refuse_it_with_the_remedy(base: Path, form: WeightFormat) -> None:
    with pytest.raises(InvalidSetting, match=rf"weights is {form}.*set weights to model, or device to cpu"):
        load_model(base, torch.float32, CPU, make_kernels("reference"), form)
