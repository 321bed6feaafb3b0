"""What all serving benchmarks work on: adapters of the field's common shape, and a prompt."""

from __future__ import annotations

from pathlib import Path

import torch

PROMPT = "The quick brown fox jumps over the lazy dog and then"
RANK = 8
MOST_ADAPTERS = 25


def write_adapters(model: Path, folder: Path) -> dict[str, Path]:
    """Write random adapters on all linear layers, by name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = {}
    for number in range(MOST_ADAPTERS):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=False)
        found[f"adapter-{number}"] = folder / str(number)
        get_peft_model(base, config).save_pretrained(found[f"adapter-{number}"])
    return found
