"""Merged adapters against PEFT's `add_weighted_adapter`: tensors, and the tokens that they lead to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorafleet_serving.adapters.lora_config import LoraConfig
from lorafleet_serving.adapters.merge import drop_mask, merge_adapters
from lorafleet_serving.adapters.merge_recipe import MajoritySign, MergeMember, MergeRecipe, MergeStrategy
from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.exceptions import AdapterRefusal
from tests.serving.random_model import peft_answers, quiet_peft, write_adapter, write_llama

ADAPTERS: dict[str, dict[str, object]] = {
    "all": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8},
    "few": {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 2},
    "stabilized": {"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterned": {
        "target_modules": ["q_proj", "k_proj"],
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"q_proj": 7},
    },
    "head": {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "r": 4, "lora_alpha": 4},
}
MERGES: dict[str, tuple[tuple[tuple[str, float], ...], MergeStrategy, float, MajoritySign]] = {
    "linear": ((("all", 0.7), ("few", 0.4)), MergeStrategy.LINEAR, 1.0, MajoritySign.TOTAL),
    "linear-negative": ((("all", 1.0), ("few", -0.6)), MergeStrategy.LINEAR, 1.0, MajoritySign.TOTAL),
    "linear-rslora": ((("all", 0.5), ("stabilized", 0.5)), MergeStrategy.LINEAR, 1.0, MajoritySign.TOTAL),
    "linear-head": ((("few", 0.5), ("head", 0.8)), MergeStrategy.LINEAR, 1.0, MajoritySign.TOTAL),
    "linear-patterned": ((("few", 0.5), ("patterned", 0.8)), MergeStrategy.LINEAR, 1.0, MajoritySign.TOTAL),
    "single": ((("few", 0.5),), MergeStrategy.TIES, 0.3, MajoritySign.TOTAL),
    "ties": ((("all", 1.0), ("few", 0.7), ("stabilized", 0.4)), MergeStrategy.TIES, 0.5, MajoritySign.TOTAL),
    "ties-frequency": (
        (("all", 1.0), ("few", 0.7), ("stabilized", 0.4)),
        MergeStrategy.TIES,
        0.3,
        MajoritySign.FREQUENCY,
    ),
    "dare-linear": ((("all", 1.0), ("few", 0.7)), MergeStrategy.DARE_LINEAR, 0.6, MajoritySign.TOTAL),
    "dare-ties": ((("all", 1.0), ("few", 0.7)), MergeStrategy.DARE_TIES, 0.6, MajoritySign.FREQUENCY),
    "dare-whole": ((("all", 1.0), ("few", 0.7)), MergeStrategy.DARE_TIES, 1.0, MajoritySign.TOTAL),
}
PROMPTS = [[5, 9, 11, 40], [7, 60, 3, 8]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_adapter(base, tmp_path_factory.mktemp(name), seed, **options)
        for seed, (name, options) in enumerate(ADAPTERS.items(), start=1)
    }


@pytest.fixture(scope="module")
def peft_model(base: Path, adapters: dict[str, Path]) -> Any:
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with quiet_peft():
        for name, folder in adapters.items():
            if isinstance(model, PeftModel):
                model.load_adapter(folder, name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
    return model


def make_recipe(name: str) -> MergeRecipe:
    members, strategy, density, sign = MERGES[name]
    return MergeRecipe(tuple(MergeMember(*member) for member in members), strategy, density, sign, seed=3)


def write_merge(recipe: MergeRecipe, adapters: dict[str, Path], target: Path) -> Path:
    target.mkdir()
    merge_adapters([adapters[member.digest] for member in recipe.members], recipe, target)
    return target


def peft_merge(model: Any, recipe: MergeRecipe, name: str) -> dict[str, Tensor]:
    """Tensors of PEFT's merged adapter, by the names that a file has."""
    settings = {} if recipe.strategy is MergeStrategy.LINEAR else {"density": recipe.density}
    weights = [member.weight for member in recipe.members]
    model.add_weighted_adapter(
        [member.digest for member in recipe.members],
        weights,
        name,
        combination_type=str(recipe.strategy),
        majority_sign_method=str(recipe.majority_sign),
        **settings,
    )
    return {
        key.replace(f".{name}", ""): tensor for key, tensor in model.state_dict().items() if f".{name}" in f"{key}."
    }


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater:UserWarning")
@pytest.mark.parametrize("name", MERGES)
def test_merged_tensors_equal_those_of_peft(
    name: str, adapters: dict[str, Path], peft_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(name)
    ours = load_file(write_merge(recipe, adapters, tmp_path / "merged") / "adapter_model.safetensors")
    if recipe.strategy in (MergeStrategy.DARE_LINEAR, MergeStrategy.DARE_TIES):
        _share_masks(monkeypatch, recipe, adapters, peft_model)
    with quiet_peft():
        theirs = peft_merge(peft_model, recipe, f"of-{name}")
    # PEFT leaves zeros where no member has anything.
    assert set(ours) <= set(theirs)
    for key, tensor in theirs.items():
        if key in ours:
            torch.testing.assert_close(ours[key], tensor, atol=0, rtol=0)
        else:
            assert not tensor.any()


def _share_masks(monkeypatch: pytest.MonkeyPatch, recipe: MergeRecipe, adapters: dict[str, Path], model: Any) -> None:
    """Have PEFT drop what we drop: its own draws depend on all that was drawn before."""
    files = [load_file(adapters[member.digest] / "adapter_model.safetensors") for member in recipe.members]
    places = {
        tensor.numpy().tobytes(): (tensor, f"{place} {key}")
        for key in sorted(set().union(*files))
        for place, tensor in enumerate(file[key] for file in files if key in file)
    }

    def pruned(tensor: Tensor, density: float, rescale: bool) -> Tensor:
        assert rescale
        found, place = places[tensor.numpy().tobytes()]
        return tensor * drop_mask(found, recipe, place) / density

    monkeypatch.setattr("peft.utils.merge_utils.random_pruning", pruned)


@pytest.mark.parametrize("name", ["linear-negative", "linear-head", "linear-patterned", "ties", "dare-ties"])
def test_a_merged_folder_answers_in_peft_and_in_the_engine_alike(
    name: str, base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_merge(make_recipe(name), adapters, tmp_path / "merged")
    engine = Engine(EngineConfig(base, dtype=DType.FP32, kv_cache_bytes=1 << 20))
    engine.load_adapter("merged", folder)
    sampling = SamplingParams(max_new_tokens=12, ignore_eos=True)
    answers = engine.generate(
        [GenerationRequest(str(number), tuple(prompt), sampling, "merged") for number, prompt in enumerate(PROMPTS)]
    )
    assert list(answers.values()) == peft_answers(base, folder, PROMPTS, 12)
    assert list(answers.values()) != peft_answers(base, None, PROMPTS, 12)


def test_what_is_dropped_depends_on_the_seed_alone(adapters: dict[str, Path], tmp_path: Path) -> None:
    recipe = make_recipe("dare-linear")
    first, again, other = (
        (write_merge(item, adapters, tmp_path / str(number)) / "adapter_model.safetensors").read_bytes()
        for number, item in enumerate((recipe, recipe, replace(recipe, seed=4)))
    )
    assert first == again != other
    kept = drop_mask(torch.ones(100, 1000), recipe, "place").mean()
    assert float(kept) == pytest.approx(recipe.density, abs=0.01)


def test_members_of_different_rank_are_refused(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "wide", 9, r=6, target_modules=["q_proj"])
    recipe = MergeRecipe((MergeMember("few", 1.0), MergeMember("wide", 1.0)))
    with pytest.raises(AdapterRefusal, match="4 in few, 6 in wide"):
        write_merge(recipe, {**adapters, "wide": folder}, tmp_path / "merged")


@pytest.mark.parametrize(
    ("weight", "density", "strategy"),
    [(1e80, 1.0, MergeStrategy.LINEAR), (1.0, 5e-324, MergeStrategy.DARE_LINEAR), (1e80, 0.5, MergeStrategy.TIES)],
)
def test_what_would_not_be_finite_is_refused_with_its_numbers(
    adapters: dict[str, Path], tmp_path: Path, weight: float, density: float, strategy: MergeStrategy
) -> None:
    first, second = list(adapters)[:2]
    recipe = MergeRecipe((MergeMember(first, weight), MergeMember(second, 1.0)), strategy, density)
    with pytest.raises(AdapterRefusal, match="not finite: give smaller weights") as caught:
        write_merge(recipe, adapters, tmp_path / "merged")
    assert f"{weight:g}" in str(caught.value)


def test_dora_members_are_refused(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "dora", 9, r=4, target_modules=["q_proj"], use_dora=True)
    recipe = MergeRecipe((MergeMember("few", 1.0), MergeMember("dora", 1.0)))
    with pytest.raises(AdapterRefusal, match="DoRA"):
        write_merge(recipe, {**adapters, "dora": folder}, tmp_path / "merged")


def test_every_setting_is_part_of_the_identity() -> None:
    recipe = make_recipe("ties")
    changed = [
        replace(recipe, strategy=MergeStrategy.DARE_TIES),
        replace(recipe, density=0.51),
        replace(recipe, majority_sign=MajoritySign.FREQUENCY),
        replace(recipe, seed=4),
        replace(recipe, members=recipe.members[::-1]),
        replace(recipe, members=(replace(recipe.members[0], weight=0.9), *recipe.members[1:])),
    ]
    assert len({item.digest for item in (recipe, *changed)}) == len(changed) + 1


def test_the_config_has_no_scaling_left(adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = write_merge(make_recipe("linear-patterned"), adapters, tmp_path / "merged")
    config = LoraConfig.read(folder / "adapter_config.json")
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert {config.scaling(module) for module in targets} == {1.0}
    assert {config.rank(module) for module in targets} == {2, 4}
