"""Adapters merged into one, from the folders of the members to a folder in PEFT's format.

Elements come out as those of PEFT's `add_weighted_adapter`: sqrt(|w s|) goes to A and to B each, s being the member's
scaling and the sign of w s going to A. The merged adapter has scaling 1; PEFT's has sqrt(r) where the first member is
a rank-stabilized one, whose scaling it then counts twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE
from lorafleet_serving.adapters.lora_config import LoraConfig
from lorafleet_serving.adapters.merge_recipe import MajoritySign, MergeMember, MergeRecipe, MergeStrategy
from lorafleet_serving.exceptions import AdapterRefusal

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(embedding_)?(?P<part>[AB])(\.weight)?")


class _Member(NamedTuple):
    """An open adapter."""

    digest: str
    weight: float
    config: LoraConfig
    file: Any
    names: frozenset[str]
    """Names of its factors."""


def merge_adapters(folders: Sequence[Path], recipe: MergeRecipe, target: Path) -> None:
    """Merge the members' folders, in the recipe's order, into the folder `target`.

    Raises:
        AdapterRefusal: they cannot be merged.
        OSError, SafetensorError: a file cannot be read or written.
    """
    with ExitStack() as opened:
        members = [_open(member, folder, opened) for member, folder in zip(recipe.members, folders, strict=True)]
        merged = dict(_merged_tensors(members, recipe))
    save_file(merged, target / WEIGHTS_FILE, metadata={"format": "pt"})
    (target / CONFIG_FILE).write_text(json.dumps(_config(merged)))


def _open(member: MergeMember, folder: Path, opened: ExitStack) -> _Member:
    config = LoraConfig.read(folder / CONFIG_FILE)
    if config.dora:
        raise AdapterRefusal(f"adapter {member.digest} is a DoRA adapter, and only LoRA adapters can be merged")
    file = opened.enter_context(safe_open(folder / WEIGHTS_FILE, framework="pt", device="cpu"))
    # What is no factor is the base model's own table, which came along.
    names = frozenset(name for name in file.keys() if _FACTOR.fullmatch(name))  # noqa: SIM118 - the file is no mapping
    return _Member(member.digest, member.weight, config, file, names)


def _merged_tensors(members: Sequence[_Member], recipe: MergeRecipe) -> Iterator[tuple[str, Tensor]]:
    owners: defaultdict[str, list[_Member]] = defaultdict(list)
    for member in members:
        for name in member.names:
            owners[name].append(member)
    for name in sorted(owners):
        merged = _merge(name, owners[name], recipe, is_single=len(members) == 1)
        if not bool(merged.isfinite().all()):
            told = ", ".join(f"{member.weight:g}" for member in owners[name])
            raise AdapterRefusal(
                f"merged with the weights {told} and the density {recipe.density:g}, {name} is not finite: "
                "give smaller weights, or a higher density where the strategy drops elements"
            )
        yield name, merged


def _merge(name: str, members: Sequence[_Member], recipe: MergeRecipe, *, is_single: bool) -> Tensor:
    tensors = [member.file.get_tensor(name).float() for member in members]
    if len({tensor.shape for tensor in tensors}) > 1:
        ranks = ", ".join(
            f"{min(tensor.shape)} in {member.digest}" for member, tensor in zip(members, tensors, strict=True)
        )
        raise AdapterRefusal(f"the adapters have different ranks at {name} ({ranks}): merge adapters of one rank")
    strategy = MergeStrategy.LINEAR if is_single else recipe.strategy
    if strategy in (MergeStrategy.DARE_LINEAR, MergeStrategy.DARE_TIES):
        tensors = [_drop(tensor, recipe, f"{place} {name}") for place, tensor in enumerate(tensors)]
    elif strategy is MergeStrategy.TIES:
        tensors = [_trim(tensor, recipe.density) for tensor in tensors]
    stacked = torch.stack(tensors)  # [num_members, *shape]
    weights = torch.tensor([_factor_weight(name, member) for member in members]).view(-1, *[1] * tensors[0].dim())
    if strategy in (MergeStrategy.LINEAR, MergeStrategy.DARE_LINEAR):
        return (stacked * weights).sum(dim=0)
    return _merge_agreeing(stacked, weights, recipe.majority_sign)


def _factor_weight(name: str, member: _Member) -> float:
    found = _FACTOR.fullmatch(name)
    assert found is not None, f"{name} is no factor"
    weight = member.weight * member.config.scaling(found["module"])
    root = math.sqrt(abs(weight))
    return -root if weight < 0 and found["part"] == "A" else root


def _trim(tensor: Tensor, density: float) -> Tensor:
    """The elements of largest magnitude, the others zero."""
    if density >= 1.0:
        return tensor
    kept = torch.topk(tensor.abs().flatten(), int(density * tensor.numel())).indices
    mask = torch.zeros(tensor.numel()).index_fill(0, kept, 1.0)
    return tensor * mask.view_as(tensor)


def _drop(tensor: Tensor, recipe: MergeRecipe, place: str) -> Tensor:
    """Elements dropped at random, the others raised so that the expected value stays."""
    if recipe.density >= 1.0:
        return tensor
    return tensor * drop_mask(tensor, recipe, place) / recipe.density


def drop_mask(tensor: Tensor, recipe: MergeRecipe, place: str) -> Tensor:
    """What of a tensor is kept, as ones; each tensor has a random stream of its own, whatever is merged beside it."""
    seed = hashlib.sha256(f"{recipe.seed} {place}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
    return torch.bernoulli(torch.full_like(tensor, recipe.density), generator=generator)


def _merge_agreeing(stacked: Tensor, weights: Tensor, election: MajoritySign) -> Tensor:
    """The mean of the weighted elements whose sign is the elected one."""
    signs = stacked.sign()
    votes = (stacked if election is MajoritySign.TOTAL else signs).sum(dim=0)
    agrees = signs == torch.where(votes >= 0, 1, -1)
    return (stacked * weights * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1.0)


def _config(merged: dict[str, Tensor]) -> dict[str, Any]:
    ranks: dict[str, int] = {}
    for name, tensor in merged.items():
        found = _FACTOR.fullmatch(name)
        if found is not None and found["part"] == "A":
            ranks[found["module"]] = tensor.shape[0]
    if not ranks:
        raise AdapterRefusal("the adapters to merge have no LoRA factors")
    rank = max(ranks.values())
    others = {module: other for module, other in ranks.items() if other != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
    }
