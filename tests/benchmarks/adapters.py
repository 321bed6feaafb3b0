"""What all serving benchmarks work on: adapters of the field's common shape, and a prompt."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE

PROMPT = "The quick brown fox jumps over the lazy dog and then"
RANK = 8
MOST_ADAPTERS = 25


def write_adapters(model: Path, folder: Path, number: int = MOST_ADAPTERS, rank: int = RANK) -> dict[str, Path]:
    """Write random adapters on all linear layers, by name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = {}
    for seed in range(number):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False)
        found[f"adapter-{seed}"] = folder / str(seed)
        get_peft_model(base, config).save_pretrained(found[f"adapter-{seed}"])
    return found


def write_many(model: Path, folder: Path, number: int) -> dict[str, Path]:
    """Write as many adapters of the same shape, by name: one as PEFT saves it, the others with other random tensors."""
    first = write_adapters(model, folder, 1)["adapter-0"]
    tensors = load_file(first / WEIGHTS_FILE)
    found = {"adapter-0": first}
    for seed in range(1, number):
        chance = torch.Generator().manual_seed(seed)
        found[f"adapter-{seed}"] = path = folder / str(seed)
        path.mkdir()
        shutil.copyfile(first / CONFIG_FILE, path / CONFIG_FILE)
        moved = {name: tensor * (0.5 + torch.rand(1, generator=chance)) for name, tensor in tensors.items()}
        save_file({name: tensor.to(tensors[name].dtype) for name, tensor in moved.items()}, path / WEIGHTS_FILE)
    return found
