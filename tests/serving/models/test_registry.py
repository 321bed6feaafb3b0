from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafleet_serving.exceptions import UnsupportedModel
from lorafleet_serving.models.eos import read_eos_token_ids
from lorafleet_serving.models.registry import load_model
from tests.serving.random_model import write_llama

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_llama(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS)


def test_unknown_architecture_is_refused_by_name(folder: Path) -> None:
    edit_config(folder, architectures=["GPT2LMHeadModel"])
    with pytest.raises(UnsupportedModel, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        load_model(folder, torch.float32, CPU)


def test_unknown_model_type_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="warp")
    with pytest.raises(UnsupportedModel, match="warp"):
        load_model(folder, torch.float32, CPU)


def test_quantized_model_is_refused(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UnsupportedModel, match="quantization_config"):
        load_model(folder, torch.float32, CPU)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        load_model(tmp_path, torch.float32, CPU)


def test_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        load_model(folder, torch.float32, CPU)


def test_damaged_weights_are_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        load_model(folder, torch.float32, CPU)


def test_missing_tensor_is_refused_by_name(folder: Path) -> None:
    edit_weights(folder, "model.layers.1.mlp.up_proj.weight", None)
    with pytest.raises(UnsupportedModel, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder, torch.float32, CPU)


def test_tensor_of_another_shape_is_refused_by_name(folder: Path) -> None:
    edit_weights(folder, "model.norm.weight", torch.ones(7))
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight.*\[7\].*\[48\]"):
        load_model(folder, torch.float32, CPU)


def test_tensor_that_the_architecture_does_not_know_is_refused(folder: Path) -> None:
    edit_weights(folder, "model.layers.0.self_attn.q_norm.weight", torch.ones(8))
    with pytest.raises(UnsupportedModel, match="q_norm"):
        load_model(folder, torch.float32, CPU)


def test_sharded_weights_are_read(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard)
    (folder / WEIGHTS).unlink()
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert load_model(folder, torch.float32, CPU).vocab_size == 97


def test_weights_stay_when_the_file_goes(folder: Path) -> None:
    model = load_model(folder, torch.float32, CPU)
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(0)
    assert model.vocab_size == 97
    assert bool(torch.isfinite(model.embedding.weight).all())


@pytest.mark.parametrize(("declared", "expected"), [(2, {2}), ([2, 5], {2, 5}), (None, {9})])
def test_end_tokens_come_from_the_generation_config_first(declared: object, expected: set[int], folder: Path) -> None:
    edit_config(folder, eos_token_id=9)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    assert read_eos_token_ids(folder) == expected
