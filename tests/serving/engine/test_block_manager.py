from __future__ import annotations

from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.request import GenerationRequest
from lorafleet_serving.engine.sequence import Sequence

BLOCK = 4


def make_sequence(tokens: list[int], adapter: str | None = None) -> Sequence:
    return Sequence(GenerationRequest("r", tuple(tokens), adapter=adapter), arrival=0)


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    num_new = sequence.num_remaining
    sequence.num_computed += num_new
    blocks.remember(sequence, num_new)


def test_sequence_gets_blocks_for_all_its_tokens() -> None:
    blocks = BlockManager(4, BLOCK)
    sequence = make_sequence([1] * 9)
    assert blocks.allocate(sequence, num_reserved=0)
    assert len(sequence.block_table) == 3
    assert blocks.num_free == 1
    blocks.check_integrity([sequence])


def test_allocation_beyond_the_budget_changes_nothing() -> None:
    blocks = BlockManager(2, BLOCK)
    sequence = make_sequence([1] * 9)
    assert not blocks.allocate(sequence, num_reserved=0)
    assert not sequence.block_table
    assert blocks.num_free == 2


def test_allocation_leaves_the_reserve_free() -> None:
    blocks = BlockManager(3, BLOCK)
    assert not blocks.allocate(make_sequence([1] * 9), num_reserved=1)
    assert blocks.allocate(make_sequence([1] * 8), num_reserved=1)


def test_append_takes_a_block_only_when_the_last_is_full() -> None:
    blocks = BlockManager(2, BLOCK)
    sequence = make_sequence([1] * 4)
    assert blocks.allocate(sequence, num_reserved=0)
    compute(blocks, sequence)
    sequence.token_ids.append(5)
    assert blocks.append(sequence)
    assert blocks.append(sequence)
    assert len(sequence.block_table) == 2
    sequence.token_ids += [5] * 4
    assert not blocks.append(sequence)


def test_same_beginning_is_shared_and_not_computed_again() -> None:
    blocks = BlockManager(8, BLOCK)
    first, second = make_sequence([*range(8), 50]), make_sequence([*range(8), 60, 61])
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    assert blocks.allocate(second, num_reserved=0)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.num_computed == 8
    blocks.check_integrity([first, second])
    blocks.free(first)
    blocks.check_integrity([second])


def test_at_least_one_token_is_left_to_compute() -> None:
    blocks = BlockManager(8, BLOCK)
    first, second = make_sequence([*range(8)]), make_sequence([*range(8)])
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    assert blocks.allocate(second, num_reserved=0)
    assert second.num_remaining == 4


def test_adapters_and_base_never_share_blocks() -> None:
    blocks = BlockManager(16, BLOCK)
    sequences = [make_sequence([*range(9)], adapter) for adapter in (None, "sha256:a", "sha256:b", "base")]
    for sequence in sequences:
        assert blocks.allocate(sequence, num_reserved=0)
        assert sequence.num_computed == 0
        compute(blocks, sequence)
    assert len({block for sequence in sequences for block in sequence.block_table}) == 12


def test_same_tokens_after_another_beginning_are_not_shared() -> None:
    blocks = BlockManager(8, BLOCK)
    first, second = make_sequence([1] * 4 + [7] * 5), make_sequence([2] * 4 + [7] * 5)
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    assert blocks.allocate(second, num_reserved=0)
    assert second.num_computed == 0


def test_freed_blocks_are_found_again_until_they_are_needed() -> None:
    blocks = BlockManager(3, BLOCK)
    first = make_sequence([*range(9)])
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    blocks.free(first)
    again = make_sequence([*range(9)])
    assert blocks.allocate(again, num_reserved=0)
    assert again.num_computed == 8
    blocks.free(again)
    other = make_sequence([50] * 12)
    assert blocks.allocate(other, num_reserved=0)
    blocks.free(other)
    last = make_sequence([*range(9)])
    assert blocks.allocate(last, num_reserved=0)
    assert last.num_computed == 0
    blocks.check_integrity([last])


def test_blocks_without_content_are_given_out_before_remembered_ones() -> None:
    blocks = BlockManager(4, BLOCK)
    first = make_sequence([*range(9)])
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    blocks.free(first)
    assert blocks.allocate(make_sequence([50] * 8), num_reserved=0)
    again = make_sequence([*range(9)])
    again.token_ids = again.token_ids[:8]
    assert blocks.allocate(again, num_reserved=0)
    assert again.num_computed == 4


def test_forgotten_blocks_are_not_found_again() -> None:
    blocks = BlockManager(4, BLOCK)
    first = make_sequence([*range(9)])
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    blocks.free(first, forget=True)
    again = make_sequence([*range(9)])
    assert blocks.allocate(again, num_reserved=0)
    assert again.num_computed == 0
    blocks.check_integrity([again])


def test_without_prefix_caching_nothing_is_shared() -> None:
    blocks = BlockManager(8, BLOCK, prefix_caching=False)
    first, second = make_sequence([*range(9)]), make_sequence([*range(9)])
    assert blocks.allocate(first, num_reserved=0)
    compute(blocks, first)
    assert blocks.allocate(second, num_reserved=0)
    assert second.num_computed == 0
