from __future__ import annotations

import pytest
import torch

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.layers.rotary import RotaryEmbedding

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
CPU = torch.device("cpu")


def rotate(x: torch.Tensor, table: RotaryEmbedding, position: int) -> torch.Tensor:
    """Rotate a head at a position."""
    cos, sin = table.rotation(torch.tensor([position]))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


def make(parameters: dict[str, object], head_dim: int = 8) -> RotaryEmbedding:
    return RotaryEmbedding(parameters, head_dim, 64, torch.float32, CPU)


def test_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 8), torch.randn(1, 8)
    table = make(DEFAULT)
    scores = [(rotate(query, table, q) * rotate(key, table, k)).sum() for q, k in ((5, 2), (40, 37), (63, 60))]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_first_position_is_not_rotated() -> None:
    x = torch.randn(1, 8)
    torch.testing.assert_close(rotate(x, make(DEFAULT), 0), x)


def test_linear_scaling_stretches_positions() -> None:
    scaled = make({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    torch.testing.assert_close(scaled.rotation(torch.tensor([12])), make(DEFAULT).rotation(torch.tensor([3])))


def test_a_part_of_a_head_rotates_like_a_smaller_head() -> None:
    part = make({**DEFAULT, "partial_rotary_factor": 0.5}, head_dim=16)
    torch.testing.assert_close(part.rotation(torch.tensor([7])), make(DEFAULT, head_dim=8).rotation(torch.tensor([7])))


def test_unserved_scaling_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="yarn"):
        make({"rope_type": "yarn", "rope_theta": 10000.0})
