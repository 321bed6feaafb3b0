"""Training data: tokens with the loss on the completion alone, in batches whose order depends on the seed alone.

The batch at a position is a function of seed and position, so a run resumes exactly where it stopped by knowing
its step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from lorafleet_pipeline.datasets.dataset import Example
from lorafleet_pipeline.exceptions import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position without loss."""
_BUCKET_BATCHES = 8
"""Batches that are cut from one run of examples sorted by length: less padding, and still well mixed."""


@dataclass(frozen=True)
class TokenizedExample:
    """Prompt, completion and end-of-sequence tokens."""

    token_ids: tuple[int, ...]
    prompt_len: int


@dataclass(frozen=True)
class TokenizedSplit:
    """Examples that fit, and how many did not."""

    examples: tuple[TokenizedExample, ...]
    num_left_out: int


@dataclass(frozen=True)
class Batch:
    """Padded examples. Shapes are `[num_examples, longest]`."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    num_tokens: int
    num_completion_tokens: int


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Token ids of prompts as the pod makes them: a chat prompt is the user's turn of the base's template."""
    if chat:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    # A chat template writes its own begin-of-sequence token.
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=not chat)["input_ids"]
    return ids


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, chat: bool, max_len: int
) -> TokenizedSplit:
    """Tokenize examples; those longer than `max_len` are left out, since a cut answer teaches to break off.

    Raises:
        TrainingError: none of them fits.
    """
    if not examples:
        return TokenizedSplit(examples=(), num_left_out=0)
    prompts = encode_prompts(tokenizer, [example.prompt for example in examples], chat=chat)
    completions = tokenizer([example.completion for example in examples], add_special_tokens=False)["input_ids"]
    tokenized = [
        TokenizedExample(token_ids=(*prompt, *completion, tokenizer.eos_token_id), prompt_len=len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    kept = tuple(example for example in tokenized if len(example.token_ids) <= max_len)
    if not kept:
        shortest = min(len(example.token_ids) for example in tokenized)
        raise TrainingError(
            f"all {len(tokenized)} examples are longer than training.max_len {max_len} (the shortest has {shortest} "
            "tokens): raise training.max_len or shorten the prompt"
        )
    return TokenizedSplit(examples=kept, num_left_out=len(tokenized) - len(kept))


@dataclass(frozen=True)
class BatchPlan:
    """Which examples stand in which batch, for as many epochs as are asked for."""

    lengths: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def num_batches(self) -> int:
        """Batches of one epoch; the last one drawn may be smaller."""
        return -(-len(self.lengths) // self.batch_size)

    def batch(self, position: int) -> tuple[int, ...]:
        """Indices of the examples in the batch at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self.num_batches)
        return _epoch(self, epoch)[offset]


@lru_cache(maxsize=2)
def _epoch(plan: BatchPlan, epoch: int) -> tuple[tuple[int, ...], ...]:
    order = random.Random(f"{plan.seed}:{epoch}")
    indices = list(range(len(plan.lengths)))
    order.shuffle(indices)
    bucket_len = plan.batch_size * _BUCKET_BATCHES
    batches: list[tuple[int, ...]] = []
    for start in range(0, len(indices), bucket_len):
        bucket = sorted(indices[start : start + bucket_len], key=lambda index: plan.lengths[index])
        batches += [tuple(bucket[at : at + plan.batch_size]) for at in range(0, len(bucket), plan.batch_size)]
    order.shuffle(batches)
    return tuple(batches)


def collate(examples: Sequence[TokenizedExample], pad_id: int, device: torch.device) -> Batch:
    """Pad examples on the right to the longest of them."""
    longest = max(len(example.token_ids) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_id)
    attention_mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.token_ids)
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        labels[row, example.prompt_len : len(tokens)] = tokens[example.prompt_len :]
    return Batch(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        labels=labels.to(device),
        num_tokens=sum(len(example.token_ids) for example in examples),
        # The first token of a row is predicted from nothing and carries no loss.
        num_completion_tokens=int((labels[:, 1:] != IGNORED).sum()),
    )
