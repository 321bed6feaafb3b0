"""Logits against transformers, for every family and every option that it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.models.registry import load_model
from tests.serving.forward import Forward
from tests.serving.kernels.forms import FORMS, make_kernels
from tests.serving.random_model import VOCAB_SIZE, write_adapter, write_model

CPU = torch.device("cpu")
LENGTHS = (90, 17, 33)
STEPS = ([60, 9, 1], [61, 10, 2], [80, 11, 3], [81, 12, 30], [82, 13, 31], [90, 17, 33])
"""Ends of three sequences: prefill, decode, a chunk behind a cached context beside decodes, and decodes alone."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama-full-heads": ("llama", {"num_key_value_heads": 6}),
    "llama-one-key-head": ("llama", {"num_key_value_heads": 1}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "llama-own-head-dim": ("llama", {"head_dim": 16}),
    "llama-rope-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama-rope-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-rope-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-norm-eps": ("llama", {"rms_norm_eps": 1e-2}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 100}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-window": ("qwen2", {"tie_word_embeddings": True, **SLIDING}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3-biased-window": ("qwen3", {"head_dim": 16, "attention_bias": True, **SLIDING}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma-one-key-head": ("gemma", {"head_dim": 8, "num_key_value_heads": 1}),
    "phi": ("phi", {"partial_rotary_factor": 0.5, "num_key_value_heads": 6}),
    "phi-grouped-heads": ("phi", {"partial_rotary_factor": 0.25, "hidden_size": 96}),
}
FAMILIES = {name: variant for name, variant in VARIANTS.items() if "-" not in name}


def _tokens() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


def _theirs(model: Any) -> Tensor:
    """Logits of transformers at each end of each step: [num_steps, num_sequences, vocab_size]."""
    with torch.inference_mode():
        rows = [model(torch.tensor([tokens])).logits[0] for tokens in _tokens()]
    return torch.stack([torch.stack([row[end - 1] for row, end in zip(rows, ends, strict=True)]) for ends in STEPS])


def _ours(forward: Forward, adapter: str | None = None) -> Tensor:
    sequences = [forward.sequence(tokens, adapter) for tokens in _tokens()]
    return torch.stack([forward.logits(sequences, ends) for ends in STEPS])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("family", "options"), VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_transformers_through_chunks_and_decodes(
    family: str, options: dict[str, object], form: str, tmp_path: Path
) -> None:
    theirs = _theirs(write_model(tmp_path, family, **options))
    ours = _ours(Forward(tmp_path, kernels=make_kernels(form)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("family", "options"), FAMILIES.values(), ids=FAMILIES)
def test_bf16_is_as_near_to_fp32_as_transformers_is(
    family: str, options: dict[str, object], form: str, tmp_path: Path
) -> None:
    exact = _theirs(write_model(tmp_path, family, **options))
    theirs = _theirs(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16))
    ours = _ours(Forward(tmp_path, kernels=make_kernels(form, torch.bfloat16), dtype=torch.bfloat16))
    assert (ours - exact).abs().mean() <= 2 * (theirs - exact).abs().mean()
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("family", "options"), FAMILIES.values(), ids=FAMILIES)
def test_an_adapter_on_every_linear_layer_answers_as_in_peft(
    family: str, options: dict[str, object], form: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = write_model(tmp_path / "base", family, **options)
    folder = write_adapter(tmp_path / "base", tmp_path / "adapter")
    ours = _ours(Forward(tmp_path / "base", {"a": folder}, kernels=make_kernels(form)), adapter="a")
    torch.testing.assert_close(ours, _theirs(PeftModel.from_pretrained(model, folder)), atol=3e-4, rtol=1e-3)


def test_sequences_end_where_the_window_would_begin_to_matter(tmp_path: Path) -> None:
    write_model(tmp_path, "mistral", sliding_window=100)
    assert load_model(tmp_path, torch.float32, CPU).max_positions == 100


@pytest.mark.parametrize(
    ("family", "options", "name"),
    [
        ("gemma", {"head_dim": 8, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen2", {"hidden_act": "relu"}, "hidden_act"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi3", {}, "Phi3ForCausalLM"),
        ("gemma2", {"head_dim": 8}, "Gemma2ForCausalLM"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    family: str, options: dict[str, object], name: str, tmp_path: Path
) -> None:
    write_model(tmp_path, family, **options)
    with pytest.raises(UnsupportedModel, match=name):
        load_model(tmp_path, torch.float32, CPU)
