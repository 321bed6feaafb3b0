"""Adapter folders as PEFT writes them, and as it does not."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorafleet_serving.adapters.weights import AdapterWeights, stage_adapter
from lorafleet_serving.exceptions import AdapterRefusal, AdapterTooLarge, NoRoom
from lorafleet_serving.models.registry import LanguageModel, load_model
from tests.serving.random_model import write_adapter, write_llama

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
GIB = 1 << 30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def model(base: Path) -> LanguageModel:
    return load_model(base, torch.float32, torch.device("cpu"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])


def read(folder: Path, model: LanguageModel, dtype: torch.dtype = torch.float32) -> AdapterWeights:
    return stage_adapter("sha256:x", folder, model, dtype, GIB).finish(model)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def write_raw(folder: Path, header: object, num_data_bytes: int, num_header_bytes: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if num_header_bytes is None else num_header_bytes
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + text + bytes(num_data_bytes))


def test_merged_modules_are_stacked_with_their_own_ranks(base: Path, model: LanguageModel, tmp_path: Path) -> None:
    write_adapter(base, tmp_path, target_modules=["q_proj", "v_proj"], r=4, rank_pattern={"v_proj": 2})
    weights = read(tmp_path, model)
    site = weights.sites[0]
    assert site is not None
    qkv = site.dense()
    assert qkv.a.shape == (6, 48)
    assert [part[:4] for part in qkv.slices] == [(0, 48, 0, 4), (64, 80, 4, 6)]
    assert [part.b.shape for part in qkv.slices] == [(48, 4), (16, 2)]
    assert weights.sites[1] is None
    tensors = load_file(tmp_path / WEIGHTS)
    assert torch.equal(qkv.a[:4], tensors[f"{Q_PROJ}.lora_A.weight"])
    torch.testing.assert_close(qkv.slices[0].b, tensors[f"{Q_PROJ}.lora_B.weight"] * 2)


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({"r": 4, "lora_alpha": 6}, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, 1.5),
        ({"r": 4, "lora_alpha": 6, "rank_pattern": {"q_proj": 9}, "use_rslora": True}, 2.0),
        ({"r": 4, "lora_alpha": 6, "rank_pattern": {"^model.layers.0.self_attn.q_proj$": 3}}, 2.0),
    ],
)
def test_b_is_scaled_once_at_load(
    base: Path, model: LanguageModel, tmp_path: Path, options: dict[str, object], scaling: float
) -> None:
    write_adapter(base, tmp_path, target_modules=["q_proj"], **options)
    qkv = read(tmp_path, model).sites[0]
    assert qkv is not None
    torch.testing.assert_close(
        qkv.dense().slices[0].b, load_file(tmp_path / WEIGHTS)[f"{Q_PROJ}.lora_B.weight"] * scaling
    )


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": r".*layers\.1\.mlp\.(up|down)_proj"},
        {"target_modules": ["model.layers.0.mlp.gate_proj"]},
        {"target_modules": ["up_proj"], "init_lora_weights": "gaussian"},
    ],
)
def test_whatever_peft_targets_is_read(
    base: Path, model: LanguageModel, tmp_path: Path, options: dict[str, object]
) -> None:
    write_adapter(base, tmp_path, **options)
    num_modules = sum(len(weights.dense().slices) for weights in read(tmp_path, model).sites if weights is not None)
    assert num_modules * 2 == len(load_file(tmp_path / WEIGHTS))


def test_tensors_take_the_format_of_the_base(adapter: Path, model: LanguageModel) -> None:
    weights = read(adapter, model, torch.bfloat16)
    assert weights.num_bytes * 2 == read(adapter, model).num_bytes
    assert all(site.dense().a.dtype is torch.bfloat16 for site in weights.sites if site is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read(adapter: Path, model: LanguageModel, dtype: torch.dtype) -> None:
    edit_tensors(adapter, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    assert read(adapter, model).num_bytes > 0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"invented_later": True}, "invented_later"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}, "lack base_model.model.lm_head.lora_A"),
        (
            {"target_modules": ["q_proj", "v_proj", "down_proj", "embed_tokens"]},
            "lack base_model.model.model.embed_tokens.lora_embedding_A",
        ),
        ({"target_modules": ["warp_proj"]}, "warp_proj"),
        ({"target_modules": []}, "target_modules"),
        ({"exclude_modules": ".*"}, "exclude_modules"),
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4'"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "adapter config"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "adapter config"),
        ({"rank_pattern": {"(a+)+$": 4}}, "pattern key"),
        ({"rank_pattern": [1]}, "adapter config"),
        ({"layers_to_transform": "1"}, "layers_to_transform"),
    ],
)
def test_config_that_is_not_served_is_refused_by_name(
    adapter: Path, model: LanguageModel, changes: dict[str, object], name: str
) -> None:
    edit_config(adapter, **changes)
    with pytest.raises(AdapterRefusal) as caught:
        read(adapter, model)
    assert name in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)])
def test_config_that_cannot_be_read_is_refused(adapter: Path, model: LanguageModel, content: bytes) -> None:
    (adapter / CONFIG).write_bytes(content)
    with pytest.raises(AdapterRefusal, match=CONFIG):
        read(adapter, model)


def test_infinite_alpha_is_refused(adapter: Path, model: LanguageModel) -> None:
    edit_config(adapter, lora_alpha=math.inf)
    with pytest.raises(AdapterRefusal, match="lora_alpha"):
        read(adapter, model)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_missing_file_is_refused_by_name(adapter: Path, model: LanguageModel, missing: str) -> None:
    (adapter / missing).unlink()
    with pytest.raises(AdapterRefusal, match=missing):
        read(adapter, model)


def test_pickled_weights_are_never_read(adapter: Path, model: LanguageModel) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterRefusal, match="pickle"):
        read(adapter, model)


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.lora_A.weight"), "lack"),
        (lambda t: t.update({f"{Q_PROJ}.base_layer.weight": torch.ones(48, 48)}), "a weight of the base model"),
        (lambda t: [t.pop(f"{Q_PROJ}.lora_{part}.weight") for part in "AB"], "lack"),
        (lambda t: t.update({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(48)}), "lora_magnitude_vector"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(97, 48)}), "lm_head"),
        (lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 47)}), r"\[4, 47\].*\[4, 48\]"),
        (lambda t: t.update({f"{Q_PROJ}.lora_B.weight": torch.ones(48, 5)}), r"\[48, 5\].*\[48, 4\]"),
        (lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.full((4, 48), math.nan)}), "not finite"),
        (lambda t: t.update({f"{Q_PROJ}.lora_B.weight": torch.full((48, 4), 3e38)}), "not finite"),
        (lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 48, dtype=torch.float64)}), "F64"),
        (lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 48, dtype=torch.int32)}), "I32"),
        (lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(0, 48)}), "positive"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    adapter: Path, model: LanguageModel, edit: Callable[[dict[str, torch.Tensor]], object], name: str
) -> None:
    edit_tensors(adapter, edit)
    with pytest.raises(AdapterRefusal, match=name):
        read(adapter, model)


def test_adapter_of_a_larger_model_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    write_llama(tmp_path / "large", num_hidden_layers=3)
    write_adapter(tmp_path / "large", tmp_path / "adapter")
    with pytest.raises(AdapterRefusal, match=r"layers\.2"):
        read(tmp_path / "adapter", model)


def test_adapter_beyond_the_budget_is_refused_before_it_is_read(adapter: Path, model: LanguageModel) -> None:
    with pytest.raises(AdapterTooLarge, match="may take 100"):
        stage_adapter("sha256:x", adapter, model, torch.float32, 100)
    with pytest.raises(NoRoom, match="100 are left"):
        stage_adapter("sha256:x", adapter, model, torch.float32, GIB, 100)


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 500, -1])
def test_truncated_weights_are_refused(adapter: Path, model: LanguageModel, num_bytes: int) -> None:
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[:num_bytes])
    with pytest.raises(AdapterRefusal, match=WEIGHTS):
        read(adapter, model)


A_HEADER = {"dtype": "F32", "shape": [4, 48], "data_offsets": [0, 768]}


@pytest.mark.parametrize(
    ("header", "num_data_bytes", "num_header_bytes"),
    [
        ({}, 0, 1 << 62),  # a header larger than any memory
        (b" " * (17 << 20), 0, None),  # a header larger than any adapter's
        ({}, 100, None),  # data that nothing claims
        ([], 0, None),
        (b"\xff\xff", 0, None),
        (b"[" * 100_000, 0, None),
        ({"x": {**A_HEADER, "shape": [1 << 40, 1 << 40]}}, 768, None),
        ({"x": {**A_HEADER, "shape": [-4, -48]}}, 768, None),
        ({"x": {**A_HEADER, "data_offsets": [0, 1 << 60]}}, 768, None),
        ({"x": {**A_HEADER, "data_offsets": [-768, 0]}}, 768, None),
        ({"x": {**A_HEADER, "shape": "4x48"}}, 768, None),
        ({"x": {**A_HEADER, "shape": [2**62] * 600_000}}, 768, None),  # a product that takes hours
        ({"x": 5}, 768, None),
        ({f"{Q_PROJ}.lora_A.weight": A_HEADER, f"{Q_PROJ}.lora_B.weight": A_HEADER}, 1536, None),  # overlap
    ],
)
def test_hostile_header_is_refused(
    adapter: Path, model: LanguageModel, header: object, num_data_bytes: int, num_header_bytes: int | None
) -> None:
    write_raw(adapter, header, num_data_bytes, num_header_bytes)
    with pytest.raises(AdapterRefusal):
        read(adapter, model)


def test_tables_that_came_along_must_be_the_base_models_own(base: Path, model: LanguageModel, tmp_path: Path) -> None:
    write_adapter(base, tmp_path, target_modules=["embed_tokens", "lm_head"])
    table = "base_model.model.lm_head.base_layer.weight"
    assert table in load_file(tmp_path / WEIGHTS)
    assert read(tmp_path, model).num_bytes > 0
    edit_tensors(tmp_path, lambda tensors: tensors[table][5].mul_(1.01))
    with pytest.raises(AdapterRefusal, match=r"lm_head.*own table"):
        read(tmp_path, model)


def test_dora_at_the_embedding_is_refused(base: Path, model: LanguageModel, tmp_path: Path) -> None:
    write_adapter(base, tmp_path, target_modules=["embed_tokens", "q_proj"], use_dora=True)
    with pytest.raises(AdapterRefusal, match="use_dora at the embedding"):
        read(tmp_path, model)


def test_dora_takes_the_memory_that_was_asked_for(base: Path, model: LanguageModel, tmp_path: Path) -> None:
    write_adapter(base, tmp_path, use_dora=True)
    num_bytes = read(tmp_path, model).num_bytes
    stage_adapter("sha256:x", tmp_path, model, torch.float32, num_bytes)
    with pytest.raises(AdapterTooLarge):
        stage_adapter("sha256:x", tmp_path, model, torch.float32, num_bytes - 1)


class AllocatedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # Torch's are, here and below.
    """Memory of the tensors that operators made and that are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._living: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        known = _storages((args, kwargs)).keys()
        result = func(*args, **(kwargs or {}))
        # What operators only look at anew is the file's, which lies in no memory of ours.
        self._living |= {storage: size for storage, size in _storages(result).items() if storage not in known}
        expired = {storage for storage in self._living if storage.expired()}  # type: ignore[no-untyped-call]
        self._living = {storage: size for storage, size in self._living.items() if storage not in expired}
        self.peak = max(self.peak, sum(self._living.values()))
        return result


def _storages(values: object) -> dict[StorageWeakRef, int]:
    """Sizes of what tensors lie in, where that can be told: oneDNN does not of its own."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_is_read_in_little_more_memory_than_it_keeps(tmp_path: Path, dora: bool) -> None:
    write_llama(tmp_path / "base", num_hidden_layers=12)
    folder = write_adapter(tmp_path / "base", tmp_path / "adapter", use_dora=dora, r=32)
    model = load_model(tmp_path / "base", torch.bfloat16, torch.device("cpu"))
    with AllocatedBytes() as allocated:
        weights = read(folder, model, torch.bfloat16)
    assert weights.num_bytes <= allocated.peak < 1.25 * weights.num_bytes, "more than one of 48 sites lies there twice"
