"""The KV cache's blocks: who holds which, and which hold something that can be used again.

A block is full, or the last of its sequence. Full computed blocks are remembered by a hash chained
over the adapter and all tokens up to their end, so that a later sequence of the same adapter with
the same beginning shares them. Free blocks keep what they hold until they are needed: those that
hold nothing go first, then the least recently used.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable

from lorafleet_serving.engine.sequence import Sequence


class BlockManager:
    """Gives out `num_blocks` blocks of `block_size` tokens and never more."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._prefix_caching = prefix_caching
        self._num_users = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_by_hash: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        """Blocks without users, the next one to give out first."""

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return self._num_blocks

    def allocate(self, sequence: Sequence, num_reserved: int) -> bool:
        """Give a sequence blocks for all of its tokens, those of a known beginning shared.

        Sets how many tokens are already computed; at least one is left to compute.

        Args:
            sequence: holds no blocks yet.
            num_reserved: blocks that must stay free.

        Returns:
            False, and nothing changed, if there are too few blocks.
        """
        assert not sequence.block_table, f"sequence {sequence.request_id} already holds blocks"
        shared = self._find_prefix(sequence)
        num_new = self._num_needed(sequence.num_tokens) - len(shared)
        num_revived = sum(self._num_users[block] == 0 for block in shared)
        if num_new + num_revived + num_reserved > self.num_free:
            return False
        for block in shared:
            self._hold(block)
        sequence.block_table = shared + [self._take() for _ in range(num_new)]
        sequence.num_computed = len(shared) * self._block_size
        return True

    def append(self, sequence: Sequence) -> bool:
        """See that a running sequence has room for its newest token; False if no block is free."""
        if len(sequence.block_table) >= self._num_needed(sequence.num_tokens):
            return True
        if not self._free:
            return False
        sequence.block_table.append(self._take())
        return True

    def num_spare(self, sequence: Sequence) -> int:
        """Tokens that a running sequence has room for behind its newest."""
        return len(sequence.block_table) * self._block_size - sequence.num_tokens

    def remember(self, sequence: Sequence, num_new: int) -> None:
        """Make the blocks that the last `num_new` computed tokens filled findable."""
        if not self._prefix_caching:
            return
        num_full = sequence.num_computed // self._block_size
        self._extend_hashes(sequence, num_full)
        for position in range((sequence.num_computed - num_new) // self._block_size, num_full):
            block, known = sequence.block_table[position], sequence.block_hashes[position]
            if known not in self._block_by_hash:
                self._hashes[block] = known
                self._block_by_hash[known] = block

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take all blocks back; with `forget`, also what they hold is not to be used again."""
        # Back to front, so that the front of a sequence, which more others share, stays longest.
        for block in reversed(sequence.block_table):
            if forget:
                self._forget(block)
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                self._free[block] = None
                if self._hashes[block] is None:
                    self._free.move_to_end(block, last=False)
        sequence.block_table = []
        sequence.num_computed = 0

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Check that users, free list and hashes agree with the block tables of all live sequences."""
        held = Counter(block for sequence in sequences for block in sequence.block_table)
        assert all(self._num_users[block] == held[block] for block in range(self._num_blocks)), (
            "the users of a block are not the sequences that hold it"
        )
        assert set(self._free) == set(range(self._num_blocks)) - set(held), "free and held blocks do not add up"
        remembered = {known: block for block, known in enumerate(self._hashes) if known is not None}
        assert remembered == self._block_by_hash, "hashes and blocks do not point at each other"

    def _num_needed(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        blocks: list[int] = []
        if not self._prefix_caching:
            return blocks
        num_usable = sequence.num_skippable // self._block_size
        self._extend_hashes(sequence, num_usable)
        for known in sequence.block_hashes[:num_usable]:
            block = self._block_by_hash.get(known)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes = sequence.block_hashes
        for position in range(len(hashes), num_blocks):
            # The chain starts from the adapter, so that no two adapters ever share a block.
            parent = hashes[-1] if hashes else (f"adapter:{sequence.adapter}" if sequence.adapter else "base").encode()
            start = position * self._block_size
            tokens = array("q", sequence.token_ids[start : start + self._block_size]).tobytes()
            hashes.append(hashlib.sha256(len(parent).to_bytes(4, "little") + parent + tokens).digest())

    def _hold(self, block: int) -> None:
        if self._num_users[block] == 0:
            del self._free[block]
        self._num_users[block] += 1

    def _take(self) -> int:
        block = next(iter(self._free))
        self._forget(block)
        self._hold(block)
        return block

    def _forget(self, block: int) -> None:
        known = self._hashes[block]
        if known is not None:
            del self._block_by_hash[known]
            self._hashes[block] = None
