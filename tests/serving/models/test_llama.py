from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.models.registry import load_model
from tests.serving.random_model import write_llama

CPU = torch.device("cpu")


def test_sites_are_numbered_in_order_and_named_as_in_the_checkpoint(tmp_path: Path) -> None:
    write_llama(tmp_path)
    sites = [linear.site for linear in load_model(tmp_path, torch.float32, CPU).linears]
    assert [site.index for site in sites] == list(range(9))
    names = [site.module_name(position) for site in sites for position in range(len(site.modules))]
    assert names[:4] == [f"model.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "o")]
    assert names[-2:] == ["model.layers.1.mlp.down_proj", "lm_head"]


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
