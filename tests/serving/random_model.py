"""Small random models and adapters for them, written by transformers and PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 97


def write_llama(folder: Path, **options: object) -> Any:
    """Write a random Llama model and return it; `options` go over the config's defaults."""
    return write_model(folder, "llama", **options)


def write_model(folder: Path, family: str, **options: object) -> Any:
    """Write a random model of a family, named as transformers names it, and return it in fp32."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(settings | options))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        # Biases start as zeros, norms as ones: what leaves them out would not be found.
        if name.endswith("bias") or "norm" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def write_adapter(base: Path, folder: Path, seed: int = 0, /, **options: object) -> Path:
    """Write an adapter with random A and B, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    with quiet_peft():
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(**(settings | options)))
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:  # Starts as what changes nothing.
                parameter.data.mul_(1 + 0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)
    return folder


def peft_answers(
    base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """Greedy answers of PEFT in fp32 to prompts of one length."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        with quiet_peft():
            model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    # Prompts of one length need no padding, which would change what is computed.
    ids = torch.tensor([list(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    answers: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return answers


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings that PEFT gives for what is as it should be."""
    with warnings.catch_warnings():
        # PEFT reads a property that transformers has since renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # It says that it saves the base's tables as well, and that it would not merge into tied ones.
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)
        yield
