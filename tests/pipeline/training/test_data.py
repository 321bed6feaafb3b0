"""Tokens, labels and the order of batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from lorafleet_pipeline.datasets.dataset import Example
from lorafleet_pipeline.exceptions import TrainingError
from lorafleet_pipeline.training.data import (
    IGNORED,
    BatchPlan,
    TokenizedExample,
    collate,
    encode_prompts,
    tokenize,
)
from tests.serving.tiny_model import make_tiny_tokenizer

CPU = torch.device("cpu")


def test_loss_lies_on_completion_and_end_token_alone() -> None:
    tokenizer = make_tiny_tokenizer()
    (example,) = tokenize([Example("say cat:", " the cat", 1)], tokenizer, chat=False, max_len=64).examples
    batch = collate([example], 0, CPU)
    kept = batch.labels[0][batch.labels[0] != IGNORED].tolist()
    assert tokenizer.decode(kept) == " the cat<end>"
    assert kept[-1] == tokenizer.eos_token_id
    assert batch.num_completion_tokens == len(kept)
    assert tokenizer.decode(example.token_ids[: example.prompt_len]) == "say cat:"


def test_examples_that_are_too_long_are_left_out_and_counted() -> None:
    examples = [Example("a", "b", 1), Example("a" * 100, "b", 2)]
    split = tokenize(examples, make_tiny_tokenizer(), chat=False, max_len=20)
    assert (len(split.examples), split.num_left_out) == (1, 1)


def test_a_limit_that_no_example_meets_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"training\.max_len 16"):
        tokenize([Example("a" * 100, "b", 1)], make_tiny_tokenizer(), chat=False, max_len=16)


def test_chat_prompt_is_the_users_turn_of_the_bases_template() -> None:
    tokenizer = make_tiny_tokenizer()
    (ids,) = encode_prompts(tokenizer, ["the cat"], chat=True)
    assert tokenizer.decode(ids) == "<user>the cat\n<assistant>"


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_tokenized_as_the_pod_does(tiny_base: Path, chat: bool) -> None:
    from lorafleet_serving.tokenizer import PodTokenizer

    prompts = ["say cat:", "the dog sat\non the log 42"]
    pod = PodTokenizer(tiny_base)
    ours = encode_prompts(AutoTokenizer.from_pretrained(tiny_base), prompts, chat=chat)
    assert [tuple(ids) for ids in ours] == [pod.encode_rendered(prompt, chat=chat) for prompt in prompts]


def test_rows_are_padded_to_the_longest_and_padding_is_masked() -> None:
    batch = collate([TokenizedExample((5, 6, 7), 1), TokenizedExample((5, 6), 1)], 9, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 6, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7], [IGNORED, 6, IGNORED]]
    assert (batch.num_tokens, batch.num_completion_tokens) == (5, 3)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_every_example_comes_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(tuple(lengths), batch_size, seed)
    positions = range(epoch * plan.num_batches, (epoch + 1) * plan.num_batches)
    drawn = [index for position in positions for index in plan.batch(position)]
    assert sorted(drawn) == list(range(len(lengths)))
    assert all(len(plan.batch(position)) <= batch_size for position in positions)


def test_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    lengths = tuple(range(1, 65))
    first = [BatchPlan(lengths, 4, 0).batch(position) for position in range(40)]
    again = [BatchPlan(lengths, 4, 0).batch(position) for position in reversed(range(40))][::-1]
    other = [BatchPlan(lengths, 4, 1).batch(position) for position in range(40)]
    assert first == again
    assert first != other
    assert first[:16] != first[16:32]


def test_batches_hold_examples_of_like_length() -> None:
    lengths = tuple([10] * 100 + [100] * 100)
    plan = BatchPlan(lengths, 10, 0)
    padded = sum(max(lengths[i] for i in plan.batch(p)) * len(plan.batch(p)) for p in range(plan.num_batches))
    assert padded < 1.2 * sum(lengths)
