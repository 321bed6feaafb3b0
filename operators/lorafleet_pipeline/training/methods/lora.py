"""LoRA on an unquantized base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorafleet_pipeline.exceptions import InvalidSpec, TrainingError
from lorafleet_pipeline.spec import MethodSection, Quantization
from lorafleet_pipeline.training.methods.method import TrainableModel, fast_dtype

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Lora:
    """The base in bf16 where the device has it, else fp32; the adapter's weights in fp32."""

    def build(self, folder: Path, base_model: str, section: MethodSection, device: torch.device) -> TrainableModel:
        if section.base_form is not Quantization.NONE:
            raise InvalidSpec(
                f"method.quantization is {section.base_form} with method.type lora: write `type: qlora`, "
                "or leave quantization out"
            )
        from transformers import AutoModelForCausalLM

        dtype = fast_dtype(device)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device)
        form = "bf16" if dtype is torch.bfloat16 else "fp32"
        return TrainableModel(model=attach_lora(base, base_model, section), trained_on=form)


def attach_lora(base: PreTrainedModel, base_model: str, section: MethodSection) -> PeftModel:
    """Freeze the base and put a fresh LoRA adapter on it.

    Raises:
        TrainingError: the base lacks a target module.
    """
    from peft import LoraConfig, get_peft_model

    _require_modules(base, section.target_modules)
    base.requires_grad_(False)
    base.config.use_cache = False
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.r,
        lora_alpha=int(section.alpha) if float(section.alpha).is_integer() else section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.target_modules),
        use_rslora=section.use_rslora,
    )
    with warnings.catch_warnings():
        # PEFT reads a property that transformers has since renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = get_peft_model(base, config)
    # PEFT puts the base's folder here; it means nothing on another machine, and would enter the digest.
    model.peft_config["default"].base_model_name_or_path = base_model
    return model


def _require_modules(base: PreTrainedModel, wanted: tuple[str, ...]) -> None:
    linears = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    missing = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linears)]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linears})
        raise TrainingError(
            f"method.target_modules names {', '.join(missing)}, which the base model lacks: "
            f"choose from {', '.join(known)}"
        )
