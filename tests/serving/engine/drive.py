"""The scheduler with its real block manager and device slots, driven as the engine drives it, without a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch

from lorafleet_serving.adapters.slots import DeviceSlots
from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.request import ANONYMOUS, GenerationRequest, SamplingParams, Tenant
from lorafleet_serving.engine.scheduler import Chunk, Scheduler
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from lorafleet_serving.kernels.segments import LoraWeights

BLOCK = 4
ADAPTER_BYTES = 64


class Slots:
    """Device slots under the names of adapters."""

    def __init__(self, num_slots: int) -> None:
        self.tier = DeviceSlots(num_slots * ADAPTER_BYTES, torch.device("cpu"))

    def acquire(self, digest: str) -> bool:
        weights = AdapterWeights(digest, (LoraWeights(torch.zeros(1, ADAPTER_BYTES // 4), ()),))
        return self.tier.acquire(weights)

    def release(self, digest: str) -> None:
        self.tier.release(digest)


class SteadyPace(NamedTuple):
    """The same at every step."""

    num_tokens: int


@dataclass
class Drive:
    """What the engine does around the scheduler, and what one step promises."""

    num_blocks: int = 16
    num_slots: int = 2
    max_num_seqs: int = 4
    max_batched_tokens: int = 8
    max_prefill_tokens: int = 8
    max_overtakes: int = 3
    fairness_slack: int = 64
    priority_head_start: int = 256
    admitted: list[str] = field(default_factory=list)
    computed: Counter[str] = field(default_factory=Counter)
    """Tokens that were computed for each tenant, those that were computed again among them."""

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, BLOCK)
        self.slots = Slots(self.num_slots)
        self.scheduler = Scheduler(
            self.blocks,
            self.slots,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            pace=SteadyPace(self.max_prefill_tokens),
            max_overtakes=self.max_overtakes,
            fairness_slack=self.fairness_slack,
            priority_head_start=self.priority_head_start,
        )
        self.num_added = 0

    @property
    def num_preemptions(self) -> int:
        return self.scheduler.num_preemptions

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.waiting and not self.scheduler.running

    def add(
        self,
        num_tokens: int,
        num_new: int = 4,
        adapter: str | None = None,
        first_token: int = 0,
        *,
        tenant: Tenant = ANONYMOUS,
        priority: int = 0,
    ) -> Sequence:
        prompt = tuple(range(first_token, first_token + num_tokens))
        sampling = SamplingParams(max_new_tokens=num_new)
        request = GenerationRequest(str(self.num_added), prompt, sampling, adapter, tenant=tenant, priority=priority)
        sequence = Sequence(request, self.num_added)
        self.num_added += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        running = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.check(chunks)
        self.admitted += [sequence.request_id for sequence, _ in chunks if sequence not in running]
        for chunk in chunks:
            sequence, num_tokens = chunk
            samples = chunk.samples
            self.computed[sequence.request.tenant.name] += num_tokens
            sequence.num_computed += num_tokens
            self.blocks.remember(sequence, num_tokens)
            if samples:
                self.take_token(sequence)
        self.check_integrity()
        return chunks

    def take_token(self, sequence: Sequence) -> None:
        if sequence.num_generated + 1 >= sequence.request.sampling.max_new_tokens:
            self.scheduler.finish(sequence)
        else:
            sequence.token_ids.append(1000 + sequence.num_generated)

    def check(self, chunks: list[Chunk]) -> None:
        """The promises that one step makes."""
        assert chunks or self.is_idle, "nothing is scheduled while something waits"
        assert sum(num_tokens for _, num_tokens in chunks) <= self.max_batched_tokens
        assert len({sequence.request_id for sequence, _ in chunks}) == len(chunks)
        written: list[int] = []
        for sequence, num_tokens in chunks:
            assert sequence.status is SequenceStatus.RUNNING
            assert num_tokens >= 1
            assert sequence.num_computed + num_tokens <= len(sequence.block_table) * BLOCK
            last = (sequence.num_computed + num_tokens - 1) // BLOCK
            written += sequence.block_table[sequence.num_computed // BLOCK : last + 1]
        assert len(set(written)) == len(written), "two sequences write into one block"

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        self.slots.tier.check_integrity()

    def run(self, max_steps: int = 2000) -> int:
        for num_steps in range(max_steps):
            if self.is_idle:
                return num_steps
            self.step()
        pytest.fail(f"not done after {max_steps} steps")

    def check_empty(self) -> None:
        """Nothing is held by anybody."""
        assert self.is_idle
        assert self.blocks.num_free == self.num_blocks
        for index in range(self.num_slots):
            assert self.slots.acquire(f"new-{index}"), "an adapter is held by nobody"
