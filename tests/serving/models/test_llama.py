"""Logits against transformers, for every option that the family serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.models.registry import load_model
from tests.serving.forward import Forward
from tests.serving.kernels.forms import FORMS, make_kernels
from tests.serving.llama_model import VOCAB_SIZE, write_llama

CPU = torch.device("cpu")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, object]] = {
    "grouped-heads": {},
    "full-heads": {"num_key_value_heads": 6},
    "one-key-head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "own-head-dim": {"head_dim": 16},
    "rope-theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope-llama3": {"rope_parameters": LLAMA3_ROPE},
    "norm-eps": {"rms_norm_eps": 1e-2},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_transformers_through_chunks_and_decodes(
    options: dict[str, object], form: str, tmp_path: Path
) -> None:
    oracle = write_llama(tmp_path, **options)
    forward = Forward(tmp_path, kernels=make_kernels(form))
    generator = torch.Generator().manual_seed(1)
    lengths = (90, 17, 33)
    tokens = [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    with torch.inference_mode():
        expected = [oracle(torch.tensor([row])).logits[0] for row in tokens]
    sequences = [forward.sequence(row) for row in tokens]
    # Prefill, decode, a chunk behind a cached context beside decodes of other lengths, and decodes alone.
    for ends in ([60, 9, 1], [61, 10, 2], [80, 11, 3], [81, 12, 30], [82, 13, 31], [90, 17, 33]):
        logits = forward.logits(sequences, ends)
        wanted = torch.stack([rows[end - 1] for rows, end in zip(expected, ends, strict=True)])
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


def test_sites_are_numbered_in_order_and_named_as_in_the_checkpoint(tmp_path: Path) -> None:
    write_llama(tmp_path)
    sites = load_model(tmp_path, torch.float32, CPU).sites
    assert [site.index for site in sites] == list(range(8))
    names = [site.module_name(position) for site in sites for position in range(len(site.modules))]
    assert names[:4] == [f"model.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "o")]
    assert names[-1] == "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "dynamic"),
    ],
)
def test_unserved_option_is_refused_by_name(options: dict[str, object], name: str, tmp_path: Path) -> None:
    write_llama(tmp_path, **options)
    with pytest.raises(UnsupportedModel, match=name):
        load_model(tmp_path, torch.float32, CPU)
