"""Tokens that end an answer, as the base model's folder declares them."""

from __future__ import annotations

import json
from pathlib import Path

_FILES = ("generation_config.json", "config.json")


def read_eos_token_ids(folder: Path) -> frozenset[int]:
    """End tokens of a model; empty if it declares none."""
    for name in _FILES:
        path = folder / name
        if path.is_file():
            declared = json.loads(path.read_text()).get("eos_token_id")
            if declared is not None:
                return frozenset([declared] if isinstance(declared, int) else declared)
    return frozenset()
