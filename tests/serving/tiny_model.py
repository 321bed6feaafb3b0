"""A tiny random Llama with a tokenizer of printable ASCII, and random adapters for it."""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_MAX_POSITIONS = 256
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make_tiny_model(
    folder: Path,
    seed: int = 0,
    max_positions: int = _MAX_POSITIONS,
    tokenizer: Any | None = None,
    shape: Mapping[str, int] = _SHAPE,
) -> Path:
    """Write a model that answers with ASCII text, unless its tokenizer is another, and never ends by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **shape,
        max_position_embeddings=max_positions,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_tokenizer() -> Any:
    """A byte-pair tokenizer over printable ASCII, so that every token is plain text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [string.printable, "the cat sat on the mat and the dog sat on the log " * 3]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=160, special_tokens=["<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=_CHAT_TEMPLATE)


def make_blank_tokenizer() -> Any:
    """A tokenizer as that of Llama 2: blanks begin words, a text's first is taken away, rare characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    trained.train_from_iterator(
        [string.printable, "the capital of France is Paris, and that of Italy is Rome " * 3], trainer
    )
    learned = json.loads(trained.to_str())["model"]
    merges = [(first, second) for first, second in learned["merges"]]
    bpe = models.BPE(learned["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=_CHAT_TEMPLATE,
    )


def make_tiny_adapter(
    model: Path, folder: Path, seed: int, rank: int = 4, targets: Sequence[str] = ("q_proj", "v_proj", "down_proj")
) -> Path:
    """Write a random adapter as PEFT does, strong enough to change every answer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT reads a property that transformers has since renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder
