"""What a method builds: which parameters train, and that a look at the validation loss changes no gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafleet_contract.digest import CONFIG_FILE
from lorafleet_pipeline.exceptions import InvalidSpec, TrainingError
from lorafleet_pipeline.spec import Method, MethodSection, Quantization
from lorafleet_pipeline.training.adapter import save_adapter
from lorafleet_pipeline.training.data import Batch, TokenizedExample, collate
from lorafleet_pipeline.training.loss import completion_loss
from lorafleet_pipeline.training.methods import METHODS, TrainableModel
from lorafleet_pipeline.training.methods.method import fast_dtype
from lorafleet_pipeline.training.trainer import TrainerData, validation_loss

CPU = torch.device("cpu")
TARGETS = ("q_proj", "v_proj", "down_proj")


def _build(folder: Path, method: Method, **options: Any) -> TrainableModel:
    torch.manual_seed(0)
    section = MethodSection(type=method, **{"r": 4, "target_modules": TARGETS, **options})
    return METHODS[method].build(folder, "the/base", section, CPU)


def _examples(count: int, seed: int = 0) -> list[TokenizedExample]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 20, (count,), generator=random).tolist()
    return [
        TokenizedExample(tuple(torch.randint(1, 100, (length,), generator=random).tolist()), length // 2)
        for length in lengths
    ]


def _batch() -> Batch:
    return collate(_examples(4), 0, CPU)


def _gradients(trained: TrainableModel) -> dict[str, torch.Tensor]:
    trained.model.train()
    trained.model.zero_grad()
    completion_loss(trained.model, _batch()).backward()  # type: ignore[no-untyped-call]
    return {name: value.grad.clone() for name, value in trained.model.named_parameters() if value.grad is not None}


def _stirred(folder: Path, method: Method) -> TrainableModel:
    """An adapter whose B is not zero, as it would be fresh: so A gets a gradient, too."""
    trained = _build(folder, method)
    with torch.no_grad():
        for name, value in trained.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    return trained


@pytest.mark.parametrize("method", list(Method))
def test_only_the_adapter_trains_and_in_full_precision(tiny_base: Path, method: Method) -> None:
    trained = _build(tiny_base, method)
    training = {name: value for name, value in trained.model.named_parameters() if value.requires_grad}
    assert len(training) == 2 * 2 * len(TARGETS)
    assert all("lora_" in name and value.dtype is torch.float32 for name, value in training.items())


def test_qlora_base_is_nf4(tiny_base: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    trained = _build(tiny_base, Method.QLORA)
    layers = [module for module in trained.model.modules() if isinstance(module, Linear4bit)]
    assert trained.trained_on == "nf4"
    assert layers
    assert {layer.weight.quant_state.quant_type for layer in layers} == {"nf4"}


def test_a_look_at_the_validation_loss_leaves_gradients_as_they_are(tiny_base: Path) -> None:
    trained = _stirred(tiny_base, Method.QLORA)
    data = TrainerData(train=(), validation=tuple(_examples(6, seed=1)), pad_id=0)
    before = _gradients(trained)
    losses = [validation_loss(trained.model, data, 2, CPU) for _ in range(2)]
    after = _gradients(trained)
    assert losses[0] == losses[1]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Every layer below the last one gets its gradient through quantized ones, which packing would cut off.
    assert all(value.abs().sum() > 0 for value in before.values())


# torch says of the packed product that it has no autograd, which is the point.
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit:UserWarning")
def test_bitsandbytes_still_needs_the_guard_against_packing(tiny_base: Path) -> None:
    """Fails once the library's own behaviour is safe; the guard can go then."""
    from bitsandbytes.nn import Linear4bit
    from bitsandbytes.nn.modules import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes never packs")
    trained = _build(tiny_base, Method.QLORA)
    for module in trained.model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    before = _gradients(trained)
    validation_loss(trained.model, TrainerData((), tuple(_examples(2)), 0), 2, CPU)
    after = _gradients(trained)
    assert any(name not in after or not torch.equal(before[name], after[name]) for name in before)


def test_loss_equals_that_over_all_logits(tiny_base: Path) -> None:
    trained = _build(tiny_base, Method.LORA)
    trained.model.eval()
    batch = _batch()
    with torch.no_grad():
        ours = completion_loss(trained.model, batch) / batch.num_completion_tokens
        whole = trained.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss.float()
    torch.testing.assert_close(ours, whole, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(fast_dtype(CPU) is torch.float32, reason="this CPU trains in fp32, which is exact")
def test_products_in_the_type_of_the_base_cost_gradients_no_precision(tiny_base: Path) -> None:
    """Against fp32: not much worse than PEFT's own way, which takes the input of each layer to fp32 and back."""
    trained, exact = _stirred(tiny_base, Method.LORA), _stirred(tiny_base, Method.LORA)
    exact.model.float()
    ours, theirs, wanted = _gradients(trained), _gradients_over_all_logits(trained), _gradients_over_all_logits(exact)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (ours[name] - gradient).norm() <= 1.5 * (theirs[name] - gradient).norm(), name


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_short_rows_get_the_gradients_that_the_fused_kernel_gives(
    tiny_base: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = _stirred(tiny_base, method)
    plain = _gradients(trained)
    monkeypatch.setattr("lorafleet_pipeline.training.loss._SHORT_LEN", 0)
    fused = _gradients(trained)
    assert any(not torch.equal(plain[name], fused[name]) for name in fused)  # Or both were the same kernel.
    for name, gradient in fused.items():
        torch.testing.assert_close(plain[name], gradient, rtol=0.1, atol=0.02 * gradient.abs().max().item())


def _gradients_over_all_logits(trained: TrainableModel) -> dict[str, torch.Tensor]:
    batch = _batch()
    trained.model.train()
    trained.model.zero_grad()
    logits = trained.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    targets = batch.labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: value.grad.clone() for name, value in trained.model.named_parameters() if value.grad is not None}


def test_missing_target_modules_are_named_with_those_there_are(tiny_base: Path) -> None:
    with pytest.raises(TrainingError, match=r"query_key_value.*choose from.*q_proj"):
        _build(tiny_base, Method.LORA, target_modules=("query_key_value",))


@pytest.mark.parametrize(("method", "form"), [(Method.LORA, Quantization.NF4), (Method.QLORA, Quantization.NONE)])
def test_a_form_of_the_base_that_the_method_lacks_is_refused(
    tiny_base: Path, method: Method, form: Quantization
) -> None:
    with pytest.raises(InvalidSpec, match="type: "):
        _build(tiny_base, method, quantization=form)


# PEFT reads a property that transformers has since renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_saved_adapter_is_two_files_that_peft_loads(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained = _build(tiny_base, Method.LORA)
    first, again = save_adapter(trained.model, tmp_path / "a"), save_adapter(trained.model, tmp_path / "a")
    assert first == again
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CONFIG_FILE, "adapter_model.safetensors"]
    config = json.loads((tmp_path / "a" / CONFIG_FILE).read_text())
    assert config["target_modules"] == sorted(TARGETS)
    assert config["base_model_name_or_path"] == "the/base"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "a")
    weights = {name: value for name, value in trained.model.named_parameters() if value.requires_grad}
    found = dict(loaded.named_parameters())
    assert all(torch.equal(found[name], value) for name, value in weights.items())
